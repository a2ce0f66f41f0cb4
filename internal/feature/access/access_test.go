package access_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func TestElevateApproveWriteRevoke(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada", "developer"), h.person("bob", "operator")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1", "web-2"}, Reason: "it burns", Ticket: "OPS-7", For: 30 * time.Minute})
	fatal(t, err)
	if asked.Grant.State != access.Requested || len(asked.Grant.Targets) != 2 || !slices.Equal(asked.Approvers, []string{"operator", "admin"}) {
		t.Fatalf("%+v", asked)
	}
	if _, ok := h.active(ada, "web-1"); ok {
		t.Fatal("in force before anybody agreed")
	}
	shown, err := h.access.Show(bob, asked.Grant.ID)
	fatal(t, err)
	text := fmt.Sprint(shown.Description)
	if shown.MayNot != nil || !strings.Contains(text, "web-2") || !strings.Contains(text, "it burns") || !strings.Contains(text, "OPS-7") || len(shown.Description.CannotContain) == 0 {
		t.Errorf("bob does not see what he agrees to: %+v", shown)
	}
	if own, err := h.access.Show(ada, asked.Approval.ID); err != nil || own.MayNot == nil {
		t.Errorf("ada may decide her own request: %v", err)
	}
	a, err := h.approve(bob, asked.Approval)
	fatal(t, err)
	if a.State != approval.Approved || len(a.Decisions[0].Signature.PublicKey) == 0 {
		t.Fatalf("%+v", a)
	}
	force, ok := h.active(ada, "web-1")
	if !ok || force.ID != asked.Grant.ID || len(force.Authority.Signatures) != 1 || string(force.Authority.Request) != string(a.Request) {
		t.Fatalf("not in force, or without what a write order carries: %+v", force)
	}
	if _, ok := h.active(ada, "pay-1"); ok {
		t.Error("in force on a host that nobody agreed to")
	}
	if _, ok := h.active(bob, "web-1"); ok {
		t.Error("in force for somebody else")
	}
	over, err := h.access.Revoke(bob, asked.Grant.ID, "enough")
	g, killed := over.Grant, over.Killed
	if err != nil || g.State != access.Ended || g.EndedWhy != access.Revoked || g.EndedBy != id(bob) || g.EndedNote != "enough" || killed != 1 {
		t.Errorf("%+v %d %v", g, killed, err)
	}
	if _, ok := h.active(ada, "web-1"); ok {
		t.Error("in force after it was revoked")
	}
	h.folds()
}

// Root on the server's own host reads the root key: it is no grant on a host.
func TestRootOnTheServersOwnHostIsRefusedByDefault(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada", "developer"), h.person("bob", "operator")
	// An ordinary grant that is in force there must not hide what is asked for.
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"gate-1"}, Reason: "restart it"})
	fatal(t, err)
	_, err = h.approve(bob, asked.Approval)
	fatal(t, err)
	for name, ask := range map[string]func() error{
		"root": func() error {
			_, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"gate-1"}, Reason: "x", Root: true})
			return err
		},
		"sudo": func() error {
			_, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"gate-1"}, Reason: "x", Sudo: true})
			return err
		},
		"among many": func() error {
			_, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1", "gate-1"}, Reason: "x", Root: true})
			return err
		},
		"break-glass": func() error {
			_, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"gate-1"}, Reason: "x", Root: true})
			return err
		},
	} {
		f := fault.From(ask())
		if f == nil || f.Kind != fault.Denied || f.Rule != "root-owns-the-server" || !strings.Contains(f.Text, "whole installation") {
			t.Errorf("%s: %v", name, f)
		}
	}
	if _, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "x", Root: true}); err != nil {
		t.Errorf("root elsewhere: %v", err)
	}
}

