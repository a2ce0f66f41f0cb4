// Package sshgate lets stock SSH clients in: ssh, scp, sftp, rsync, git. It ends
// the SSH itself; there is no second SSH hop, and no port, agent or X11
// forwarding round the recorder: a forwarded port is a recorded session too.
//
// The user part says where to and how: `ssh HOST@gateway` reads, `ssh
// HOST+write@gateway` writes and needs a grant. Who somebody is comes from
// their certificate, their enrolled key, or a code that they type into the
// page. What they may do is decided for every channel anew, by the doorway.
//
// What must stay true: a request is answered before its effect is visible, and
// all output is written before exit-status and close, or fast commands lose
// bytes. A channel whose client is gone ends its session. Everything a stranger
// can make us hold is bounded: handshakes, their time, tries, waiting codes.
package sshgate

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/crowd"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

// Sessions opens sessions. *session.Sessions is one.
type Sessions interface {
	Open(ctx context.Context, by identity.Principal, req session.OpenRequest) (*session.Live, error)
}

// People says who somebody is. *identity.People is one.
type People interface {
	AuthenticateSSH(ctx context.Context, cert *ssh.Certificate) (identity.Principal, error)
	AuthenticateKey(ctx context.Context, key ssh.PublicKey) (identity.Principal, error)
	NewCode(ctx context.Context, r identity.CodeRequest) (code string, wait func(ctx context.Context) (identity.Principal, error), err error)
	FailedLogin(source, reason string)
}

// Deps is what Gate needs.
type Deps struct {
	Sessions Sessions
	People   People
	HostKeys []ssh.Signer // with a host certificate, and bare
	CodeURL  string       // of the page where a code is typed in
	Bounds   Bounds
	Log      *slog.Logger
}

// Bounds are what strangers and clients may use; zero fields take the defaults.
type Bounds struct {
	Connections   int           // at once; 10,000
	Handshakes    int           // strangers at once; 512
	PerSource     int           // strangers at once from one address; 128
	HandshakeTime time.Duration // 20 s
	CodeTime      time.Duration // how long a client may wait for its code; 3 min
	Codes         int           // clients waiting for a code at once; 32
	Channels      int           // open in one connection; 10
}

func (b Bounds) withDefaults() Bounds {
	num := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	num(&b.Connections, 10_000)
	num(&b.Handshakes, 512)
	num(&b.PerSource, 128)
	num(&b.Codes, 32)
	num(&b.Channels, 10)
	if b.HandshakeTime == 0 {
		b.HandshakeTime = 20 * time.Second
	}
	if b.CodeTime == 0 {
		b.CodeTime = 3 * time.Minute
	}
	return b
}

// Gate is the SSH server.
type Gate struct {
	d         Deps
	b         Bounds
	strangers *crowd.Crowd
	codes     chan struct{}
	refusals  chan struct{}
	wg        sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// New returns a Gate.
func New(d Deps) *Gate {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	b := d.Bounds.withDefaults()
	return &Gate{d: d, b: b, strangers: crowd.New(b.Handshakes, b.PerSource), codes: make(chan struct{}, b.Codes),
		refusals: make(chan struct{}, maxRefusals), conns: map[net.Conn]struct{}{}}
}

// Serve accepts connections until ctx ends, then closes them all and waits for
// their sessions' ends to be handed on.
func (g *Gate) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer func() {
		g.mu.Lock()
		for c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.wg.Wait()
	}()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if errors.As(err, &temporary) && temporary.Temporary() {
			select { // out of file descriptors, as a rule; others may end meanwhile
			case <-time.After(50 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot accept SSH connections")
		}
		if !g.enter(c) {
			g.turnAway(c)
			continue
		}
		go func() {
			defer g.leave(c)
			g.handle(ctx, c)
		}()
	}
}

func (g *Gate) enter(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.b.Connections {
		return false
	}
	g.conns[c] = struct{}{}
	g.wg.Add(1)
	return true
}

func (g *Gate) leave(c net.Conn) {
	c.Close()
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
	g.wg.Done()
}

func sourceOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}
