package ledger

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Bundle is what the members of an installation trust, signed by its root key.
// Members pin the hash of the root key and keep the highest version they saw.
type Bundle struct {
	RootKey   string // note verifier key of the root key that signs this
	Version   int64
	Origin    string
	LogKey    string // note verifier key of the ledger
	OrderKey  ed25519.PublicKey
	CA        [][]byte // X.509 DER of the installation's CA
	SSHUserCA []string // authorized_keys lines
	SSHHostCA []string
	VoucherCA []string // certifies vouchers; empty: this installation gives none
	OfflineCA []string // certifies vouchers too; its key is split and no server has it
	Epoch     int64    // higher than before: the ledger was restored or forked on purpose
	Former    []Former // keys that were replaced, oldest first
}

// Keys are the keys of a kind that the bundle names, as text.
func (b Bundle) Keys(kind string) []string {
	switch kind {
	case KeyLog:
		return []string{b.LogKey}
	case KeyOrder:
		return []string{base64.StdEncoding.EncodeToString(b.OrderKey)}
	case KeyCA:
		var list []string
		for _, der := range b.CA {
			list = append(list, base64.StdEncoding.EncodeToString(der))
		}
		return list
	case KeySSHUser:
		return slices.Clone(b.SSHUserCA)
	default:
		return slices.Clone(b.SSHHostCA)
	}
}

// Bounds of a bundle.
const (
	MaxBundle     = 256 << 10
	maxBundleKeys = 16
	bundleHeader  = "handrail-trust-bundle/v1"
)

// SignBundle signs the bundle with the root key, whose public half must stand
// in b.RootKey.
func SignBundle(b Bundle, root note.Signer) ([]byte, error) {
	text, err := b.text()
	if err != nil {
		return nil, err
	}
	if v, err := note.NewVerifier(b.RootKey); err != nil || v.KeyHash() != root.KeyHash() || v.Name() != root.Name() {
		return nil, fault.New(fault.Invalid, "cannot sign trust bundle %d: RootKey is not the signer's key", b.Version)
	}
	signed, err := note.Sign(&note.Note{Text: text}, root)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot sign trust bundle %d", b.Version)
	}
	return signed, nil
}

func (b Bundle) text() (string, error) {
	if err := b.check(); err != nil {
		return "", err
	}
	var t strings.Builder
	line := func(key, value string) { t.WriteString(key + " " + value + "\n") }
	t.WriteString(bundleHeader + "\n")
	line("root", b.RootKey)
	line("version", strconv.FormatInt(b.Version, 10))
	line("origin", b.Origin)
	line("epoch", strconv.FormatInt(b.Epoch, 10))
	line("log", b.LogKey)
	line("order", base64.StdEncoding.EncodeToString(b.OrderKey))
	for _, der := range b.CA {
		line("ca", base64.StdEncoding.EncodeToString(der))
	}
	for _, k := range b.SSHUserCA {
		line("ssh-user-ca", k)
	}
	for _, k := range b.SSHHostCA {
		line("ssh-host-ca", k)
	}
	for _, k := range b.VoucherCA {
		line("voucher-ca", k)
	}
	for _, k := range b.OfflineCA {
		line("voucher-offline-ca", k)
	}
	for _, f := range b.Former {
		line("former", f.Kind+" "+strconv.FormatInt(f.Until, 10)+" "+f.Key)
	}
	return t.String(), nil
}

func (b Bundle) check() error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "cannot use trust bundle: %s", why)
	}
	if _, err := note.NewVerifier(b.RootKey); err != nil {
		return bad("RootKey is not the verifier key of a root key")
	}
	if _, err := note.NewVerifier(b.LogKey); err != nil {
		return bad("the log key is malformed")
	}
	if err := checkOrigin(b.Origin); err != nil {
		return err
	}
	if b.Version < 1 || b.Epoch < 0 {
		return bad("version or epoch is out of range")
	}
	if len(b.OrderKey) != ed25519.PublicKeySize {
		return bad("the order key is malformed")
	}
	if max(len(b.CA), len(b.SSHUserCA), len(b.SSHHostCA), len(b.VoucherCA), len(b.OfflineCA)) > maxBundleKeys {
		return bad("it has too many keys")
	}
	for _, der := range b.CA {
		if len(der) == 0 {
			return bad("a CA is empty")
		}
	}
	for _, k := range slices.Concat(b.SSHUserCA, b.SSHHostCA, b.VoucherCA, b.OfflineCA) {
		if !validLine(k) {
			return bad("an SSH CA is not one line of ASCII")
		}
	}
	if len(b.Former) > maxFormer {
		return bad("it has too many former keys")
	}
	for _, f := range b.Former {
		if err := f.check(); err != nil {
			return bad(err.Error())
		}
	}
	return nil
}

func validLine(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return s != "" && strings.TrimSpace(s) == s
}

