package store

import (
	"fmt"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func TestATreeOfManyTilesIsTheSameAfterReopening(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		for i := range 6 {
			mustRecord(t, s, fmt.Sprint(i), func(tx *Tx) ([]ledger.Entry, error) {
				var out []ledger.Entry
				for j := range 120 {
					out = append(out, ledger.Entry{Action: "line.written", Payload: map[string]int{"i": i, "j": j}})
				}
				return out, nil
			})
		}
		before, note, err := s.Head(t.Context())
		if err != nil || before.N != 721 {
			t.Fatalf("%d %v", before.N, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, c)
		after, _, err := s.Head(t.Context())
		if err != nil || after != before {
			t.Fatalf("tree of %d became %d: %v", before.N, after.N, err)
		}
		if _, err := ledger.OpenCheckpoint(note, c.Origin, c.Verifier); err != nil {
			t.Error(err)
		}
		mustRecord(t, s, "more", bump("a"))
		p, err := s.Proof(t.Context(), 300)
		if err != nil || p.Verify(c.Verifier, c.Origin) != nil {
			t.Errorf("no proof over two tiles: %v", err)
		}
		mustVerify(t, s)
	})
}

func TestAChangedMigrationAndANewerDatabaseAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		if err := mustOpen(t, c).Close(); err != nil {
			t.Fatal(err)
		}
		older := c
		older.Migrations = nil
		if _, err := Open(t.Context(), older); fault.KindOf(err) != fault.Conflict {
			t.Errorf("a newer database: %v", err)
		}
		changed := c
		changed.Migrations = []Migration{{testSchema[0].Name, testSchema[0].SQL + " "}}
		if _, err := Open(t.Context(), changed); fault.KindOf(err) != fault.Internal {
			t.Errorf("a changed step: %v", err)
		}
		s := mustOpen(t, c)
		mustRecord(t, s, "again", bump("a"))
	})
}

func TestADatabaseThatWasPutBackIsReportedAndANewEpochAcceptsIt(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		mustRecord(t, s, "a", bump("a"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// Another database of the same origin and key stands where the old one was.
		fresh := c
		if strings.HasPrefix(c.DSN, "sqlite:") {
			fresh.DSN = "sqlite:" + t.TempDir()
		} else {
			fresh.DSN = shared.Database(t)
		}
		s = mustOpen(t, fresh)
		if s.Damage() == nil || !strings.Contains(s.Damage().Error(), "rolled back") {
			t.Fatalf("damage is %v", s.Damage())
		}
		if _, err := s.Record(t.Context(), "b", bump("a")); fault.KindOf(err) != fault.Conflict {
			t.Errorf("it records: %v", err)
		}
		if _, _, err := s.Head(t.Context()); err == nil {
			t.Error("it signs")
		}
		if err := s.Spool().Append(ledger.Entry{Action: "person.locked", Subjects: []string{"p-1"}}); err != nil {
			t.Errorf("the brake does not work: %v", err)
		}
		if rep, err := s.Verify(t.Context(), nil); err != nil || rep.OK {
			t.Errorf("it verifies: %+v %v", rep, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		fresh.Epoch = 1
		s = mustOpen(t, fresh)
		if s.Damage() != nil {
			t.Fatal(s.Damage())
		}
		if rec, err := s.Entries(t.Context(), EntryQuery{Action: string(ledger.ActionRestored)}); err != nil || len(rec) != 1 {
			t.Errorf("%d entries say so: %v", len(rec), err)
		}
		mustRecord(t, s, "c", bump("a"))
		mustVerify(t, s)
	})
}
