package directory

import (
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// The ledger actions of the directory.
const (
	Synced ledger.Action = "directory.synced"
	Failed ledger.Action = "directory.failed"
	Waits  ledger.Action = "directory.waits"
)

// Actions are the ledger actions of the directory. What it changes of people is
// identity's, and is recorded as theirs.
func Actions() []ledger.Action { return []ledger.Action{Synced, Failed, Waits} }

// Schema is the tables of the directory. Times are µs; 0 is never.
func Schema() []store.Migration {
	return []store.Migration{
		// One row: the copy as it was last read. confirmed is when it last was the
		// directory's own; a grant is dearer when that is long ago.
		{Name: "directory-1-copy", SQL: `CREATE TABLE directory_copy (
	id BIGINT PRIMARY KEY,
	version BIGINT NOT NULL,
	hash TEXT NOT NULL,
	body {{BLOB}} NOT NULL,
	statement TEXT NOT NULL,
	read_at BIGINT NOT NULL,
	confirmed BIGINT NOT NULL,
	mapped TEXT NOT NULL
)`},
		{Name: "directory-2-people", SQL: `CREATE TABLE directory_people (
	uuid TEXT PRIMARY KEY,
	person TEXT NOT NULL UNIQUE,
	away BIGINT NOT NULL
)`},
		// What waits for a person, one row a kind: asked, agreed, denied or over.
		{Name: "directory-3-held", SQL: `CREATE TABLE directory_held (
	what TEXT PRIMARY KEY,
	digest TEXT NOT NULL,
	state TEXT NOT NULL,
	approval TEXT NOT NULL,
	people BIGINT NOT NULL,
	since BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
	}
}

// copyRow is the row of the copy, without its body.
type copyRow struct {
	Version   int64  `db:"version"`
	Hash      string `db:"hash"`
	Statement string `db:"statement"`
	Read      int64  `db:"read_at"`
	Confirmed int64  `db:"confirmed"`
	Mapped    string `db:"mapped"`
}

const selectCopy = `SELECT version, hash, statement, read_at, confirmed, mapped FROM directory_copy WHERE id = 1`

// The states of what is held.
const (
	stateAsked  = "asked"
	stateAgreed = "agreed"
	stateDenied = "denied"
	stateOver   = "over" // nothing waits any more
)

type heldRow struct {
	What     string `db:"what"`
	Digest   string `db:"digest"`
	State    string `db:"state"`
	Approval string `db:"approval"`
	People   int64  `db:"people"`
	Since    int64  `db:"since"`
	Version  int64  `db:"version"`
}

const selectHeld = `SELECT what, digest, state, approval, people, since, version FROM directory_held `

// syncedPayload is the payload of directory.synced: that the copy is that of
// the directory at this time, and what changed. No names.
type syncedPayload struct {
	V         int            `json:"v"`
	Version   int64          `json:"version"`
	Hash      string         `json:"hash"`
	Read      int64          `json:"read"`
	Statement string         `json:"statement"`
	Mode      string         `json:"mode"`
	People    int            `json:"people"`
	Groups    int            `json:"groups"`
	Joined    int            `json:"joined,omitempty"`
	Left      int            `json:"left,omitempty"`
	Regrouped int            `json:"regrouped,omitempty"`
	Renamed   int            `json:"renamed,omitempty"`
	Odd       int            `json:"odd,omitempty"`
	Held      map[string]int `json:"held,omitempty"`
}

// failedPayload is the payload of directory.failed: from when on it is not read.
type failedPayload struct {
	V    int    `json:"v"`
	Why  string `json:"why"`
	Last int64  `json:"last,omitempty"` // when it was confirmed before
}

// heldPayload is the payload of directory.waits: a change waits for a person,
// or does so no more.
type heldPayload struct {
	V       int    `json:"v"`
	What    string `json:"what"`
	Waiting bool   `json:"waiting"`
	Digest  string `json:"digest"`
	People  int    `json:"people"`
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(µs int64) time.Time {
	if µs == 0 {
		return time.Time{}
	}
	return time.UnixMicro(µs).UTC()
}
