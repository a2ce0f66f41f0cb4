// Package link is the network half of a node, without privilege. It keeps the
// connections to a server, carries orders to the warden and sessions back, and
// reports facts and events. Nothing that it says or forges can start a
// session: the warden checks everything again.
//
//	server ══ control: NATS (leases, brakes, facts, events), terminals ══ link ── warden
//	       ══ bulk: commands and sftp ══════════════════════════════════╝
//
// Two connections, so that a copy does not make a keystroke wait. When either
// ends, both do, and everything starts again from the next address.
package link

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

// Config is what a link needs to know.
type Config struct {
	Dir     string // key, certificate, server addresses; written by Join
	Socket  string // the warden's unix socket
	Version string
	Log     *slog.Logger // nil: discard
	// Dial reaches a server; nil is the network's own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Ready is called once it begins; nil is nobody.
	Ready func()
	// Connected is told of every established connection; nil is nobody.
	Connected func(address string)
	// Entrance is where people with vouchers come in while no server answers;
	// "" is nowhere.
	Entrance string
	// EntranceOpen is told when it opens; nil is nobody.
	EntranceOpen func(address string)
}

const (
	firstBackoff = 200 * time.Millisecond
	lastBackoff  = 15 * time.Second
	settled      = 30 * time.Second // a connection that lived so long starts the backoff anew
	helloTimeout = 15 * time.Second
)

type link struct {
	c      Config
	id     *identity
	warden *warden.Client
	log    *slog.Logger
}

// Run keeps the node connected until ctx ends.
func Run(ctx context.Context, c Config) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	id, err := load(c.Dir)
	if err != nil {
		return err
	}
	l := &link{c: c, id: id, warden: warden.NewClient(c.Socket), log: c.Log}
	defer l.warden.Close()
	if c.Ready != nil {
		c.Ready()
	}
	entrance := make(chan struct{})
	go func() {
		defer close(entrance)
		l.keepEntrance(ctx)
	}()
	defer func() { <-entrance }()
	backoff := firstBackoff
	var t tour
	for {
		at, lap := t.next(id.known())
		if lap {
			backoff = min(2*backoff, lastBackoff)
		}
		began := time.Now()
		err := l.connect(ctx, at)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > settled {
			backoff = firstBackoff
			t.settle()
		}
		l.log.Warn("the connection to the server ended", "address", at.Address, "error", err)
		// Full jitter: a thousand nodes must not come back in one instant.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(firstBackoff/2 + rand.N(max(backoff, moveWithin))):
		}
	}
}

// connect serves one pair of connections until one of them ends.
func (l *link) connect(ctx context.Context, at wire.ServerAt) error {
	status, err := l.warden.Status(ctx)
	if err != nil {
		return err
	}
	if status.Node != l.id.Host {
		return fault.New(fault.Conflict, "cannot connect: the link is of host %s, the warden of %s", l.id.Host, status.Node).
			WithHint("remove both folders and join again")
	}
	control, answer, err := l.open(ctx, at, wire.UseControl, status)
	if err != nil {
		return err
	}
	defer control.Close()
	bulk, _, err := l.open(ctx, at, wire.UseBulk, status)
	if err != nil {
		return err
	}
	defer bulk.Close()
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { control.Close(); bulk.Close() })
	defer stop()
	b, err := l.join(ctx, control, answer)
	if err != nil {
		return err
	}
	defer b.close()
	l.log.Info("connected", "address", at.Address)
	if l.c.Connected != nil {
		l.c.Connected(at.Address)
	}
	// Orders wait in the streams' queue until there is a lease to act on.
	if err := b.lease(ctx); err != nil {
		l.log.Warn("no lease", "error", err)
	}
	g.Go(func() error { return b.leases(ctx) })
	g.Go(func() error { return b.facts(ctx) })
	g.Go(func() error { return b.events(ctx) })
	g.Go(func() error { return b.renewals(ctx) })
	g.Go(func() error { return b.servers(ctx, at.ID) })
	g.Go(func() error { return b.announce(ctx) })
	g.Go(func() error { return b.journals(ctx) })
	g.Go(func() error { return b.ended(ctx) })
	g.Go(func() error { return l.sessions(ctx, control, b) })
	g.Go(func() error { return l.sessions(ctx, bulk, b) })
	return g.Wait()
}

// open dials, says hello and shares the connection.
func (l *link) open(ctx context.Context, at wire.ServerAt, use string, s warden.Status) (*mux.Session, wire.HelloAnswer, error) {
	var answer wire.HelloAnswer
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	c, err := l.id.dial(ctx, l.c.Dial, at)
	if err != nil {
		return nil, answer, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	hello := wire.Hello{V: 1, Use: use, Version: l.c.Version, Mode: s.Mode, Missing: s.Missing, Floor: s.Floor, Trial: s.Trial, Cosigned: s.Cosigned}
	if err = wire.WriteLine(c, hello); err == nil {
		err = wire.ReadLine(c, &answer)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	if err != nil {
		c.Close()
		return nil, answer, fault.Wrap(fault.Unavailable, err, "cannot connect to %s", at.Address)
	}
	return mux.Client(c), answer, nil
}
