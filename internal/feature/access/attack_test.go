package access_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// twoNeeded is a policy by which two people agree to a grant.
var twoNeeded = []string{"[approvals.grant]\nneeded = 1", "[approvals.grant]\nneeded = 2"}

func (h *house) ask(ctx context.Context, why string) access.Asked {
	h.t.Helper()
	asked, err := h.access.Elevate(ctx, access.Ask{Hosts: []string{"web-1"}, Reason: why})
	fatal(h.t, err)
	return asked
}

// What happens to the first of two approvers before the second agrees.
func TestAnApprovalCountsOnlyWhileItsApproverStands(t *testing.T) {
	for name, fall := range map[string]func(h *house, tx *store.Tx, who string) ([]ledger.Entry, error){
		"locked": func(h *house, tx *store.Tx, who string) ([]ledger.Entry, error) {
			_, entries, err := h.people.LockTx(tx, "system", who, "lost laptop")
			return entries, err
		},
		"regrouped": func(h *house, tx *store.Tx, who string) ([]ledger.Entry, error) {
			_, entries, err := h.people.SetGroupsTx(tx, identity.Principal{ID: "system"}, who, []string{"developer"})
			return entries, err
		},
		"without their key": func(h *house, tx *store.Tx, who string) ([]ledger.Entry, error) {
			held, err := h.people.Credentials(tx, who)
			if err != nil {
				return nil, err
			}
			return h.people.RevokeCredentialTx(tx, "system", held[0].ID, "stolen")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := build(t, twoNeeded...)
			ada, bob, carl, dora := h.person("ada"), h.person("bob", "operator"), h.person("carl", "operator"), h.person("dora", "admin")
			asked := h.ask(ada, "it burns")
			_, err := h.approve(bob, asked.Approval)
			fatal(t, err)
			h.record(func(tx *store.Tx) ([]ledger.Entry, error) { return fall(h, tx, id(bob)) })
			if shown, err := h.access.Show(ada, asked.Approval.ID); err != nil || len(shown.Approval.Agreed()) != 0 || shown.Approval.Decisions[0].Void == "" {
				t.Errorf("it is shown as if bob's approval counted: %+v %v", shown.Approval.Decisions, err)
			}
			a, err := h.approve(carl, asked.Approval)
			fatal(t, err)
			if _, active := h.active(ada, "web-1"); active || a.State != approval.Requested || a.Decisions[0].Void == "" {
				t.Fatalf("in force by one who stands and one who does not: %+v", a)
			}
			a, err = h.approve(dora, asked.Approval)
			fatal(t, err)
			force, active := h.active(ada, "web-1")
			if !active || a.State != approval.Approved || len(force.Authority.Signatures) != 2 {
				t.Fatalf("two who stand are enough: %+v", a)
			}
			for _, s := range force.Authority.Signatures {
				if s.Person == id(bob) {
					t.Error("a write order would carry the signature of who fell")
				}
			}
			h.folds()
		})
	}
}

func TestWhoseKeyWasTakenAwayAgreesAgainWithAnotherAndCountsOnce(t *testing.T) {
	h := build(t, twoNeeded...)
	ada, bob, carl := h.person("ada"), h.person("bob", "operator"), h.person("carl", "operator")
	asked := h.ask(ada, "it burns")
	_, err := h.approve(bob, asked.Approval)
	fatal(t, err)
	if _, err := h.approve(bob, asked.Approval); fault.KindOf(err) != fault.Conflict {
		t.Fatalf("bob agrees twice: %v", err)
	}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		held, err := h.people.Credentials(tx, id(bob))
		if err != nil {
			return nil, err
		}
		entries, err := h.people.RevokeCredentialTx(tx, "system", held[0].ID, "stolen")
		if err != nil {
			return nil, err
		}
		return entries, h.deviceTx(tx, id(bob))
	})
	if shown, err := h.access.Show(bob, asked.Approval.ID); err != nil || shown.MayNot != nil {
		t.Errorf("bob is told that he may not: %v %v", shown.MayNot, err)
	}
	a, err := h.approve(bob, asked.Approval)
	if err != nil || len(a.Agreed()) != 1 || a.State != approval.Requested {
		t.Fatalf("bob counts once: %+v %v", a, err)
	}
	a, err = h.approve(carl, asked.Approval)
	if err != nil || a.State != approval.Approved || len(a.Authority().Signatures) != 2 {
		t.Fatalf("bob and carl are two: %+v %v", a, err)
	}
	h.folds()
}