func TestWhereRootOnTheServersHostIsAllowedTheApproverReadsWhatItMeans(t *testing.T) {
	h := build(t, "when { resource.server &&", "when { false && resource.server &&")
	ada := h.person("ada", "developer")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1", "gate-1"}, Reason: "x", Root: true})
	fatal(t, err)
	shown, err := h.access.Show(h.person("bob", "operator"), asked.Approval.ID)
	fatal(t, err)
	if d := shown.Description; !strings.Contains(d.Grants[0], "THE WHOLE INSTALLATION") || !strings.Contains(d.Grants[0], "gate-1") || !strings.HasPrefix(d.CannotContain[0], "EVERYTHING") {
		t.Errorf("the approver is not told: %+v", d)
	}
	asked, err = h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "x", Root: true})
	fatal(t, err)
	if text := fmt.Sprint(asked.Grant.CannotContain()); strings.Contains(text, "EVERYTHING") {
		t.Errorf("another host is said to be the server's: %s", text)
	}
}

func TestNobodyAgreesToTheirOwnNotEvenAnAdmin(t *testing.T) {
	h := build(t)
	amy, eve := h.person("amy", "admin", "operator"), h.person("eve", "developer")
	asked, err := h.access.Elevate(amy, access.Ask{Hosts: []string{"web-1"}, Reason: "mine"})
	fatal(t, err)
	_, err = h.approve(amy, asked.Approval)
	if f := fault.From(err); f == nil || f.Kind != fault.Denied || f.Rule != "never-your-own" {
		t.Errorf("an admin agreed to their own: %v", err)
	}
	if _, err := h.approve(eve, asked.Approval); fault.KindOf(err) != fault.Denied {
		t.Errorf("a developer agreed: %v", err)
	}
	if _, ok := h.active(amy, "web-1"); ok {
		t.Error("in force")
	}
}

func TestASignatureOfAnotherOrOverAnotherHashIsRefused(t *testing.T) {
	h := build(t)
	ada, bob, carl := h.person("ada"), h.person("bob", "operator"), h.person("carl", "operator")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	a := asked.Approval
	if _, err := h.access.Approve(bob, a.ID, a.Hash, h.sign(carl, a.Hash)); fault.KindOf(err) != fault.Denied {
		t.Errorf("carl's signature for bob: %v", err)
	}
	other := approval.SubjectHash("grant", []byte("another"))
	if _, err := h.access.Approve(bob, a.ID, other, h.sign(bob, other)); err == nil {
		t.Error("another hash")
	}
	if _, err := h.access.Approve(bob, a.ID, a.Hash, h.sign(bob, other)); err == nil {
		t.Error("a signature over another hash")
	}
	if _, err := h.access.Approve(bob, a.ID, a.Hash, approval.Evidence{}); fault.KindOf(err) != fault.Denied {
		t.Errorf("no signature: %v", err)
	}
	// A sock puppet: a device enrolled a minute ago.
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`UPDATE devices SET may_approve_from = $1 WHERE person = $2`, time.Now().Add(24*time.Hour).UnixMicro(), id(bob))
		return []ledger.Entry{{Action: "test.changed"}}, err
	})
	if _, err := h.approve(bob, a); fault.From(err).Rule != "young-credential" {
		t.Errorf("a credential made a minute ago: %v", err)
	}
	// The row changes after it was asked for: what was signed is not there any more.
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`UPDATE grants SET body = REPLACE(body, 'it burns', 'it shines')`)
		return []ledger.Entry{{Action: "test.changed"}}, err
	})
	if _, err := h.approve(carl, a); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a grant that changed after the request: %v", err)
	}
}

func TestTwoApproversAtOnceMakeOneGrant(t *testing.T) {
	h := build(t)
	ada := h.person("ada")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	var wait sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 6 {
		ctx := h.person(fmt.Sprintf("op%d", i), "operator")
		evidence := h.sign(ctx, asked.Approval.Hash)
		wait.Go(func() {
			_, err := h.access.Approve(ctx, asked.Approval.ID, asked.Approval.Hash, evidence)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if fault.KindOf(err) != fault.Conflict {
				t.Errorf("%v", err)
			}
		})
	}
	wait.Wait()
	if g, err := h.access.Get(ada, asked.Grant.ID); err != nil || won != 1 || g.Version != 3 || g.State != access.Active {
		t.Errorf("%d approvals won, %+v, %v", won, g, err)
	}
}

