package roster_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/house"
)

func TestInBootstrapOnePersonAddsAnotherAtOnce(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"operator", "operator", "developer"}, "")
	if err != nil || added.Approval != "" || added.Secret == "" || strings.Join(added.Person.Groups, " ") != "developer operator" {
		t.Fatalf("%+v %v", added, err)
	}
	if bob := h.Enter(added.Secret); bob.Name != "bob" {
		t.Fatalf("%+v", bob.Principal)
	}
	_, err = h.roster.AddPerson(t.Context(), ada.Principal, "bob", nil, "")
	house.Want(t, err, fault.Conflict, "has it")
	for name, groups := range map[string][]string{"Bob": nil, "root": nil, "cy": {"No Such"}} {
		if _, err := h.roster.AddPerson(t.Context(), ada.Principal, name, groups, ""); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestOnlyAdminsAddPeopleEvenInBootstrap(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "dev", []string{"developer"}, "")
	house.Must(t, err)
	dev := h.Enter(added.Secret)
	_, err = h.roster.AddPerson(t.Context(), dev.Principal, "puppet", []string{"admin"}, "")
	house.Want(t, err, fault.Denied, "add a person")
	_, err = h.roster.LoginLink(t.Context(), dev.Principal, "ada")
	house.Want(t, err, fault.Denied, "")
	house.Want(t, h.roster.EndBootstrap(t.Context(), dev.Principal), fault.Denied, "")
}

func TestBootstrapIsNotEndedBeforeTwoCouldAgree(t *testing.T) {
	h := build(t)
	ada := h.first()
	house.Want(t, h.roster.EndBootstrap(t.Context(), ada.Principal), fault.Conflict, "takes 2")
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"admin"}, "")
	house.Must(t, err)
	house.Want(t, h.roster.EndBootstrap(t.Context(), ada.Principal), fault.Conflict, "takes 2") // he has not logged in
	h.Enter(added.Secret)
	house.Must(t, h.roster.EndBootstrap(t.Context(), ada.Principal))
	state, err := h.People.Bootstrap(t.Context())
	if err != nil || state.Active {
		t.Fatalf("%+v %v", state, err)
	}
}

func TestARetryWithTheSameRequestIDAddsNobodyTwice(t *testing.T) {
	h := build(t)
	ada := h.first()
	if _, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", nil, "form-1"); err != nil {
		t.Fatal(err)
	}
	_, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", nil, "form-1")
	house.Want(t, err, fault.Conflict, "carried out already")
}

// Bootstrap ran out, and the second person is not one who may approve: without
// a way out nothing could ever be approved here.
func TestTheOnlyApproverMayAddASecondOneAloneAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := build(t)
		ada := h.first()
		added, err := h.roster.AddPerson(t.Context(), ada.Principal, "dev", []string{"developer"}, "")
		house.Must(t, err)
		h.Enter(added.Secret)
		<-time.After(25 * time.Hour)
		if state, err := h.People.Bootstrap(t.Context()); err != nil || state.Active {
			t.Fatalf("%+v %v", state, err)
		}
		asked, err := h.roster.AddPerson(t.Context(), ada.Principal, "other", []string{"developer"}, "")
		if err != nil || asked.Approval == "" || asked.Secret != "" {
			t.Fatalf("somebody who may not approve: %+v %v", asked, err)
		}
		if h.count(roster.AddedAlone) != 0 {
			t.Fatal("said too early")
		}
		added, err = h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"admin"}, "")
		if err != nil || added.Secret == "" || h.count(roster.AddedAlone) != 1 {
			t.Fatalf("%+v %v", added, err)
		}
		// Until he logs in the link can be made again; afterwards it takes two.
		added, err = h.roster.LoginLink(t.Context(), ada.Principal, "bob")
		if err != nil || added.Secret == "" || h.count(roster.AddedAlone) != 2 {
			t.Fatalf("%+v %v", added, err)
		}
		bob := h.Enter(added.Secret)
		house.Want(t, h.approve(bob, asked.Approval), fault.Denied, "is new and may approve from")
		third, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"admin"}, "")
		if err != nil || third.Secret != "" || third.Approval == "" {
			t.Fatalf("%+v %v", third, err)
		}
		// Locking the second does not bring the way out back.
		_, err = h.roster.Lock(t.Context(), ada.Principal, "bob", "out of my way")
		house.Must(t, err)
		fourth, err := h.roster.AddPerson(t.Context(), ada.Principal, "eve", []string{"admin"}, "")
		if err != nil || fourth.Secret != "" || fourth.Approval == "" {
			t.Fatalf("%+v %v", fourth, err)
		}
		_ = h.Store.Close()
	})
}

