package recording

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// A recording is written to a file of its server, always, and nothing waits for
// more. Where a bucket is configured, the file goes there once its session is
// closed in the ledger:
//
//	file ──▶ objects put ──▶ entry recording.archived + row ──▶ (a while) ──▶
//	read back and compared ──▶ file removed
//
// Each step is found again after a crash by looking at what is there: a file
// without a row is sent again (what is in the bucket already is compared, not
// sent), a file with a row is compared and removed.

// The ledger actions of the archive.
const (
	ActionArchived ledger.Action = "recording.archived"
	ActionDelayed  ledger.Action = "recording.delayed"
	ActionCaughtUp ledger.Action = "recording.caughtup"
	ActionRemoved                = ledger.ActionRemoved
)

// Schema is where recordings lie, other than with their server.
func Schema() []store.Migration {
	return []store.Migration{{Name: "recording-1-places", SQL: `CREATE TABLE recording_places (
	session TEXT PRIMARY KEY,
	state TEXT NOT NULL,
	bytes BIGINT NOT NULL,
	parts TEXT NOT NULL,
	at BIGINT NOT NULL
)`}}
}

// Archive says where finished recordings go, and for how long they stay where.
type Archive struct {
	Bucket blob.Store // nil: they stay with their server
	Place  string     // Bucket, for people
	Store  Database
	// Ended tells of sessions that have ended, with all of their entries.
	Ended func(ctx context.Context, sessions []string) (map[string]Ended, error)
	// Of are the sessions of a person.
	Of      func(ctx context.Context, person string) ([]string, error)
	Local   time.Duration // how long the file stays after its objects are there
	Keep    time.Duration // how long a recording is kept at all; 0: for ever
	Waiting int64         // bytes that may wait for the bucket; beyond nothing new is recorded; 0: the disk
}

// Database is the part of the store that an archive needs.
type Database interface {
	Ledger
	View(ctx context.Context, fn func(*store.View) error) error
}

// Ended is a session that has.
type Ended struct {
	Bytes int64 // of its recording
	At    time.Time
}

// The states of a row. What has no row lies with its server.
const (
	stateBucket  = "bucket"
	stateRemoved = "removed"
)

// place is one row.
type place struct {
	Session string `db:"session"`
	State   string `db:"state"`
	Bytes   int64  `db:"bytes"`
	Parts   string `db:"parts"` // SHA-256 of each object, hex, with spaces
	At      int64  `db:"at"`    // µs
}

func (p place) hashes() []string { return strings.Fields(p.Parts) }

// partSize cuts a recording into objects, so that what broke off costs little.
const partSize = 16 << 20

func folderOf(session string) string { return session[2:4] + "/" + session + "/" }

func partName(session string, n int) string { return fmt.Sprintf("%s%06d", folderOf(session), n) }

// ofPart is the session whose object has that name.
func ofPart(name string) (session string, ok bool) {
	part := strings.Split(name, "/")
	if len(part) != 3 || !sessionID().MatchString(part[1]) || part[0] != part[1][2:4] {
		return "", false
	}
	return part[1], true
}

