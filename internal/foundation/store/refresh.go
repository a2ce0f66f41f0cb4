package store

import "context"

// Refresh looks at once for what other servers have appended: for whoever has
// heard from elsewhere that the ledger is longer than it is known to be here.
// What is found must extend what is known, as always.
func (s *Store) Refresh(ctx context.Context) error {
	if s.db.name != "postgres" {
		return nil // nobody else appends
	}
	return s.catchUp(ctx)
}
