// Package inspect is the server's half of brokered reads: somebody asks what a
// host's processes do, the host's own node looks and masks, and the answer is
// sealed into the ledger with the question. Nobody gets a shell for it.
//
//	asked ── inspection.opened (its payload is the order) ──▶ node
//	      ◀── records, masked there, bounded here ──
//	      ── inspection.closed: outcome, method, pause, masked, the answer
//
// What must stay true: one entry before the node hears of it, one with the
// outcome; an answer that broke off is lost, never a success; what a node says
// is bounded, commands no terminal and decides nothing.
package inspect

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of brokered reads.
const (
	Opened ledger.Action = "inspection.opened"
	Closed ledger.Action = "inspection.closed"
	Shows  ledger.Action = "inspection.shown" // again, out of the ledger

	CoreKept      ledger.Action = "core.kept"
	CoreRead      ledger.Action = "core.read"
	CoreRemoved   ledger.Action = "core.removed" // before its time: its destruction follows
	CoreDestroyed ledger.Action = "core.destroyed"
	Unmasked      ledger.Action = "inspection.unmasked"
)

// Actions lists what this package writes to the ledger.
func Actions() []ledger.Action {
	return []ledger.Action{Opened, Closed, Shows, CoreKept, CoreRead, CoreRemoved, CoreDestroyed, Unmasked}
}

// Schema is the table of inspections; the answer itself is in the ledger.
func Schema() []store.Migration {
	return append([]store.Migration{{Name: "inspect-1-inspections", SQL: `CREATE TABLE inspections (
	id TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	host TEXT NOT NULL,
	what TEXT NOT NULL,
	outcome TEXT NOT NULL,
	opened BIGINT NOT NULL,
	ended BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "inspect-2-open", SQL: `CREATE INDEX inspections_by_end ON inspections (ended)`}}, agreedSchema()...)
}

// row is one inspection; ended is 0 while it runs.
type row struct {
	ID      string `db:"id"`
	Person  string `db:"person"`
	Host    string `db:"host"`
	What    string `db:"what"`
	Outcome string `db:"outcome"`
	Opened  int64  `db:"opened"`
	Ended   int64  `db:"ended"`
	Version int64  `db:"version"`
}

const columns = `id, person, host, what, outcome, opened, ended, version`

// Stream is where a node's answer comes from. fleet has it.
type Stream interface {
	Next() (wire.FrameType, []byte, error)
	Close() error
}

// Nodes reaches the nodes. The order is the entry of the pass that names the host.
type Nodes interface {
	Start(ctx context.Context, pass doorway.Pass, host string) (Stream, wire.SessionAnswer, error)
}

// Door is the doorway.
type Door interface {
	Do(ctx context.Context, act doorway.Act, do func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error)) (store.Receipt, error)
}

// Rules is the policy in force.
type Rules interface {
	EngineTx(q store.Queryer) (*policy.Engine, error)
}

// Deps is what Inspections needs.
type Deps struct {
	Store  *store.Store
	Door   Door
	Hosts  *target.Hosts
	People *identity.People
	Rules  Rules
	Nodes  Nodes
	// LockEpoch is the installation's lock epoch inside the opening transaction.
	LockEpoch func(q store.Queryer) (int64, error)
	Bounds    Bounds
	Log       *slog.Logger

	// What only core dumps and unmasking need.
	Approvals *approval.Approvals
	Seals     Seals
	Blobs     blob.Store // where core dumps lie; nil: none are taken
	Shared    bool       // every server reaches it
	Home      string     // this server among several
	// Drained refuses a host on which others may be at work. It may be nil: then
	// nothing is dumped.
	Drained func(q store.Queryer, by identity.Principal, host target.Host, now time.Time) error
	// Room refuses what does not fit beside what must. It may be nil.
	Room func(bytes int64) error
}

// Seals keeps keys that can be destroyed. *keyring.Subjects does.
type Seals interface {
	Seal(subject string, plain, ad []byte) ([]byte, error)
	Open(subject string, sealed, ad []byte) ([]byte, error)
	Destroy(subject string) error
}

// Bounds are the limits; zero fields take the defaults.
type Bounds struct {
	PerPerson int           // at once; 4
	PerMinute int           // of one person; 60
	Live      int           // at once on this server; 200
	Time      time.Duration // from the order to the last record; 25 s
	Pause     time.Duration // the longest pause of a process, where nobody says; 200 ms
	Kept      int           // bytes of the answer, packed, that the ledger keeps; 96 KiB
	Cores     int64         // bytes of all core dumps that are kept; 64 GiB
}

func (b Bounds) withDefaults() Bounds {
	num := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	num(&b.PerPerson, 4)
	num(&b.PerMinute, 60)
	num(&b.Live, 200)
	num(&b.Kept, 96<<10)
	if b.Time == 0 {
		b.Time = 25 * time.Second
	}
	if b.Cores == 0 {
		b.Cores = 64 << 30
	}
	if b.Pause == 0 {
		b.Pause = 200 * time.Millisecond
	}
	return b
}

// Inspections is the brokered reads of this server.
type Inspections struct {
	d Deps
	b Bounds

	mu   sync.Mutex
	live map[string]context.CancelFunc // by id
	of   map[string]*budget            // by person

	dumps chan struct{} // a place for each that is taken at once
	kick  chan struct{}
}

// budget is what one person has used.
type budget struct {
	now   int // at this moment
	since time.Time
	used  int // since then
}

// New returns them.
func New(d Deps) *Inspections {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Inspections{d: d, b: d.Bounds.withDefaults(), live: map[string]context.CancelFunc{}, of: map[string]*budget{},
		dumps: make(chan struct{}, maxDumps), kick: make(chan struct{}, 1)}
}

// Start closes as lost what a crash of this server left open.
func (s *Inspections) Start(ctx context.Context) error {
	var open []row
	err := s.d.Store.View(ctx, func(v *store.View) (err error) {
		open, err = store.All[row](v, `SELECT `+columns+` FROM inspections WHERE ended = 0 ORDER BY opened, id`)
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range open {
		_, err := s.d.Store.Record(ctx, r.ID+"-closed", func(tx *store.Tx) ([]ledger.Entry, error) {
			p := closedPayload{V: 1, Inspection: r.ID, What: r.What, Error: "the server stopped in the middle"}
			return closing(r, ledger.Lost, p), end(tx, r.ID, ledger.Lost)
		})
		if err != nil {
			return err
		}
	}
	return s.recover(ctx)
}
