package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// authenticator is a passkey in software: ES256, no attestation. Its fields
// can be set to misbehave.
type authenticator struct {
	key      *ecdsa.PrivateKey
	id       []byte
	handle   string // base64url user handle, learnt when it was enrolled
	counter  uint32
	origin   string
	rpID     string
	verified bool
}

func newAuthenticator(t testing.TB) *authenticator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id)
	return &authenticator{key: key, id: id, counter: 1, origin: "http://localhost:4747", rpID: "localhost", verified: true}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// data is authenticator data; attested carries the public key.
func (a *authenticator) data(t testing.TB, attested bool) []byte {
	t.Helper()
	rp := sha256.Sum256([]byte(a.rpID))
	flags := byte(0x01) // user present
	if a.verified {
		flags |= 0x04
	}
	if attested {
		flags |= 0x40
	}
	out := append(rp[:], flags)
	out = binary.BigEndian.AppendUint32(out, a.counter)
	if !attested {
		return out
	}
	out = append(out, make([]byte, 16)...) // AAGUID
	out = binary.BigEndian.AppendUint16(out, uint16(len(a.id)))
	out = append(out, a.id...)
	point, err := a.key.PublicKey.Bytes() // 4 ‖ x ‖ y
	if err != nil {
		t.Fatal(err)
	}
	cose, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	if err != nil {
		t.Fatal(err)
	}
	return append(out, cose...)
}

func (a *authenticator) client(t testing.TB, kind, challenge string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.origin, "crossOrigin": false})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// create answers creation options, as navigator.credentials.create would.
func (a *authenticator) create(t testing.TB, options string) string {
	t.Helper()
	var o struct {
		Challenge string `json:"challenge"`
		RP        struct {
			ID string `json:"id"`
		} `json:"rp"`
		User struct {
			ID string `json:"id"`
		} `json:"user"`
		Selection struct {
			UserVerification string `json:"userVerification"`
			ResidentKey      string `json:"residentKey"`
		} `json:"authenticatorSelection"`
		Attestation string `json:"attestation"`
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		t.Fatal(err)
	}
	if o.RP.ID != "localhost" || o.Selection.UserVerification != "required" || o.Selection.ResidentKey != "required" {
		t.Fatalf("options %s", options)
	}
	a.handle = o.User.ID
	object, err := cbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": a.data(t, true)})
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(t, map[string]any{
		"clientDataJSON": b64(a.client(t, "webauthn.create", o.Challenge)), "attestationObject": b64(object), "transports": []string{"internal"},
	})
}

// get answers request options, as navigator.credentials.get would.
func (a *authenticator) get(t testing.TB, options string) string {
	t.Helper()
	var o struct {
		Challenge string `json:"challenge"`
		RPID      string `json:"rpId"`
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		t.Fatal(err)
	}
	if o.Challenge == "" || o.RPID != "localhost" {
		t.Fatalf("options %s", options)
	}
	return a.assert(t, o.Challenge)
}

func (a *authenticator) assert(t testing.TB, challenge string) string {
	t.Helper()
	a.counter++
	data, client := a.data(t, false), a.client(t, "webauthn.get", challenge)
	hash := sha256.Sum256(client)
	digest := sha256.Sum256(append(append([]byte(nil), data...), hash[:]...))
	sig, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(t, map[string]any{
		"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(sig), "userHandle": a.handle,
	})
}

