package ledger

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// MaxCheckpoint bounds a signed checkpoint, cosignatures included.
const MaxCheckpoint = 16 << 10

// SignCheckpoint returns the C2SP checkpoint of the tree as a signed note. Call
// it only for a tree that is durable: a signed checkpoint cannot be taken back.
func SignCheckpoint(origin string, tree tlog.Tree, s note.Signer) ([]byte, error) {
	if err := checkOrigin(origin); err != nil {
		return nil, err
	}
	text := origin + "\n" + strconv.FormatInt(tree.N, 10) + "\n" + base64.StdEncoding.EncodeToString(tree.Hash[:]) + "\n"
	b, err := note.Sign(&note.Note{Text: text}, SignersOf(s)...)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot sign checkpoint at %d", tree.N)
	}
	return b, nil
}

// OpenCheckpoint verifies a signed checkpoint. Signatures by others, such as
// witnesses, may stand beside the log's and are not judged here.
func OpenCheckpoint(b []byte, origin string, v note.Verifier) (tlog.Tree, error) {
	if len(b) > MaxCheckpoint {
		return tlog.Tree{}, fault.New(fault.Invalid, "cannot open checkpoint: %d bytes, at most %d are allowed", len(b), MaxCheckpoint)
	}
	n, err := note.Open(b, note.VerifierList(KeysOf(v)...))
	if err != nil {
		return tlog.Tree{}, fault.Wrap(fault.Invalid, err, "cannot open checkpoint")
	}
	got, tree, err := parseCheckpoint(n.Text)
	if err != nil {
		return tlog.Tree{}, err
	}
	if got != origin {
		return tlog.Tree{}, fault.New(fault.Invalid, "cannot open checkpoint: it is of %q, not of %q", got, origin)
	}
	return tree, nil
}

// parseCheckpoint reads the text of a checkpoint: exactly three lines.
func parseCheckpoint(text string) (origin string, tree tlog.Tree, err error) {
	lines := strings.Split(text, "\n")
	bad := func(why string) (string, tlog.Tree, error) {
		return "", tlog.Tree{}, fault.New(fault.Invalid, "cannot read checkpoint: %s", why)
	}
	if len(lines) != 4 || lines[3] != "" {
		return bad("it does not have three lines")
	}
	n, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != lines[1] {
		return bad("the size is malformed")
	}
	h, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(h) != tlog.HashSize {
		return bad("the hash is malformed")
	}
	if checkOrigin(lines[0]) != nil {
		return bad("the origin is malformed")
	}
	return lines[0], tlog.Tree{N: n, Hash: tlog.Hash(h)}, nil
}

func checkOrigin(origin string) error {
	if origin == "" || len(origin) > MaxWord || strings.ContainsAny(origin, "\n\r\t +") {
		return fault.New(fault.Invalid, "cannot use origin %q: one word without + is needed", origin)
	}
	return nil
}

// CheckConsistency verifies that new extends old: nothing that was in old was
// changed, moved or taken away.
func CheckConsistency(proof []tlog.Hash, old, new tlog.Tree) error {
	var err error
	switch {
	case old.N < 0 || new.N < old.N:
		err = errors.New("the newer tree is smaller")
	case old.N == new.N:
		if old.Hash != new.Hash {
			err = errors.New("two trees of one size differ")
		} else if len(proof) != 0 {
			err = errors.New("the proof is not empty")
		}
	case old.N == 0: // every tree extends the empty one
		if len(proof) != 0 {
			err = errors.New("the proof is not empty")
		}
	default:
		err = tlog.CheckTree(proof, new.N, new.Hash, old.N, old.Hash)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot extend checkpoint at %d to %d", old.N, new.N)
	}
	return nil
}
