package identity_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func TestACodeLetsAStockClientInToRead(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	key := newKey(t).PublicKey()
	code, wait, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "192.0.2.4:22", Target: "host/web-1\x1b]0;x\x07", Level: "read", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	shown, err := w.people.ShowCode(w.ctx(), ada, strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	if err != nil || shown.Source != "192.0.2.4" || strings.ContainsAny(shown.Target, "\x1b\x07") || shown.Level != "read" || !strings.HasPrefix(shown.Fingerprint, "SHA256:") {
		t.Fatalf("%+v %v", shown, err)
	}
	if err := w.people.ConfirmCode(w.ctx(), ada, code); err != nil {
		t.Fatal(err)
	}
	who, err := wait(w.ctx())
	if err != nil || who.ID != ada.ID || !who.ReadOnly || who.MayApprove() || who.Via != identity.ViaCode || who.Source != "192.0.2.4" {
		t.Fatalf("%+v %v", who, err)
	}
	want(t, w.people.ConfirmCode(w.ctx(), ada, code), fault.NotFound, "wrong, used, or older")
	if n := len(w.entries(identity.CodeConfirmed)); n != 1 {
		t.Fatalf("%d entries", n)
	}
}

func TestACodeIsRefusedForWritingAndForThoseNotLoggedIn(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	_, _, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "x", Level: "write"})
	want(t, err, fault.Denied, "one read connection")
	code, _, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "x", Level: "read"})
	if err != nil {
		t.Fatal(err)
	}
	robot, bycode, nobody := ada, ada, identity.Principal{}
	robot.Kind, bycode.ReadOnly = identity.KindRobot, true
	for _, who := range []identity.Principal{robot, bycode, nobody} {
		want(t, w.people.ConfirmCode(w.ctx(), who, code), fault.Denied, "only a logged-in person")
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.LockTx(tx, ledger.System, ada.ID, "")
		return entries, err
	})
	want(t, w.people.ConfirmCode(w.ctx(), ada, code), fault.Denied, "locked")
}

func TestGuessingCodesIsSlowAndWaitingIsBounded(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	for i := range 10 {
		_, err := w.people.ShowCode(w.ctx(), ada, fmt.Sprintf("0000-000%d", i))
		want(t, err, fault.NotFound, "cannot find this code")
	}
	_, err := w.people.ShowCode(w.ctx(), ada, "0000-0000")
	want(t, err, fault.Exhausted, "wrong ones in a minute")
	_, bobs := w.add("bob")
	bob := w.who(w.login(bobs).login)
	_, err = w.people.ShowCode(w.ctx(), bob, "0000-0000")
	want(t, err, fault.NotFound, "cannot find") // somebody else's guesses are not his

	for range 4 {
		if _, _, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "192.0.2.4:1", Level: "read"}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "192.0.2.4:2", Level: "read"})
	want(t, err, fault.Exhausted, "too many clients")
	for range 4 {
		if _, _, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "[2001:db8::1]:1", Level: "read"}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "[2001:db8::2]:1", Level: "read"})
	want(t, err, fault.Exhausted, "too many clients")
	made := 8
	for i := range 1000 {
		if _, _, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: fmt.Sprintf("10.0.%d.%d", i/250, i%250), Level: "read"}); err != nil {
			break
		}
		made++
	}
	if made != 512 {
		t.Fatalf("%d codes wait at once", made)
	}
}

func TestACodeEndsWithItsTimeOrItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ada, _ := w.first()
		ctx, hangUp := context.WithCancel(w.ctx())
		code, wait, err := w.people.NewCode(ctx, identity.CodeRequest{Source: "x", Level: "read"})
		if err != nil {
			t.Fatal(err)
		}
		hangUp()
		_, err = wait(w.ctx())
		want(t, err, fault.Unavailable, "went away")
		synctest.Wait()
		want(t, w.people.ConfirmCode(w.ctx(), ada, code), fault.NotFound, "cannot find")

		late, wait, err := w.people.NewCode(w.ctx(), identity.CodeRequest{Source: "x", Level: "read"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = wait(w.ctx())
		want(t, err, fault.Unauthenticated, "nobody confirmed")
		if waited := time.Since(began); waited != 5*time.Minute {
			t.Fatalf("waited %v", waited)
		}
		want(t, w.people.ConfirmCode(w.ctx(), ada, late), fault.NotFound, "cannot find")
		w.store.Close()
	})
}
