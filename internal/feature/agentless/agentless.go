// Package agentless reaches hosts that have no node, through their own sshd.
//
//	session.opened in the ledger ─▶ proof ─▶ dial ─▶ pinned host key ─▶ certificate ─▶ one command
//
// The server logs in with a key that lives in memory and a certificate that is
// good for five minutes and for one session. What the session does is recorded
// by the server as any other. What keeps it within bounds is the account that
// it runs as, and nothing else: there is no sandbox, no cgroup, nobody on the
// host who checks a proof. So everything that shows such a session says so, and
// policy refuses it where it asks for more.
//
// What must stay true:
//   - Nothing is dialled before the session is in the ledger, with its proof.
//   - A host is its pinned key. Another key is refused, recorded, and alarms.
//   - One session, one connection, one certificate; the certificate names the
//     session and the person, and runs one forced command.
//   - A session outlives its certificate, so this package ends it: at its
//     deadline, at a brake, when its stream closes. Then what it left behind is
//     sought and killed, and the ledger is told what was found or not reached.
//   - What a host sends is bounded in size, number and time, and believed only
//     as its own word.
package agentless

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of this package.
const (
	HostMismatched ledger.Action = "host.mismatched" // a host showed another key than the pinned one
	SessionSwept   ledger.Action = "session.swept"   // what a session left behind, or that nobody could look
)

// Actions lists the ledger actions of this package.
func Actions() []ledger.Action { return []ledger.Action{HostMismatched, SessionSwept} }

// Ring makes keys with certificates. *keyring.Ring is one.
type Ring interface {
	SignSSHHop(keyring.Hop) (ssh.Signer, *ssh.Certificate, error)
}

// Deps is what Reach needs.
type Deps struct {
	Store *store.Store
	Ring  Ring
	// Dial reaches a host; nil is the network's own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Changed is called after what is known of a host changed. It may be nil.
	Changed func(host string)
	Visits  VisitDeps
	Bounds  Bounds
	Log     *slog.Logger
}

// Bounds are what a host may cost us; zero fields take the defaults.
type Bounds struct {
	DialTime  time.Duration // to connect; 10 s
	LoginTime time.Duration // from the connection to a login; 20 s
	SweepTime time.Duration // to look for what a session left behind; 2.5 s
	KeepAlive time.Duration // how often a host is asked whether it is there; 15 s
	Silence   time.Duration // after which a host that answers no keepalive is gone; 30 s
	Sweeps    int           // at once; 32
}

func (b Bounds) withDefaults() Bounds {
	for _, d := range []struct {
		at *time.Duration
		is time.Duration
	}{{&b.DialTime, 10 * time.Second}, {&b.LoginTime, 20 * time.Second}, {&b.SweepTime, 2500 * time.Millisecond}, {&b.Silence, 30 * time.Second}, {&b.KeepAlive, 15 * time.Second}} {
		if *d.at == 0 {
			*d.at = d.is
		}
	}
	if b.Sweeps == 0 {
		b.Sweeps = 32
	}
	return b
}

// Reach opens sessions on hosts without a node.
type Reach struct {
	d      Deps
	b      Bounds
	sweeps chan struct{}
	wg     sync.WaitGroup // sweeps under way

	mu     sync.Mutex
	live   map[string]*Stream // by session
	seen   map[string]Sight   // by host
	alarms map[string]alarmed // by host
	visits map[string]*visit  // by host

	programs programs
}

// New returns a Reach.
func New(d Deps) *Reach {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Changed == nil {
		d.Changed = func(string) {}
	}
	b := d.Bounds.withDefaults()
	if d.Dial == nil {
		d.Dial = (&net.Dialer{Timeout: b.DialTime, KeepAlive: 15 * time.Second}).DialContext
	}
	return &Reach{d: d, b: b, sweeps: make(chan struct{}, b.Sweeps), live: map[string]*Stream{}, seen: map[string]Sight{}, alarms: map[string]alarmed{},
		visits: map[string]*visit{}}
}

// Run waits for ctx to end, then closes every connection and waits until what
// sessions left behind was sought.
func (r *Reach) Run(ctx context.Context) error {
	<-ctx.Done()
	for _, s := range r.where(func(*Stream) bool { return true }) {
		_ = s.Close()
	}
	r.mu.Lock()
	visits := maps.Clone(r.visits)
	r.mu.Unlock()
	for host, v := range visits {
		v.mu.Lock()
		v.users = 0
		r.drop(host, v)
		v.mu.Unlock()
	}
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(4 * r.b.SweepTime): // what was not reached by now is found at the next start
	}
	return nil
}

// States of a host without a node, as it was last met.
const (
	StateUntried  = "never"
	StateReached  = "online"
	StateAway     = "offline"
	StateMismatch = "mismatch" // it showed another key than the pinned one
	StateRefused  = "refused"  // it did not take our certificate
)

