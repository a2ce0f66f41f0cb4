package app

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/wire"
)

// newAgentless wires the way to hosts that have no node.
func (s *Server) newAgentless() *agentless.Reach {
	return agentless.New(agentless.Deps{
		Store: s.store, Ring: s.ring, Log: s.c.Log,
		Changed: func(host string) { s.notices.Publish(notice.Event{Topic: notice.Hosts, ID: host}) },
	})
}

// reachable says, early, whether a session on a host can begin at all. Whether
// a host without a node answers is known when it is dialled.
func (s *Server) reachable(id string) bool {
	if s.fleet.Node(id).State == fleet.Online {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h, err := s.hosts.Get(ctx, id)
	return err == nil && h.Agentless()
}

// sweepLost seeks what a session left running that a crash of this server lost.
func (s *Server) sweepLost(i session.Info) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h, err := s.hosts.Get(ctx, i.Host)
	if err == nil && h.Agentless() && i.Kind != wire.SessionSFTP {
		s.agentless.SweepLost(h, i.ID, i.Person, i.Level)
	}
}
