package identity_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

func TestTheOpenerOfTheFirstLinkIsAdminAndChoosesANameOnce(t *testing.T) {
	w := newWorld(t)
	who, login := w.first()
	if who.Name != "admin" || len(who.Groups) != 1 || who.Groups[0] != identity.AdminGroup || who.Kind != identity.KindPerson || who.Via != identity.ViaBrowser {
		t.Fatalf("%+v", who)
	}
	if left := time.Until(login.Expires); left > 8*time.Hour || left < 8*time.Hour-time.Minute {
		t.Fatalf("the login lasts %v", left)
	}
	for _, bad := range []string{"", "Ada", "root", "handrail", "system", "ada lovelace", "-ada", "a\x1b[31m", "p-7k3f9q2m", "аda", strings.Repeat("a", 33)} {
		if _, err := w.people.SetName(w.ctx(), who, bad); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("the name %q: %v", bad, err)
		}
	}
	named, err := w.people.SetName(w.ctx(), who, "ada")
	if err != nil || named.Name != "ada" || !named.Named {
		t.Fatalf("%+v %v", named, err)
	}
	if again := w.who(login); again.Name != "ada" {
		t.Fatalf("the page still says %q", again.Name)
	}
	_, err = w.people.SetName(w.ctx(), who, "bob")
	want(t, err, fault.Conflict, "chosen already")
}

func TestALoginTokenWorksOnce(t *testing.T) {
	w := newWorld(t)
	ada, secret := w.add("ada", "operator")
	d := w.login(secret)
	if d.cert == nil || d.login.Device == "" || d.login.Person != ada.ID {
		t.Fatalf("%+v", d)
	}
	for range 8 {
		_, _, _, err := w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "198.51.100.7:1")
		want(t, err, fault.Unauthenticated, "used already")
	}
	replays := w.entries(identity.TokenReplayed)
	if len(replays) != 5 {
		t.Fatalf("%d entries for 8 replays, at most 5 are told", len(replays))
	}
	if replays[0].Parsed.Outcome != ledger.Denied || !strings.Contains(string(replays[0].Payload), "198.51.100.7") {
		t.Fatalf("%+v %s", replays[0].Parsed, replays[0].Payload)
	}
}

func TestManyWhoRaceForOneTokenGetOneLogin(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	var wait sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 8 {
		wait.Go(func() {
			_, _, _, err := w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "192.0.2.1")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if fault.KindOf(err) != fault.Unauthenticated {
				t.Errorf("%v", err)
			}
		})
	}
	wait.Wait()
	if won != 1 {
		t.Fatalf("%d logins", won)
	}
}

func TestWrongAndExpiredTokensAreRefusedAlike(t *testing.T) {
	w := newWorld(t)
	ada, good := w.add("ada")
	var expired string
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		s, e, err := w.people.LoginTokenTx(tx, ada.ID, ledger.System, time.Microsecond)
		expired = s
		return []ledger.Entry{e}, err
	})
	wrong := []byte(good)
	wrong[0] ^= 1
	var texts []string
	for _, secret := range []string{"", "x", string(wrong[:42]), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", expired, good + "A", strings.Repeat("A", 5000)} {
		_, _, _, err := w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "192.0.2.9:1")
		want(t, err, fault.Unauthenticated, "cannot log in")
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Fatalf("guessing learns something: %q and %q", text, texts[0])
		}
	}
	if n := len(w.entries(identity.LoginFailed)); n != 0 {
		t.Fatalf("%d entries at once; failures are counted", n)
	}
}

func TestOnlyHashesOfSecretsAreKept(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	d := w.login(secret)
	w.view(func(v *store.View) error {
		for _, q := range []string{`SELECT hash FROM login_tokens`, `SELECT hash FROM logins`, `SELECT proof FROM logins`} {
			rows, err := store.All[string](v, q)
			if err != nil || len(rows) == 0 {
				t.Fatalf("%v %v", rows, err)
			}
			for _, h := range rows {
				if len(h) != 64 || strings.Contains(d.login.Bearer, h) || h == secret {
					t.Fatalf("%s gives %q", q, h)
				}
			}
		}
		return nil
	})
	for _, action := range identity.Actions() {
		for _, e := range w.entries(action) {
			if bytes.Contains(e.Payload, []byte(secret)) || bytes.Contains(e.Payload, []byte(d.login.Bearer[4:])) {
				t.Fatalf("a secret is in the ledger: %s", e.Payload)
			}
		}
	}
}

