// Package store is the database, and the only way to change state: a change
// and its ledger entries commit together or not at all. The same SQL text runs
// on SQLite and PostgreSQL. DESIGN.md says what stays true when we crash.
//
//	caller ── Record(id, fn) ──▶ writer (SQLite) ─┐            ┌▶ Follow
//	caller ── Record(id, fn) ──▶ own tx + pending ┴▶ sequencer ┴▶ Head, Proof
//
// State is what people decide or cause. Observations are what machines report;
// they live in a database (SQLite) or schema (PostgreSQL) of their own, and
// nothing may be granted because of one.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Recorded is an entry as it stands in the ledger.
type Recorded = ledger.Recorded

// SubjectKeys seals payloads, one key a subject. Open of a destroyed or
// unknown key is fault.NotFound.
type SubjectKeys interface {
	Seal(subject string, plain, ad []byte) ([]byte, error)
	Open(subject string, sealed, ad []byte) ([]byte, error)
	Destroy(subject string) error
}

// Config opens a store.
type Config struct {
	DSN          string        // "sqlite:DIR" or a postgres URL
	Origin       string        // name of the installation's ledger
	Signer       note.Signer   // log key
	Verifier     note.Verifier // its public half
	Seals        SubjectKeys
	Bootstrap    func() bool // marks entries written during bootstrap; may be nil
	Migrations   []Migration
	Observations []ObservationMigration
	Spool        string        // folder of the brake spool and the remembered checkpoint; "" is none
	Epoch        int64         // of the trust bundle; a higher one than remembered accepts a restored database
	Bundle       func() []byte // signed trust bundle, for exports; may be nil
	// Unspool changes state for a brake that was used while the database was
	// away, when it is back; nil records the entry alone.
	Unspool func(*Tx, ledger.Entry) ([]ledger.Entry, error)
	// Keys brings Signer and Verifier up to date with what the database says of
	// rotations, before anything is compared with a signature; may be nil.
	Keys func(v *View) error
}

// engine is how one of the two databases takes a Record.
type engine interface {
	record(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) ([]Recorded, error)
	// maintain runs fn in a transaction of the ledger's own upkeep, which
	// writes checkpoints and erases payloads and never state.
	maintain(ctx context.Context, fn func(*Tx) error) error
	close()
}

// Store is an open database.
type Store struct {
	cfg     Config
	db      dialect
	first   *sql.DB // has migrated, and waits for the engine to write with it
	state   *sql.DB // read pool
	obs     *sql.DB // observations, writing
	obsR    *sql.DB // observations, reading
	eng     engine
	spool   *Spool
	anchor  *anchor
	commits commits
	obsMu   sync.Mutex

	head    atomic.Pointer[published] // newest durable tree
	growing sync.Mutex                // PostgreSQL: of copies of a frontier one may grow
	tiles   tileCache
	grown   broadcast // closed and renewed whenever head grows
	signMu  sync.Mutex
	signed  signedHead
	settled atomic.Int64 // size of the newest checkpoint that is stored

	away atomic.Bool // the database is known not to be reached

	damageMu sync.Mutex
	damage   error
	quit     context.CancelFunc
	idle     sync.WaitGroup
}

// published is a durable tree that readers may use while it grows on.
type published struct {
	frontier ledger.Frontier
	tree     tlog.Tree
}

type signedHead struct {
	tree tlog.Tree
	by   string // the keys that signed
	note []byte
}

// Open opens the database, migrates it, rebuilds the tree's frontier, and
// compares it with the checkpoint that is remembered beside it. A ledger that
// does not add up still opens, so that it can be read and verified, but accepts
// no entry: see Damage.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Signer == nil || c.Verifier == nil || c.Seals == nil || c.Origin == "" {
		return nil, fault.New(fault.Internal, "cannot open store: Signer, Verifier, Seals and Origin are needed")
	}
	if c.Bootstrap == nil {
		c.Bootstrap = func() bool { return false }
	}
	s := &Store{cfg: c}
	if err := s.open(ctx); err != nil {
		s.closePools()
		return nil, err
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	var err error
	if s.db, err = parseDSN(s.cfg.DSN); err != nil {
		return err
	}
	if err := s.openPools(ctx); err != nil {
		return err
	}
	if s.cfg.Keys != nil {
		if err := s.View(ctx, s.cfg.Keys); err != nil {
			return err
		}
	}
	if s.cfg.Spool != "" {
		if s.spool, err = openSpool(s.cfg.Spool); err != nil {
			return err
		}
		if s.anchor, err = openAnchor(s.cfg.Spool, s.cfg.Origin, s.cfg.Verifier); err != nil {
			return err
		}
	}
	if err := s.reload(ctx); err != nil {
		if fault.KindOf(err) != fault.Conflict {
			return err
		}
		s.setDamage(err)
	}
	run, quit := context.WithCancel(context.Background())
	s.quit = quit
	if s.eng, err = s.db.engine(run, s); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		s.eng.close()
		return err
	}
	s.idle.Add(1)
	go s.upkeep(run)
	return nil
}

