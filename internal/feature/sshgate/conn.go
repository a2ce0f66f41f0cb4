package sshgate

import (
	"context"
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

func (g *Gate) handle(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source := sourceOf(raw)
	if !g.door.enter(source) {
		return
	}
	h := &handshake{g: g, ctx: ctx, raw: raw, source: source}
	_ = raw.SetDeadline(time.Now().Add(g.b.HandshakeTime))
	sc, channels, requests, err := ssh.NewServerConn(raw, h.config())
	g.door.leave(source)
	if err != nil {
		if h.failed != "" {
			g.d.People.FailedLogin(source, h.failed)
		}
		return
	}
	_ = raw.SetDeadline(time.Time{})
	defer sc.Close()
	c := &conn{g: g, ctx: ctx, raw: raw, ssh: sc}
	c.by, _ = sc.Permissions.ExtraData[principalKey{}].(identity.Principal)
	c.expires, _ = sc.Permissions.ExtraData[expiryKey{}].(time.Time)
	if c.by.ID == "" {
		return
	}
	c.host, c.level, c.userErr = ParseUser(sc.User())
	go c.globals(requests)
	for n := range channels {
		c.accept(n)
	}
}

// globals answers requests about the connection. Forwarding is refused;
// keepalives only need any answer.
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

const noForwarding = "handrail forwards no ports, agents or displays: everything goes through a recorded session"

// accept takes session channels only, and only so many.
func (c *conn) accept(n ssh.NewChannel) {
	if n.ChannelType() != "session" {
		_ = n.Reject(ssh.Prohibited, noForwarding)
		return
	}
	c.mu.Lock()
	full := c.channels >= c.g.b.Channels
	refused := c.noMore
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
