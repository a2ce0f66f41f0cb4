package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/test/postgres"
)

// A standby that lagged is promoted: what was acknowledged and signed on the
// old primary is not on it. Whoever saw it refuses to go on, by name, and only
// an epoch that the root key signed accepts the loss.
func TestALaggingStandbyThatIsPromotedIsNamed(t *testing.T) {
	primary := postgres.Start() // of its own: it dies here
	t.Cleanup(primary.Stop)
	c := testConfig(t)
	c.DSN, c.Seals = primary.Database(t), derivedKeys{}
	behind := c
	behind.Spool = t.TempDir()
	s, other := mustOpen(t, c), mustOpen(t, behind)
	for i := range 10 {
		mustRecord(t, s, fmt.Sprint(i), bump("a"))
	}
	// The other server saw this much, and no more.
	if err := other.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t)
	waitFor(t, func() bool { return standby.Replayed(t, primary) })
	standby.Kill()
	for i := range 5 {
		mustRecord(t, s, fmt.Sprint("lost ", i), bump("a"))
	}
	if _, _, err := s.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	primary.Kill()
	if err := standby.Again(); err != nil {
		t.Fatal(err)
	}
	standby.Promote(t)

	// The server that saw the lost entries says so and takes none.
	c.DSN, behind.DSN = standby.At(c.DSN), standby.At(c.DSN)
	s = mustOpen(t, c)
	if d := s.Damage(); d == nil || !strings.Contains(d.Error(), "rolled back") || fault.From(d).Hint == "" {
		t.Fatalf("damage: %v", d)
	}
	if _, err := s.Record(t.Context(), "no", bump("a")); err == nil {
		t.Fatal("it goes on")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// The other one cannot know, and goes on; then the first finds a fork.
	other = mustOpen(t, behind)
	for i := range 20 {
		mustRecord(t, other, fmt.Sprint("fork ", i), bump("b"))
	}
	s = mustOpen(t, c)
	if d := s.Damage(); d == nil || !strings.Contains(d.Error(), "fork") {
		t.Fatalf("damage: %v", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// The root key accepts the loss; an entry says what it was.
	c.Epoch = 2
	s = mustOpen(t, c)
	if s.Damage() != nil {
		t.Fatal(s.Damage())
	}
	rec, err := s.Entries(t.Context(), EntryQuery{Action: "ledger.restored"})
	if err != nil || len(rec) != 1 || !strings.Contains(string(rec[0].Payload), "fork") {
		t.Fatalf("%d entries, %v", len(rec), err)
	}
	mustVerify(t, s)
}

// A server that is open while its database is replaced finds out by itself.
func TestADatabaseThatIsReplacedUnderAServerIsNoticed(t *testing.T) {
	for _, what := range []string{"older", "fork"} {
		t.Run(what, func(t *testing.T) {
			a, b, _ := twoServers(t)
			for i := range 10 {
				mustRecord(t, a, fmt.Sprint(i), bump("a"))
			}
			if err := b.catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			// What b holds is what it saw of the other primary.
			b.growing.Lock()
			f := b.head.Load().frontier.Snapshot()
			f.Append([32]byte{1}, nil)
			if what == "fork" {
				mustRecord(t, a, "another", bump("a"))
				mustRecord(t, a, "and more", bump("a"))
			}
			b.head.Store(&published{frontier: f, tree: f.Tree()})
			b.growing.Unlock()
			waitFor(t, func() bool { return b.Damage() != nil })
			want := map[string]string{"older": "rolled back", "fork": "fork"}[what]
			if !strings.Contains(b.Damage().Error(), want) {
				t.Errorf("damage: %v", b.Damage())
			}
			if _, _, err := b.Head(t.Context()); err == nil {
				t.Error("it signs")
			}
			_, err := b.Record(t.Context(), "no", bump("a"))
			if err == nil {
				t.Error("it records")
			}
		})
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("it never came")
		}
	}
}