func TestNamesAndAddressesAreInNoLeaf(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("zenobia", "quirkygroup")
	w.login(secret)
	_, _, _, _ = w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "198.51.100.7:1")
	for _, action := range identity.Actions() {
		for _, e := range w.entries(action) {
			for _, word := range []string{"zenobia", "quirkygroup", "198.51.100.7", "192.0.2.1", "laptop"} {
				if bytes.Contains(e.Leaf, []byte(word)) {
					t.Fatalf("%s is in the leaf %s", word, e.Leaf)
				}
			}
		}
	}
}

func TestALoginEndsWithLogoutAndTakesTheCertificateAlong(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	d := w.login(secret)
	who := w.who(d.login)
	if _, err := w.people.AuthenticateSSH(w.ctx(), d.cert); err != nil {
		t.Fatal(err)
	}
	if err := w.people.Logout(w.ctx(), who); err != nil {
		t.Fatal(err)
	}
	_, err := w.people.Authenticate(w.ctx(), d.login.Bearer)
	want(t, err, fault.Unauthenticated, "was ended")
	_, err = w.people.AuthenticateSSH(w.ctx(), d.cert)
	want(t, err, fault.Unauthenticated, "was ended")
	_, err = w.people.AuthenticateKey(w.ctx(), d.signer.PublicKey())
	want(t, err, fault.Unauthenticated, "was ended")
	want(t, w.people.Logout(w.ctx(), who), fault.Unauthenticated, "no login")
}

func TestABearerThatWasNeverMadeIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, bearer := range []string{"", "hrl_", "hrl_" + strings.Repeat("A", 43), "Bearer x", strings.Repeat("hrl_", 4000)} {
		_, err := w.people.Authenticate(w.ctx(), bearer)
		want(t, err, fault.Unauthenticated, "cannot tell who you are")
	}
}

func TestALockInvalidatesAtOnceAndForGood(t *testing.T) {
	w := newWorld(t)
	ada, secret := w.add("ada")
	d := w.login(secret)
	w.who(d.login) // fills the cache
	w.who(d.login)
	unused := w.token(ada.ID)
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		p, entries, err := w.people.LockTx(tx, "p-00000000", "ada", "laptop stolen\x1b[31m\nnow")
		if p.LockedReason != "laptop stolen [31m now" || p.Epoch != 1 {
			t.Errorf("%+v", p)
		}
		return entries, err
	})
	refused := func(kind fault.Kind, part string) {
		t.Helper()
		_, err := w.people.Authenticate(w.ctx(), d.login.Bearer)
		want(t, err, kind, part)
		_, err = w.people.AuthenticateSSH(w.ctx(), d.cert)
		want(t, err, kind, part)
		_, err = w.people.AuthenticateKey(w.ctx(), d.signer.PublicKey())
		want(t, err, kind, part)
	}
	refused(fault.Denied, "locked (laptop stolen")
	_, _, _, err := w.people.Redeem(w.ctx(), unused, nil, "", identity.ViaBrowser, "192.0.2.1")
	want(t, err, fault.Denied, "locked")
	nonce, err := w.people.RenewBegin(w.ctx(), d.key())
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = w.people.Renew(w.ctx(), d.key(), nonce, d.sign(t, identity.RenewMessage(nonce)), "192.0.2.1")
	want(t, err, fault.Denied, "locked")

	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.UnlockTx(tx, "p-00000000", ada.ID, "found again")
		return entries, err
	})
	w.view(func(v *store.View) error {
		sum, err := w.people.LockEpochTx(v)
		each, err2 := w.people.EpochsTx(v)
		if err != nil || err2 != nil || sum != 2 || len(each) != 1 || each[ada.ID] != 2 {
			t.Fatalf("epochs %d %v, %v %v", sum, each, err, err2)
		}
		return nil
	})
	refused(fault.Unauthenticated, "was ended") // what was issued before stays dead
	_, _, _, err = w.people.Redeem(w.ctx(), unused, nil, "", identity.ViaBrowser, "192.0.2.1")
	want(t, err, fault.Unauthenticated, "wrong or has expired")
	w.login(w.token(ada.ID)) // and a new link works
}

// A reader that saw the person before the lock was committed must not bring
// the old answer back into the cache.
func TestNoReaderRevivesALockedLogin(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	d := w.login(secret)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = w.people.Authenticate(w.ctx(), d.login.Bearer)
				}
			}
		})
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.LockTx(tx, ledger.System, "ada", "")
		return entries, err
	})
	for range 200 {
		if _, err := w.people.Authenticate(w.ctx(), d.login.Bearer); err == nil {
			t.Fatal("let in after the lock was committed")
		}
	}
	close(stop)
	wait.Wait()
}