func TestARequestWithAnIdIsMadeOnceAndCanBeSignedAfterwards(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	ask := access.Ask{Hosts: []string{"web-1"}, Reason: "it burns", RequestID: "r-1"}
	first, err := h.access.Elevate(ada, ask)
	fatal(t, err)
	ask.Signature = h.sign(ada, first.Approval.Hash)
	if _, err := h.access.Elevate(ada, ask); fault.KindOf(err) != fault.Denied {
		t.Errorf("an approval signature stands for a request: %v", err)
	}
	ask.Signature = h.stand(ada, first.Approval.Hash)
	if _, err := h.access.Approve(bob, first.Approval.ID, first.Approval.Hash, h.stand(bob, first.Approval.Hash)); fault.KindOf(err) != fault.Denied {
		t.Errorf("a request signature approves: %v", err)
	}
	again, err := h.access.Elevate(ada, ask)
	if err != nil || again.Grant.ID != first.Grant.ID || again.Approval.Signed == nil {
		t.Fatalf("%+v %v", again, err)
	}
	_, err = h.approve(bob, again.Approval)
	fatal(t, err)
	force, _ := h.active(ada, "web-1")
	if len(force.Authority.Signatures) != 2 || force.Authority.Signatures[0].Role != "requester" || force.Authority.Signatures[1].Role != "approver" {
		t.Errorf("%+v", force.Authority)
	}
}

// The requester learns the hash when everybody does: an approver may be quicker.
func TestARequesterSignsAlsoAfterAQuickApproval(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	ask := access.Ask{Hosts: []string{"web-1"}, Reason: "it burns", RequestID: "r-1"}
	first, err := h.access.Elevate(ada, ask)
	fatal(t, err)
	_, err = h.approve(bob, first.Approval)
	fatal(t, err)
	ask.Signature = h.stand(ada, first.Approval.Hash)
	again, err := h.access.Elevate(ada, ask)
	if err != nil || again.Approval.Signed == nil || again.Approval.State != approval.Approved {
		t.Fatalf("%+v %v", again, err)
	}
	force, ok := h.active(ada, "web-1")
	if !ok || len(force.Authority.Signatures) != 2 {
		t.Errorf("%v %+v", ok, force.Authority)
	}
}

func TestWhatPolicyDoesNotAllowCannotBeAskedFor(t *testing.T) {
	h := build(t)
	ada := h.person("ada")
	for name, ask := range map[string]access.Ask{
		"no reason":            {Hosts: []string{"web-1"}},
		"no host":              {Reason: "x"},
		"a missing host":       {Hosts: []string{"web-9"}, Reason: "x"},
		"too long":             {Hosts: []string{"web-1"}, Reason: "x", For: 3 * time.Hour},
		"too long for one":     {Hosts: []string{"web-2", "pay-1"}, Reason: "x", For: 2 * time.Hour},
		"another account":      {Hosts: []string{"web-1"}, Reason: "x", Account: "postgres"},
		"a second of it":       {Hosts: []string{"web-1"}, Reason: "x", For: time.Second},
		"a reason like a book": {Hosts: []string{"web-1"}, Reason: strings.Repeat("x", 5000)},
	} {
		if _, err := h.access.Elevate(ada, ask); err == nil {
			t.Errorf("%s is granted", name)
		}
	}
	nobody := t.Context()
	if _, err := h.access.Elevate(nobody, access.Ask{Hosts: []string{"web-1"}, Reason: "x"}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"pay-1"}, Reason: "x", Root: true})
	if err != nil || !asked.Grant.BuddyRequired || asked.Grant.Kind != access.Elevated || asked.Grant.Account != "root" {
		t.Errorf("%+v %v", asked.Grant, err)
	}
	if !strings.Contains(fmt.Sprint(asked.Grant.CannotContain()), "at, cron, systemd-run, docker") {
		t.Error("root is not told about")
	}
	for i := range 30 {
		_, err = h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: fmt.Sprint(i)})
	}
	if fault.KindOf(err) != fault.Exhausted {
		t.Errorf("thirty requests: %v", err)
	}
}