// begin compares the database with what is remembered, and writes the first
// entry of a new ledger, so that no tree that anybody sees is ever empty.
func (s *Store) begin(ctx context.Context) error {
	if err := s.checkOwner(ctx); err != nil {
		return err
	}
	if s.Damage() == nil {
		if err := s.checkAnchor(ctx); err != nil {
			s.setDamage(err)
		}
	}
	if s.Damage() != nil {
		return nil
	}
	if s.head.Load().tree.N == 0 {
		_, err := s.Record(ctx, "genesis", func(*Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: ledger.ActionOpened, Payload: map[string]any{"v": 1, "origin": s.cfg.Origin}}}, nil
		})
		if err != nil {
			return err
		}
	}
	if err := s.resumeErasures(ctx); err != nil {
		return err
	}
	return s.resumePrune(ctx)
}

// checkOwner refuses a database whose newest checkpoint another log key signed:
// it is of another installation, and an entry of ours would spoil both. A
// signature of ours that is wrong is damage, which Verify names.
func (s *Store) checkOwner(ctx context.Context) error {
	var newest []string
	err := s.View(ctx, func(v *View) (err error) {
		newest, err = All[string](v, `SELECT signed FROM ledger_checkpoint ORDER BY n DESC LIMIT 1`)
		return err
	})
	if err != nil || len(newest) == 0 {
		return err
	}
	keys := ledger.KeysOf(s.cfg.Verifier)
	_, err = note.Open([]byte(newest[0]), note.VerifierList(keys...))
	var unknown *note.UnverifiedNoteError
	if !errors.As(err, &unknown) {
		return nil
	}
	for _, signature := range unknown.Note.UnverifiedSigs {
		if slices.ContainsFunc(keys, func(k note.Verifier) bool { return k.KeyHash() == signature.Hash }) {
			return nil // its name was touched
		}
	}
	return fault.New(fault.Conflict, "cannot use the database: its ledger is of another installation, whose log key signed it").
		WithHint("name another database, or put that installation's data folder back")
}

// Close waits for what is being written, signs and remembers the last
// checkpoint, and closes the database.
func (s *Store) Close() error {
	if s.quit == nil {
		return nil
	}
	s.quit()
	s.quit = nil
	s.idle.Wait()
	err := s.settle(context.Background())
	s.eng.close()
	return errors.Join(err, s.closePools())
}

// writer hands the pool that has migrated to the engine.
func (s *Store) writer() *sql.DB {
	db := s.first
	s.first = nil
	return db
}

func (s *Store) closePools() error {
	var errs []error
	for _, db := range []*sql.DB{s.first, s.state, s.obs, s.obsR} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.spool != nil {
		errs = append(errs, s.spool.close())
	}
	if s.anchor != nil {
		errs = append(errs, s.anchor.close())
	}
	return errors.Join(errs...)
}

// Damage says why the ledger accepts no new entry, or nil: it was rolled back,
// forked, or does not add up. Reading, verifying and brakes still work.
func (s *Store) Damage() error {
	s.damageMu.Lock()
	defer s.damageMu.Unlock()
	return s.damage
}

func (s *Store) setDamage(err error) {
	s.damageMu.Lock()
	defer s.damageMu.Unlock()
	if s.damage == nil {
		s.damage = err
	}
}

// Actions are the ledger actions that the store itself writes.
func Actions() []ledger.Action {
	return []ledger.Action{ledger.ActionOpened, ledger.ActionErased, ledger.ActionSpooled, ledger.ActionRestored, ledger.ActionPruned}
}

// settleEvery is how many seconds the newest stored checkpoint may lag behind;
// what is remembered beside the database lags one.
const settleEvery = 10

// upkeep remembers and stores checkpoints, and empties the brake spool as soon
// as the database takes entries again.
func (s *Store) upkeep(ctx context.Context) {
	defer s.idle.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.Damage() != nil {
			continue
		}
		// What fails is tried again at the next tick.
		_ = s.Drain(ctx)
		if s.db.name == "postgres" {
			_ = s.catchUp(ctx) // other servers' entries, should their news be lost
		}
		_, _, _ = s.Head(ctx) // remembered, also by a server that commands nothing
		_ = s.anchor.sync()
		if n%settleEvery == 0 {
			_ = s.settle(ctx)
		}
	}
}

// NewID returns a kind letter and 8 random characters: "g-7k3f9q2m".
func NewID(kind byte) string {
	const crockford = "0123456789abcdefghjkmnpqrstvwxyz"
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	id := make([]byte, 0, 10)
	id = append(id, kind, '-')
	for _, c := range b {
		id = append(id, crockford[c&31])
	}
	return string(id)
}

// broadcast wakes everybody who waits for something to change.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that is closed at the next wake.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