func TestABrakeRefusesBeforeTheDatabaseKnows(t *testing.T) {
	w := newWorld(t)
	ada, secret := w.add("ada")
	d := w.login(secret)
	w.who(d.login)
	w.people.Brake(ada.ID)
	_, err := w.people.Authenticate(w.ctx(), d.login.Bearer)
	want(t, err, fault.Denied, "locked")
	w.people.Release(ada.ID)
	w.who(d.login)
}

func TestADeviceRenewsItsLoginWithASignatureUsedOnce(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	d := w.login(secret)
	nonce, err := w.people.RenewBegin(w.ctx(), d.key())
	if err != nil {
		t.Fatal(err)
	}
	sig := d.sign(t, identity.RenewMessage(nonce))
	login, who, cert, err := w.people.Renew(w.ctx(), d.key(), nonce, sig, "192.0.2.1:2")
	if err != nil || who.Name != "ada" || cert == nil || login.Device != d.login.Device {
		t.Fatalf("%+v %+v %v", login, who, err)
	}
	_, _, _, err = w.people.Renew(w.ctx(), d.key(), nonce, sig, "192.0.2.1:2")
	want(t, err, fault.Unauthenticated, "used already")

	other := device{signer: newKey(t)}
	for name, try := range map[string]func() ([]byte, []byte, []byte){
		"a signature over something else": func() ([]byte, []byte, []byte) { return d.key(), nonce, d.sign(t, []byte("x")) },
		"another device's signature": func() ([]byte, []byte, []byte) {
			return d.key(), nonce, other.sign(t, identity.RenewMessage(nonce))
		},
		"another device's nonce": func() ([]byte, []byte, []byte) {
			n, _ := w.people.RenewBegin(w.ctx(), other.key())
			return d.key(), n, d.sign(t, identity.RenewMessage(n))
		},
		"a device that is not enrolled": func() ([]byte, []byte, []byte) {
			n, _ := w.people.RenewBegin(w.ctx(), other.key())
			return other.key(), n, other.sign(t, identity.RenewMessage(n))
		},
		"a made-up nonce": func() ([]byte, []byte, []byte) {
			return d.key(), []byte("nonce"), d.sign(t, identity.RenewMessage([]byte("nonce")))
		},
		"no signature": func() ([]byte, []byte, []byte) {
			n, _ := w.people.RenewBegin(w.ctx(), d.key())
			return d.key(), n, nil
		},
	} {
		key, n, s := try()
		if _, _, _, err := w.people.Renew(w.ctx(), key, n, s, "192.0.2.1"); fault.KindOf(err) != fault.Unauthenticated {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestAnotherPersonsKeyAndARevokedKeyEnrolNowhere(t *testing.T) {
	w := newWorld(t)
	ada, secret := w.add("ada")
	d := w.login(secret)
	bob, bobs := w.add("bob")
	_, _, _, err := w.people.Redeem(w.ctx(), bobs, d.key(), "", identity.ViaDevice, "192.0.2.1")
	want(t, err, fault.Conflict, "somebody else")
	// The refusal rolled everything back: bob's link is still good.
	if _, _, _, err := w.people.Redeem(w.ctx(), bobs, newKey(t).PublicKey().Marshal(), "", identity.ViaDevice, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	// The same device of the same person is found again, not enrolled twice.
	again, _, _, err := w.people.Redeem(w.ctx(), w.token(ada.ID), d.key(), "", identity.ViaDevice, "192.0.2.1")
	if err != nil || again.Device != d.login.Device {
		t.Fatalf("%+v %v", again, err)
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return w.people.RevokeCredentialTx(tx, bob.ID, d.login.Device, "stolen")
	})
	_, err = w.people.Authenticate(w.ctx(), d.login.Bearer)
	want(t, err, fault.Unauthenticated, "was ended")
	_, err = w.people.AuthenticateSSH(w.ctx(), d.cert)
	want(t, err, fault.Unauthenticated, "not enrolled")
	_, _, _, err = w.people.Redeem(w.ctx(), w.token(ada.ID), d.key(), "", identity.ViaDevice, "192.0.2.1")
	want(t, err, fault.Denied, "revoked")
}

func TestADeviceKeyMustBeEd25519(t *testing.T) {
	w := newWorld(t)
	_, secret := w.add("ada")
	d := device{signer: newKey(t)}
	cert, err := w.ring.SignSSHUser(d.signer.PublicKey(), "p-1", "d-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string][]byte{"junk": []byte("junk"), "a certificate": cert.Marshal(), "too large": bytes.Repeat([]byte{0}, 5000)} {
		_, _, _, err := w.people.Redeem(w.ctx(), secret, key, "", identity.ViaDevice, "192.0.2.1")
		if fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%s: %v", name, err)
		}
	}
	w.login(secret) // none of these used up the link
}

func TestSSHCertificatesOfOthersAreRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	_, secret := w.add("ada")
	d := w.login(secret)
	who, err := w.people.AuthenticateSSH(w.ctx(), d.cert)
	if err != nil || who.Name != "ada" || who.Via != identity.ViaSSH || who.Device != d.login.Device {
		t.Fatalf("%+v %v", who, err)
	}
	if d.cert.KeyId != "handrail:"+d.login.Device+":"+who.ID {
		t.Fatalf("key id %q", d.cert.KeyId)
	}
	_, err = other.people.AuthenticateSSH(w.ctx(), d.cert)
	want(t, err, fault.Unauthenticated, "not of this installation")

	change := func(fn func(*ssh.Certificate)) *ssh.Certificate {
		c := *d.cert
		fn(&c)
		return &c
	}
	for name, bad := range map[string]*ssh.Certificate{
		"none":              nil,
		"a host one":        change(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }),
		"a longer one":      change(func(c *ssh.Certificate) { c.ValidBefore += 3600 }),
		"somebody else's":   change(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"p-00000000"} }),
		"another key's":     change(func(c *ssh.Certificate) { c.Key = newKey(t).PublicKey() }),
		"a self-signed one": change(func(c *ssh.Certificate) { c.SignatureKey = d.signer.PublicKey() }),
		"two principals":    change(func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "p-1") }),
		"of another device": change(func(c *ssh.Certificate) { c.KeyId = "handrail:d-00000000:" + who.ID }),
	} {
		if _, err := w.people.AuthenticateSSH(w.ctx(), bad); fault.KindOf(err) != fault.Unauthenticated {
			t.Fatalf("%s: %v", name, err)
		}
	}
	// Of our own authority, but for a device that is another's.
	stray, err := w.ring.SignSSHUser(newKey(t).PublicKey(), who.ID, d.login.Device, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.people.AuthenticateSSH(w.ctx(), stray)
	want(t, err, fault.Unauthenticated, "not enrolled")
}

