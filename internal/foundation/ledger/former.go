package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
)

// The kinds of keys that are rotated, as they stand in a bundle.
const (
	KeyLog     = "log"
	KeyOrder   = "order"
	KeyCA      = "ca"
	KeySSHUser = "ssh-user-ca"
	KeySSHHost = "ssh-host-ca"
)

// maxFormer bounds the keys that a bundle names as replaced. Those whose time
// has ended are left out of the next bundle, but for log keys, which old
// checkpoints need.
const maxFormer = 64

// Former is a key that was replaced. Until its end it counts beside the one
// that replaced it, so that nobody is cut off in between; a former log key goes
// on opening what was kept from its time.
type Former struct {
	Kind  string
	Until int64  // seconds since 1970
	Key   string // in the form of its kind
}

func parseFormer(value string) (Former, error) {
	kind, rest, _ := strings.Cut(value, " ")
	until, key, _ := strings.Cut(rest, " ")
	end, err := strconv.ParseInt(until, 10, 64)
	return Former{kind, end, key}, err
}

func (f Former) check() error {
	bad := errors.New("a former key is malformed")
	if f.Until < 0 {
		return bad
	}
	switch f.Kind {
	case KeyLog:
		if _, err := note.NewVerifier(f.Key); err != nil {
			return bad
		}
	case KeyOrder, KeyCA:
		raw, err := base64.StdEncoding.Strict().DecodeString(f.Key)
		if err != nil || len(raw) == 0 || f.Kind == KeyOrder && len(raw) != ed25519.PublicKeySize {
			return bad
		}
	case KeySSHUser, KeySSHHost:
		if !validLine(f.Key) {
			return bad
		}
	default:
		return bad
	}
	return nil
}

// still are the former keys of a kind that count at that time.
func (b Bundle) still(kind string, now time.Time) (keys []string) {
	for _, f := range b.Former {
		if f.Kind == kind && now.Unix() < f.Until {
			keys = append(keys, f.Key)
		}
	}
	return keys
}

// OrderKeys are the keys whose orders, leases and brakes count, the current
// one first.
func (b Bundle) OrderKeys(now time.Time) []ed25519.PublicKey {
	keys := []ed25519.PublicKey{b.OrderKey}
	for _, k := range b.still(KeyOrder, now) {
		raw, _ := base64.StdEncoding.DecodeString(k) // it was checked
		keys = append(keys, raw)
	}
	return keys
}

// Authorities are the authorities whose certificates count, as X.509 DER, those
// in force first.
func (b Bundle) Authorities(now time.Time) [][]byte {
	list := append([][]byte(nil), b.CA...)
	for _, k := range b.still(KeyCA, now) {
		raw, _ := base64.StdEncoding.DecodeString(k) // it was checked
		list = append(list, raw)
	}
	return list
}

// SSHAuthorities are the lines of the SSH authorities of a kind that count.
func (b Bundle) SSHAuthorities(kind string, now time.Time) []string {
	list := b.SSHUserCA
	if kind == KeySSHHost {
		list = b.SSHHostCA
	}
	return append(append([]string(nil), list...), b.still(kind, now)...)
}

// Names says whether the bundle names this key as a former one of its kind.
func (b Bundle) Names(kind, key string) bool {
	for _, f := range b.Former {
		if f.Kind == kind && f.Key == key {
			return true
		}
	}
	return false
}

// LogKeys is a log's key together with its former ones. As a note.Verifier it
// is the one in force.
type LogKeys struct {
	note.Verifier
	all []note.Verifier
}

// Keys are all of them, the one in force first.
func (k LogKeys) Keys() []note.Verifier { return k.all }

// Log is what opens checkpoints that somebody sends at that time.
func (b Bundle) Log(now time.Time) (LogKeys, error) {
	return logKeys(append([]string{b.LogKey}, b.still(KeyLog, now)...))
}

// LogEver opens also what was kept here from the time of a former key: our own
// files, an export that is held by its newest checkpoint.
func (b Bundle) LogEver() (LogKeys, error) { return b.Log(time.Unix(0, 0)) }

func logKeys(vkeys []string) (LogKeys, error) {
	var k LogKeys
	for _, vkey := range vkeys {
		v, err := note.NewVerifier(vkey)
		if err != nil {
			return LogKeys{}, fault.Wrap(fault.Invalid, err, "cannot read a log key of the trust bundle")
		}
		k.all = append(k.all, v)
	}
	k.Verifier = k.all[0]
	return k, nil
}

// LogSigners is a note.Signer that stands for several: while a log key is
// handed over, each checkpoint is signed by the old and the new one.
type LogSigners interface {
	note.Signer
	Signers() []note.Signer
}

// SignersOf are the signers behind one, as they are at this moment: each signs
// and names itself by one key, while what stands for them may be another key's
// from one call to the next.
func SignersOf(s note.Signer) []note.Signer {
	if c, ok := s.(LogSigners); ok {
		return c.Signers()
	}
	return []note.Signer{s}
}

// KeysOf are the keys behind a verifier: its own, or those of a log whose key
// was replaced.
func KeysOf(v note.Verifier) []note.Verifier {
	if k, ok := v.(interface{ Keys() []note.Verifier }); ok {
		return k.Keys()
	}
	return []note.Verifier{v}
}

// SignedBy says which of the keys signed a note whose text they all may sign.
func SignedBy(signed []byte, v note.Verifier) (by []note.Verifier) {
	for _, k := range KeysOf(v) {
		if _, err := note.Open(signed, note.VerifierList(k)); err == nil {
			by = append(by, k)
		}
	}
	return by
}

// Text is the bundle as it will be signed: what somebody looks at, and agrees
// to, before the root key signs it.
func (b Bundle) Text() ([]byte, error) {
	text, err := b.text()
	return []byte(text), err
}

// ReadBundle reads the text of a bundle that nobody has signed yet.
func ReadBundle(text []byte) (Bundle, error) {
	if len(text) > MaxBundle || !bytes.HasPrefix(text, []byte(bundleHeader+"\n")) {
		return Bundle{}, fault.New(fault.Invalid, "cannot read the trust bundle: it is not one, or of a newer kind").WithHint("upgrade handrail")
	}
	return parseBundle(string(text))
}
