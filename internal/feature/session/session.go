// Package session holds the live sessions of this server: it opens them through
// the doorway, pumps their bytes through the recorder, lets others watch and
// join, and ends them when it must.
//
//	starting → live ⇄ paused → ended
//
// What must stay true:
//   - A session exists only with a recorder. Bytes are in the recorder's file
//     before the person, a watcher or the node gets them.
//   - The row and the entry `session.opened` (whose payload is the order, byte
//     for byte) commit together, before the node hears of it; the closing entry
//     commits with the row's end. A server that crashes in between closes the
//     session as lost when it starts again.
//   - A watcher never slows the owner; a slow owner slows the session.
//   - Stop, pause, lock and expiry act first and are recorded after. Resume
//     takes the full path.
package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of sessions.
const (
	Opened   ledger.Action = "session.opened"
	Closed   ledger.Action = "session.closed"
	Watched  ledger.Action = "session.watched"
	Joined   ledger.Action = "session.joined"
	Left     ledger.Action = "session.left"
	Paused   ledger.Action = "session.paused"
	Resumed  ledger.Action = "session.resumed"
	Stopped  ledger.Action = "session.stopped"
	Replayed ledger.Action = "session.replayed"
	// SearchedIn is a search through recordings.
	SearchedIn ledger.Action = "session.searched"
)

// Actions lists what this package writes to the ledger.
func Actions() []ledger.Action {
	return []ledger.Action{Opened, Closed, Watched, Joined, Left, Paused, Resumed, Stopped, Replayed, SearchedIn}
}

// States of a session.
const (
	StateStarting = "starting"
	StateLive     = "live"
	StatePaused   = "paused"
	StateEnded    = "ended"
)

// Why a session ended.
const (
	WhyExit         = "exit"          // by itself
	WhyHangup       = "hangup"        // its person went away
	WhyStopped      = "stopped"       // somebody stopped it
	WhyExpired      = "expired"       // its time was up
	WhyRevoked      = "revoked"       // its grant ended
	WhyLocked       = "locked"        // its person was locked
	WhyLost         = "lost"          // the node or the server went away
	WhyPauseTimeout = "pause-timeout" // nobody came back to watch
	WhyRecorder     = "recorder"      // it could not be recorded any longer
	WhyRefused      = "refused"       // the node refused to start it
	WhyShutdown     = "shutdown"      // this server stops
	WhyBudget       = "budget"        // it used up its share of the host
)

