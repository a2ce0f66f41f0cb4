package rpc

import (
	"fmt"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/shelf"
)

func put(t *testing.T, s *store.Store, e ledger.Entry) store.Recorded {
	t.Helper()
	receipt, err := s.Record(t.Context(), store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return []ledger.Entry{e}, nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receipt.Proof(t.Context(), 0); err != nil { // only what is durable is listed
		t.Fatal(err)
	}
	return receipt.Entries()[0]
}

func TestTheOutcomeOfAnActIsShownOnItsOpening(t *testing.T) {
	s := shelf.Open(t, nil)
	api := ledgers{&Deps{Store: s}}
	begin := func(n int) store.Recorded {
		return put(t, s, ledger.Entry{Action: "ledger.verified", Subjects: []string{"p-ada"}, Payload: map[string]any{"v": 1, "n": n}})
	}
	end := func(of store.Recorded, outcome ledger.Outcome, failure string) store.Recorded {
		return put(t, s, ledger.Entry{Action: "act.ended", Outcome: outcome, Subjects: []string{"p-ada"}, Payload: map[string]any{
			"v": 1, "action": "ledger.verify", "error": failure, "of": ledger.HashOf(of.Leaf).String()}})
	}
	first, second := begin(1), begin(2)
	failed := end(second, ledger.Failed, "the disk is gone")
	end(first, ledger.OK, "")
	list := func(q store.EntryQuery, unfolded bool) (out []string) {
		t.Helper()
		all, err := api.page(t.Context(), q, calling, unfolded)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			out = append(out, fmt.Sprintf("%s/%s %s", strings.TrimPrefix(e.Action, "ledger."), e.EndedOutcome, e.Summary))
			if e.EndedNumber != 0 && e.Number == uint64(second.Seq) && e.EndedNumber != uint64(failed.Seq) {
				t.Errorf("#%d is said to end #%d", e.EndedNumber, e.Number)
			}
		}
		return out
	}
	want := []string{"verified/failed ada had the whole ledger verified, failed: the disk is gone", "verified/ok ada had the whole ledger verified", "opened/ the ledger was opened"}
	if got := list(store.EntryQuery{Limit: 10}, false); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("folded:\n%s", strings.Join(got, "\n"))
	}
	if got := list(store.EntryQuery{Limit: 10}, true); len(got) != 5 {
		t.Errorf("apart:\n%s", strings.Join(got, "\n"))
	}
	// A page that ends among outcomes looks on for the acts they belong to.
	if got := list(store.EntryQuery{Limit: 2}, false); fmt.Sprint(got) != fmt.Sprint(want[:2]) {
		t.Errorf("a short page:\n%s", strings.Join(got, "\n"))
	}
	// An outcome whose act is not on the page stands for itself.
	if got := list(store.EntryQuery{After: second.Seq, Oldest: true, Limit: 10}, false); len(got) != 2 || !strings.HasPrefix(got[0], "act.ended") {
		t.Errorf("without the acts:\n%s", strings.Join(got, "\n"))
	}
}
