package sshgate

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// directTCPIP is the payload of a forwarded port (RFC 4254, 7.2).
type directTCPIP struct {
	Address    string
	Port       uint32
	Origin     string
	OriginPort uint32
}

// forward serves one connection to a forwarded port: a session like any other,
// whose program connects from the host. Nothing is accepted before the host has
// connected, so that a client hears why not, as from sshd.
func (c *conn) forward(n ssh.NewChannel) {
	d, err := parse[directTCPIP](n.ExtraData())
	if err == nil {
		err = c.userErr
	}
	if err != nil {
		_ = n.Reject(ssh.ConnectionFailed, clean(err.Error()))
		return
	}
	p := &port{channel: newChannel(c, nil), n: n, decided: make(chan struct{})}
	p.bare, p.started = true, true
	p.req.Forward = net.JoinHostPort(d.Address, strconv.FormatUint(uint64(d.Port), 10))
	opening, done := context.WithTimeout(c.ctx, openTime)
	p.live, err = c.g.d.Sessions.Open(opening, c.by, p.req)
	done()
	if err != nil {
		_ = n.Reject(ssh.Prohibited, "handrail: "+clean(refusal(fault.From(err))))
		return
	}
	if p.live.Own(p) != nil {
		p.reject("")
	}
	select {
	case <-p.decided:
	case <-c.ctx.Done():
		p.reject("")
	}
	if p.requests == nil {
		p.live.Hangup()
		return
	}
	go p.input(p.live, false)
	p.serve(p.requests)
}

// port is who owns the session of a forwarded port.
type port struct {
	*channel
	n        ssh.NewChannel
	once     sync.Once
	decided  chan struct{} // the channel was accepted or rejected
	requests <-chan *ssh.Request
	why      []byte // what the host said before it connected
}

func (p *port) accept() {
	p.once.Do(func() {
		defer close(p.decided)
		ch, requests, err := p.n.Accept()
		if err != nil {
			return
		}
		p.ch, p.requests = ch, requests
	})
}

func (p *port) reject(why string) {
	p.once.Do(func() {
		defer close(p.decided)
		_ = p.n.Reject(ssh.ConnectionFailed, clean(why))
	})
}

// maxWhy bounds what a client is told of a connection that failed.
const maxWhy = 512

// Deliver implements session.Owner.
func (p *port) Deliver(e session.Event) error {
	switch {
	case p.ch != nil:
	case e.Kind == session.Output || e.Kind == session.ErrorOutput && string(e.Data) == wire.ForwardConnected:
		if p.accept(); p.ch == nil {
			return io.ErrClosedPipe
		}
	case e.Kind == session.ErrorOutput:
		p.why = append(p.why, e.Data[:min(len(e.Data), maxWhy-len(p.why))]...)
		return nil
	case e.Kind == session.Exit:
		p.reject(strings.TrimSpace(string(p.why)))
		return nil
	default:
		return nil
	}
	return p.channel.Deliver(e)
}

// Abort implements session.Owner. A client that does not even take the answer
// loses its connection.
func (p *port) Abort() {
	late := time.AfterFunc(abortTime, func() { _ = p.c.raw.Close() })
	go func() {
		p.reject("")
		<-p.decided
		late.Stop()
		if p.ch != nil {
			p.channel.Abort()
		}
	}()
}
