package sim_test

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

// How long a node and a server take to notice what nobody tells them.
const (
	lease    = 10 * time.Second // without it a node ends what runs
	silence  = 20 * time.Second // without a word a connection counts as dead
	ordering = 20 * time.Second // the server waits so long for the answer to an order
)

// node is a host: the warden's own judgement, and sessions that are only noted.
type node struct {
	w    *world
	host target.Host
	boot time.Duration // what its clock showed when the week began

	mu      sync.Mutex
	judge   *warden.Judge // another one after each kill
	sent    int           // messages to it so far
	cut     time.Duration // until then nothing reaches it
	running map[string]*running
}

// running is a session on a node.
type running struct {
	node   *node
	order  wire.OrderPayload
	stream *stream
	bad    time.Duration // since when it had no right to run any more; 0: it has
}

// warden is the judge that is there now. Whoever holds one across a wait may
// hold that of a warden that was killed.
func (n *node) warden() *warden.Judge {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.judge
}

// isCut says whether it cannot be reached now.
func (n *node) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.w.now() < n.cut
}

// fate is what becomes of the next message to or from this node. It follows from
// the seed, the host and the number of the message, whatever runs beside it.
func (n *node) fate() (lost, doubled bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent++
	roll := mix(n.w.seed, n.host.Name, n.sent) % 100
	return roll < 4, roll >= 90
}

// renew is one lease: asked, answered, taken. Where another one, or an order,
// overtook it, the node needs another proof, and asks again.
func (n *node) renew(s *server) {
	for range 5 {
		if n.isCut() || s.dead() {
			return
		}
		err := n.renewOnce(s)
		if err == nil || s.dead() {
			n.endOvertaken()
			return
		}
		if fault.KindOf(err) == fault.Denied {
			n.w.fail("%s refuses a lease: %v", n.host.Name, err)
			return
		}
	}
}

func (n *node) renewOnce(s *server) error {
	judge := n.warden()
	raw, err := judge.Ask()
	if err != nil {
		return err
	}
	ask, err := wire.ParseLeaseAsk(raw)
	if err != nil {
		return err
	}
	signed, err := s.lease(ask)
	if err != nil || s.dead() {
		return err // no answer: the node stops by itself
	}
	return n.answered(judge, ask.Nonce, signed)
}

// answered hands an answer to the warden that asked. One that was killed
// meanwhile does not get it, and the one that came after it never asked.
func (n *node) answered(asker *warden.Judge, nonce, signed []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.judge != asker {
		return fault.New(fault.Unavailable, "cannot answer the warden of %s: it was killed", n.host.Name)
	}
	return n.judge.Answer(nonce, signed)
}

// start takes an order from the wire.
func (n *node) start(raw []byte) (*running, error) {
	r, left, err := n.accept(raw)
	if err != nil {
		return nil, err
	}
	r.stream.closed = func() { n.end(r, "gateway", 0) }
	time.AfterFunc(left, func() { n.end(r, "deadline", 137) })
	return r, nil
}

// accept is one step for whoever kills the warden: they come before it, or after.
func (n *node) accept(raw []byte) (*running, time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	order, left, err := n.judge.Order(raw)
	if err != nil {
		return nil, 0, err
	}
	n.w.executes(n, order)
	r := &running{node: n, order: order, stream: newStream(n)}
	n.running[order.Session.ID] = r
	return r, left, nil
}

// end ends a session; only the first reason counts.
func (n *node) end(r *running, why string, status int32) {
	n.mu.Lock()
	_, runs := n.running[r.order.Session.ID]
	delete(n.running, r.order.Session.ID)
	cut := n.w.now() < n.cut
	n.mu.Unlock()
	if runs && !cut {
		r.stream.exits(wire.Exit{Status: status, Why: why})
	}
}

// sessions are those that run here.
func (n *node) sessions() (all []*running) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.running {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *running) int { return strings.Compare(a.order.Session.ID, b.order.Session.ID) })
	return all
}

func (n *node) endOvertaken() {
	for _, r := range n.sessions() {
		if n.warden().Overtaken(r.order.Session.Person, r.order.Epochs.Person[r.order.Session.Person]) {
			n.end(r, "stopped", 137)
		}
	}
}

// isolate cuts it off for a while. It had a lease until now; what runs here ends
// when that is over, and the server gives up the streams after a silence.
func (n *node) isolate(s *server, long time.Duration) {
	n.renew(s)
	n.mu.Lock()
	n.cut = max(n.cut, n.w.now()+long)
	n.mu.Unlock()
	all := n.sessions()
	time.AfterFunc(n.warden().Fresh()+time.Millisecond, func() {
		if n.isCut() && n.warden().Fresh() == 0 {
			for _, r := range n.sessions() {
				n.end(r, "lease", 137)
			}
		}
	})
	time.AfterFunc(silence, func() {
		if n.isCut() {
			for _, r := range all {
				r.stream.gone()
			}
		}
	})
}