func (a *authenticator) answer(t testing.TB, response map[string]any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"id": b64(a.id), "rawId": b64(a.id), "type": "public-key", "response": response, "clientExtensionResults": map[string]any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// enrol enrols a passkey for who.
func (w *world) enrol(who identity.Principal) (*authenticator, identity.Credential) {
	w.t.Helper()
	a := newAuthenticator(w.t)
	options, ceremony, err := w.people.PasskeyBegin(w.ctx(), who)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.people.PasskeyFinish(w.ctx(), who, ceremony, a.create(w.t, options), "phone")
	if err != nil {
		w.t.Fatal(err)
	}
	return a, c
}

func TestAPasskeyIsEnrolledAndLogsIn(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	a, c := w.enrol(ada)
	if c.Kind != identity.CredentialPasskey || c.Name != "phone" || c.MayApproveFrom > time.Now().UnixMicro() || !strings.HasPrefix(c.ID, "k-") {
		t.Fatalf("%+v", c)
	}
	options, ceremony, err := w.people.PasskeyLoginBegin(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	answer := a.get(t, options)
	login, who, err := w.people.PasskeyLoginFinish(w.ctx(), ceremony, answer, "127.0.0.1:1")
	if err != nil || who.ID != ada.ID || w.who(login).Via != identity.ViaBrowser {
		t.Fatalf("%+v %+v %v", login, who, err)
	}
	_, _, err = w.people.PasskeyLoginFinish(w.ctx(), ceremony, answer, "127.0.0.1:1")
	if k := fault.KindOf(err); k != fault.Unauthenticated && k != fault.Denied {
		t.Fatalf("replayed: %v", err)
	}
	w.view(func(v *store.View) error {
		list, err := w.people.Credentials(v, ada.ID)
		if err != nil || len(list) != 1 || len(list[0].PublicKey) == 0 || list[0].Fingerprint == "" {
			t.Fatalf("%+v %v", list, err)
		}
		return nil
	})
}

func TestALockedPersonsPasskeyOpensNothingAndAStrangerLearnsNothing(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	a, c := w.enrol(ada)
	stranger := newAuthenticator(t)
	stranger.handle = a.handle
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.LockTx(tx, ledger.System, ada.ID, "under suspicion")
		return entries, err
	})
	options, ceremony, _ := w.people.PasskeyLoginBegin(w.ctx())
	_, _, err := w.people.PasskeyLoginFinish(w.ctx(), ceremony, a.get(t, options), "x")
	want(t, err, fault.Denied, "locked (under suspicion)")
	_, _, err = w.people.PasskeyLoginFinish(w.ctx(), ceremony, stranger.get(t, options), "x")
	want(t, err, fault.Unauthenticated, "cannot accept the passkey")
	if strings.Contains(err.Error(), "suspicion") || strings.Contains(err.Error(), "locked") {
		t.Fatalf("a stranger learns %v", err)
	}
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.UnlockTx(tx, ledger.System, ada.ID, "")
		return entries, err
	})
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return w.people.RevokeCredentialTx(tx, ledger.System, c.ID, "lost")
	})
	options, ceremony, _ = w.people.PasskeyLoginBegin(w.ctx())
	_, _, err = w.people.PasskeyLoginFinish(w.ctx(), ceremony, a.get(t, options), "x")
	want(t, err, fault.Unauthenticated, "cannot accept the passkey")
}

func TestAPasskeyThatMisbehavesIsRefused(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	for name, spoil := range map[string]func(*authenticator){
		"another origin":  func(a *authenticator) { a.origin = "http://localhost.evil.example" },
		"another site":    func(a *authenticator) { a.rpID = "evil.example" },
		"nobody verified": func(a *authenticator) { a.verified = false },
	} {
		good, _ := w.enrol(ada)
		spoil(good)
		options, ceremony, err := w.people.PasskeyLoginBegin(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.people.PasskeyLoginFinish(w.ctx(), ceremony, good.get(t, options), "x"); fault.KindOf(err) != fault.Unauthenticated {
			t.Fatalf("%s at login: %v", name, err)
		}
		bad := newAuthenticator(t)
		spoil(bad)
		options, ceremony, err = w.people.PasskeyBegin(w.ctx(), ada)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.people.PasskeyFinish(w.ctx(), ada, ceremony, bad.create(t, options), ""); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%s when enrolled: %v", name, err)
		}
	}
	a, _ := w.enrol(ada)
	a.counter = 0
	options, ceremony, _ := w.people.PasskeyLoginBegin(w.ctx())
	_, _, err := w.people.PasskeyLoginFinish(w.ctx(), ceremony, a.get(t, options), "x")
	want(t, err, fault.Denied, "counter went backwards")
}

func TestNobodyFinishesTheCeremonyOfAnother(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	_, secret := w.add("bob")
	bob := w.who(w.login(secret).login)
	options, ceremony, err := w.people.PasskeyBegin(w.ctx(), ada)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t)
	answer := a.create(t, options)
	_, err = w.people.PasskeyFinish(w.ctx(), bob, ceremony, answer, "")
	want(t, err, fault.Unauthenticated, "begun too long ago, or somewhere else")
	if _, err := w.people.PasskeyFinish(w.ctx(), ada, ceremony, answer, ""); err != nil {
		t.Fatal(err)
	}
	_, err = w.people.PasskeyFinish(w.ctx(), ada, ceremony, answer, "")
	want(t, err, fault.Conflict, "enrolled already")
	for _, junk := range []string{"", "{}", "null", `{"id":""}`, strings.Repeat("[", 1000), strings.Repeat("x", 70<<10)} {
		_, ceremony, _ := w.people.PasskeyBegin(w.ctx(), ada)
		if _, err := w.people.PasskeyFinish(w.ctx(), ada, ceremony, junk, ""); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%.20q: %v", junk, err)
		}
	}
}