// Schema is the table of sessions. deadline, grant and the rest are what the
// opening entry says; only state and the end change.
func Schema() []store.Migration {
	return []store.Migration{{Name: "session-1-sessions", SQL: `CREATE TABLE sessions (
	id TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	person_name TEXT NOT NULL,
	host TEXT NOT NULL,
	host_name TEXT NOT NULL,
	environment TEXT NOT NULL,
	scope TEXT NOT NULL,
	level TEXT NOT NULL,
	kind TEXT NOT NULL,
	state TEXT NOT NULL,
	ended_why TEXT NOT NULL,
	started BIGINT NOT NULL,
	ended BIGINT NOT NULL,
	deadline BIGINT NOT NULL,
	grant_id TEXT NOT NULL,
	break_glass BOOLEAN NOT NULL,
	buddy_required BOOLEAN NOT NULL,
	account TEXT NOT NULL,
	command TEXT NOT NULL,
	exit_status BIGINT NOT NULL,
	floor TEXT NOT NULL,
	floor_missing TEXT NOT NULL,
	recording_bytes BIGINT NOT NULL,
	client TEXT NOT NULL,
	source TEXT NOT NULL,
	reason TEXT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "session-2-by-time", SQL: `CREATE INDEX sessions_by_time ON sessions (started, id)`},
		{Name: "session-3-open", SQL: `CREATE INDEX sessions_by_state ON sessions (state)`},
		homeSchema}
}

// Info is one session as its row, and what only the live table knows.
type Info struct {
	ID             string       `db:"id"`
	Person         string       `db:"person"`
	PersonName     string       `db:"person_name"`
	Host           string       `db:"host"`
	HostName       string       `db:"host_name"`
	Environment    string       `db:"environment"`
	Scope          string       `db:"scope"`
	Level          string       `db:"level"`
	Kind           string       `db:"kind"`
	State          string       `db:"state"`
	EndedWhy       string       `db:"ended_why"`
	Started        int64        `db:"started"` // µs
	Ended          int64        `db:"ended"`
	Deadline       int64        `db:"deadline"` // 0: none
	Grant          string       `db:"grant_id"`
	BreakGlass     bool         `db:"break_glass"`
	BuddyRequired  bool         `db:"buddy_required"`
	Account        string       `db:"account"`
	Command        string       `db:"command"`
	ExitStatus     int64        `db:"exit_status"`
	Floor          string       `db:"floor"`
	FloorMissing   target.Words `db:"floor_missing"`
	RecordingBytes int64        `db:"recording_bytes"`
	Client         string       `db:"client"` // browser, cli, ssh
	Source         string       `db:"source"`
	Reason         string       `db:"reason"` // of the grant
	Version        int64        `db:"version"`
	Home           string       `db:"home"` // the server that opened it

	PausedWhy string     // live only
	Watchers  []Watching // live only
}

// Watching is somebody who sees a live session.
type Watching struct {
	Person, Name string
	Joined       bool
	Since        time.Time
}

// Stream is a session's stream on a node: frames both ways. fleet has it.
type Stream interface {
	Next() (wire.FrameType, []byte, error)
	Write(wire.FrameType, []byte) error
	Close() error
}

// Nodes reaches the nodes. fleet implements it. The order is the entry of the
// pass whose payload names the host.
type Nodes interface {
	Start(ctx context.Context, pass doorway.Pass, host string, bulk bool) (Stream, wire.SessionAnswer, error)
	Resume(ctx context.Context, pass doorway.Pass, host string) error
	Brake(ctx context.Context, b wire.Brake) ([]wire.BrakeAnswer, error)
}

// Door is the doorway.
type Door interface {
	Do(ctx context.Context, act doorway.Act, do func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error)) (store.Receipt, error)
	Read(ctx context.Context, act doorway.Act) error
	Explain(ctx context.Context, act doorway.Act) (policy.Decision, error)
}

// Rules is the policy in force.
type Rules interface {
	EngineTx(q store.Queryer) (*policy.Engine, error)
}

// Grants says what a session stands on.
type Grants interface {
	doorway.Grants
	// Forwarding is the grant that names a destination of forwarded ports.
	Forwarding(q store.Queryer, person, host, destination string, now time.Time) (grant doorway.GrantInForce, ok bool, err error)
}

// Deps is what Sessions needs.
type Deps struct {
	Store      *store.Store
	Door       Door
	Hosts      *target.Hosts
	People     *identity.People
	Grants     Grants
	Rules      Rules
	Nodes      Nodes
	Recordings *recording.Recordings
	// LockEpoch is the installation's lock epoch inside the opening transaction.
	LockEpoch func(q store.Queryer) (int64, error)
	// Online says whether a host's node is connected. An observation: it may
	// only refuse, and early. It may be nil.
	Online func(host string) bool
	// Admits refuses who may not open a session on a host now, inside the opening
	// transaction; glass is whether they broke it. It may be nil.
	Admits func(q store.Queryer, host target.Host, by identity.Principal, glass bool, now time.Time) error
	// Changed is called, without locks, after a session changed.
	Changed func(Info)
	// Home is this server among several; empty is one alone.
	Home string
	// Lost is told of each session that a crash of this server had left open,
	// once it is closed as lost. It must not wait. It may be nil.
	Lost   func(Info)
	Bounds Bounds
	Log    *slog.Logger
}

// Bounds are the limits of sessions; zero fields take the defaults.
type Bounds struct {
	Live         int           // at once on this server; 10,000
	PerPerson    int           // at once; 50
	Watchers     int           // of one session; 32
	OwnerQueue   int           // bytes waiting for a browser; 256 KiB
	WatcherQueue int           // bytes waiting for a watcher; 256 KiB
	AttachWithin time.Duration // an opened session that nobody attaches to ends; 30 s
	BuddyAway    time.Duration // how long a session waits paused for its buddy; 5 min
	PauseFor     time.Duration // how long any pause lasts at most; 1 h
	EndGrace     time.Duration // from a brake until we stop waiting for the node; 3 s
	ReadFor      time.Duration // longest read session; 12 h
	ValidFor     time.Duration // of an order; 30 s
}

func (b Bounds) withDefaults() Bounds {
	num := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	dur := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	num(&b.Live, 10_000)
	num(&b.PerPerson, 50)
	num(&b.Watchers, 32)
	num(&b.OwnerQueue, 256<<10)
	num(&b.WatcherQueue, 256<<10)
	dur(&b.AttachWithin, 30*time.Second)
	dur(&b.BuddyAway, 5*time.Minute)
	dur(&b.PauseFor, time.Hour)
	dur(&b.EndGrace, 3*time.Second)
	dur(&b.ReadFor, 12*time.Hour)
	dur(&b.ValidFor, 30*time.Second)
	return b
}

// Sessions is the live table and the door to it.
type Sessions struct {
	d       Deps
	b       Bounds
	tickets tickets
	recheck chan struct{} // capacity 1: who watches is looked at anew

	mu       sync.Mutex
	live     map[string]*Live
	away     map[string]Info // open sessions of other homes
	closed   bool
	draining bool
	drained  *time.Timer // ends what is left
	shut     string      // why nothing opens here
	wg       sync.WaitGroup
}

// New returns the table. Call Start before the first session opens.
func New(d Deps) *Sessions {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Changed == nil {
		d.Changed = func(Info) {}
	}
	if d.LockEpoch == nil {
		d.LockEpoch = func(store.Queryer) (int64, error) { return 0, nil }
	}
	return &Sessions{d: d, b: d.Bounds.withDefaults(), live: map[string]*Live{}, away: map[string]Info{}, tickets: newTickets(), recheck: make(chan struct{}, 1)}
}

// Shutdown ends every session and waits for their closing entries, or for ctx.
func (s *Sessions) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	all := make([]*Live, 0, len(s.live))
	for _, l := range s.live {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		l.end(WhyShutdown, "")
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// find returns a live session.
func (s *Sessions) find(id string) (*Live, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.live[id]
	return l, ok
}

// all returns the live sessions for which keep is true.
func (s *Sessions) all(keep func(Info) bool) (out []*Live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.live {
		if keep(l.peek()) {
			out = append(out, l)
		}
	}
	return out
}
