package sim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What the simulation met by chance, made on purpose.

// A crash takes back an approval that nobody heard of: whoever revokes the grant
// in the next life revokes a request, which is denied and never was a grant.
func TestAnApprovalThatACrashTookBackLeavesARequestToRevoke(t *testing.T) {
	w := newWorld(t, 1)
	var asked access.Asked
	synctest.Test(t, func(t *testing.T) {
		s := w.wakes()
		defer w.sleeps(s)
		w.found(s, 1)
		var err error
		asked, err = s.access.Elevate(w.who("developer", 0).in(s), access.Ask{Hosts: []string{"web-0"}, Reason: "it burns", For: time.Hour})
		w.must(err)
		f := &fuse{at: "sealing"}
		f.left.Store(1)
		s.armed.Store(f)
		if w.agrees(s, w.who("operator", 0), asked.Approval); !s.dead() {
			t.Fatal("the server did not crash while it wrote the approval")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := w.wakes()
		defer w.sleeps(s)
		over, err := s.access.Revoke(w.who("operator", 0).in(s), asked.Grant.ID, "enough")
		w.must(err)
		if over.Grant.State != access.Denied {
			t.Errorf("the request is %s", over.Grant.State)
		}
		w.ended(s, over, err)
		w.check(s)
	})
	for _, f := range w.failures {
		t.Error(f)
	}
}

// A session ends while the database is away, and it stays away for long: its end
// is recorded when it is back, without a start.
func TestWhatEndsWhileTheDatabaseIsAwayIsRecordedWhenItIsBack(t *testing.T) {
	w := newWorld(t, 1)
	synctest.Test(t, func(t *testing.T) {
		s := w.wakes()
		defer w.sleeps(s)
		w.found(s, 1)
		n := w.nodes[0]
		w.opens(s, w.who("developer", 0), n, wire.LevelRead, time.Hour)
		if open, err := stillOpen(s); err != nil || len(open) != 1 {
			t.Fatalf("%d sessions are open (%v)", len(open), err)
		}
		w.away.Store(true)
		for _, r := range n.sessions() {
			n.end(r, "", 0)
		}
		<-time.After(time.Hour)
		w.away.Store(false)
		<-time.After(2 * time.Minute)
		if open, err := stillOpen(s); err != nil || len(open) != 0 {
			t.Errorf("%d sessions are open for ever (%v)", len(open), err)
		}
		w.check(s)
	})
	for _, f := range w.failures {
		t.Error(f)
	}
}

// The answer to a lease comes when the warden that asked was killed: the one that
// came after it never hears of it, asks itself, and gets its own.
func TestAnAnswerForAWardenThatWasKilledIsNobodys(t *testing.T) {
	w := newWorld(t, 1)
	synctest.Test(t, func(t *testing.T) {
		s := w.wakes()
		defer w.sleeps(s)
		w.found(s, 1)
		n := w.nodes[0]
		asker := n.warden()
		raw, err := asker.Ask()
		w.must(err)
		ask, err := wire.ParseLeaseAsk(raw)
		w.must(err)
		signed, err := s.lease(ask)
		w.must(err)
		n.killWarden()
		if err := n.answered(asker, ask.Nonce, signed); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("the answer was taken: %v", err)
		}
		if err := n.warden().Answer(ask.Nonce, signed); fault.KindOf(err) != fault.Denied {
			t.Errorf("a warden takes the answer to what it did not ask: %v", err)
		}
		if n.renew(s); n.warden().Fresh() == 0 {
			t.Error("the next warden has no lease")
		}
	})
	for _, f := range w.failures {
		t.Error(f)
	}
}
