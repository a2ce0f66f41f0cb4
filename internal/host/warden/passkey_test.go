package warden

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"testing"

	"handrail.dev/handrail/internal/foundation/wire"
)

// assertion is what a browser's authenticator answers.
func assertion(t *testing.T, key *ecdsa.PrivateKey, challenge []byte, kind string, flags byte) wire.Signature {
	t.Helper()
	client := fmt.Appendf(nil, `{"type":%q,"challenge":%q,"origin":"https://handrail.example"}`, kind, base64.RawURLEncoding.EncodeToString(challenge))
	auth := make([]byte, 37)
	auth[32] = flags
	hash := sha256.Sum256(client)
	sum := sha256.Sum256(append(append([]byte{}, auth...), hash[:]...))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Signature{Kind: "passkey", PublicKey: der, Signature: sig, AuthenticatorData: auth, ClientData: client}
}

func TestAPasskeysApprovalIsCheckedOnTheHost(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subject := SubjectHash("grant", []byte("request"))
	other := SubjectHash("grant", []byte("another request"))
	const present, verified = 0x01, 0x04
	if !verifyApproval(assertion(t, key, subject[:], "webauthn.get", present|verified), subject) {
		t.Fatal("a good assertion is refused")
	}
	for name, bad := range map[string]wire.Signature{
		"for another request": assertion(t, key, other[:], "webauthn.get", present|verified),
		"of an enrolment":     assertion(t, key, subject[:], "webauthn.create", present|verified),
		"of nobody verified":  assertion(t, key, subject[:], "webauthn.get", present),
		"of no kind":          {Kind: "verbal"},
	} {
		if verifyApproval(bad, subject) {
			t.Errorf("an assertion %s is accepted", name)
		}
	}
	changed := assertion(t, key, subject[:], "webauthn.get", present|verified)
	changed.AuthenticatorData[0] ^= 1
	if verifyApproval(changed, subject) {
		t.Error("a changed assertion is accepted")
	}
}
