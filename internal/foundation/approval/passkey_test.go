package approval

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/go-webauthn/webauthn/protocol/webauthncbor"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
)

func TestTheKeyOfAPasskeyIsKeptInTheFormThatHostsRead(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	cose, err := webauthncbor.Marshal(webauthncose.EC2PublicKeyData{
		PublicKeyData: webauthncose.PublicKeyData{KeyType: 2, Algorithm: -7}, Curve: 1, XCoord: point[1:33], YCoord: point[33:],
	})
	if err != nil {
		t.Fatal(err)
	}
	der, err := pkix(cose)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParsePKIXPublicKey(der)
	if err != nil || !key.PublicKey.Equal(got) {
		t.Errorf("another key: %v %v", got, err)
	}
	if _, err := pkix([]byte("junk")); err == nil {
		t.Error("junk is a key")
	}
}

func TestAnAssertionIsTakenApart(t *testing.T) {
	sig, err := assertion(`{"id":"x","response":{"authenticatorData":"AQI","clientDataJSON":"Aw","signature":"BAU"}}`)
	if err != nil || len(sig.AuthenticatorData) != 2 || len(sig.ClientData) != 1 || len(sig.Signature) != 2 {
		t.Errorf("%+v %v", sig, err)
	}
	for _, bad := range []string{"", "{}", `{"response":{"authenticatorData":"!","clientDataJSON":"Aw","signature":"BAU"}}`} {
		if _, err := assertion(bad); err == nil {
			t.Errorf("%q is an assertion", bad)
		}
	}
}
