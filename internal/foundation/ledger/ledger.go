// Package ledger encodes, hashes, proves and verifies. It is pure: no files,
// no network, no clock, no randomness; signers and verifiers are passed in, so
// that a node, the command line and an auditor run the very code that the
// server runs.
//
// A ledger is an RFC 6962 tree in the C2SP formats. A leaf is a small JSON
// envelope that is hashed byte for byte as stored. It holds no name, mail,
// address or free text: those live in a payload to which the leaf commits by
// SHA-256(salt ‖ payload), and which can be erased while every proof stays
// valid.
package ledger

import (
	"crypto/sha256"

	"golang.org/x/mod/sumdb/tlog"
)

// Action says what happened, as noun.verb in the past: "grant.requested".
type Action string

// Actions that the store and the ledger itself use.
const (
	// ActionOpened is entry #0 of every ledger.
	ActionOpened Action = "ledger.opened"
	// ActionErased says that the subject in Object was erased: from then on
	// payloads sealed to it may be absent.
	ActionErased Action = "subject.erased"
	// ActionChunks commits to stored pieces of a recording; its payload is Chunks.
	ActionChunks Action = "recording.chunks"
	// ActionRemoved says that whole recordings were removed, and why: from then on
	// their pieces may be absent. Its payload is Removed.
	ActionRemoved Action = "recording.removed"
	// ActionSpooled records a brake that was used while the database was away.
	ActionSpooled Action = "brake.spooled"
	// ActionRestored says that a new epoch, signed by the root key, accepted a
	// ledger that is not the one remembered.
	ActionRestored Action = "ledger.restored"
)

// Outcome says how it ended.
type Outcome string

// The outcomes. Silence is never success: Unknown is an outcome.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "failed"
	Denied  Outcome = "denied"
	Lost    Outcome = "lost"
	Unknown Outcome = "unknown"
)

// System is the subject of what nobody in particular did; its key is never
// destroyed.
const System = "system"

// Entry is what a feature hands to store.Record.
type Entry struct {
	Action   Action
	Outcome  Outcome  // "" is OK
	Subjects []string // random ids; the first is the actor; none is System
	Session  string   // s-…
	Target   string   // typed path: "host/h-…"
	Object   string   // the object whose state changed, with its new version
	Version  int64
	Payload  any    // a versioned struct, or json.RawMessage used byte for byte
	SealTo   string // the subject whose key seals the payload; "" is Subjects[0]
}

// Recorded is an entry as it stands in the ledger.
type Recorded struct {
	Seq     int64
	Leaf    []byte // exactly as hashed
	Parsed  Leaf
	Salt    []byte
	Payload []byte // nil when erased
}

// Chunks is the payload of an ActionChunks entry: the SHA-256 (lower-case hex)
// of each stored piece of a recording, in order, as the bytes lie on disk.
type Chunks struct {
	V       int      `json:"v"`
	Session string   `json:"session"`
	First   int64    `json:"first"` // number of the first piece
	Hashes  []string `json:"hashes"`
	Sizes   []int64  `json:"sizes"`
}

// Removed is the payload of ActionRemoved.
type Removed struct {
	V        int      `json:"v"`
	Why      string   `json:"why"` // "erased", or "kept long enough"
	Sessions []string `json:"sessions"`
}

// Finding names one thing that was touched, and in what way.
type Finding struct {
	Where string // "entry #12", "payload of #12", "tile 0/3", "checkpoint at 120"
	What  string
}

// String is one line for people.
func (f Finding) String() string { return f.Where + ": " + f.What }

// Witnessed is how far an outsider vouches for an export.
type Witnessed struct {
	Name    string
	Entries int64
	Time    int64 // seconds since 1970, by the witness's clock
}

// Report is the result of a verification.
type Report struct {
	OK          bool
	Entries     int64
	Payloads    int64
	Pruned      int64 // payloads that are absent because an entry says that they were let go
	Erased      int64 // payloads that are absent because their subject was erased
	Recordings  int64
	Checkpoints int64
	Checkpoint  string // the newest signed checkpoint that was verified
	Trust       string // whose word the keys were taken on
	Witnesses   []Witnessed
	Findings    []Finding
	More        int64 // findings beyond the bound, counted only
}

// Commit is the salted commitment that a leaf carries; salt is 32 bytes.
func Commit(salt, payload []byte) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write(payload)
	return h.Sum(nil)
}

// HashOf is the RFC 6962 hash of a leaf.
func HashOf(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }
