package access_test

import (
	"context"
	"slices"
	"testing"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// list is the ids of what somebody lists.
func (h *house) list(ctx context.Context, f access.Filter) (ids []string) {
	h.t.Helper()
	all, err := h.access.List(ctx, f)
	fatal(h.t, err)
	for _, g := range all {
		ids = append(ids, g.ID)
	}
	return ids
}

func TestGrantsAreListedByWhoAgreed(t *testing.T) {
	h := build(t, twoNeeded...)
	ada, bob, carl, dora := h.person("ada"), h.person("bob", "operator"), h.person("carl", "operator"), h.person("dora", "admin")
	half, whole, over := h.ask(ada, "half"), h.ask(ada, "whole"), h.ask(ada, "over")
	for _, by := range []context.Context{bob, carl} {
		for _, asked := range []access.Asked{whole, over} {
			_, err := h.approve(by, asked.Approval)
			fatal(t, err)
		}
	}
	_, err := h.approve(bob, half.Approval)
	fatal(t, err)
	_, err = h.access.Revoke(dora, over.Grant.ID, "enough")
	fatal(t, err)

	check := func(what string, f access.Filter, want ...access.Asked) {
		t.Helper()
		got := h.list(dora, f)
		var ids []string
		for _, asked := range want {
			ids = append(ids, asked.Grant.ID)
		}
		slices.Sort(got)
		slices.Sort(ids)
		if !slices.Equal(got, ids) {
			t.Errorf("%s: %v, want %v", what, got, ids)
		}
	}
	check("all on bob's word", access.Filter{AgreedBy: "bob"}, half, whole, over)
	check("by id", access.Filter{AgreedBy: id(bob)}, half, whole, over)
	check("open", access.Filter{Open: true, AgreedBy: "bob"}, half, whole)
	check("in force", access.Filter{InForce: true, AgreedBy: "bob"}, whole)
	check("in force, of anybody", access.Filter{InForce: true}, whole)
	check("carl's", access.Filter{AgreedBy: "carl"}, whole, over)
	check("who asked agreed to nothing", access.Filter{AgreedBy: "ada"})
	check("mine, and I have none", access.Filter{Mine: true})

	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.people.LockTx(tx, "system", id(bob), "lost laptop")
		return entries, err
	})
	check("locked: what waits does not stand on bob's word any more, what is in force does", access.Filter{Open: true, AgreedBy: "bob"}, whole)
	for _, nobody := range []string{"bbo", "p-nobody00"} {
		if _, err := h.access.List(dora, access.Filter{AgreedBy: nobody}); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%q is taken for somebody: %v", nobody, err)
		}
	}
}

// A list is bounded: what is over must not push out what is not.
func TestManyGrantsThatAreOverHideNoneThatIsOpen(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	open, agreed, old := h.ask(ada, "open since long ago"), h.ask(ada, "agreed to long ago"), h.ask(ada, "over")
	_, err := h.approve(bob, agreed.Approval)
	fatal(t, err)
	for _, asked := range []access.Asked{agreed, old} {
		_, err := h.access.Revoke(bob, asked.Grant.ID, "enough")
		fatal(t, err)
	}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.people.AddTx(tx, identity.Principal{ID: "system"}, "carl", nil) // rows come with an entry
		if err != nil {
			return nil, err
		}
		for range 600 {
			if _, err := tx.Exec(`INSERT INTO grants (id, person, state, body, request_id, requested, finished, next, review_by, version)
SELECT $1, person, state, body, $1, requested + 1, finished, next, review_by, version FROM grants WHERE id = $2`, store.NewID('g'), old.Grant.ID); err != nil {
				return nil, err
			}
		}
		return entries, nil
	})
	if got := h.list(bob, access.Filter{Open: true}); !slices.Equal(got, []string{open.Grant.ID}) {
		t.Errorf("%d open, and one is", len(got))
	}
	if got := h.list(bob, access.Filter{AgreedBy: "bob"}); !slices.Equal(got, []string{agreed.Grant.ID}) {
		t.Errorf("bob agreed to %d, and to one he did", len(got))
	}
	if n := len(h.list(bob, access.Filter{})); n != 500 {
		t.Errorf("%d in a list of all", n)
	}
}