func TestNobodyAgreesForSomebodyWhoIsLocked(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	asked := h.ask(ada, "it burns")
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.people.LockTx(tx, id(bob), id(ada), "lost laptop")
		return entries, err
	})
	if shown, err := h.access.Show(bob, asked.Approval.ID); err != nil || fault.KindOf(shown.MayNot) != fault.Denied {
		t.Errorf("bob is told that he may: %v %v", shown.MayNot, err)
	}
	if _, err := h.approve(bob, asked.Approval); fault.KindOf(err) != fault.Denied {
		t.Errorf("agreed for somebody who is locked: %v", err)
	}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return h.approvals.WithdrawAllTx(tx, id(bob), id(ada), "locked")
	})
	if a, err := h.approvals.Get(t.Context(), asked.Approval.ID); err != nil || a.State != approval.Withdrawn || a.EndedBy != id(bob) || a.EndedWhy != "locked" {
		t.Errorf("%+v %v", a, err)
	}
}

func TestAHostThatBecameProductionIsNotWhatWasAgreedTo(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	asked, err := h.access.Elevate(ada, access.Ask{Hosts: []string{"web-2"}, Reason: "it burns", For: 4 * time.Hour})
	fatal(t, err)
	host, err := h.hosts.Get(t.Context(), "web-2")
	fatal(t, err)
	host.Environment = "production"
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		entry, err := h.hosts.SetTx(tx, host)
		return []ledger.Entry{entry}, err
	})
	if _, err := h.approve(bob, asked.Approval); fault.KindOf(err) != fault.Conflict {
		t.Errorf("four hours on production, shown as staging: %v", err)
	}
	if _, active := h.active(ada, "web-2"); active {
		t.Error("in force")
	}
	// A name is only a name.
	asked = h.ask(ada, "it burns")
	if host, err = h.hosts.Get(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	host.Name = "web-one"
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		entry, err := h.hosts.SetTx(tx, host)
		return []ledger.Entry{entry}, err
	})
	_, err = h.approve(bob, asked.Approval)
	fatal(t, err)
}

// Every way by which the requester could be their own second person.
func TestTheRequesterIsNoSecondPersonBySomeOtherKeyOrLogin(t *testing.T) {
	h := build(t)
	amy := h.person("amy", "admin", "operator")
	asked := h.ask(amy, "mine")
	_, private, err := ed25519.GenerateKey(rand.Reader)
	fatal(t, err)
	second, err := ssh.NewSignerFromKey(private)
	fatal(t, err)
	robot := identity.Principal{}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`INSERT INTO devices (id, person, name, public_key, fingerprint, created, may_approve_from, revoked, version) VALUES ($1, $2, 'desktop', $3, $4, 1, 1, 0, 1)`,
			store.NewID('d'), id(amy), second.PublicKey().Marshal(), ssh.FingerprintSHA256(second.PublicKey()))
		if err != nil {
			return nil, err
		}
		p, entries, err := h.people.AddRobotTx(tx, identity.Principal{ID: "system"}, "amys-robot", id(amy), []string{"operator"})
		robot = identity.Principal{ID: p.ID, Name: p.Name, Kind: p.Kind, Groups: p.Groups, Epoch: p.Epoch}
		return entries, err
	})
	sig, err := second.Sign(rand.Reader, identity.ApprovalMessage(asked.Approval.Hash))
	fatal(t, err)
	evidence := approval.Evidence{DeviceSignature: ssh.Marshal(sig)}
	p, _ := identity.FromContext(amy)
	for name, by := range map[string]identity.Principal{
		"another device":        p,
		"their robot":           robot,
		"their robot as person": {ID: robot.ID, Name: robot.Name, Kind: identity.KindPerson, Groups: robot.Groups, Epoch: robot.Epoch},
		"with a claimed group":  {ID: p.ID, Name: "somebody", Kind: p.Kind, Groups: []string{"admin"}, Epoch: p.Epoch},
		"from before an epoch":  {ID: p.ID, Name: p.Name, Kind: p.Kind, Groups: p.Groups, Epoch: p.Epoch + 1},
		"nobody":                {Kind: identity.KindPerson},
		"a node":                {ID: p.ID, Kind: "node"},
	} {
		if _, err := h.access.Approve(identity.WithPrincipal(t.Context(), by), asked.Approval.ID, asked.Approval.Hash, evidence); err == nil {
			t.Errorf("%s agreed", name)
		}
	}
	if _, active := h.active(amy, "web-1"); active {
		t.Error("in force")
	}
}

