package access_test

import (
	"testing"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
)

// While nobody knows who left the company, one agrees more to a grant; what
// burns already does not wait for that.
func TestAGrantTakesOneApproverMoreWhileNobodyKnowsWhoLeft(t *testing.T) {
	h := build(t)
	ada, bob, carol := h.person("ada", "developer"), h.person("bob", "operator"), h.person("carol", "operator")
	h.more = 1
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	if asked.Approval.Rule.Needed != 2 {
		t.Fatalf("%d must agree", asked.Approval.Rule.Needed)
	}
	if a, err := h.approve(bob, asked.Approval); err != nil || a.State != approval.Requested {
		t.Fatalf("%v %v", a.State, err)
	}
	if _, ok := h.active(ada, "web-1"); ok {
		t.Error("in force when one agreed")
	}
	if a, err := h.approve(carol, asked.Approval); err != nil || a.State != approval.Approved {
		t.Fatalf("%v %v", a.State, err)
	}
	if _, ok := h.active(ada, "web-1"); !ok {
		t.Error("not in force when two agreed")
	}
	glass, err := h.access.BreakGlass(bob, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	if glass.Approval.Rule.Needed != 1 {
		t.Errorf("a break-glass waits for %d", glass.Approval.Rule.Needed)
	}
}