// OpenBundle verifies a signed bundle. The note names the root key that signed
// it, and that key's hash must be the pinned one.
func OpenBundle(signed []byte, rootHash string) (Bundle, error) {
	b, err := openBundle(signed)
	if err != nil {
		return Bundle{}, err
	}
	if got := RootHash(b.RootKey); got != rootHash {
		return Bundle{}, fault.New(fault.Invalid, "cannot trust bundle: it is signed by root key %s, not by %s", got, rootHash).
			WithHint("compare the root key with the one that `handrail status` prints on the server")
	}
	return b, nil
}

// openBundle verifies the signature by the root key that the note itself names.
func openBundle(signed []byte) (Bundle, error) {
	if len(signed) > MaxBundle {
		return Bundle{}, fault.New(fault.Invalid, "cannot open trust bundle: %d bytes, at most %d are allowed", len(signed), MaxBundle)
	}
	lines := strings.SplitN(string(signed), "\n", 3)
	if len(lines) < 3 || lines[0] != bundleHeader || !strings.HasPrefix(lines[1], "root ") {
		return Bundle{}, fault.New(fault.Invalid, "cannot open trust bundle: it is not one, or of a newer kind").WithHint("upgrade handrail")
	}
	root := strings.TrimPrefix(lines[1], "root ")
	v, err := note.NewVerifier(root)
	if err != nil {
		return Bundle{}, fault.Wrap(fault.Invalid, err, "cannot open trust bundle")
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Bundle{}, fault.Wrap(fault.Invalid, err, "cannot open trust bundle")
	}
	return parseBundle(n.Text)
}

// parseBundle reads the text; a line it does not know is refused, since a
// member must not act on half of what it was told.
func parseBundle(text string) (Bundle, error) {
	var b Bundle
	bad := func(line string) (Bundle, error) {
		return Bundle{}, fault.New(fault.Invalid, "cannot read trust bundle: line %.60q", line).WithHint("upgrade handrail")
	}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n")[1:] {
		key, value, _ := strings.Cut(line, " ")
		var err error
		switch key {
		case "root":
			b.RootKey = value
		case "version":
			b.Version, err = strconv.ParseInt(value, 10, 64)
		case "origin":
			b.Origin = value
		case "epoch":
			b.Epoch, err = strconv.ParseInt(value, 10, 64)
		case "log":
			b.LogKey = value
		case "order":
			b.OrderKey, err = base64.StdEncoding.DecodeString(value)
		case "ca":
			var der []byte
			der, err = base64.StdEncoding.DecodeString(value)
			b.CA = append(b.CA, der)
		case "ssh-user-ca":
			b.SSHUserCA = append(b.SSHUserCA, value)
		case "ssh-host-ca":
			b.SSHHostCA = append(b.SSHHostCA, value)
		case "voucher-ca":
			b.VoucherCA = append(b.VoucherCA, value)
		case "voucher-offline-ca":
			b.OfflineCA = append(b.OfflineCA, value)
		case "former":
			var f Former
			f, err = parseFormer(value)
			b.Former = append(b.Former, f)
		default:
			return bad(line)
		}
		if err != nil {
			return bad(line)
		}
	}
	// One bundle has one form: doubled, reordered or padded lines are refused.
	if again, err := b.text(); err != nil {
		return Bundle{}, err
	} else if again != text {
		return bad(text)
	}
	return b, nil
}

// RootHash is the one-word name of a root key: 128 bits of its SHA-256, which
// nobody can meet with another key.
func RootHash(vkey string) string {
	h := sha256.Sum256([]byte(vkey))
	return "sha256:" + base64.RawURLEncoding.EncodeToString(h[:16])
}

func validRootHash(s string) bool {
	raw, ok := strings.CutPrefix(s, "sha256:")
	b, err := base64.RawURLEncoding.Strict().DecodeString(raw)
	// The decoder skips line ends, so its length is looked at, too.
	return ok && err == nil && len(b) == 16 && len(raw) == base64.RawURLEncoding.EncodedLen(16)
}

// Token is address, root-key hash and secret in one word, for logging in and
// for joining: who holds it knows where to go, whom to trust, and is let in.
type Token struct{ Address, RootHash, Secret string }

// String is the word. It is a secret.
func (t Token) String() string {
	return "hr1." + base64.RawURLEncoding.EncodeToString([]byte(t.Address)) + "." + t.RootHash + "." + t.Secret
}

// ParseToken reads the word.
func ParseToken(s string) (Token, error) {
	// The text never quotes the token: errors are logged, tokens are secrets.
	bad := fault.New(fault.Invalid, "cannot read token: it is not a whole handrail token").
		WithHint("copy it again, from `hr1.` to the end of the line")
	parts := strings.Split(s, ".")
	if len(s) > 1024 || len(parts) != 4 || parts[0] != "hr1" {
		return Token{}, bad
	}
	addr, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
	if err != nil || !validLine(string(addr)) || !validRootHash(parts[2]) || len(parts[3]) < 16 || !validWord(parts[3]) {
		return Token{}, bad
	}
	t := Token{Address: string(addr), RootHash: parts[2], Secret: parts[3]}
	if t.String() != s { // one token has one form
		return Token{}, bad
	}
	return t, nil
}