func TestAfterBootstrapAPersonIsAddedByTwo(t *testing.T) {
	h, ada, bob := moved(t)
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"developer"}, "")
	if err != nil || added.Approval == "" || added.Secret != "" {
		t.Fatalf("%+v %v", added, err)
	}
	_, err = h.People.Get(t.Context(), "cy")
	house.Want(t, err, fault.NotFound, "cy")
	_, err = h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"developer"}, "")
	house.Want(t, err, fault.NeedsApproval, added.Approval)
	house.Want(t, h.approve(ada, added.Approval), fault.Denied, "their own request")
	house.Must(t, h.approve(bob, added.Approval))
	// The approver holds no secret; the requester collects it, once.
	_, err = h.roster.AddPerson(t.Context(), bob.Principal, "cy", []string{"developer"}, "")
	house.Want(t, err, fault.Conflict, "there is one")
	got, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"developer"}, "")
	if err != nil || got.Secret == "" || got.Person.Name != "cy" {
		t.Fatalf("%+v %v", got, err)
	}
	h.Enter(got.Secret)
	again, err := h.roster.LoginLink(t.Context(), ada.Principal, "cy")
	if err != nil || again.Secret != "" || again.Approval == "" {
		t.Fatalf("a second link without a second approval: %+v %v", again, err)
	}
}

func TestALinkThatWasApprovedIsCollectedByName(t *testing.T) {
	h, ada, bob := moved(t)
	asked, err := h.roster.LoginLink(t.Context(), ada.Principal, "bob")
	house.Must(t, err)
	if asked.Approval == "" || asked.Secret != "" {
		t.Fatalf("%+v", asked)
	}
	house.Must(t, h.approve(bob, asked.Approval))
	got, err := h.roster.LoginLink(t.Context(), ada.Principal, "bob")
	if err != nil || got.Secret == "" {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestARightLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, ada, bob := moved(t)
		asked, err := h.roster.LoginLink(t.Context(), ada.Principal, "bob")
		house.Must(t, err)
		house.Must(t, h.approve(bob, asked.Approval))
		<-time.After(25 * time.Hour)
		again, err := h.roster.LoginLink(t.Context(), ada.Principal, "bob")
		if err != nil || again.Secret != "" || again.Approval == "" {
			t.Fatalf("%+v %v", again, err)
		}
		_ = h.Store.Close()
	})
}

// A sock puppet: somebody adds a person whom they control and lets that person
// approve. It takes a second person to add the puppet, and a day of waiting.
func TestAPuppetMadeAMinuteAgoApprovesNothing(t *testing.T) {
	h, ada, bob := moved(t)
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "puppet", []string{"admin"}, "")
	house.Must(t, err)
	house.Must(t, h.approve(bob, added.Approval))
	got, err := h.roster.AddPerson(t.Context(), ada.Principal, "puppet", []string{"admin"}, "")
	house.Must(t, err)
	puppet := h.Enter(got.Secret)
	asked, err := h.roster.AddPerson(t.Context(), ada.Principal, "mole", []string{"admin"}, "")
	house.Must(t, err)
	house.Want(t, h.approve(puppet, asked.Approval), fault.Denied, "is new and may approve from")
}

