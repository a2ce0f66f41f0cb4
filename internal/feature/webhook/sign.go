package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// The signature schemes of the specification.
const (
	SchemeSecret = "v1"  // HMAC-SHA256, by a secret that both know
	SchemeKey    = "v1a" // Ed25519; the receiver knows the public half
)

// secretLength is that of a secret, and of the seed of a key.
const secretLength = 32

func newSecret() []byte {
	b := make([]byte, secretLength)
	rand.Read(b)
	return b
}

// shown is what the receiver is given: the secret itself, or the public half
// of the key.
func shown(scheme string, secret []byte) string {
	if scheme == SchemeKey {
		public, _ := ed25519.NewKeyFromSeed(secret).Public().(ed25519.PublicKey)
		return "whpk_" + base64.StdEncoding.EncodeToString(public)
	}
	return "whsec_" + base64.StdEncoding.EncodeToString(secret)
}

// printOf names a secret without telling it.
func printOf(secret []byte) string {
	sum := sha256.Sum256(append([]byte("handrail webhook secret\n"), secret...))
	return hex.EncodeToString(sum[:8])
}

// sign is one signature of the header.
func sign(scheme string, secret []byte, id string, at time.Time, body []byte) string {
	content := append([]byte(id+"."+strconv.FormatInt(at.Unix(), 10)+"."), body...)
	if scheme == SchemeKey {
		return SchemeKey + "," + base64.StdEncoding.EncodeToString(ed25519.Sign(ed25519.NewKeyFromSeed(secret), content))
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(content)
	return SchemeSecret + "," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// sealed and unsealed keep a secret in the database.
func (x *Hooks) sealed(hook string, secret []byte) (string, error) {
	b, err := x.d.Seals.Seal(hook, secret, []byte("webhook secret"))
	return base64.StdEncoding.EncodeToString(b), err
}

func (x *Hooks) unsealed(hook, text string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		b, err = x.d.Seals.Open(hook, b, []byte("webhook secret"))
	}
	if err == nil && len(b) != secretLength {
		err = fault.New(fault.Internal, "it is %d bytes long", len(b))
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot open the secret of webhook %s", hook).WithHint("handrail webhook rotate %s", hook)
	}
	return b, nil
}

// secrets are those that sign now, the newest first.
func (x *Hooks) secrets(h Hook, now time.Time) ([][]byte, error) {
	secret, err := x.unsealed(h.ID, h.Secret)
	if err != nil {
		return nil, err
	}
	all := [][]byte{secret}
	if h.Old != "" && now.UnixMicro() < h.OldUntil {
		if secret, err = x.unsealed(h.ID, h.Old); err != nil {
			return nil, err
		}
		all = append(all, secret)
	}
	return all, nil
}
