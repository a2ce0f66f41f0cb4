package store

import "handrail.dev/handrail/internal/foundation/fault"

// Away says that the database cannot be reached, until it is said that it can. In
// a network that swallows packets each connection is found dead only after many
// seconds, one after the other: what asks meanwhile is refused at once, so that a
// brake goes by what is known here. Observe still tries, which is how it is found
// out that the database is back.
func (s *Store) Away(is bool) { s.away.Store(is) }

func (s *Store) reachable(what string) error {
	if s.away.Load() {
		return fault.New(fault.Unavailable, "cannot %s: the database cannot be reached", what)
	}
	return nil
}