func TestALockBrakesBeforeAndAfterItIsRecorded(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"admin"}, "")
	house.Must(t, err)
	bob := h.Enter(added.Secret)
	var locked []bool
	h.open = func() { // what the row says while the brake is pulled
		p, err := h.People.Get(context.Background(), "bob")
		locked = append(locked, err == nil && p.Locked())
	}
	out, err := h.roster.Lock(t.Context(), ada.Principal, "bob", "left the company")
	house.Must(t, err)
	if out.Sessions != 2 || out.Pending || !out.Person.Locked() || len(locked) != 2 || locked[0] || !locked[1] {
		t.Fatalf("%+v %v", out, locked)
	}
	if calls := h.braked(); calls[0] != (braked{bob.ID, "left the company"}) {
		t.Fatalf("%v", calls)
	}
	_, _, err = h.roster.Unlock(t.Context(), bob.Principal, "bob", "let me in")
	if err == nil {
		t.Fatal("he unlocks himself")
	}
}

func TestWhoMayNotLockBrakesNobody(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "dev", []string{"developer"}, "")
	house.Must(t, err)
	dev := h.Enter(added.Secret)
	_, err = h.roster.Lock(t.Context(), dev.Principal, "ada", "for fun")
	house.Want(t, err, fault.Denied, "lock a person")
	_, err = h.roster.Lock(t.Context(), ada.Principal, "nobody-here", "")
	house.Want(t, err, fault.NotFound, "nobody-here")
	if calls := h.braked(); len(calls) != 0 {
		t.Fatalf("%v", calls)
	}
	if p, err := h.People.Get(t.Context(), "ada"); err != nil || p.Locked() {
		t.Fatalf("%+v %v", p, err)
	}
}

func TestALockWorksWithTheDatabaseGone(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"operator"}, "")
	house.Must(t, err)
	bob := h.Enter(added.Secret)
	house.Must(t, h.Store.Close())
	out, err := h.roster.Lock(t.Context(), ada.Principal, bob.ID, "now")
	if err != nil || !out.Pending || out.Sessions != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	plain := bob.Principal
	plain.Groups = []string{"developer"}
	if _, err := h.roster.Lock(t.Context(), plain, ada.ID, "no"); err == nil {
		t.Fatal("anybody brakes anybody while the database is gone")
	}
}

// Somebody holds the database: the brake acts, the answer does not wait, and the
// entry follows, once.
func TestALockDoesNotWaitForADatabaseThatSomebodyHolds(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"operator"}, "")
	house.Must(t, err)
	bob := h.Enter(added.Secret)
	release, held := make(chan struct{}), make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() {
		_, _ = h.Store.Record(t.Context(), "hold", func(*store.Tx) ([]ledger.Entry, error) {
			close(held)
			<-release
			return nil, errors.New("given up")
		})
	})
	<-held
	locked, err := h.roster.Lock(t.Context(), ada.Principal, "bob", "stolen laptop") // would never return
	if err != nil || !locked.Pending || len(h.braked()) != 2 {
		t.Errorf("%+v %v, braked %v", locked, err, h.braked())
	}
	if _, err := h.People.Authenticate(t.Context(), bob.Bearer); err == nil {
		t.Error("bob goes on")
	}
	close(release)
	holding.Wait()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); ; {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the lock is not recorded")
		}
		if p, err := h.People.Get(t.Context(), "bob"); err != nil || !p.Locked() {
			continue
		}
		break
	}
	if n := h.count(identity.PersonLocked); n != 1 {
		t.Errorf("%d entries of one lock", n)
	}
}

func TestALockFromTheSpoolLocksTheRow(t *testing.T) {
	h := build(t)
	ada := h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", nil, "")
	house.Must(t, err)
	house.Must(t, h.Store.Spool().Append(ledger.Entry{
		Action: identity.PersonLocked, Subjects: []string{ada.ID, added.Person.ID}, SealTo: added.Person.ID,
		Payload: identity.PersonPayload{V: 1, Person: added.Person.ID, Reason: "while you were away"},
	}))
	house.Must(t, h.Store.Drain(t.Context()))
	p, err := h.People.Get(t.Context(), "bob")
	if err != nil || p.LockedReason != "while you were away" || h.count(identity.PersonLocked) != 1 {
		t.Fatalf("%+v %v", p, err)
	}
}

