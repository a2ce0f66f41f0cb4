package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// movable is a SQLite store with entries, state, observations and an erasure.
func movable(t *testing.T) (Config, ledger.Proof, []Recorded) {
	c := testConfig(t)
	c.Seals = derivedKeys{}
	s := mustOpen(t, c)
	for i := range 300 {
		mustRecord(t, s, fmt.Sprint("r-", i), bump(fmt.Sprint("c", i%7)))
	}
	mustRecord(t, s, "line", func(tx *Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`INSERT INTO line (text) VALUES ('a line'), ('another')`)
		return []ledger.Entry{{Action: "line.added", Payload: map[string]int{"v": 1}}}, err
	})
	if err := s.Observe(t.Context(), func(o *Obs) error {
		_, err := o.Exec(`INSERT INTO seen (host, at) VALUES ('h-1', 7)`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	proof, err := s.Proof(t.Context(), 123)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := s.Entries(t.Context(), EntryQuery{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return c, proof, rec
}

func TestAMovedStoreIsTheSameAndTheOldOneIsClosed(t *testing.T) {
	c, proof, before := movable(t)
	to := shared.Database(t)
	did, err := Move(t.Context(), c, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	if did.Entries != int64(len(before)) || did.Root == "" || strings.Contains(did.To, "?") {
		t.Errorf("did %+v", did)
	}
	// The old one refuses, and says where to go.
	if _, err := Open(t.Context(), c); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "moved to") || !strings.Contains(fault.From(err).Hint, "--database") {
		t.Errorf("the old database: %v", err)
	}
	if again, err := Move(t.Context(), c, to, nil); err == nil {
		t.Errorf("moved twice: %+v", again)
	}
	c.DSN = to // with the checkpoint that this server remembers
	s := mustOpen(t, c)
	if s.Damage() != nil {
		t.Fatal(s.Damage())
	}
	after, err := s.Entries(t.Context(), EntryQuery{Limit: 1000})
	if err != nil || len(after) != len(before) {
		t.Fatalf("%d entries of %d, %v", len(after), len(before), err)
	}
	for i := range before {
		if before[i].Seq != after[i].Seq || !bytes.Equal(before[i].Leaf, after[i].Leaf) || !bytes.Equal(before[i].Payload, after[i].Payload) {
			t.Fatalf("entry #%d is another", before[i].Seq)
		}
	}
	if err := proof.Verify(c.Verifier, c.Origin); err != nil {
		t.Error(err)
	}
	if again, err := s.Proof(t.Context(), 123); err != nil || again.Index != proof.Index || !bytes.Equal(again.Leaf, proof.Leaf) {
		t.Errorf("proof: %v", err)
	}
	// Ids go on where they were, the same id is the same record, and rows are
	// what they were.
	if r := mustRecord(t, s, "r-12", bump("never")); r.Entries()[0].Seq != 13 {
		t.Errorf("r-12 is #%d", r.Entries()[0].Seq)
	}
	if n := count(t, s, "c3"); n != 43 {
		t.Errorf("c3 is %d", n)
	}
	mustRecord(t, s, "another line", func(tx *Tx) ([]ledger.Entry, error) {
		id, err := One[int64](tx, `INSERT INTO line (text) VALUES ('third') RETURNING id`)
		if id != 3 {
			t.Errorf("the next line is %d", id)
		}
		return []ledger.Entry{{Action: "line.added", Payload: map[string]int{"v": 1}}}, err
	})
	err = s.ViewObserved(t.Context(), func(v *View) error {
		at, err := One[int64](v, `SELECT at FROM seen WHERE host = 'h-1'`)
		if at != 7 {
			t.Errorf("seen at %d", at)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	mustVerify(t, s)
}

func TestAMoveGoesNowhereButToAnEmptyDatabase(t *testing.T) {
	c, _, _ := movable(t)
	other := testConfig(t)
	other.DSN = shared.Database(t)
	if err := mustOpen(t, other).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Move(t.Context(), c, other.DSN, nil); fault.KindOf(err) != fault.Conflict || fault.From(err).Hint == "" {
		t.Errorf("got %v", err)
	}
	mustVerify(t, mustOpen(t, c)) // nothing happened to it
}

const moveEnv = "HANDRAIL_TEST_MOVE_DSN"

// A move that is killed, wherever it is, is finished by another; meanwhile
// neither database starts half.
func TestAMoveThatIsKilledIsFinished(t *testing.T) {
	if dsn := os.Getenv(moveEnv); dsn != "" {
		c := testConfig(t)
		from, to, _ := strings.Cut(dsn, " ")
		c.DSN, c.Seals = from, derivedKeys{}
		_, err := Move(context.Background(), c, to, func(table string, _ int64) {
			if table == os.Getenv("HANDRAIL_TEST_MOVE_AT") {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		})
		fmt.Println(err)
		return
	}
	c, _, _ := movable(t)
	to := shared.Database(t)
	for _, table := range []string{"ledger_entry", "line", "seen"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAMoveThatIsKilledIsFinished$")
		cmd.Env = append(os.Environ(), moveEnv+"="+c.DSN+" "+to, "HANDRAIL_TEST_MOVE_AT="+table)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Fatalf("it was not killed: %s", out)
		}
		if _, err := Open(t.Context(), c); !strings.Contains(fmt.Sprint(err), "moving to") {
			t.Errorf("the old database: %v", err)
		}
	}
	if _, err := Move(t.Context(), c, shared.Database(t), nil); err == nil {
		t.Error("a move to one database is finished in another")
	}
	// All was copied, but the old one was never told.
	m := &move{c: c}
	if err := m.open(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if _, err := m.target(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.copy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.close()
	if _, err := Move(t.Context(), c, to, nil); err != nil {
		t.Fatal(err)
	}
	c.DSN = to
	mustVerify(t, mustOpen(t, c))
}
