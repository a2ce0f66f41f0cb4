package sshgate

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/identity"
)

// conn is one authenticated connection.
type conn struct {
	g           *Gate
	ctx         context.Context
	raw         net.Conn
	ssh         *ssh.ServerConn
	by          identity.Principal
	expires     time.Time // of the certificate; zero: none
	host, level string
	userErr     error

	mu       sync.Mutex
	channels int
	noMore   bool
}

func (g *Gate) handle(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source := sourceOf(c)
	raw := g.strangers.Admit(c)
	h := &handshake{g: g, ctx: ctx, raw: raw, source: source}
	_ = raw.SetDeadline(time.Now().Add(g.b.HandshakeTime))
	sc, channels, requests, err := ssh.NewServerConn(raw, h.config())
	raw.Known()
	if err != nil {
		if h.failed != "" {
			g.d.People.FailedLogin(source, h.failed)
		}
		return
	}
	_ = raw.SetDeadline(time.Time{})
	defer sc.Close()
	x := &conn{g: g, ctx: ctx, raw: raw, ssh: sc}
	x.by, _ = sc.Permissions.ExtraData[principalKey{}].(identity.Principal)
	x.expires, _ = sc.Permissions.ExtraData[expiryKey{}].(time.Time)
	if x.by.ID == "" {
		return
	}
	x.host, x.level, x.userErr = ParseUser(sc.User())
	go x.globals(requests)
	for n := range channels {
		x.accept(n)
	}
}

// globals answers requests about the connection. Ports of the host are not
// forwarded to people; keepalives only need any answer.
func (c *conn) globals(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.Type == "no-more-sessions@openssh.com" {
			c.mu.Lock()
			c.noMore = true
			c.mu.Unlock()
		}
		if r.WantReply {
			_ = r.Reply(r.Type == "keepalive@openssh.com", nil)
		}
	}
}

const noForwarding = "handrail forwards no agents, displays or remote ports: everything goes through a recorded session"

// accept takes sessions and forwarded ports, and only so many.
func (c *conn) accept(n ssh.NewChannel) {
	port := n.ChannelType() == "direct-tcpip"
	if n.ChannelType() != "session" && !port {
		_ = n.Reject(ssh.Prohibited, noForwarding)
		return
	}
	c.mu.Lock()
	full := c.channels >= c.g.b.Channels
	refused := c.noMore && !port
	if !full && !refused {
		c.channels++
	}
	c.mu.Unlock()
	switch {
	case refused:
		_ = n.Reject(ssh.Prohibited, "this connection said that it opens no more sessions")
		return
	case full:
		_ = n.Reject(ssh.ResourceShortage, "too many sessions in one connection")
		return
	case !c.expires.IsZero() && time.Now().After(c.expires):
		c.release()
		_ = n.Reject(ssh.Prohibited, "your certificate has expired: handrail login")
		return
	}
	if port {
		go func() {
			defer c.release()
			c.forward(n)
		}()
		return
	}
	ch, requests, err := n.Accept()
	if err != nil {
		c.release()
		return
	}
	go func() {
		defer c.release()
		newChannel(c, ch).serve(requests)
	}()
}

func (c *conn) release() {
	c.mu.Lock()
	c.channels--
	c.mu.Unlock()
}

const (
	// maxRefusals is how many at once are told why they are not let in.
	maxRefusals = 16
	refusalTime = 2 * time.Second
)

// turnAway tells a client in its own protocol that there is no room, as far
// as RFC 4253 allows before keys are exchanged: a version and a disconnect.
func (g *Gate) turnAway(c net.Conn) {
	select {
	case g.refusals <- struct{}{}:
	default:
		c.Close()
		return
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() { <-g.refusals }()
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(refusalTime))
		text := fmt.Sprintf("handrail: %d connections are open here, and there is no room for more; try again in a minute", g.b.Connections)
		if _, err := c.Write(append([]byte(serverVersion+"\r\n"), disconnect(tooManyConnections, text)...)); err != nil {
			return
		}
		// What the client says must be read, or its end resets ours before it is seen.
		_, _ = io.CopyN(io.Discard, c, 64<<10)
	}()
}