// A signature is for one request, however alike another one reads.
func TestASignatureIsForOneRequest(t *testing.T) {
	h := build(t, twoNeeded...)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	first := h.ask(ada, "it burns")
	evidence := h.sign(bob, first.Approval.Hash)
	_, err := h.access.Approve(bob, first.Approval.ID, first.Approval.Hash, evidence)
	fatal(t, err)
	if _, err := h.access.Approve(bob, first.Approval.ID, first.Approval.Hash, evidence); fault.KindOf(err) != fault.Conflict {
		t.Errorf("twice the same signature: %v", err)
	}
	_, err = h.access.Deny(bob, first.Approval.ID, "on second thoughts")
	if fault.KindOf(err) != fault.Conflict {
		t.Errorf("yes and no: %v", err)
	}
	alike := h.ask(ada, "it burns")
	if _, err := h.access.Approve(bob, alike.Approval.ID, first.Approval.Hash, evidence); err == nil {
		t.Errorf("with the hash of the first: %v", err)
	}
	if _, err := h.access.Approve(bob, alike.Approval.ID, alike.Approval.Hash, evidence); fault.KindOf(err) != fault.Denied {
		t.Errorf("with the signature of the first: %v", err)
	}
}

// crowd runs every act of a list at once, many rounds of it, and hands each
// round's grant to check.
func crowd(t *testing.T, h *house, ask func() access.Asked, acts func(access.Asked) []func() error, check func(access.Grant, approval.Approval)) {
	t.Helper()
	auditor := h.person("audrey", "auditor")
	for range 12 {
		asked := ask()
		var wait sync.WaitGroup
		start := make(chan struct{})
		for _, act := range acts(asked) {
			wait.Go(func() {
				<-start
				if err := act(); err != nil && fault.KindOf(err) != fault.Conflict && fault.KindOf(err) != fault.Denied {
					t.Errorf("%v", err)
				}
			})
		}
		close(start)
		wait.Wait()
		var g access.Grant
		var err error
		h.until("what somebody ended is over", func() bool {
			g, err = h.access.Get(auditor, asked.Grant.ID)
			fatal(t, err)
			return !g.Live()
		})
		a, err := h.approvals.Get(t.Context(), asked.Approval.ID)
		fatal(t, err)
		check(g, a)
		if g.Live() {
			_, err = h.access.Revoke(h.person("op-"+store.NewID('x')[2:], "operator"), g.ID, "next round")
			if fault.KindOf(err) != fault.Conflict { // a brake of this round was recorded meanwhile
				fatal(t, err)
			}
		}
	}
	h.folds()
}

func TestApproveDenyAndGiveUpAtOnceHaveOneOutcome(t *testing.T) { onBoth(t, approveDenyAndGiveUp) }

func approveDenyAndGiveUp(t *testing.T, dsn string) {
	h := buildOn(t, dsn)
	ada := h.person("ada")
	var ops []context.Context
	for i := range 4 {
		ops = append(ops, h.person(fmt.Sprintf("op%d", i), "operator"))
	}
	defer h.run()()
	crowd(t, h, func() access.Asked { return h.ask(ada, "it burns") }, func(asked access.Asked) []func() error {
		a := asked.Approval
		yes := func(by context.Context) func() error { return func() error { _, err := h.approve(by, a); return err } }
		return []func() error{
			yes(ops[0]), yes(ops[1]), yes(ada),
			func() error { _, err := h.access.Deny(ops[2], a.ID, "no"); return err },
			func() error { _, err := h.access.Done(ada, asked.Grant.ID); return err },
			func() error { _, err := h.access.Revoke(ops[3], asked.Grant.ID, "stop"); return err },
		}
	}, func(g access.Grant, a approval.Approval) {
		outcome := map[approval.State][]access.State{
			approval.Approved:  {access.Active, access.Ended},
			approval.Denied:    {access.Denied},
			approval.Withdrawn: {access.Denied},
		}[a.State]
		ok := false
		for _, s := range outcome {
			ok = ok || s == g.State
		}
		if !ok || len(a.Decisions) > 1 {
			t.Errorf("the request is %s by %d, its grant %s", a.State, len(a.Decisions), g.State)
		}
		h.until("the grant that somebody ended is over", func() bool { _, active := h.active(ada, "web-1"); return !active })
	})
}

func TestRatifyDenyAndEndAtOnceHaveOneOutcome(t *testing.T) { onBoth(t, ratifyDenyAndEnd) }

