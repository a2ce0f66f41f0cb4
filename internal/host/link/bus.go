package link

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sensor"
	"handrail.dev/handrail/internal/host/warden"
)

const (
	leaseEvery   = 3 * time.Second
	leaseTimeout = 2500 * time.Millisecond
	leaseGiveUp  = 20 * time.Second // no lease for so long: try another server
	factsEvery   = 15 * time.Second
	factsFull    = 10 * time.Minute
	askTimeout   = 5 * time.Second
	maxBrakes    = 32 // at once
)

// bus is the NATS side of a control connection.
type bus struct {
	l    *link
	nc   *nats.Conn
	gone chan struct{}
}

// channel gives nats.go a stream instead of a socket.
type channel struct{ m *mux.Session }

// Dial implements nats.CustomDialer.
func (c channel) Dial(string, string) (net.Conn, error) {
	s, err := c.m.Open()
	if err != nil {
		return nil, err
	}
	if err := wire.WriteStreamKind(s, wire.StreamNATS); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// SkipTLSHandshake says that the channel is inside TLS already.
func (channel) SkipTLSHandshake() bool { return true }

// join opens the NATS channel and listens for brakes before anything else.
func (l *link) join(ctx context.Context, control *mux.Session, a wire.HelloAnswer) (*bus, error) {
	b := &bus{l: l, gone: make(chan struct{})}
	nc, err := nats.Connect("nats://handrail.invalid:4222",
		nats.SetCustomDialer(channel{control}), nats.SkipHostLookup(), nats.UserInfo(a.NATSUser, a.NATSPass),
		nats.CustomInboxPrefix(wire.InboxPrefix(l.id.Host)), nats.NoReconnect(), nats.IgnoreDiscoveredServers(),
		nats.PingInterval(5*time.Second), nats.Timeout(10*time.Second),
		nats.ClosedHandler(func(*nats.Conn) { close(b.gone) }))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the message channel")
	}
	b.nc = nc
	slots := make(chan struct{}, maxBrakes)
	brake := func(m *nats.Msg) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			b.brake(ctx, m)
		}()
	}
	for _, subject := range []string{wire.DownSubject(l.id.Host, wire.DownBrake), wire.FleetSubject(wire.DownBrake)} {
		if _, err := nc.Subscribe(subject, brake); err != nil {
			nc.Close()
			return nil, fault.Wrap(fault.Unavailable, err, "cannot listen for brakes")
		}
	}
	if err := nc.FlushWithContext(timed(ctx, askTimeout)); err != nil {
		nc.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot listen for brakes")
	}
	return b, nil
}

func (b *bus) close() {
	b.nc.Close()
	<-b.gone
}

func (b *bus) ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-b.gone:
		return fault.New(fault.Unavailable, "the message channel was closed")
	}
}

// timed is ctx with a bound; it ends by itself.
func timed(ctx context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// brake hands a brake to the warden and answers with what it did.
func (b *bus) brake(ctx context.Context, m *nats.Msg) {
	a, err := b.l.warden.Brake(timed(ctx, askTimeout), m.Data)
	if err != nil {
		b.l.log.Error("a brake was refused", "error", err)
		a = wire.BrakeAnswer{V: 1, Node: b.l.id.Host, Error: err.Error()}
	}
	if m.Reply == "" {
		return
	}
	if out, err := json.Marshal(a); err == nil {
		_ = m.Respond(out)
	}
}

// leases keeps the warden's lease fresh.
func (b *bus) leases(ctx context.Context) error {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err := b.lease(ctx)
		if err == nil {
			last = time.Now()
		} else if ctx.Err() == nil {
			b.l.log.Warn("no lease", "error", err)
		}
		if time.Since(last) > leaseGiveUp {
			return fault.Wrap(fault.Unavailable, err, "no lease for %s", leaseGiveUp)
		}
	}
}

func (b *bus) lease(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	raw, err := b.l.warden.LeaseAsk(ctx)
	if err != nil {
		return err
	}
	ask, err := wire.ParseLeaseAsk(raw)
	if err != nil {
		return err
	}
	m, err := b.nc.RequestWithContext(ctx, wire.UpSubject(b.l.id.Host, wire.UpLease), raw)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot get a lease")
	}
	if err := b.l.id.learn(wire.PeekLeaseBundle(m.Data)); err != nil {
		b.l.log.Error("a trust bundle was refused", "error", err)
	}
	return b.withProof(ctx, func(from int64, proof []tlog.Hash) error {
		return b.l.warden.Lease(ctx, ask.Nonce, m.Data, from, proof)
	})
}

// withProof does what may need a consistency proof, and gets it. What the
// warden has seen may move on in between, so that it may ask again.
func (b *bus) withProof(ctx context.Context, do func(from int64, proof []tlog.Hash) error) error {
	const tries = 64 // what the warden knows moves on with every order that is faster
	err := do(0, nil)
	for range tries {
		var need *warden.Need
		if !errors.As(err, &need) {
			return err
		}
		proof, perr := b.consistency(ctx, need.Old, need.New)
		if perr != nil {
			return perr
		}
		err = do(need.At, proof)
	}
	return err
}

func (b *bus) consistency(ctx context.Context, old, size int64) ([]tlog.Hash, error) {
	q, err := json.Marshal(wire.ConsistencyAsk{V: 1, Old: old, New: size})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, wire.UpSubject(b.l.id.Host, wire.UpConsistency), q)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot get the proof from tree %d to %d", old, size)
	}
	var a wire.ConsistencyAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the proof from tree %d to %d", old, size)
	}
	if a.Error != "" {
		return nil, fault.New(fault.Unavailable, "cannot get the proof from tree %d to %d: %s", old, size, a.Error)
	}
	return wire.ParseHashList(a.Hashes)
}

// facts reports what the host says of itself: all at first and now and then,
// else what changed.
func (b *bus) facts(ctx context.Context) error {
	tick := time.NewTicker(factsEvery)
	defer tick.Stop()
	var before []wire.Fact
	var full time.Time
	for {
		now := sensor.Read("/")
		report := wire.Facts{V: 1, At: time.Now().UnixMicro(), Facts: sensor.Delta(before, now)}
		if time.Since(full) > factsFull {
			report.Full, report.Facts, full = true, now, time.Now()
		}
		if len(report.Facts) > 0 {
			out, err := json.Marshal(report)
			if err != nil {
				return err
			}
			if err := b.nc.Publish(wire.UpSubject(b.l.id.Host, wire.UpFacts), out); err != nil {
				return fault.Wrap(fault.Unavailable, err, "cannot report facts")
			}
		}
		before = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// events carries the warden's events up, one after the other. Each is sent
// until a server says that it has it.
func (b *bus) events(ctx context.Context) error {
	ack := ""
	for {
		e, ok, err := b.l.warden.NextEvent(ctx, ack)
		if err == nil && ok {
			err = b.deliver(ctx, e)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			b.l.log.Warn("an event was not delivered", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		case ok:
			ack = e.ID
		}
	}
}

func (b *bus) deliver(ctx context.Context, e wire.Event) error {
	out, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err = b.nc.RequestWithContext(ctx, wire.UpSubject(b.l.id.Host, wire.UpEvent), out)
	return err
}
