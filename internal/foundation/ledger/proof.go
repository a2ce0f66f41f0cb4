package ledger

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Proof shows that one entry is in the ledger, without asking anybody.
type Proof struct {
	Index               int64
	Leaf, Salt, Payload []byte
	Inclusion           []tlog.Hash
	Checkpoint          []byte // signed note
}

// Verify checks everything: the payload against the leaf's commitment, the leaf
// against the tree, the tree against the log's signature.
func (p Proof) Verify(logKey note.Verifier, origin string) error {
	l, err := p.VerifyLeaf(logKey, origin)
	if err != nil {
		return err
	}
	if len(p.Salt) != 32 || !bytes.Equal(Commit(p.Salt, p.Payload), l.Commit) {
		return fault.New(fault.Invalid, "cannot verify entry #%d: its payload is not the one it commits to", p.Index)
	}
	return nil
}

// VerifyLeaf checks the leaf alone, for an entry whose payload was erased.
func (p Proof) VerifyLeaf(logKey note.Verifier, origin string) (Leaf, error) {
	l, err := ParseLeaf(p.Leaf)
	if err != nil {
		return Leaf{}, err
	}
	tree, err := OpenCheckpoint(p.Checkpoint, origin, logKey)
	if err != nil {
		return Leaf{}, err
	}
	// tlog.CheckRecord panics on an index outside of the tree.
	if p.Index < 0 || p.Index >= tree.N || len(p.Inclusion) > 64 {
		return Leaf{}, fault.New(fault.Invalid, "cannot verify entry #%d: the checkpoint holds %d entries", p.Index, tree.N)
	}
	if err := tlog.CheckRecord(p.Inclusion, tree.N, tree.Hash, p.Index, HashOf(p.Leaf)); err != nil {
		return Leaf{}, fault.Wrap(fault.Invalid, err, "cannot verify entry #%d", p.Index)
	}
	return l, nil
}

// proofHeader is the first line of a C2SP tlog-proof.
const proofHeader = "c2sp.org/tlog-proof@v1"

// MaxProof bounds a proof as text.
const MaxProof = 8 << 20

type proofExtra struct {
	Leaf    []byte `json:"leaf"`
	Salt    []byte `json:"salt,omitempty"`
	Payload []byte `json:"payload,omitempty"`
}

// Text is the proof as a C2SP tlog-proof file; leaf, salt and payload ride in
// its extra line.
func (p Proof) Text() []byte {
	extra, _ := json.Marshal(proofExtra{p.Leaf, p.Salt, p.Payload})
	var b bytes.Buffer
	b.WriteString(proofHeader + "\nextra " + base64.StdEncoding.EncodeToString(extra) + "\n")
	b.WriteString("index " + strconv.FormatInt(p.Index, 10) + "\n")
	for _, h := range p.Inclusion {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof reads what Text writes. It verifies nothing.
func ParseProof(b []byte) (Proof, error) {
	bad := func(why string) (Proof, error) {
		return Proof{}, fault.New(fault.Invalid, "cannot read proof: %s", why)
	}
	if len(b) > MaxProof {
		return bad("it is too long")
	}
	head, checkpoint, ok := strings.Cut(string(b), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 3 || len(lines) > 3+64 || lines[0] != proofHeader {
		return bad("it is not a tlog-proof")
	}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	if !ok {
		return bad("the extra line is missing")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(extra)
	var x proofExtra
	if err != nil || strictJSON(raw, &x) != nil {
		return bad("the extra line is malformed")
	}
	index, ok := strings.CutPrefix(lines[2], "index ")
	n, err := strconv.ParseInt(index, 10, 64)
	if !ok || err != nil || n < 0 || strconv.FormatInt(n, 10) != index {
		return bad("the index is malformed")
	}
	p := Proof{Index: n, Leaf: x.Leaf, Salt: x.Salt, Payload: x.Payload, Checkpoint: []byte(checkpoint)}
	for _, line := range lines[3:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return bad("a hash is malformed")
		}
		p.Inclusion = append(p.Inclusion, tlog.Hash(h))
	}
	return p, nil
}

// strictJSON refuses unknown members and anything after the value.
func strictJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // More takes a lone bracket for the end
		return fault.New(fault.Invalid, "cannot read JSON: there is more after the value")
	}
	return nil
}