// killWarden is kill -9: the sessions die with it, and what is not on disk is
// forgotten.
func (n *node) killWarden() {
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.running))
	next, err := n.judge.Restart()
	if err == nil {
		n.judge = next
	}
	n.mu.Unlock()
	if err != nil {
		n.w.fail("a warden does not come back: %v", err)
	}
	for _, r := range all {
		n.end(r, "lost", 137)
	}
}

// nodes is the way from a server to all nodes. It implements session.Nodes.
type nodes struct {
	w *world
	s *server
}

func (x nodes) Start(ctx context.Context, pass doorway.Pass, host string, _ bool) (session.Stream, wire.SessionAnswer, error) {
	n := x.w.byID[host]
	raw, err := x.s.envelope(ctx, pass, n)
	if err != nil {
		return nil, wire.SessionAnswer{}, err
	}
	x.s.point("ordered")
	away := fault.New(fault.Unavailable, "cannot reach the node of %s", host)
	lost, doubled := n.fate()
	if x.s.dead() || n.isCut() || lost {
		return nil, wire.SessionAnswer{}, x.waitInVain(ctx, away)
	}
	if n.warden().Fresh() == 0 {
		n.renew(x.s)
	}
	r, err := n.start(raw)
	if doubled {
		if _, err := n.start(raw); err != nil {
			x.w.refused(err)
		}
	}
	if err != nil {
		x.w.refused(err)
		return nil, wire.SessionAnswer{}, fault.New(fault.Denied, "cannot start: %v", err)
	}
	x.s.point("started")
	if lost, _ := n.fate(); lost || n.isCut() || x.s.dead() { // the answer
		err := x.waitInVain(ctx, away)
		r.stream.Close()
		return nil, wire.SessionAnswer{}, err
	}
	return r.stream, wire.SessionAnswer{OK: true, Floor: wire.FloorFull, Account: "handrail-write"}, nil
}

func (x nodes) waitInVain(ctx context.Context, err error) error {
	select {
	case <-time.After(ordering):
	case <-ctx.Done():
	case <-x.s.over.Done():
	}
	return err
}

func (x nodes) Resume(context.Context, doorway.Pass, string) error { return nil }

// Brake reaches who can be reached. A lost one is made up for by the next lease,
// which carries the epochs, and by the end of the stream.
func (x nodes) Brake(_ context.Context, b wire.Brake) (answers []wire.BrakeAnswer, err error) {
	x.s.point("braking")
	signed, err := wire.SignBrake(b, x.s.ring.Order())
	if err != nil {
		return nil, err
	}
	for _, n := range x.w.nodes {
		if b.Node != wire.EveryNode && b.Node != n.host.ID || x.s.dead() || n.isCut() {
			continue
		}
		lost, doubled := n.fate()
		if lost {
			if len(n.sessions()) > 0 {
				time.AfterFunc(3*time.Second, func() { n.renew(x.s) })
			}
			continue
		}
		answers = append(answers, n.brake(signed))
		if doubled {
			n.brake(signed)
		}
	}
	return answers, nil
}

func (n *node) brake(signed []byte) wire.BrakeAnswer {
	b, fresh, err := n.warden().Brake(signed)
	if err != nil {
		n.w.fail("%s refuses a brake: %v", n.host.Name, err)
	}
	a := wire.BrakeAnswer{V: 1, ID: b.ID, Node: n.host.ID}
	if !fresh {
		return a
	}
	for _, r := range n.sessions() {
		if r.order.Session.ID == b.Session || r.order.Session.Person == b.Person && b.Kind == wire.BrakeLockPerson {
			a.Sessions++
			n.end(r, "stopped", 137)
		}
	}
	return a
}

// stream is a session's stream, without the bytes.
type stream struct {
	n      *node
	out    chan []byte
	end    chan struct{}
	once   sync.Once
	said   sync.Once
	closed func()
}

func newStream(n *node) *stream {
	return &stream{n: n, out: make(chan []byte, 1), end: make(chan struct{})}
}

func (s *stream) Next() (wire.FrameType, []byte, error) {
	select {
	case p := <-s.out:
		return wire.FrameExit, p, nil
	case <-s.end:
		return 0, nil, io.EOF
	}
}

func (s *stream) Write(wire.FrameType, []byte) error { return nil }

// exits is the last word of the keeper.
func (s *stream) exits(e wire.Exit) { s.said.Do(func() { s.out <- wire.EncodeExit(e) }) }

// gone is what the server sees of a connection that died.
func (s *stream) gone() { s.once.Do(func() { close(s.end) }) }

// Close is the server's: the node sees it, if it can be reached.
func (s *stream) Close() error {
	s.gone()
	if !s.n.isCut() {
		s.closed()
	}
	return nil
}