func ratifyDenyAndEnd(t *testing.T, dsn string) {
	h := buildOn(t, dsn)
	ada, bob, carl, dora := h.person("ada"), h.person("bob", "operator"), h.person("carl", "operator"), h.person("dora", "operator")
	defer h.run()()
	crowd(t, h, func() access.Asked {
		asked, err := h.access.BreakGlass(ada, access.Ask{Hosts: []string{"web-1"}, Reason: "it burns"})
		fatal(t, err)
		return asked
	}, func(asked access.Asked) []func() error {
		a := asked.Approval
		return []func() error{
			func() error { _, err := h.approve(bob, a); return err },
			func() error { _, err := h.approve(ada, a); return err },
			func() error { _, err := h.access.Deny(carl, a.ID, "no"); return err },
			func() error { _, err := h.access.Revoke(dora, asked.Grant.ID, "stop"); return err },
			func() error { _, err := h.access.Done(ada, asked.Grant.ID); return err },
			func() error { _, err := h.access.Pause(dora, asked.Grant.ID, "wait"); return err },
			func() error { _, err := h.access.Resume(bob, asked.Grant.ID); return err },
			func() error { _, err := h.access.Review(bob, asked.Grant.ID, "justified", ""); return err },
		}
	}, func(g access.Grant, a approval.Approval) {
		if g.State != access.InReview && g.State != access.Closed {
			t.Errorf("it is %s although somebody ended it", g.State)
		}
		if (g.Ratified != 0) != (a.State == approval.Approved) {
			t.Errorf("ratified at %d, its request %s", g.Ratified, a.State)
		}
		if a.State == approval.Requested {
			t.Error("its ratification is still asked for")
		}
		if h.sessions.why(g.ID) == "" {
			t.Error("its sessions go on")
		}
	})
}

// Time runs out while people decide.
func TestAnApprovalThatRacesTheEndOfItsTimeIsLateOrInTime(t *testing.T) {
	h := build(t, "[approvals.grant]\nneeded = 1\ngroups = [\"operator\", \"admin\"]\nlapse = \"1h\"", "[approvals.grant]\nneeded = 1\ngroups = [\"operator\", \"admin\"]\nlapse = \"1s\"")
	ada, bob := h.person("ada"), h.person("bob", "operator")
	defer h.run()()
	for range 3 {
		asked := h.ask(ada, "it burns")
		<-time.After(time.Until(time.UnixMicro(asked.Approval.Lapses))) // when Run wakes, too
		_, err := h.approve(bob, asked.Approval)
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("%v", err)
		}
		if g, err := h.access.Get(ada, asked.Grant.ID); err != nil || g.State != access.Requested && g.State != access.Lapsed {
			t.Errorf("%+v %v", g, err)
		}
	}
}

// Somebody holds the database: what runs under a revoked grant dies, the answer
// does not wait, and the end is recorded as soon as that is possible, once.
func TestARevokeDoesNotWaitForADatabaseThatSomebodyHolds(t *testing.T) {
	h := build(t)
	ada, bob := h.person("ada"), h.person("bob", "operator")
	asked := h.ask(ada, "it burns")
	_, err := h.approve(bob, asked.Approval)
	fatal(t, err)
	defer h.run()()
	release, held := make(chan struct{}), make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() {
		_, _ = h.store.Record(t.Context(), "hold", func(*store.Tx) ([]ledger.Entry, error) {
			close(held)
			<-release
			return nil, errors.New("given up")
		})
	})
	<-held
	over, err := h.access.Revoke(bob, asked.Grant.ID, "enough") // would wait for ever
	if err != nil || !over.Pending || over.Killed != 1 || over.Grant.State != access.Ended || h.sessions.why(asked.Grant.ID) != access.Revoked {
		t.Errorf("%+v %v", over, err)
	}
	close(release)
	holding.Wait()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); ; {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the end is not recorded")
		}
		if _, active := h.active(ada, "web-1"); !active {
			break
		}
	}
	g, err := h.access.Get(bob, asked.Grant.ID)
	if err != nil || g.EndedBy != id(bob) || g.EndedNote != "enough" || g.Version != 4 {
		t.Errorf("%+v %v", g, err)
	}
	h.folds()
	eve := h.person("eve")
	if _, err := h.access.Revoke(eve, asked.Grant.ID, "no"); fault.KindOf(err) != fault.Denied {
		t.Errorf("anybody revokes: %v", err)
	}
}

func TestWhoMayNotRevokeKillsNothing(t *testing.T) {
	h := build(t)
	ada, bob, eve := h.person("ada"), h.person("bob", "operator"), h.person("eve")
	asked := h.ask(ada, "it burns")
	_, err := h.approve(bob, asked.Approval)
	fatal(t, err)
	if _, err := h.access.Revoke(eve, asked.Grant.ID, "no"); fault.KindOf(err) != fault.Denied {
		t.Errorf("%v", err)
	}
	if _, err := h.access.Done(bob, asked.Grant.ID); fault.KindOf(err) != fault.Denied {
		t.Errorf("done with somebody else's: %v", err)
	}
	if why := h.sessions.why(asked.Grant.ID); why != "" {
		t.Errorf("its sessions ended: %s", why)
	}
}
