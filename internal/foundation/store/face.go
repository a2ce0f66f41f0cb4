package store

import (
	"context"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Signed is the newest checkpoint that this server is known to have signed, and
// the epoch in which it did, for the other servers to Face; nil is none yet. It
// stays when the database is found to be another.
func (s *Store) Signed() (checkpoint []byte, epoch int64) {
	if s.anchor == nil {
		return nil, s.cfg.Epoch
	}
	s.anchor.mu.Lock()
	defer s.anchor.mu.Unlock()
	return []byte(s.anchor.last.Signed), s.anchor.last.Epoch
}

// Face compares the database with a checkpoint that another server of this
// installation signed, as if this one had: it must extend it. So a server that was
// away while entries were lost does not go on after them, where another knows
// better. What was signed in an earlier epoch was given up by the root key; what
// nobody signed says nothing.
func (s *Store) Face(ctx context.Context, checkpoint []byte, epoch int64) error {
	if len(checkpoint) == 0 || epoch < s.cfg.Epoch || s.Damage() != nil {
		return nil
	}
	tree, err := ledger.OpenCheckpoint(checkpoint, s.cfg.Origin, s.cfg.Verifier)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot believe what another server says of the ledger")
	}
	if tree.N > s.head.Load().tree.N {
		if err := s.Refresh(ctx); err != nil {
			return err
		}
	}
	if err = s.extends(ctx, tree); err != nil && fault.KindOf(err) == fault.Conflict {
		s.setDamage(err)
	}
	return err
}
