package approval

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"

	"github.com/go-webauthn/webauthn/protocol/webauthncose"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// assertion takes the parts of a WebAuthn response that a host needs to verify
// it again. The response itself has been verified before.
func assertion(response string) (*wire.Signature, error) {
	var got struct {
		Response struct {
			AuthenticatorData string `json:"authenticatorData"`
			ClientDataJSON    string `json:"clientDataJSON"`
			Signature         string `json:"signature"`
		} `json:"response"`
	}
	bad := fault.New(fault.Invalid, "cannot read the passkey's answer")
	if len(response) > 64<<10 || json.Unmarshal([]byte(response), &got) != nil {
		return nil, bad
	}
	var sig wire.Signature
	for _, part := range []struct {
		from string
		to   *[]byte
	}{
		{got.Response.AuthenticatorData, &sig.AuthenticatorData},
		{got.Response.ClientDataJSON, &sig.ClientData},
		{got.Response.Signature, &sig.Signature},
	} {
		b, err := base64.RawURLEncoding.DecodeString(part.from)
		if err != nil || len(b) == 0 {
			return nil, bad
		}
		*part.to = b
	}
	return &sig, nil
}

// pkix turns the key of a passkey (COSE) into the form that hosts read.
func pkix(cose []byte) ([]byte, error) {
	parsed, err := webauthncose.ParsePublicKey(cose)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the key of a passkey")
	}
	var key any
	switch k := parsed.(type) {
	case webauthncose.EC2PublicKeyData:
		if k.Curve != int64(webauthncose.P256) { // what hosts can check
			return nil, fault.New(fault.Invalid, "cannot use the key of a passkey: curve %d", k.Curve)
		}
		key = &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(k.XCoord), Y: new(big.Int).SetBytes(k.YCoord)}
	case webauthncose.OKPPublicKeyData:
		key = ed25519.PublicKey(k.XCoord)
	case webauthncose.RSAPublicKeyData:
		key = &rsa.PublicKey{N: new(big.Int).SetBytes(k.Modulus), E: int(new(big.Int).SetBytes(k.Exponent).Int64())}
	default:
		return nil, fault.New(fault.Invalid, "cannot use the key of a passkey: %T", parsed)
	}
	return x509.MarshalPKIXPublicKey(key)
}