// places reads the rows of sessions; what has none is not in the answer.
func (r *Recordings) places(ctx context.Context, sessions ...string) (map[string]place, error) {
	found := map[string]place{}
	if r.archive == nil {
		return found, nil
	}
	for some := range slices.Chunk(sessions, 200) {
		marks, args := make([]string, len(some)), make([]any, len(some))
		for i, s := range some {
			marks[i], args[i] = fmt.Sprintf("$%d", i+1), s
		}
		err := r.archive.Store.View(ctx, func(v *store.View) error {
			rows, err := store.All[place](v, `SELECT session, state, bytes, parts, at FROM recording_places WHERE session IN (`+strings.Join(marks, ", ")+`)`, args...)
			for _, p := range rows {
				found[p.Session] = p
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// every reads all rows, in steps that hold nobody up.
func (r *Recordings) every(ctx context.Context, state string, fn func(place) error) error {
	if r.archive == nil {
		return nil
	}
	for after := ""; ; {
		var rows []place
		err := r.archive.Store.View(ctx, func(v *store.View) (err error) {
			rows, err = store.All[place](v, `SELECT session, state, bytes, parts, at FROM recording_places
				WHERE session > $1 AND state = $2 ORDER BY session LIMIT 500`, after, state)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, p := range rows {
			if err := fn(p); err != nil {
				return err
			}
			after = p.Session
		}
	}
}

// archivedPayload is what recording.archived says.
type archivedPayload struct {
	V       int      `json:"v"`
	Session string   `json:"session"`
	Bytes   int64    `json:"bytes"`
	Parts   []string `json:"parts"` // SHA-256 of each object
}

// delayedPayload is what recording.delayed and recording.caughtup say.
type delayedPayload struct {
	V       int    `json:"v"`
	Waiting int    `json:"waiting"`
	Bytes   int64  `json:"bytes"`
	Since   int64  `json:"since,omitempty"` // µs
	Why     string `json:"why,omitempty"`
}

// Status is what somebody wants to know of an archive.
type Status struct {
	Place   string    // "" if there is none
	Waiting int       // finished recordings that are not there yet
	Bytes   int64     // of them
	Oldest  time.Time // when the first of them ended
	Limit   int64     // of bytes that may wait; 0: the disk
	Failed  string    // why the last round failed, or nothing
	Delayed bool      // it is behind, and the ledger says so
	Here    int       // recordings whose files are here
	Rounds  uint64    // that ended
}

// shared is what rounds keep for others to see.
type shared struct {
	mu     sync.Mutex
	status Status
	kick   chan struct{}
	unread map[string]bool // what has no index, and gets none by itself; of rounds alone
}

// Status says how far the archive is.
func (r *Recordings) Status() Status {
	r.shared.mu.Lock()
	defer r.shared.mu.Unlock()
	s := r.shared.status
	if a := r.archive; a != nil {
		s.Limit = a.Waiting
		if a.Bucket != nil {
			s.Place = a.Place
		}
	}
	return s
}

// Nudge lets the next round begin now.
func (r *Recordings) Nudge() {
	select {
	case r.shared.kick <- struct{}{}:
	default: // one is coming
	}
}

// Archived says whether every server can read a recording.
func (r *Recordings) Archived(ctx context.Context, session string) bool {
	p, err := r.places(ctx, session)
	return err == nil && p[session].State == stateBucket && r.archive.Bucket != nil
}

// Remove lets go of recordings for good: an entry says so, then files and
// objects are deleted. If we crash in between, the next round deletes the rest.
func (r *Recordings) Remove(ctx context.Context, why string, sessions ...string) error {
	if r.archive == nil {
		return fault.New(fault.Internal, "cannot remove recordings: they have no table")
	}
	for some := range slices.Chunk(sessions, 500) {
		had, err := r.places(ctx, some...)
		if err != nil {
			return err
		}
		some = slices.DeleteFunc(slices.Clone(some), func(s string) bool { return had[s].State == stateRemoved || !sessionID().MatchString(s) })
		if len(some) == 0 {
			continue
		}
		_, err = r.archive.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
			for _, s := range some {
				if _, err := tx.Exec(`INSERT INTO recording_places (session, state, bytes, parts, at) VALUES ($1, $2, 0, '', $3)
					ON CONFLICT (session) DO UPDATE SET state = $2, bytes = 0, parts = '', at = $3`, s, stateRemoved, tx.Now().UnixMicro()); err != nil {
					return nil, err
				}
			}
			return []ledger.Entry{{Action: ActionRemoved, Subjects: []string{ledger.System}, Payload: ledger.Removed{V: 1, Why: why, Sessions: some}}}, nil
		})
		if err != nil {
			return err
		}
	}
	var failed error
	for _, s := range sessions {
		if err := r.wipe(ctx, s); err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

// RemovePerson removes all recordings of a person who was erased.
func (r *Recordings) RemovePerson(ctx context.Context, person string) error {
	if r.archive == nil {
		return nil
	}
	sessions, err := r.archive.Of(ctx, person)
	if err != nil {
		return err
	}
	return r.Remove(ctx, "erased", sessions...)
}

// payloadRemoved reads the payload of recording.removed.
func payloadRemoved(body []byte) (p ledger.Removed, ok bool) {
	return p, json.Unmarshal(body, &p) == nil
}
