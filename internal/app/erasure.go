package app

import (
	"context"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/drain"
	"handrail.dev/handrail/internal/feature/erasure"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/store"
)

// This file wires whose rows an erasure scrubs, and who may hold it up.

func (s *Server) openErasures(context.Context) error {
	s.erasures = erasure.New(erasure.Deps{
		Removes: func(ctx context.Context, person string) error { return s.recordings.RemovePerson(ctx, person) },
		Store:   s.store, Door: s.door, Approvals: s.approvals, People: s.people, Policy: s.force, Log: s.c.Log,
		Rows: erasure.Rows{
			Holds: []erasure.Hold{
				access.HeldTx,
				func(q store.Queryer, person string, _ []string) (string, error) { return session.HeldTx(q, person) },
				func(q store.Queryer, person string, _ []string) (string, error) { return directory.HeldTx(q, person) },
			},
			Scrubs: []erasure.Scrub{
				func(tx *store.Tx, p identity.Person, _ string) error { return access.EraseTx(tx, p.ID) },
				func(tx *store.Tx, p identity.Person, stub string) error {
					return session.EraseTx(tx, p.ID, p.Name, stub)
				},
				func(tx *store.Tx, p identity.Person, _ string) error { return roster.EraseTx(tx, p.ID, p.Name) },
				func(tx *store.Tx, p identity.Person, stub string) error { return voucher.EraseTx(tx, p.ID, stub) },
				func(tx *store.Tx, p identity.Person, _ string) error { return directory.EraseTx(tx, p.ID) },
				func(tx *store.Tx, p identity.Person, _ string) error { return drain.EraseTx(tx, p.ID) },
				func(tx *store.Tx, p identity.Person, _ string) error { return inspect.EraseTx(tx, p.ID) },
			},
		},
	})
	return nil
}
