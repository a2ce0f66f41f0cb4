package app

import (
	"context"
	"sync"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/wire"
)

// nodes gives sessions their hosts in their own words: the fleet's, and those
// that have no node.
type nodes struct {
	f *fleet.Fleet
	r *agentless.Reach
}

func (n nodes) Start(ctx context.Context, pass doorway.Pass, host string, bulk bool) (session.Stream, wire.SessionAnswer, error) {
	if h := pass.Act().Host; h != nil && h.Agentless() {
		if h.SSHNode {
			return n.visit(ctx, pass, *h, bulk)
		}
		s, answer, err := n.r.Start(ctx, pass, host)
		if err != nil {
			return nil, answer, err
		}
		return s, answer, nil
	}
	return n.start(ctx, pass, host, bulk)
}

// start hands the order to the host's own node.
func (n nodes) start(ctx context.Context, pass doorway.Pass, host string, bulk bool) (session.Stream, wire.SessionAnswer, error) {
	s, answer, err := n.f.Start(ctx, pass, host, bulk)
	if err != nil {
		return nil, answer, err // a nil *fleet.Stream must not become a stream
	}
	return s, answer, nil
}

// looks gives brokered reads their hosts. Where no node stays, one comes for the
// look as it does for a session; where none may, the doorway has refused it.
type looks struct{ nodes }

func (l looks) Start(ctx context.Context, pass doorway.Pass, host string) (inspect.Stream, wire.SessionAnswer, error) {
	if h := pass.Act().Host; h != nil && h.Agentless() {
		return l.visit(ctx, pass, *h, true)
	}
	return l.start(ctx, pass, host, true)
}

func (n nodes) Resume(ctx context.Context, pass doorway.Pass, host string) error {
	if n.r.Has(ordered(pass)) { // it may have begun before its host was adopted
		return n.r.Resume(ctx, pass, host)
	}
	return n.f.Resume(ctx, pass, host)
}

// ordered is the session, or the look, that the pass gives power to.
func ordered(pass doorway.Pass) string {
	for _, e := range pass.Receipt().Entries() {
		switch {
		case e.Parsed.Session != "":
			return e.Parsed.Session
		case e.Parsed.Action == inspect.Opened:
			return e.Parsed.Object
		}
	}
	return ""
}

func (n nodes) Brake(ctx context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	if n.r.Has(b.Session) {
		return n.r.Brake(ctx, b), nil
	}
	if b.Node != wire.EveryNode {
		return n.f.Brake(ctx, b)
	}
	var over []wire.BrakeAnswer // both at once: a lock waits for nobody
	var both sync.WaitGroup
	both.Go(func() { over = n.r.Brake(ctx, b) })
	answers, err := n.f.Brake(ctx, b)
	both.Wait()
	return append(answers, over...), err
}

// ends gives grants the sessions in their own words.
type ends struct {
	s *session.Sessions
	f *fleet.Fleet
}

func (e ends) EndByGrant(ctx context.Context, grant, why string) int {
	return e.s.EndByGrant(grant, why, endedBy(grant, why)) + endElsewhere(ctx, e, grant, why)
}

func endedBy(grant, why string) string { return "the grant " + grant + " ended: " + why }