func TestAPasskeySignsExactlyWhatIsApproved(t *testing.T) {
	w := newWorld(t)
	ada, _ := w.first()
	_, secret := w.add("bob", "operator")
	bob := w.who(w.login(secret).login)
	a, c := w.enrol(ada)
	b, _ := w.enrol(bob)
	hash, other := sha256.Sum256([]byte("grant g-1")), sha256.Sum256([]byte("grant g-2"))

	options, ceremony, err := w.people.ApprovalBegin(w.ctx(), ada, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(options, b64(hash[:])) {
		t.Fatalf("the challenge is not the hash: %s", options)
	}
	answer := a.get(t, options)
	verify := func(person, ceremony, answer string, hash []byte) (string, time.Time, error) {
		var id string
		var from time.Time
		err := w.store.View(w.ctx(), func(v *store.View) (err error) {
			id, from, err = w.people.VerifyPasskeyAssertion(v, person, ceremony, answer, hash)
			return err
		})
		return id, from, err
	}
	id, from, err := verify(ada.ID, ceremony, answer, hash[:])
	if err != nil || id != c.ID || from.After(time.Now()) {
		t.Fatalf("%q %v %v", id, from, err)
	}
	_, _, err = verify(ada.ID, ceremony, answer, other[:])
	want(t, err, fault.Conflict, "not what is asked for now")
	_, _, err = verify(bob.ID, ceremony, answer, hash[:])
	want(t, err, fault.Unauthenticated, "somewhere else")
	// Bob's key over ada's ceremony, and a signature over another challenge.
	if _, _, err = verify(ada.ID, ceremony, b.get(t, options), hash[:]); fault.KindOf(err) != fault.Denied {
		t.Fatalf("%v", err)
	}
	if _, _, err = verify(ada.ID, ceremony, a.assert(t, b64(other[:])), hash[:]); fault.KindOf(err) != fault.Denied {
		t.Fatalf("%v", err)
	}
	// A login's assertion approves nothing, whoever asks.
	_, login, _ := w.people.PasskeyLoginBegin(w.ctx())
	_, _, err = verify(ada.ID, login, answer, hash[:])
	want(t, err, fault.Unauthenticated, "somewhere else")
	// Nor does a revoked passkey.
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return w.people.RevokeCredentialTx(tx, ledger.System, c.ID, "lost")
	})
	if _, _, err = verify(ada.ID, ceremony, answer, hash[:]); err == nil {
		t.Fatal("a revoked passkey approves")
	}
}

func TestADeviceSignsAnApproval(t *testing.T) {
	w := newWorld(t)
	w.first()
	ada, secret := w.add("ada", "operator")
	d := w.login(secret)
	message := identity.ApprovalMessage([]byte("hash"))
	w.view(func(v *store.View) error {
		id, from, err := w.people.VerifyDeviceSignature(v, ada.ID, message, d.sign(t, message))
		if err != nil || id != d.login.Device || from.After(time.Now()) {
			t.Fatalf("%q %v %v", id, from, err)
		}
		for name, sig := range map[string][]byte{
			"over something else": d.sign(t, []byte("x")), "of another": device{signer: newKey(t)}.sign(t, message),
			"none": nil, "junk": []byte("junk"), "huge": make([]byte, 9000),
		} {
			if _, _, err := w.people.VerifyDeviceSignature(v, ada.ID, message, sig); fault.KindOf(err) != fault.Denied {
				t.Fatalf("%s: %v", name, err)
			}
		}
		return nil
	})
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.people.LockTx(tx, ledger.System, "ada", "")
		return entries, err
	})
	w.view(func(v *store.View) error {
		_, _, err := w.people.VerifyDeviceSignature(v, ada.ID, message, d.sign(t, message))
		want(t, err, fault.Denied, "locked")
		return nil
	})
}

func TestPasskeysSayWhyTheyCannotWorkOnAnAddress(t *testing.T) {
	w := newWorld(t)
	bare := identity.New(identity.Deps{Store: w.store, Ring: w.ring, RPID: "127.0.0.1", Origins: []string{"https://127.0.0.1"}})
	if bare.PasskeysWork() || !w.people.PasskeysWork() {
		t.Fatal("PasskeysWork")
	}
	_, _, err := bare.PasskeyLoginBegin(w.ctx())
	want(t, err, fault.Unavailable, "host name")
}