func TestBreakGlassIsAtOnceAndOwesAReview(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	asked, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "production is down"})
	fatal(t, err)
	force, ok := h.active(ada, "web-1")
	if !ok || force.Kind != access.BreakGlass || asked.Approval.Kind != access.KindRatification {
		t.Fatalf("%+v", force)
	}
	if _, err := h.approve(ada, asked.Approval); fault.KindOf(err) != fault.Denied {
		t.Errorf("ratified by themselves: %v", err)
	}
	_, err = h.approve(bob, asked.Approval)
	fatal(t, err)
	g, err := h.access.Get(ada, "-")
	if err != nil || g.RatifiedBy != id(bob) || g.State != access.Active {
		t.Errorf("%+v %v", g, err)
	}
	over, err := h.access.Done(ada, g.ID)
	g = over.Grant
	if err != nil || g.State != access.InReview {
		t.Errorf("%+v %v", g, err)
	}
	if _, err := h.access.Review(ada, g.ID, "justified", ""); fault.KindOf(err) != fault.Denied {
		t.Errorf("their own review: %v", err)
	}
	// Not yet due: the glass can be broken again.
	second, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "again"})
	fatal(t, err)
	// Overdue: it cannot, until somebody closes it.
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`UPDATE grants SET review_by = 1 WHERE id = $1`, g.ID)
		return []ledger.Entry{{Action: "test.changed"}}, err
	})
	_, err = h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "and again"})
	if f := fault.From(err); f == nil || f.Rule != "a-review-is-owed" {
		t.Errorf("who owes a review broke the glass: %v", err)
	}
	g, err = h.access.Review(bob, g.ID, "justified", "it was down")
	if err != nil || g.State != access.Closed || g.ReviewedBy != id(bob) {
		t.Errorf("%+v %v", g, err)
	}
	if _, err = h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "and again"}); err != nil {
		t.Errorf("after the review: %v", err)
	}
	if _, err := h.access.Deny(bob, second.Approval.ID, "not this time"); err != nil {
		t.Errorf("deny: %v", err)
	}
	if g, err = h.access.Get(ada, second.Grant.ID); err != nil || g.EndedWhy != access.Unratified || h.sessions.why(g.ID) != access.Unratified {
		t.Errorf("a refused ratification cuts it back: %+v %v", g, err)
	}
	h.folds()
}

func TestTimeEndsWhatItMust(t *testing.T) {
	h := build(t, `ratify_within = "10m"`, `ratify_within = "300ms"`, "lapse = \"1h\"", "lapse = \"200ms\"", `for = "30m" `, `for = "500ms"`)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	stop := h.run()
	lapses, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "nobody answers"})
	fatal(t, err)
	unratified, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "nobody ratifies"})
	fatal(t, err)
	expires, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-2"}, Reason: "somebody ratifies"})
	fatal(t, err)
	_, err = h.approve(bob, expires.Approval)
	fatal(t, err)
	if why := h.ended(unratified.Grant.ID); why != access.Unratified {
		t.Errorf("ended %s", why)
	}
	if why := h.ended(expires.Grant.ID); why != access.Expired {
		t.Errorf("ended %s", why)
	}
	g, err := h.access.Get(ada, lapses.Grant.ID)
	if err != nil || g.State != access.Lapsed {
		t.Errorf("%+v %v", g, err)
	}
	stop()
	h.folds()
}

