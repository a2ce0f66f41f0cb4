package session_test

import (
	"cmp"
	"context"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

type frame struct {
	t wire.FrameType
	p []byte
}

// script is a session's stream whose far end a test plays.
type script struct {
	out, in chan frame
	gone    chan struct{}
	once    sync.Once
}

func newScript() *script {
	return &script{out: make(chan frame, 4096), in: make(chan frame, 4096), gone: make(chan struct{})}
}

func (s *script) Next() (wire.FrameType, []byte, error) {
	select {
	case f := <-s.out:
		return f.t, f.p, nil
	default:
	}
	select {
	case f := <-s.out:
		return f.t, f.p, nil
	case <-s.gone:
		return 0, nil, io.EOF
	}
}

func (s *script) Write(t wire.FrameType, p []byte) error {
	select {
	case s.in <- frame{t, append([]byte(nil), p...)}:
		return nil
	case <-s.gone:
		return io.ErrClosedPipe
	}
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.gone) })
	return nil
}

// typed is the input that the node got by now.
func (s *script) typed() (all string) {
	for {
		select {
		case f := <-s.in:
			if f.t == wire.FrameStdin {
				all += string(f.p)
			}
		default:
			return all
		}
	}
}

func (s *script) says(text string) { s.out <- frame{wire.FrameStdout, []byte(text)} }
func (s *script) exits(e wire.Exit) {
	s.out <- frame{wire.FrameExit, wire.EncodeExit(e)}
}

// hears returns the next frame of a type that the server sent.
func (s *script) hears(t testing.TB, want wire.FrameType) []byte {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case f := <-s.in:
			if f.t == want {
				return f.p
			}
		case <-late:
			t.Fatalf("no frame %d came", want)
		}
	}
}

// nodes plays all nodes.
type nodes struct {
	mu      sync.Mutex
	scripts []*script
	brakes  []wire.Brake
	orders  []wire.OrderPayload
	answer  wire.SessionAnswer
	err     error
	started func() // called while a session starts
	obeys   bool   // a stop brake makes the session exit
	meets   string // the host whose node kills by a lock's brake, and says so
}

func order(pass doorway.Pass) wire.OrderPayload {
	for _, e := range pass.Receipt().Entries() {
		if p, err := wire.ParseOrderPayload(e.Payload); err == nil {
			return p
		}
	}
	return wire.OrderPayload{}
}

func (n *nodes) Start(_ context.Context, pass doorway.Pass, _ string, _ bool) (session.Stream, wire.SessionAnswer, error) {
	if n.started != nil {
		n.started()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.answer, n.err
	}
	s := newScript()
	n.scripts = append(n.scripts, s)
	n.orders = append(n.orders, order(pass))
	return s, wire.SessionAnswer{OK: true, Floor: wire.FloorFull}, nil
}

func (n *nodes) Resume(_ context.Context, pass doorway.Pass, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.orders = append(n.orders, order(pass))
	return n.err
}

func (n *nodes) Brake(_ context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.brakes = append(n.brakes, b)
	met := n.meets != "" && b.Kind == wire.BrakeLockPerson
	if n.obeys && b.Kind == wire.BrakeStopSession || met {
		for _, s := range n.scripts {
			s.exits(wire.Exit{Status: 137, Signal: "KILL", Why: "stopped"})
		}
	}
	if met {
		return []wire.BrakeAnswer{{V: 1, ID: b.ID, Node: n.meets, Sessions: len(n.scripts)}}, nil
	}
	return nil, nil
}

func (n *nodes) braked(kind string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.brakes {
		if b.Kind == kind {
			return true
		}
	}
	return false
}

func (n *nodes) last() *script {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.scripts[len(n.scripts)-1]
}

type grants struct {
	mu    sync.Mutex
	force map[string]doorway.GrantInForce
}

func (g *grants) Forwarding(q store.Queryer, person, host, destination string, now time.Time) (doorway.GrantInForce, bool, error) {
	f, ok, err := g.Active(q, person, host, now)
	return f, ok && wire.ForwardAllowed(f.Forwards, destination), err
}

