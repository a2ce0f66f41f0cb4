package ledger

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A cosignature is what a witness adds to a checkpoint (C2SP tlog-cosignature,
// Ed25519): as of that second, this is the largest tree of that log that the
// witness has seen, and it extends all that it saw before.
const (
	cosignAlg    = 0x04
	cosignHeader = "cosignature/v1\ntime "
	cosignSize   = 8 + ed25519.SignatureSize
)

// WitnessKey verifies the cosignatures of one witness. It is a note.Verifier;
// as text it is a C2SP verifier key of type 4: name+hash+key.
type WitnessKey struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

// NewWitnessKey is the key of that name.
func NewWitnessKey(name string, public ed25519.PublicKey) (WitnessKey, error) {
	if err := checkWitnessName(name); err != nil {
		return WitnessKey{}, err
	}
	if len(public) != ed25519.PublicKeySize {
		return WitnessKey{}, fault.New(fault.Invalid, "cannot use the key of witness %q: it has %d bytes", name, len(public))
	}
	sum := sha256.Sum256(append([]byte(name+"\n"), typed(public)...))
	return WitnessKey{name: name, hash: binary.BigEndian.Uint32(sum[:]), public: public}, nil
}

func typed(public ed25519.PublicKey) []byte { return append([]byte{cosignAlg}, public...) }

func checkWitnessName(name string) error {
	if name == "" || len(name) > MaxWord || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '+' || r == 0x7f || r == '\uFFFD' }) {
		return fault.New(fault.Invalid, "cannot use witness name %.100q: one word without + is needed", name)
	}
	return nil
}

// ParseWitnessKey reads what String writes.
func ParseWitnessKey(vkey string) (WitnessKey, error) {
	bad := func(why string) (WitnessKey, error) {
		return WitnessKey{}, fault.New(fault.Invalid, "cannot read witness key %.100q: %s", vkey, why).
			WithHint("a witness prints its key when it starts: name+hash+key")
	}
	name, rest, ok := strings.Cut(vkey, "+")
	hash, encoded, ok2 := strings.Cut(rest, "+")
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	switch {
	case !ok || !ok2 || err != nil:
		return bad("it is not name+hash+key")
	case len(raw) == 1+ed25519.PublicKeySize && raw[0] == 1:
		return bad("it is the key of a log, not of a witness")
	case len(raw) != 1+ed25519.PublicKeySize || raw[0] != cosignAlg:
		return bad("only keys of type 4 (Ed25519 cosignature/v1) are known here")
	}
	k, err := NewWitnessKey(name, raw[1:])
	if err != nil {
		return WitnessKey{}, err
	}
	if k.String() != name+"+"+hash+"+"+encoded {
		return bad("its hash is of another key")
	}
	return k, nil
}

// String is the key as text.
func (k WitnessKey) String() string {
	return k.name + "+" + hex.EncodeToString(binary.BigEndian.AppendUint32(nil, k.hash)) + "+" + base64.StdEncoding.EncodeToString(typed(k.public))
}

// Name is the witness's name.
func (k WitnessKey) Name() string { return k.name }

// KeyHash is the key's id in a signature line.
func (k WitnessKey) KeyHash() uint32 { return k.hash }

// Same says whether two are one key, whatever they are called.
func (k WitnessKey) Same(o WitnessKey) bool { return bytes.Equal(k.public, o.public) }

// Verify implements note.Verifier.
func (k WitnessKey) Verify(text, sig []byte) bool {
	if len(sig) != cosignSize || sig[0]&0x80 != 0 {
		return false
	}
	return ed25519.Verify(k.public, cosigned(int64(binary.BigEndian.Uint64(sig)), text), sig[8:])
}

// cosigned is the message that a cosignature signs.
func cosigned(at int64, text []byte) []byte {
	return append([]byte(cosignHeader+strconv.FormatInt(at, 10)+"\n"), text...)
}

