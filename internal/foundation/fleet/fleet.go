// Package fleet reaches the nodes: it holds their connections, answers their
// leases, sends orders and brakes, and keeps what they report of themselves.
//
// A node opens the connections; this side never dials one. The certificate is
// the node's identity. An order goes out only for a doorway.Pass, with the
// proof that it is in the ledger; a brake goes out on the order key's signature
// alone, because it only takes power away. What nodes report is an
// observation: shown to people, never decided on.
package fleet

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of fleet.
const (
	NodeConnected ledger.Action = "node.connected"
	NodeLeft      ledger.Action = "node.left"
	NodeAlarmed   ledger.Action = "node.alarmed"
	NodeReported  ledger.Action = "node.reported"
	NodeRenewed   ledger.Action = "node.renewed"
)

// Actions lists the ledger actions of fleet.
func Actions() []ledger.Action {
	return []ledger.Action{NodeConnected, NodeLeft, NodeAlarmed, NodeReported, NodeRenewed}
}

// Epochs are what fences orders: a node that has seen higher ones refuses.
type Epochs struct {
	Lock, Policy int64
	Person       map[string]int64
}

// Deps is what Fleet needs.
type Deps struct {
	Store *store.Store
	Ring  *keyring.Ring
	// Known says whether the host may still connect (it was not removed).
	Known func(ctx context.Context, host string) error
	// Became hears what a host's node says that it is, for example without
	// root, and tells whether that is new; an error keeps it out. It may be nil.
	Became func(ctx context.Context, host string, hello wire.Hello) (changed bool, err error)
	// Ordered says whether that session was ever ordered on the host; nil is yes.
	Ordered func(ctx context.Context, host, session string) (bool, error)
	// Epochs are read for each lease.
	Epochs func(ctx context.Context) (Epochs, error)
	// Cosigned waits for a checkpoint of at least that size that outside
	// witnesses cosigned, for hosts that demand it; nil is none.
	Cosigned func(ctx context.Context, size int64) (tlog.Tree, []byte, error)
	// Up answers what a node asks by further names, nil is no answer.
	Up map[string]func(ctx context.Context, host string, data []byte) []byte
	// Revoked are the vouchers that are void before their time; nil is none.
	Revoked func(ctx context.Context) ([]uint64, error)
	// Changed is called after a host's presence or facts changed.
	Changed func(host string)
	// Cluster makes this server one of several; nil is one alone.
	Cluster *Cluster
	// Answer does what another server asks; Braked hears of a brake that
	// another server pulled; PeerAPI takes a connection on which another
	// server speaks the API for a person. They may be nil.
	Answer  func(ctx context.Context, from, what string, body []byte) ([]byte, error)
	Braked  func(b wire.Brake)
	PeerAPI func(net.Conn)
	Log     *slog.Logger
}

// Fleet is the server's end of all nodes.
type Fleet struct {
	d       Deps
	bus     *bus
	between *between // with the other servers; nil: there are none

	draining  atomic.Bool
	relays    atomic.Int64  // connections that are carried for other servers
	looks     chan struct{} // capacity 1: what other servers know is looked at anew
	factsRead time.Time     // only Run touches it

	mu          sync.Mutex
	nodes       map[string]*node
	peers       map[string]Peer
	detours     map[string]time.Time // servers that were not reached straight, and until when that is believed
	list        []byte               // of servers, signed
	listVersion int64
}

// New starts the message bus. Run must follow.
func New(ctx context.Context, d Deps) (*Fleet, error) {
	f := &Fleet{d: d, nodes: map[string]*node{}, detours: map[string]time.Time{}, looks: make(chan struct{}, 1)}
	var err error
	if f.bus, err = newBus(f.clusterOptions); err != nil {
		return nil, err
	}
	if d.Cluster != nil {
		f.between = newBetween(f)
	}
	if err := f.load(ctx); err != nil {
		f.bus.close()
		return nil, err
	}
	return f, nil
}

// Run answers nodes until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.bus.close()
	answers := map[string]func(context.Context, string, []byte) []byte{
		wire.UpLease:       f.lease,
		wire.UpConsistency: f.consistency,
		wire.UpBundle:      f.bundle,
		wire.UpFacts:       f.facts,
		wire.UpEvent:       f.event,
		wire.UpRenew:       f.renew,
		wire.UpServers:     f.servers,
	}
	maps.Copy(answers, f.d.Up)
	for name, answer := range answers {
		pace := func(host string) (time.Duration, bool) { return f.pace(host, name) }
		if err := f.bus.serve(ctx, wire.UpWildcard(name), pace, answer); err != nil {
			return err
		}
	}
	if f.between != nil {
		if err := f.between.join(ctx, f.bus.conn); err != nil {
			return err
		}
		if err := f.between.attach(ctx, f.d.Cluster.Outside); err != nil {
			return err
		}
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			f.dropAll()
			return nil
		case <-f.looks:
		case <-tick.C:
			f.markStale()
			f.drainIdle()
		}
		if err := f.lookElsewhere(ctx); err != nil && ctx.Err() == nil {
			f.d.Log.Warn("what other servers know of their nodes cannot be read", "error", err)
		}
	}
}

// Brake sends a brake and says what it did on each node that answered.
// Nodes that are away are missing from the answers; they stop by themselves
// when their lease runs out.
func (f *Fleet) Brake(ctx context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	signed, err := wire.SignBrake(b, f.d.Ring.Order())
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot sign a brake")
	}
	ctx, cancel := context.WithTimeout(ctx, brakeTime)
	defer cancel()
	if b.Node == wire.EveryNode {
		elsewhere := make(chan []wire.BrakeAnswer, 1)
		go func() { elsewhere <- f.brakeElsewhere(ctx, b, signed) }()
		out, err := f.brakeHere(ctx, b, signed, f.connected())
		return append(out, <-elsewhere...), err
	}
	out, err := f.brakeHere(ctx, b, signed, []string{b.Node})
	if err == nil && len(out) == 0 {
		out = f.brakeElsewhere(ctx, b, signed)
	}
	if err == nil && len(out) == 0 {
		err = fault.New(fault.Unavailable, "cannot ask the node of %s: it does not answer", b.Node).WithHint("handrail host show %s", b.Node)
	}
	return out, err
}

const (
	// brakeTime bounds the wait for nodes to say that all is dead.
	brakeTime = 5 * time.Second
	// staleAfter is how old a lease may be before a host is shown as stale.
	staleAfter = 10 * time.Second
)
