package sshgate

import (
	"context"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
)

// directTCPIP is the payload of a forwarded port (RFC 4254, 7.2).
type directTCPIP struct {
	Address    string
	Port       uint32
	Origin     string
	OriginPort uint32
}

// forward serves one connection to a forwarded port: a session like any other,
// whose program connects from the host. Nothing is accepted before the session
// is live, so that a client hears why not.
func (c *conn) forward(n ssh.NewChannel) {
	d, err := parse[directTCPIP](n.ExtraData())
	if err == nil {
		err = c.userErr
	}
	if err != nil {
		_ = n.Reject(ssh.ConnectionFailed, clean(err.Error()))
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	x := newChannel(c, nil)
	x.bare, x.started = true, true
	x.req.Forward = net.JoinHostPort(d.Address, strconv.FormatUint(uint64(d.Port), 10))
	opening, done := context.WithTimeout(ctx, openTime)
	live, err := c.g.d.Sessions.Open(opening, c.by, x.req)
	done()
	if err != nil {
		_ = n.Reject(ssh.Prohibited, "handrail: "+clean(refusal(fault.From(err))))
		return
	}
	ch, requests, err := n.Accept()
	if err != nil {
		live.Hangup()
		return
	}
	x.ch, x.live = ch, live
	go func() {
		if live.Own(x) != nil {
			_ = ch.Close()
			return
		}
		x.input(live, false)
	}()
	x.serve(requests)
}