// Sight is how a host was last met. It is an observation.
type Sight struct {
	State string
	At    time.Time
	Why   string
}

// Seen is how a host was last met.
func (r *Reach) Seen(host string) Sight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.seen[host]; ok {
		return s
	}
	return Sight{State: StateUntried}
}

func (r *Reach) saw(host, state, why string) {
	r.mu.Lock()
	was := r.seen[host].State
	r.seen[host] = Sight{State: state, At: time.Now(), Why: why}
	r.mu.Unlock()
	if was != state {
		r.d.Changed(host)
	}
}

// residue is what a read or write session on a host without a node can do
// beyond what a node would allow.
var residue = []string{
	"no node: no kernel of ours keeps this session from writing, connecting or signalling; only the rights of its account do",
	"nobody on the host checks that this session is in the ledger; the server alone says so",
	"what the session leaves behind is sought by its environment and audit session; a process that hides from both stays",
}

// Residue says it to people.
func Residue() []string { return slices.Clone(residue) }

// Start opens the session that the pass recorded for this host. An error with
// an answer whose kind is set means that nothing ran there.
func (r *Reach) Start(ctx context.Context, pass doorway.Pass, host string) (*Stream, wire.SessionAnswer, error) {
	order, h, err := r.order(ctx, pass, host)
	if err == nil && order.Kind != wire.KindSessionStart {
		err = fault.New(fault.Internal, "cannot open a session on %s: the pass recorded a %s", host, order.Kind)
	}
	if err != nil {
		return nil, wire.SessionAnswer{}, err
	}
	s, err := r.open(ctx, h, *order.Session)
	if err != nil {
		return nil, wire.Refusal(err), err
	}
	return s, wire.SessionAnswer{OK: true, Floor: wire.FloorAccount, Missing: residue, Account: s.account}, nil
}

// Resume lets a paused session go on.
func (r *Reach) Resume(ctx context.Context, pass doorway.Pass, host string) error {
	order, _, err := r.order(ctx, pass, host)
	if err != nil {
		return err
	}
	s := r.where(func(s *Stream) bool { return order.Session != nil && s.spec.ID == order.Session.ID })
	if order.Kind != wire.KindSessionResume || len(s) == 0 {
		return fault.New(fault.NotFound, "cannot resume a session on %s: it is not here", host)
	}
	return s[0].resume(ctx)
}

// order is what the pass recorded for the host, once the ledger proves it.
func (r *Reach) order(ctx context.Context, pass doorway.Pass, host string) (wire.OrderPayload, target.Host, error) {
	var none wire.OrderPayload
	h := pass.Act().Host
	if !pass.Valid() || h == nil || h.ID != host || !h.Agentless() {
		return none, target.Host{}, fault.New(fault.Internal, "cannot reach %s over SSH: no pass says so", host)
	}
	receipt := pass.Receipt()
	for i, e := range receipt.Entries() {
		p, err := wire.ParseOrderPayload(e.Payload)
		if err != nil || p.Node != host {
			continue
		}
		if _, err := receipt.Proof(ctx, i); err != nil {
			return none, target.Host{}, err
		}
		return p, *h, nil
	}
	return none, target.Host{}, fault.New(fault.Internal, "cannot reach %s over SSH: the pass recorded nothing for it", host)
}

// Brake stops or pauses what runs here, and says what it met. A brake for a
// host or session that is not here meets nothing.
func (r *Reach) Brake(ctx context.Context, b wire.Brake) []wire.BrakeAnswer {
	hit := r.where(func(s *Stream) bool {
		switch b.Kind {
		case wire.BrakeStopSession, wire.BrakePauseSession:
			return s.spec.ID == b.Session
		case wire.BrakeLockPerson:
			return s.spec.Person == b.Person && (b.Node == wire.EveryNode || b.Node == s.host.ID)
		}
		return false
	})
	answers := make([]wire.BrakeAnswer, len(hit))
	var all sync.WaitGroup
	for i, s := range hit {
		all.Go(func() {
			a := wire.BrakeAnswer{V: 1, ID: b.ID, Node: s.host.ID, Sessions: 1}
			var err error
			if b.Kind == wire.BrakePauseSession {
				err = s.pause(ctx)
			} else {
				a.Killed, err = s.stop(ctx, "stopped")
			}
			if err != nil {
				a.Error = fault.From(err).Text
			}
			answers[i] = a
		})
	}
	all.Wait()
	return answers
}

// Has says whether a session runs here.
func (r *Reach) Has(session string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.live[session]
	return ok
}

func (r *Reach) where(keep func(*Stream) bool) (out []*Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.live {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}
