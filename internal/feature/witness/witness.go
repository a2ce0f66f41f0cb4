// Package witness lets one installation vouch for what it saw of another's
// ledger, so that whoever holds a server's keys cannot keep two histories.
//
// A Witness remembers, for each log that it knows, the largest tree that it
// cosigned, and never cosigns one that does not extend it (C2SP tlog-witness,
// tlog-cosignature). It needs a folder and nothing else. A Circle is the other
// side: the witnesses that a server asks, how many of them must have answered,
// and the alarm when they did not.
//
//	ledger ── checkpoint ──▶ Circle ── add-checkpoint ──▶ Witness (elsewhere)
//	                           │  ◀────── cosignature ───────┘
//	                           ▼
//	          orders for hosts that demand it, exports, the page
//
// What must stay true:
//   - A witness makes durable that it saw a tree before it signs. If it is
//     killed in between, nobody has the cosignature, and the next submission
//     meets a memory that is ahead: it is refused or extends it. It is never
//     behind.
//   - A memory that cannot be read stops the witness for that log; it never
//     starts over.
//   - A witness that does not answer is an alarm and one entry an outage; its
//     return is another.
package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Witness cosigns the checkpoints of others.
type Witness struct {
	dir  string
	name string
	key  ed25519.PrivateKey
	logs func(origin string) []note.Verifier
	lock *os.File

	mu   sync.Mutex
	seen map[string]*seen // by origin, of known logs only

	// wrote is called between the check and the signature, for tests that
	// kill there.
	wrote func()
}

// The files of a witness.
const (
	fileKey     = "key"      // its private key
	filePublic  = "key.pub"  // what others name it by
	fileLock    = "lock"     // held while it runs: two would sign two histories
	dirSeen     = "seen"     // one file a log: the last cosigned checkpoint
	dirEvidence = "evidence" // contradicting checkpoints that a log signed
	keyHeader   = "handrail-witness-key-v1"
)

// Open opens the folder of a witness, and makes the folder and the key at the
// first time. logs says which verifiers are trusted for an origin.
func Open(dir, name string, logs func(origin string) []note.Verifier) (*Witness, error) {
	for _, d := range []string{dir, filepath.Join(dir, dirSeen)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot open the folder of the witness")
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the folder of the witness")
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fault.New(fault.Conflict, "cannot open the witness in %s: another process runs it", dir)
	}
	w := &Witness{dir: dir, logs: logs, lock: lock, seen: map[string]*seen{}, wrote: func() {}}
	if err := w.loadKey(name); err != nil {
		lock.Close()
		return nil, err
	}
	return w, nil
}

// Close lets another process open the folder.
func (w *Witness) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s.file != nil {
			_ = s.file.Close() // synced at each write
		}
	}
	return w.lock.Close()
}

func (w *Witness) loadKey(name string) error {
	path := filepath.Join(w.dir, fileKey)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = w.makeKey(path, name); err != nil {
			return err
		}
	} else if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read the key of the witness")
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 3 || lines[0] != keyHeader {
		return damaged(path)
	}
	seed, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(seed) != ed25519.SeedSize {
		return damaged(path)
	}
	if w.name = lines[1]; name != "" && name != w.name {
		return fault.New(fault.Conflict, "cannot call this witness %q: its key is that of %q", name, w.name)
	}
	w.key = ed25519.NewKeyFromSeed(seed)
	if _, err := ledger.NewWitnessKey(w.name, w.key.Public().(ed25519.PublicKey)); err != nil {
		return err
	}
	public := []byte(w.Key().String() + "\n")
	if there, err := os.ReadFile(filepath.Join(w.dir, filePublic)); err == nil && bytes.Equal(there, public) {
		return nil
	}
	return replace(filepath.Join(w.dir, filePublic), public, 0o644)
}

func (w *Witness) makeKey(path, name string) ([]byte, error) {
	if left, err := os.ReadDir(filepath.Join(w.dir, dirSeen)); err != nil || len(left) > 0 {
		return nil, fault.New(fault.Conflict, "cannot make a key in %s: its key is gone, and it has cosigned before", w.dir).
			WithHint("put the file %q back from a backup", fileKey)
	}
	if name == "" {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		name = "witness-" + hex.EncodeToString(b[:])
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make the key of the witness")
	}
	if _, err := ledger.NewWitnessKey(name, public); err != nil {
		return nil, err
	}
	text := []byte(keyHeader + "\n" + name + "\n" + base64.StdEncoding.EncodeToString(key.Seed()) + "\n")
	return text, replace(path, text, 0o600)
}

