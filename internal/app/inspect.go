package app

import (
	"context"

	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/wire"
)

// looks gives brokered reads the fleet in their own words.
type looks struct{ f *fleet.Fleet }

func (l looks) Start(ctx context.Context, pass doorway.Pass, host string) (inspect.Stream, wire.SessionAnswer, error) {
	s, answer, err := l.f.Start(ctx, pass, host, true)
	if err != nil {
		return nil, answer, err // a nil *fleet.Stream must not become a stream
	}
	return s, answer, nil
}

func (s *Server) openInspections(ctx context.Context) error {
	s.inspect = inspect.New(inspect.Deps{
		Store: s.store, Door: s.door, Hosts: s.hosts, People: s.people, Rules: s.force, Nodes: looks{s.fleet},
		LockEpoch: s.people.LockEpochTx, Log: s.c.Log,
	})
	return s.inspect.Start(ctx)
}