func TestAfterBootstrapUnlockingTakesTwoAndIsForThatLock(t *testing.T) {
	h, ada, bob := moved(t)
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", nil, "")
	house.Must(t, err)
	house.Must(t, h.approve(bob, added.Approval))
	_, err = h.roster.Lock(t.Context(), ada.Principal, "cy", "odd logins")
	house.Must(t, err)
	_, id, err := h.roster.Unlock(t.Context(), ada.Principal, "cy", "explained")
	if err != nil || id == "" {
		t.Fatalf("%q %v", id, err)
	}
	_, err = h.roster.Lock(t.Context(), bob.Principal, "cy", "odder logins")
	house.Must(t, err)
	house.Want(t, h.approve(bob, id), fault.Conflict, "locked again since")
	_, id, err = h.roster.Unlock(t.Context(), ada.Principal, "cy", "explained again")
	house.Must(t, err)
	house.Must(t, h.approve(bob, id))
	if p, err := h.People.Get(t.Context(), "cy"); err != nil || p.Locked() {
		t.Fatalf("%+v %v", p, err)
	}
}

func TestAnInvitedHostJoinsOnceAndABadRequestDoesNotUseTheInvitationUp(t *testing.T) {
	h := build(t)
	ada := h.first()
	invited, err := h.roster.Invite(t.Context(), ada.Principal, target.Invite{Name: "web-1", Environment: "production"})
	house.Must(t, err)
	if _, _, err := h.roster.Join(t.Context(), invited.Secret, "web-1", []byte("junk"), "192.0.2.1"); fault.KindOf(err) != fault.Invalid {
		t.Fatalf("%v", err)
	}
	host, der, err := h.roster.Join(t.Context(), invited.Secret, "liar", nodeRequest(t), "192.0.2.1")
	if err != nil || host.Name != "web-1" || host.Environment != "production" || len(der) == 0 {
		t.Fatalf("%+v %v", host, err)
	}
	_, _, err = h.roster.Join(t.Context(), invited.Secret, "web-1", nodeRequest(t), "192.0.2.1")
	house.Want(t, err, fault.Unauthenticated, "wrong, used, or expired")
}

// A token that somebody guessed is refused while the one writer is held, so a
// crowd that guesses keeps nobody from writing.
func TestWhoGuessesATokenDoesNotTakeTheWriter(t *testing.T) {
	h := build(t)
	h.first()
	held, release, written := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	var once sync.Once
	go func() {
		written <- h.record(func(*store.Tx) ([]ledger.Entry, error) {
			once.Do(func() { close(held) })
			<-release
			return nil, nil
		})
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, _, err := h.roster.Join(ctx, "guessed", "web-1", nodeRequest(t), "192.0.2.1")
	house.Want(t, err, fault.Unauthenticated, "wrong, used, or expired")
	free()
	house.Must(t, <-written)
}

// The same words asked for twice are two requests: the signature for the first,
// which everybody can read in the ledger, agrees to nothing.
func TestASignatureForAnEarlierRequestOfTheSameWordsAgreesToNothing(t *testing.T) {
	h, ada, bob := moved(t)
	ask := func() approval.Approval {
		t.Helper()
		asked, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"admin"}, "")
		house.Must(t, err)
		a, err := h.approvals.Get(t.Context(), asked.Approval)
		house.Must(t, err)
		return a
	}
	agree := func(a approval.Approval, ev approval.Evidence) error {
		return h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
			_, entries, err := h.approvals.ApproveTx(tx, bob.Principal, a.ID, a.Hash, ev)
			return entries, err
		})
	}
	first := ask()
	sig, err := bob.Key.Sign(rand.Reader, identity.ApprovalMessage(first.Hash))
	house.Must(t, err)
	old := approval.Evidence{DeviceSignature: ssh.Marshal(sig)}
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.DenyTx(tx, bob.Principal, first.ID, "not her")
		return entries, err
	}))
	second := ask()
	house.Want(t, agree(second, old), fault.Denied, "no device of yours made this signature")
}