func damaged(path string) error {
	return fault.New(fault.Conflict, "cannot use %s: it is damaged", path).
		WithHint("put it back from a backup that is not older than its last cosignature")
}

// Key is the public key that others name this witness by.
func (w *Witness) Key() ledger.WitnessKey {
	k, _ := ledger.NewWitnessKey(w.name, w.key.Public().(ed25519.PublicKey)) // checked when it was loaded
	return k
}

// ConflictError says that the submission does not start from the tree that was
// cosigned last, whose size it tells.
type ConflictError struct {
	Size int64
	fork bool
}

func (e *ConflictError) Error() string {
	if e.fork {
		return fmt.Sprintf("cannot cosign: another tree of size %d was cosigned here", e.Size)
	}
	return fmt.Sprintf("cannot cosign: the tree that was cosigned last has the size %d", e.Size)
}

// ForkError says that the submitted tree does not extend the one that was
// cosigned last.
type ForkError struct{ Old, New int64 }

func (e *ForkError) Error() string {
	return fmt.Sprintf("cannot cosign: the tree of size %d does not extend the one of size %d that was cosigned here", e.New, e.Old)
}

// Add judges a submission and returns the signature line of this witness.
func (w *Witness) Add(body []byte, now time.Time) ([]byte, error) {
	s, err := ledger.ParseSubmission(body)
	if err != nil {
		return nil, err
	}
	origin, tree, text, err := ledger.OpenForeign(s.Checkpoint, w.logs)
	if err != nil {
		return nil, err
	}
	if s.Old > tree.N {
		return nil, fault.New(fault.Invalid, "cannot cosign: the old size %d is larger than the checkpoint's %d", s.Old, tree.N)
	}
	last := w.of(origin)
	last.mu.Lock()
	defer last.mu.Unlock()
	if err := last.load(origin); err != nil {
		return nil, err
	}
	if s.Old != last.tree.N {
		return nil, &ConflictError{Size: last.tree.N}
	}
	if s.Old == tree.N && tree.Hash != last.tree.Hash {
		w.keepEvidence(last.note, s.Checkpoint)
		return nil, &ConflictError{Size: last.tree.N, fork: true}
	}
	if err := ledger.CheckConsistency(s.Proof, last.tree, tree); err != nil {
		w.keepEvidence(last.note, s.Checkpoint)
		return nil, &ForkError{Old: last.tree.N, New: tree.N}
	}
	// Durable before anybody can hold the signature.
	if tree.N > last.tree.N || last.note == nil {
		if err := last.save(tree, bytes.Clone(s.Checkpoint)); err != nil {
			return nil, err
		}
		defer last.copy()
	}
	w.wrote()
	return ledger.Cosign(text, now.Unix(), w.name, w.key)
}

func (w *Witness) of(origin string) *seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen[origin]
	if s == nil {
		sum := sha256.Sum256([]byte(origin))
		s = &seen{path: filepath.Join(w.dir, dirSeen, hex.EncodeToString(sum[:16]))}
		w.seen[origin] = s
	}
	return s
}

// maxEvidence bounds what a log that contradicts itself can make us keep.
const maxEvidence = 64

// keepEvidence keeps two checkpoints that one log signed and that cannot both
// be true. That it cannot be kept changes nothing about the refusal.
func (w *Witness) keepEvidence(cosigned, submitted []byte) {
	dir := filepath.Join(w.dir, dirEvidence)
	text := append(append(bytes.Clone(cosigned), '\n'), submitted...)
	sum := sha256.Sum256(text)
	if os.MkdirAll(dir, 0o700) != nil {
		return
	}
	if kept, err := os.ReadDir(dir); err != nil || len(kept) >= maxEvidence {
		return
	}
	_ = replace(filepath.Join(dir, hex.EncodeToString(sum[:8])), text, 0o600)
}

// replace writes a file whole or not at all: written apart, synced, renamed,
// the folder synced.
func replace(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err == nil {
		_, err = f.Write(b)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		var dir *os.File
		if dir, err = os.Open(filepath.Dir(path)); err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot save %s", path)
	}
	return nil
}