// Cosign returns the signature line of a witness over the text of a
// checkpoint. Whoever calls it has made durable that it saw this tree.
func Cosign(text string, at int64, name string, key ed25519.PrivateKey) ([]byte, error) {
	k, err := NewWitnessKey(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	raw := binary.BigEndian.AppendUint32(nil, k.hash)
	raw = binary.BigEndian.AppendUint64(raw, uint64(at))
	raw = append(raw, ed25519.Sign(key, cosigned(at, []byte(text)))...)
	return []byte("— " + name + " " + base64.StdEncoding.EncodeToString(raw) + "\n"), nil
}

// Cosignature is one that verified.
type Cosignature struct {
	Key  WitnessKey
	Time int64  // seconds since 1970, by the witness's clock
	Line []byte // as it stands in the note
}

// Cosignatures returns those of the given witnesses on a signed note; lines of
// others are passed over. A line that names one of them and does not verify is
// as if it were not there: it may have been put there to spoil the others.
func Cosignatures(signed []byte, keys ...WitnessKey) []Cosignature {
	if len(signed) > MaxCheckpoint {
		return nil
	}
	text, lines, ok := splitNote(signed)
	if !ok {
		return nil
	}
	var out []Cosignature
	for _, line := range lines {
		name, encoded, ok := strings.Cut(strings.TrimPrefix(line, "— "), " ")
		raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if !ok || err != nil || len(raw) != 4+cosignSize {
			continue
		}
		for _, k := range keys {
			if k.name != name || k.hash != binary.BigEndian.Uint32(raw) || has(out, k) || !k.Verify([]byte(text), raw[4:]) {
				continue
			}
			out = append(out, Cosignature{Key: k, Time: int64(binary.BigEndian.Uint64(raw[4:])), Line: []byte(line + "\n")})
		}
	}
	return out
}

func has(list []Cosignature, k WitnessKey) bool {
	for _, c := range list {
		if c.Key.Same(k) {
			return true
		}
	}
	return false
}

const maxSignatures = 100

// splitNote takes a signed note apart: its text with the last newline, and the
// signature lines.
func splitNote(signed []byte) (text string, lines []string, ok bool) {
	at := bytes.LastIndex(signed, []byte("\n\n"))
	if at < 0 || signed[len(signed)-1] != '\n' {
		return "", nil, false
	}
	lines = strings.Split(strings.TrimSuffix(string(signed[at+2:]), "\n"), "\n")
	if len(lines) > maxSignatures {
		return "", nil, false
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "— ") {
			return "", nil, false
		}
	}
	return string(signed[:at+1]), lines, true
}

// AddCosignatures appends signature lines to a signed note.
func AddCosignatures(signed []byte, of ...Cosignature) []byte {
	out := bytes.Clone(signed)
	for _, c := range of {
		if !bytes.Contains(out, c.Line) {
			out = append(out, c.Line...)
		}
	}
	return out
}

// Submission is what a log sends to a witness (C2SP tlog-witness,
// add-checkpoint): its checkpoint, and the proof that it extends the tree of
// size Old, the one that the witness cosigned last.
type Submission struct {
	Old        int64
	Proof      []tlog.Hash
	Checkpoint []byte
}

const (
	maxProofLines = 63
	// MaxSubmission bounds a submission.
	MaxSubmission = 32 + maxProofLines*45 + 1 + MaxCheckpoint
)

// Marshal is the body of the request.
func (s Submission) Marshal() []byte {
	var b bytes.Buffer
	b.WriteString("old " + strconv.FormatInt(s.Old, 10) + "\n")
	for _, h := range s.Proof {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	b.WriteByte('\n')
	b.Write(s.Checkpoint)
	return b.Bytes()
}

// ParseSubmission reads the body of a request. It verifies nothing.
func ParseSubmission(b []byte) (Submission, error) {
	bad := func(why string) (Submission, error) {
		return Submission{}, fault.New(fault.Invalid, "cannot read the submission: %s", why)
	}
	if len(b) > MaxSubmission {
		return bad("it is too long")
	}
	head, checkpoint, ok := bytes.Cut(b, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) > 1+maxProofLines {
		return bad("it has no empty line, or too long a proof")
	}
	word, found := strings.CutPrefix(lines[0], "old ")
	old, err := strconv.ParseInt(word, 10, 64)
	if !found || err != nil || old < 0 || strconv.FormatInt(old, 10) != word {
		return bad("the old size is malformed")
	}
	s := Submission{Old: old, Checkpoint: checkpoint}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return bad("a hash is malformed")
		}
		s.Proof = append(s.Proof, tlog.Hash(h))
	}
	return s, nil
}

// OpenForeign verifies the checkpoint of whichever log it names, as a witness
// does: logs hands out the verifiers that are trusted for an origin. It returns
// the note's text, which is what is cosigned; lines after the third are the
// log's own affair. An origin that nobody trusts is fault.NotFound, a signature
// that is none is fault.Denied.
func OpenForeign(signed []byte, logs func(origin string) []note.Verifier) (origin string, tree tlog.Tree, text string, err error) {
	bad := func(why string) (string, tlog.Tree, string, error) {
		return "", tlog.Tree{}, "", fault.New(fault.Invalid, "cannot read checkpoint: %s", why)
	}
	if len(signed) > MaxCheckpoint {
		return bad("it is too long")
	}
	body, _, ok := splitNote(signed)
	lines := strings.SplitN(body, "\n", 4)
	if !ok || len(lines) != 4 {
		return bad("it is no signed note of three lines or more")
	}
	if origin, tree, err = parseCheckpoint(strings.Join(lines[:3], "\n") + "\n"); err != nil {
		return "", tlog.Tree{}, "", err
	}
	keys := logs(origin)
	if len(keys) == 0 {
		return origin, tree, "", fault.New(fault.NotFound, "cannot cosign for %s: it is not known here", origin)
	}
	n, err := note.Open(signed, note.VerifierList(keys...))
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified), errors.As(err, &invalid):
		return origin, tree, "", fault.Wrap(fault.Denied, err, "cannot cosign for %s: the checkpoint is not signed by its log", origin)
	case err != nil:
		return bad(err.Error())
	}
	return origin, tree, n.Text, nil
}