func TestALockTakesWhatThePersonHadAskedForWithIt(t *testing.T) {
	h, ada, bob := moved(t)
	asked, err := h.roster.AddPerson(t.Context(), ada.Principal, "puppet", []string{"admin"}, "")
	house.Must(t, err)
	_, err = h.roster.Lock(t.Context(), bob.Principal, "ada", "stolen laptop")
	house.Must(t, err)
	if a, err := h.approvals.Get(t.Context(), asked.Approval); err != nil || a.State != approval.Withdrawn || a.EndedBy != bob.ID {
		t.Errorf("%+v %v", a, err)
	}
	house.Want(t, h.approve(bob, asked.Approval), fault.Conflict, "withdrawn")
}

func TestAHostThatJoinsFromTheServersOwnMachineIsKnownAsIt(t *testing.T) {
	h := build(t)
	ada := h.first()
	h.roster.Here = func(source string) bool { return source == "192.0.2.7" }
	for name, from := range map[string]string{"web-1": "192.0.2.1", "gate-1": "192.0.2.7"} {
		invited, err := h.roster.Invite(t.Context(), ada.Principal, target.Invite{Name: name})
		house.Must(t, err)
		host, _, err := h.roster.Join(t.Context(), invited.Secret, name, nodeRequest(t), from)
		if house.Must(t, err); host.Server != (name == "gate-1") {
			t.Errorf("%+v", host)
		}
	}
}

func TestAfterBootstrapHostsAndRulesChangeByTwo(t *testing.T) {
	h, ada, bob := moved(t)
	spec := target.Invite{Name: "db-1", Environment: "production", Scope: "pci"}
	invited, err := h.roster.Invite(t.Context(), ada.Principal, spec)
	if err != nil || invited.Approval == "" || invited.Secret != "" {
		t.Fatalf("%+v %v", invited, err)
	}
	house.Must(t, h.approve(bob, invited.Approval))
	other := spec
	other.Environment = "dev"
	if got, err := h.roster.Invite(t.Context(), ada.Principal, other); err != nil || got.Secret != "" {
		t.Fatalf("an invitation other than the approved one: %+v %v", got, err)
	}
	invited, err = h.roster.Invite(t.Context(), ada.Principal, spec)
	house.Must(t, err)
	host, _, err := h.roster.Join(t.Context(), invited.Secret, "db-1", nodeRequest(t), "192.0.2.1")
	house.Must(t, err)

	dev := "dev"
	_, id, err := h.roster.SetHost(t.Context(), ada.Principal, "db-1", roster.HostChange{Environment: &dev})
	house.Must(t, err)
	if now, err := h.Hosts.Get(t.Context(), host.ID); err != nil || now.Environment != "production" {
		t.Fatalf("%+v %v", now, err)
	}
	house.Must(t, h.approve(bob, id))
	if now, err := h.Hosts.Get(t.Context(), host.ID); err != nil || now.Environment != "dev" || now.Scope != "pci" {
		t.Fatalf("%+v %v", now, err)
	}

	set := policy.Default()
	set.Files[0].Text += "\n// nothing else\n"
	_, id, err = h.roster.ApplyPolicy(t.Context(), bob.Principal, set)
	house.Must(t, err)
	house.Must(t, h.approve(ada, id))
	row, err := h.Force.Current(t.Context())
	if err != nil || row.Version != 2 || row.AppliedBy != bob.ID {
		t.Fatalf("%+v %v", row, err)
	}
	if _, _, err := h.roster.ApplyPolicy(t.Context(), ada.Principal, policy.Set{Files: []policy.File{{Name: "x.cedar", Text: "permit ("}}}); fault.KindOf(err) != fault.Invalid {
		t.Fatalf("%v", err)
	}
}

