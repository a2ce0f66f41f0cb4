package app

import (
	"context"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/wire"
)

// nodes gives sessions the fleet in their own words.
type nodes struct{ f *fleet.Fleet }

func (n nodes) Start(ctx context.Context, pass doorway.Pass, host string, bulk bool) (session.Stream, wire.SessionAnswer, error) {
	s, answer, err := n.f.Start(ctx, pass, host, bulk)
	if err != nil {
		return nil, answer, err // a nil *fleet.Stream must not become a stream
	}
	return s, answer, nil
}

func (n nodes) Resume(ctx context.Context, pass doorway.Pass, host string) error {
	return n.f.Resume(ctx, pass, host)
}

func (n nodes) Brake(ctx context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	return n.f.Brake(ctx, b)
}

// ends gives grants the sessions in their own words.
type ends struct{ s *session.Sessions }

func (e ends) EndByGrant(_ context.Context, grant, why string) int {
	return e.s.EndByGrant(grant, why, "the grant "+grant+" ended: "+why)
}