func TestAfterARestartTheRowsAreEnough(t *testing.T) {
	h := build(t, `ratify_within = "10m"`, `ratify_within = "200ms"`)
	ada := h.person("ada")
	asked, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "then the server dies"})
	fatal(t, err)
	fatal(t, h.store.Close()) // nobody ran Run; nothing was told to stop
	h.start()
	stop := h.run()
	if why := h.ended(asked.Grant.ID); why != access.Unratified {
		t.Errorf("ended %s", why)
	}
	stop()
	// It ended, and again the server dies before the sessions are told.
	fatal(t, h.store.Close())
	h.start()
	stop = h.run()
	if why := h.ended(asked.Grant.ID); why != access.Unratified {
		t.Errorf("ended %s", why)
	}
	stop()
	h.folds()
}

func TestALockEndsGrantsAtOnce(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	stop := h.run()
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	_, err = h.approve(bob, asked.Approval)
	fatal(t, err)
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.people.LockTx(tx, id(bob), id(ada), "gone rogue")
		return e, err
	})
	if why := h.ended(asked.Grant.ID); why != access.Locked {
		t.Errorf("ended %s", why)
	}
	stop()
	// And within the locking transaction, where that is asked for.
	eve := h.person("eve")
	asked, err = h.access.BreakGlass(eve, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	_, err = h.access.Elevate(eve, access.Ask{Hosts: []string{"web-2"}, Reason: "there too"})
	fatal(t, err)
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.people.LockTx(tx, id(bob), id(eve), "her too")
		if err != nil {
			return nil, err
		}
		ended, more, err := h.access.LockedTx(tx, id(eve), id(bob), "her too")
		if ended != 2 {
			t.Errorf("%d grants ended, in %d entries; there were two", ended, len(more))
		}
		return append(e, more...), err
	})
	if g, err := h.access.Get(bob, asked.Grant.ID); err != nil || g.State != access.InReview || g.EndedWhy != access.Locked || g.EndedBy != id(bob) || g.EndedNote != "her too" {
		t.Errorf("%+v %v", g, err)
	}
	h.folds()
}

func TestAPausedGrantIsNotInForceAndOnlyOthersResumeIt(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada", "operator"), h.person("bob", "operator")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	_, err = h.approve(bob, asked.Approval)
	fatal(t, err)
	if _, err = h.access.Pause(bob, asked.Grant.ID, "wait"); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.active(ada, "web-1"); ok {
		t.Error("in force while paused")
	}
	if _, err := h.access.Resume(ada, asked.Grant.ID); fault.KindOf(err) != fault.Denied {
		t.Errorf("resumed by themselves: %v", err)
	}
	if _, err := h.access.Resume(bob, asked.Grant.ID); err != nil {
		t.Error(err)
	}
	if _, ok := h.active(ada, "web-1"); !ok {
		t.Error("not in force after it was resumed")
	}
}

func TestARequestThatIsTakenBackCannotBeApproved(t *testing.T) {
	h := build(t)
	ada, bob, eve := h.person("ada"), h.person("bob", "operator"), h.person("eve")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
	fatal(t, err)
	if _, err := h.access.Revoke(eve, asked.Grant.ID, "no"); fault.KindOf(err) != fault.Denied {
		t.Errorf("a stranger took it back: %v", err)
	}
	if _, err := h.access.Done(bob, asked.Grant.ID); fault.KindOf(err) != fault.Denied {
		t.Errorf("somebody else was done: %v", err)
	}
	if g, err := h.access.Done(ada, asked.Grant.ID); err != nil || g.Grant.State != access.Denied {
		t.Errorf("%+v %v", g, err)
	}
	if _, err := h.approve(bob, asked.Approval); fault.KindOf(err) != fault.Conflict {
		t.Errorf("approved after it was taken back: %v", err)
	}
	h.folds()
}
