package identity_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func (w *world) state() identity.BootstrapState {
	w.t.Helper()
	s, err := w.people.Bootstrap(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestEveryEntryOfBootstrapIsMarkedFromTheFirstToTheEnd(t *testing.T) {
	w := newWorld(t)
	w.first()
	_, secret := w.add("bob")
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, "p-00000000") })
	if err := w.people.Reload(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.login(secret)
	all, err := w.store.Entries(w.ctx(), store.EntryQuery{After: -1, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	all = slices.DeleteFunc(all, func(e store.Recorded) bool { return e.Parsed.Action == "ledger.opened" }) // before anybody could ask
	for _, e := range all {
		if e.Parsed.Bootstrap == ended {
			t.Fatalf("entry %d %s has bootstrap %v", e.Seq, e.Parsed.Action, e.Parsed.Bootstrap)
		}
		ended = ended || e.Parsed.Action == identity.BootstrapEnded
	}
	if all[0].Parsed.Action != identity.BootstrapBegun || !ended {
		t.Fatalf("begins with %s, ended %v", all[0].Parsed.Action, ended)
	}
}

func TestTheSecondPersonsLoginStartsTheClock(t *testing.T) {
	w := newWorld(t)
	if s := w.state(); !s.Active || !s.Ends.IsZero() {
		t.Fatalf("%+v", s)
	}
	w.first()
	w.first() // the same person again
	_, secret := w.add("bob")
	if s := w.state(); !s.Active || !s.Ends.IsZero() {
		t.Fatalf("before the second person's login: %+v", s)
	}
	w.login(secret)
	s := w.state()
	if left := time.Until(s.Ends); !s.Active || left > 24*time.Hour || left < 24*time.Hour-time.Minute {
		t.Fatalf("%+v", s)
	}
	_, third := w.add("cy")
	w.login(third)
	if again := w.state(); !again.Ends.Equal(s.Ends) {
		t.Fatalf("the third person moved the clock: %+v", again)
	}
	w.view(func(v *store.View) error {
		for at, active := range map[time.Duration]bool{-time.Microsecond: true, 0: false, time.Hour: false} {
			got, err := w.people.BootstrapTx(v, s.Ends.Add(at))
			if err != nil || got.Active != active {
				t.Fatalf("%v from the end: %+v %v", at, got, err)
			}
		}
		return nil
	})
}

// Days pass in this test, in no time: the database's writer is part of the
// bubble, and nothing in it waits on the real world.
func TestBootstrapEndsByItselfAndTheLedgerSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.first()
		_, secret := w.add("bob")
		d := w.login(secret)
		stop := w.run()
		<-time.After(23 * time.Hour)
		if s := w.state(); !s.Active || !w.flag.Active() {
			t.Fatalf("after 23 hours: %+v", s)
		}
		<-time.After(time.Hour + 2*time.Minute)
		if s := w.state(); s.Active || w.flag.Active() {
			t.Fatalf("after 24 hours: %+v", s)
		}
		if n := len(w.entries(identity.BootstrapEnded)); n != 1 {
			t.Fatalf("%d entries say so", n)
		}
		_, err := w.people.EnsureBootstrapLink(w.ctx())
		want(t, err, fault.Denied, "bootstrap has ended")
		_, err = w.people.Authenticate(w.ctx(), d.login.Bearer)
		want(t, err, fault.Unauthenticated, "expired")
		_, err = w.people.AuthenticateSSH(w.ctx(), d.cert)
		want(t, err, fault.Unauthenticated, "expired")
		stop()
		w.store.Close()
	})
}

func TestAfterBootstrapANewCredentialSobersUpForADay(t *testing.T) {
	w := newWorld(t)
	w.first()
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, ledger.System) })
	puppet, secret := w.add("puppet", "admin")
	d := w.login(secret)
	message := identity.ApprovalMessage([]byte("hash"))
	w.view(func(v *store.View) error {
		_, from, err := w.people.VerifyDeviceSignature(v, puppet.ID, message, d.sign(t, message))
		if left := time.Until(from); err != nil || left < 24*time.Hour-time.Minute || left > 24*time.Hour {
			t.Fatalf("may approve from %v, %v", from, err)
		}
		return nil
	})
	_, c := w.enrol(w.who(d.login)) // the login is born of a link that somebody agreed to
	if left := time.Until(time.UnixMicro(c.MayApproveFrom)); left < 24*time.Hour-time.Minute {
		t.Fatalf("a passkey may approve in %v", left)
	}
}

func TestAfterBootstrapOnlyALinkEnrolsAPasskey(t *testing.T) {
	w := newWorld(t)
	w.first()
	_, secret := w.add("ada")
	d := w.login(secret)
	nonce, err := w.people.RenewBegin(w.ctx(), d.key())
	if err != nil {
		t.Fatal(err)
	}
	renewed, _, _, err := w.people.Renew(w.ctx(), d.key(), nonce, d.sign(t, identity.RenewMessage(nonce)), "x")
	if err != nil {
		t.Fatal(err)
	}
	who := w.who(renewed)
	options, ceremony, err := w.people.PasskeyBegin(w.ctx(), who) // still bootstrap
	if err != nil {
		t.Fatal(err)
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, ledger.System) })
	_, err = w.people.PasskeyFinish(w.ctx(), who, ceremony, newAuthenticator(t).create(t, options), "")
	want(t, err, fault.NeedsApproval, "needs a second person")
	_, _, err = w.people.PasskeyBegin(w.ctx(), who)
	want(t, err, fault.NeedsApproval, "needs a second person")
}

func TestTheBootstrapLinkCanBeMadeAgainUntilTheEnd(t *testing.T) {
	w := newWorld(t)
	first, err := w.people.EnsureBootstrapLink(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.people.EnsureBootstrapLink(w.ctx())
	if err != nil || first == second {
		t.Fatal(err)
	}
	people, err := w.people.List(w.ctx())
	if err != nil || len(people) != 1 || people[0].Named {
		t.Fatalf("%+v %v", people, err)
	}
	for _, secret := range []string{second, first} {
		if _, _, _, err := w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "x"); err != nil {
			t.Fatal(err)
		}
	}
	late, err := w.people.EnsureBootstrapLink(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, ledger.System) })
	_, _, _, err = w.people.Redeem(w.ctx(), late, nil, "", identity.ViaBrowser, "x")
	want(t, err, fault.Unauthenticated, "wrong or has expired") // a link of bootstrap ends with it
	_, err = w.people.EnsureBootstrapLink(w.ctx())
	want(t, err, fault.Denied, "bootstrap has ended")
	err = w.try(func(tx *store.Tx) ([]ledger.Entry, error) { return w.people.EndBootstrapTx(tx, ledger.System) })
	want(t, err, fault.Conflict, "ended already")
}

func TestASecondServerAndARestartKeepTheState(t *testing.T) {
	w := newWorld(t)
	w.first()
	flag := &identity.Flag{}
	again := identity.New(identity.Deps{Store: w.store, Ring: w.ring, Bootstrap: flag})
	if flag.Active() {
		t.Fatal("active before Start")
	}
	if err := again.Start(w.ctx()); err != nil || !flag.Active() {
		t.Fatalf("%v %v", flag.Active(), err)
	}
	if n := len(w.entries(identity.BootstrapBegun)); n != 1 {
		t.Fatalf("begun %d times", n)
	}
}
