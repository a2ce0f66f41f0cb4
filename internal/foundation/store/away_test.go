package store

import (
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// A database that is known to be away is not waited for.
func TestADatabaseThatIsAwayIsNotWaitedFor(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		mustRecord(t, s, "one", bump("a"))
		s.Away(true)
		fail := func() { t.Error("the database was asked") }
		if err := s.View(t.Context(), func(*View) error { fail(); return nil }); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a look: %v", err)
		}
		if _, err := s.Record(t.Context(), "two", func(*Tx) ([]ledger.Entry, error) { fail(); return nil, nil }); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("an entry: %v", err)
		}
		if err := s.Observe(t.Context(), func(*Obs) error { return nil }); err != nil {
			t.Errorf("it cannot be found out that it is back: %v", err)
		}
		s.Away(false)
		mustRecord(t, s, "three", bump("a"))
	})
}