func TestAHostChangedMeanwhileIsAConflictForTheApprover(t *testing.T) {
	h, ada, bob := moved(t)
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := h.Hosts.AddTx(tx, target.Host{Name: "web-1"})
		return []ledger.Entry{e}, err
	}))
	staging, labels := "staging", []string{"edge"}
	_, id, err := h.roster.SetHost(t.Context(), ada.Principal, "web-1", roster.HostChange{Environment: &staging})
	house.Must(t, err)
	_, second, err := h.roster.SetHost(t.Context(), ada.Principal, "web-1", roster.HostChange{Labels: &labels})
	house.Must(t, err)
	house.Must(t, h.approve(bob, second))
	house.Want(t, h.approve(bob, id), fault.Conflict, "changed it meanwhile")
}

func TestAnApproverSeesWhatExactly(t *testing.T) {
	h, ada, bob := moved(t)
	_ = bob
	dev := "dev"
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := h.Hosts.AddTx(tx, target.Host{Name: "web-1", Environment: "production"})
		return []ledger.Entry{e}, err
	}))
	person, err := h.roster.AddPerson(t.Context(), ada.Principal, "cy", []string{"operator"}, "")
	house.Must(t, err)
	link, err := h.roster.LoginLink(t.Context(), ada.Principal, "bob")
	house.Must(t, err)
	_, host, err := h.roster.SetHost(t.Context(), ada.Principal, "web-1", roster.HostChange{Environment: &dev})
	house.Must(t, err)
	set := policy.Default()
	set.Files[0].Text += "\n// a change\n"
	_, rules, err := h.roster.ApplyPolicy(t.Context(), ada.Principal, set)
	house.Must(t, err)
	invite, err := h.roster.Invite(t.Context(), ada.Principal, target.Invite{Name: "db-9"})
	house.Must(t, err)
	for id, part := range map[string]string{
		person.Approval: "add cy, in groups: operator", link.Approval: "another login link for bob", host: "set host web-1",
		rules: "instead of version 1", invite.Approval: "invite a host: db-9, dev",
	} {
		a, err := h.approvals.Get(t.Context(), id)
		house.Must(t, err)
		var d approval.Description
		house.Must(t, h.Store.View(t.Context(), func(v *store.View) (err error) { d, err = h.approvals.DescribeTx(v, a); return err }))
		if !strings.Contains(d.Summary, part) || d.Subject == "" || len(d.Details) == 0 {
			t.Fatalf("%s: %+v", a.Kind, d)
		}
	}
}

func TestARequestOfAnotherShapeIsRefused(t *testing.T) {
	h := build(t)
	for _, k := range roster.Kinds(h.People, h.Hosts, h.Force) {
		for _, bad := range []string{"", "null-", "[]", `{"v":1,"surprise":true}`, `{"v":"x"}`} {
			err := h.Store.View(t.Context(), func(v *store.View) error { _, err := k.Describe(v, []byte(bad)); return err })
			if fault.KindOf(err) != fault.Invalid {
				t.Fatalf("%s %q: %v", k.Name(), bad, err)
			}
		}
	}
}

func TestNothingButAnAdminChangesHostsOrRules(t *testing.T) {
	h, ada, bob := moved(t)
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "op", []string{"operator"}, "")
	house.Must(t, err)
	house.Must(t, h.approve(bob, added.Approval))
	added, err = h.roster.AddPerson(t.Context(), ada.Principal, "op", []string{"operator"}, "")
	house.Must(t, err)
	op := h.Enter(added.Secret)
	_, err = h.roster.Invite(t.Context(), op.Principal, target.Invite{Name: "x-1"})
	house.Want(t, err, fault.Denied, "invite a host")
	_, _, err = h.roster.ApplyPolicy(t.Context(), op.Principal, policy.Default())
	house.Want(t, err, fault.Denied, "apply a policy")
	anonymous := identity.Principal{Kind: identity.KindAnonymous}
	_, err = h.roster.AddPerson(t.Context(), anonymous, "puppet", nil, "")
	house.Want(t, err, fault.Unauthenticated, "")
}
