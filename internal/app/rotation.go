package app

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"handrail.dev/handrail/internal/feature/rotation"
)

// This file wires the rotation of keys: who asks for them anew at each use.

func (s *Server) openRotations(context.Context) error {
	s.rotations = rotation.New(rotation.Deps{
		Store: s.store, Ring: s.ring, Door: s.door, Approvals: s.approvals, Policy: s.force, Server: s.id, Log: s.c.Log,
	})
	return nil
}

func (s *Server) signedBundle() []byte {
	_, signed := s.ring.Bundle()
	return signed
}

// trusting is the port's TLS with the authorities that count at the moment.
func (s *Server) trusting(conf *tls.Config) func() *tls.Config {
	var mu sync.Mutex
	var made *tls.Config
	var version int64
	var count int
	return func() *tls.Config {
		mu.Lock()
		defer mu.Unlock()
		b, _ := s.ring.Bundle()
		if n := len(b.Authorities(time.Now())); made == nil || b.Version != version || n != count {
			made, version, count = conf.Clone(), b.Version, n
			made.ClientCAs = s.ring.CAPool()
		}
		return made
	}
}
