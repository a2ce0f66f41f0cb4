package store

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func TestWhatIsPrunedLeavesEveryProof(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		for i := range 10 {
			mustRecord(t, s, fmt.Sprint(i), bump("a"))
			mustRecord(t, s, fmt.Sprint("other ", i), func(*Tx) ([]ledger.Entry, error) {
				return []ledger.Entry{{Action: "line.read", Payload: map[string]int{"v": 1}}}, nil
			})
		}
		later := time.Now().Add(time.Hour).UnixMicro()
		for _, bad := range []string{"ledger.*", "recording.chunks", "subject.erased", "*", "counter", "*.bumped", ""} {
			if _, err := s.Prune(t.Context(), []ledger.PruneRule{{Action: bad, Before: later}}); fault.KindOf(err) != fault.Invalid {
				t.Errorf("pruned %q: %v", bad, err)
			}
		}
		if n, err := s.Prune(t.Context(), []ledger.PruneRule{{Action: "counter.bumped", Before: 1}}); n != 0 || err != nil {
			t.Errorf("nothing is that old: %d, %v", n, err)
		}
		rules := []ledger.PruneRule{{Action: "line.read", Before: later}, {Action: "counter.*", Before: later}, {Action: "counter.bumped", Before: 1}}
		due, err := s.Prunable(t.Context(), rules)
		if err != nil || len(due) != 2 || due[0].Action != "counter.bumped" || due[0].Count != 10 || due[1].Action != "line.read" || due[1].Count != 10 {
			t.Fatalf("due: %+v, %v", due, err)
		}
		for _, d := range due {
			if d.Bytes < 10*32 || d.Oldest > time.Now().UnixMicro() || d.Oldest < time.Now().Add(-time.Hour).UnixMicro() {
				t.Errorf("of %s: %+v", d.Action, d)
			}
		}
		if _, err := s.Prunable(t.Context(), []ledger.PruneRule{{Action: "ledger.*", Before: later}}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("what is never pruned is counted: %v", err)
		}
		size := s.Size()
		n, err := s.Prune(t.Context(), []ledger.PruneRule{{Action: "counter.*", Before: later}})
		if err != nil || n != 10 || s.Size() != size+1 {
			t.Fatalf("%d payloads, %d entries: %v", n, s.Size()-size, err)
		}
		if due, err = s.Prunable(t.Context(), rules); err != nil || len(due) != 1 || due[0].Action != "line.read" {
			t.Errorf("due after that: %+v, %v", due, err)
		}
		mustRecord(t, s, "after", bump("a")) // is of the same kind, and stays
		rec, err := s.Entries(t.Context(), EntryQuery{Action: "counter.bumped", Oldest: true})
		if err != nil || len(rec) != 11 {
			t.Fatal(err)
		}
		for i, r := range rec {
			if gone := len(r.Payload) == 0; gone != (i < 10) {
				t.Errorf("the payload of #%d: gone is %v", r.Seq, gone)
			}
		}
		p, err := s.Proof(t.Context(), rec[3].Seq)
		if err == nil {
			_, err = p.VerifyLeaf(c.Verifier, c.Origin)
		}
		if err != nil {
			t.Error(err)
		}
		mustVerify(t, s)
		var out bytes.Buffer
		if err := s.Export(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		report, err := ledger.VerifyExport(bytes.NewReader(out.Bytes()), int64(out.Len()), ledger.ExportOptions{LogKey: c.Verifier, Origin: c.Origin}, nil)
		if err != nil || !report.OK || report.Pruned != 10 {
			t.Errorf("the export: %+v, %v", report, err)
		}
		// One more that nobody spoke of is found.
		err = s.eng.maintain(t.Context(), func(tx *Tx) error {
			_, err := tx.Exec(`UPDATE ledger_payload SET body = $1 WHERE seq = $2`, []byte{}, rec[10].Seq)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if report, err := s.Verify(t.Context(), nil); err != nil || report.OK || len(report.Findings) != 1 {
			t.Errorf("%+v, %v", report, err)
		}
	})
}

func TestPruningThatWasInterruptedIsFinished(t *testing.T) {
	c := testConfig(t)
	s := mustOpen(t, c)
	mustRecord(t, s, "one", bump("a"))
	p := ledger.Pruned{V: 1, Rules: []ledger.PruneRule{{Action: "counter.bumped", Before: time.Now().Add(time.Hour).UnixMicro()}}, Through: s.Size(), Count: 1}
	mustRecord(t, s, "prune", func(*Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: ledger.ActionPruned, Payload: p}}, nil
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, c)
	rec, err := s.Entries(t.Context(), EntryQuery{Action: "counter.bumped"})
	if err != nil || len(rec) != 1 || len(rec[0].Payload) > 0 {
		t.Errorf("%d entries, %v", len(rec), err)
	}
	mustVerify(t, s)
}