func TestRobotsLogInShortlyAndNeverApprove(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.add("ada")
	var robot identity.Person
	var secret string
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		r, entries, err := w.people.AddRobotTx(tx, ada.Principal(), "deployer", "ada", []string{"operator"})
		if err != nil {
			return nil, err
		}
		s, e, err := w.people.LoginTokenTx(tx, r.ID, ada.ID, time.Hour)
		robot, secret = r, s
		return append(entries, e), err
	})
	d := w.login(secret)
	who := w.who(d.login)
	if who.Kind != identity.KindRobot || who.Owner != ada.ID || who.MayApprove() || time.Until(d.login.Expires) > time.Hour {
		t.Fatalf("%+v until %v", who, d.login.Expires)
	}
	w.view(func(v *store.View) error {
		_, _, err := w.people.VerifyDeviceSignature(v, robot.ID, identity.ApprovalMessage([]byte("h")), d.sign(t, identity.ApprovalMessage([]byte("h"))))
		want(t, err, fault.Denied, "a robot never approves")
		return nil
	})
	_, _, err := w.people.PasskeyBegin(w.ctx(), who)
	want(t, err, fault.Denied, "only a logged-in person")
	err = w.try(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.AddRobotTx(tx, who, "child", robot.ID, nil)
		return entries, err
	})
	want(t, err, fault.Invalid, "is no person")
}

func TestFailuresOfStrangersMakeOneEntryAMinute(t *testing.T) {
	w := newWorld(t)
	stopped := w.run()
	for i := range 3000 {
		w.people.FailedLogin("192.0.2."+string(rune('0'+i%10))+":55", "malformed token")
	}
	for i := range 5000 { // as many addresses as a stranger likes
		w.people.FailedLogin("2001:db8::"+strings.Repeat("f", 1+i%4)+":"+string(rune('a'+i%26))+string(rune('a'+i/26%26)), "x")
	}
	stopped()
	got := w.entries(identity.LoginFailed)
	if len(got) != 1 {
		t.Fatalf("%d entries", len(got))
	}
	var p identity.FailuresPayload
	if err := json.Unmarshal(got[0].Payload, &p); err != nil {
		t.Fatal(err)
	}
	sum := p.Others
	for _, s := range p.Sources {
		for _, n := range s.Counts {
			sum += n
		}
	}
	if sum != 8000 || len(p.Sources) > 256 {
		t.Fatalf("%d counted in %d sources", sum, len(p.Sources))
	}
}

// run runs People in the background; the function it returns stops it.
func (w *world) run() func() {
	ctx, stop := contextWithCancel(w.t)
	done := make(chan error, 1)
	go func() { done <- w.people.Run(ctx) }()
	return func() {
		w.t.Helper()
		stop()
		if err := <-done; err != nil {
			w.t.Fatal(err)
		}
	}
}
