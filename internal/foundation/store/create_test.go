package store

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A kill in the middle of a first start leaves drafts, cut short anywhere.
func TestADraftThatWasKilledIsMadeAnew(t *testing.T) {
	c := testConfig(t)
	s := mustOpen(t, c)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(s.db.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 10, len(whole) / 2, len(whole)} {
		for _, observed := range []bool{false, true} { // renamed before the kill, or not
			c := testConfig(t)
			dir := c.DSN[len("sqlite:"):]
			if observed {
				first := mustOpen(t, c)
				if err := first.Close(); err != nil {
					t.Fatal(err)
				}
				for _, path := range []string{filepath.Join(dir, "state.db"), filepath.Join(c.Spool, "remembered")} {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
				if err := os.WriteFile(filepath.Join(dir, "state.db.new"+suffix), whole[:cut], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := mustOpen(t, c)
			if err := s.Damage(); err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*.new*"))
			if err != nil || len(left) > 0 {
				t.Fatalf("%v is left (%v)", left, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What the writer had written ahead belongs to a database, and to no other that
// is put in its place.
func TestADatabaseIsNotPutBesideALogOfAnother(t *testing.T) {
	c := testConfig(t)
	s := mustOpen(t, c)
	mustRecord(t, s, "one", bump("a"))
	wal, err := os.ReadFile(filepath.Join(s.db.dir, "state.db-wal"))
	if err != nil || len(wal) == 0 {
		t.Fatalf("%d bytes: %v", len(wal), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := testConfig(t)
	dir := fresh.DSN[len("sqlite:"):]
	if err := os.WriteFile(filepath.Join(dir, "state.db-wal"), wal, 0o600); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, fresh)
	if entries, err := s.Entries(t.Context(), EntryQuery{}); err != nil || len(entries) != 1 || s.Damage() != nil {
		t.Fatalf("%d entries, where only the first is: %v, %v", len(entries), err, s.Damage())
	}
}

func TestTwoThatMakeADatabaseAtOnceMakeOne(t *testing.T) {
	c := testConfig(t)
	d, err := parseDSN(c.DSN)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.dir, "state.db")
	var all sync.WaitGroup
	made := make([]os.FileInfo, 8)
	for i := range made {
		all.Go(func() {
			if err := d.create(t.Context(), map[string][]Migration{"state": ledgerSchema, "observed": nil}); err != nil {
				t.Error(err)
			}
			made[i], _ = os.Stat(path)
		})
	}
	all.Wait()
	for _, info := range made {
		if info == nil || !os.SameFile(info, made[0]) {
			t.Fatal("somebody got a database that another has replaced")
		}
	}
}
