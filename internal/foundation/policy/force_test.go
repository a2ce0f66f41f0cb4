package policy_test

import (
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/shelf"
)

func TestASetComesIntoForceOnlyOverTheOneItWasComparedWith(t *testing.T) {
	s := shelf.Open(t, policy.Schema())
	force := policy.NewForce(s)
	if _, err := force.Engine(t.Context()); err == nil {
		t.Error("without a set there is no engine")
	}
	for range 2 { // seeding again changes nothing
		if err := force.Seed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	engine, err := force.Engine(t.Context())
	if err != nil || engine.Version() != 1 {
		t.Fatalf("version %d, %v", engine.Version(), err)
	}
	set := policy.Default()
	set.Files = append(set.Files, policy.File{Name: "7-team.cedar", Text: `@id("team") @says("the team exports") permit (principal is Person in Group::"team", action == Action::"ledger.export", resource);`})
	apply := func(set policy.Set, base int64) error {
		_, err := s.Record(t.Context(), store.NewID('x'), func(tx *store.Tx) ([]ledger.Entry, error) {
			_, e, err := force.ApplyTx(tx, "p-ada", set, base)
			return []ledger.Entry{e}, err
		})
		return err
	}
	if err := apply(set, 1); err != nil {
		t.Fatal(err)
	}
	if err := apply(set, 1); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a set compared with an older one: %v", err)
	}
	set.Files[0].Text += "permit"
	if err := apply(set, 2); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a set with a fault: %v", err)
	}
	if engine, err = force.Engine(t.Context()); err != nil || engine.Version() != 2 {
		t.Errorf("version %d, %v", engine.Version(), err)
	}
	if err := force.Seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	row, err := force.Current(t.Context())
	if err != nil || row.Version != 2 || row.AppliedBy != "p-ada" {
		t.Errorf("seeding replaced what people decided: %+v, %v", row, err)
	}
	entries, err := s.Entries(t.Context(), store.EntryQuery{Action: string(policy.Applied)})
	if err != nil || len(entries) != 2 || !strings.Contains(string(entries[0].Payload), "the team exports") {
		t.Errorf("the ledger does not hold the text: %d, %v", len(entries), err)
	}
}