func (g *grants) Active(_ store.Queryer, person, host string, _ time.Time) (doorway.GrantInForce, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	got, ok := g.force[person+host]
	return got, ok, nil
}

// world is a real installation whose nodes are played.
type world struct {
	*house.House
	t          testing.TB
	grants     *grants
	host       target.Host
	nodes      *nodes
	deps       session.Deps
	recordings *recording.Recordings
	sessions   *session.Sessions
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB, rb recording.Deps, sb session.Bounds) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{House: house.Build(t, house.Plan{Migrations: session.Schema()}), t: t, nodes: &nodes{obeys: true}, grants: &grants{force: map[string]doorway.GrantInForce{}}}
	w.host = w.Host("web-1", "production")
	rb.Dir, rb.Store, rb.Subjects, rb.Replay = filepath.Join(w.Dir, "recordings"), cmp.Or(rb.Store, recording.Ledger(w.Store)), w.Ring.Subjects(), w.Ring.Replay()
	w.recordings = must(recording.New(rb))
	w.deps = session.Deps{Store: w.Store, Door: doorway.New(doorway.Deps{Store: w.Store, People: w.People, Hosts: w.Hosts, Policy: w.Force, Grants: w.grants}),
		Hosts: w.Hosts, People: w.People, Grants: w.grants, Rules: w.Force, Nodes: w.nodes, Recordings: w.recordings, Bounds: sb}
	w.sessions = session.New(w.deps)
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		w.sessions.Shutdown(end)
		w.Close()
	})
	return w
}

// person is somebody who is logged in.
func (w *world) person(name string, groups ...string) identity.Principal {
	w.t.Helper()
	var secret string
	w.Record(func(tx *store.Tx) (e []ledger.Entry, err error) {
		p, e, err := w.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups)
		if err != nil {
			return nil, err
		}
		var made ledger.Entry
		secret, made, err = w.People.LoginTokenTx(tx, p.ID, ledger.System, time.Hour)
		return append(e, made), err
	})
	login, _, _, err := w.People.Redeem(context.Background(), secret, nil, "", identity.ViaBrowser, "192.0.2.1")
	fatal(w.t, err)
	return must(w.People.Authenticate(context.Background(), login.Bearer))
}

func (w *world) grant(by identity.Principal, g doorway.GrantInForce) {
	w.grants.mu.Lock()
	defer w.grants.mu.Unlock()
	if g.Expires == 0 {
		g.Expires = time.Now().Add(time.Hour).UnixMicro()
	}
	w.grants.force[by.ID+w.host.ID] = g
}

func (w *world) entries(action ledger.Action) []ledger.Recorded {
	w.t.Helper()
	return must(w.Store.Entries(context.Background(), store.EntryQuery{Action: string(action), Limit: 1000}))
}

// owner is a person who reads what comes.
type owner struct {
	mu     sync.Mutex
	events []session.Event
	stop   chan struct{} // not nil: Deliver blocks until it is closed
	once   sync.Once
}

func (o *owner) Deliver(e session.Event) error {
	if o.stop != nil {
		<-o.stop
		return io.ErrClosedPipe
	}
	e.Data = append([]byte(nil), e.Data...)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
	return nil
}

func (o *owner) Abort() {
	if o.stop != nil {
		o.once.Do(func() { close(o.stop) })
	}
}

func (o *owner) text() (s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.events {
		s += string(e.Data)
	}
	return s
}

// left says whether the owner was told the end.
func (o *owner) left() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.events, func(e session.Event) bool { return e.Kind == session.Exit })
}

func (o *owner) told(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.events {
		if e.Kind == session.Notice && e.Text == text {
			return true
		}
	}
	return false
}

// open opens a session with an owner.
func (w *world) open(by identity.Principal, req session.OpenRequest) (*session.Live, *script, *owner) {
	w.t.Helper()
	req.Host = "web-1"
	l, err := w.sessions.Open(context.Background(), by, req)
	fatal(w.t, err)
	o := &owner{}
	fatal(w.t, l.Own(o))
	return l, w.nodes.last(), o
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
