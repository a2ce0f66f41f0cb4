package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// runner runs statements, within whatever transaction is open.
type runner interface {
	exec(ctx context.Context, q string, args ...any) (int64, error)
	query(ctx context.Context, q string, args ...any) (*sql.Rows, error)
	numbered() bool // places of generated texts are $1 and not ?
}

// txRunner runs statements in a transaction of database/sql.
type txRunner struct{ tx *sql.Tx }

func (r txRunner) exec(ctx context.Context, q string, args ...any) (int64, error) {
	res, err := r.tx.ExecContext(ctx, q, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (r txRunner) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return r.tx.QueryContext(ctx, q, args...)
}

func (txRunner) numbered() bool { return true }

// Tx is the transaction of one Record. It is valid only while fn runs. What fn
// does must depend on nothing but the rows it reads and on Now and Random,
// since fn may run more than once; and it holds the writer, so it does no I/O.
type Tx struct {
	ctx    context.Context
	run    runner
	now    time.Time
	wrote  bool
	done   bool
	failed bool  // a statement failed, after which PostgreSQL takes no other
	fatal  error // the database gave up the whole transaction
	retry  error // PostgreSQL wants the transaction run again
}

func (t *Tx) rows(q string, args []any) (*sql.Rows, error) {
	if t.done {
		return nil, errTxDone
	}
	t.wrote = t.wrote || writes(q) // INSERT … RETURNING comes through here
	rows, err := t.run.query(t.ctx, q, args...)
	t.note(err)
	return rows, err
}

// writes says whether a text may change rows; in doubt it does.
func writes(q string) bool {
	q = strings.ToUpper(strings.TrimSpace(q))
	if strings.HasPrefix(q, "SELECT") {
		return false
	}
	return !strings.HasPrefix(q, "WITH") || strings.Contains(q, "INSERT") || strings.Contains(q, "UPDATE") || strings.Contains(q, "DELETE")
}

var errTxDone = fault.New(fault.Internal, "cannot use a transaction after its function returned")

// Exec changes rows and says how many. A change needs an entry: when fn returns
// none after an Exec, everything is taken back.
func (t *Tx) Exec(q string, args ...any) (int64, error) {
	if t.done {
		return 0, errTxDone
	}
	t.wrote = true
	n, err := t.run.exec(t.ctx, q, args...)
	t.note(err)
	return n, asFault(err, "change the database")
}

// note keeps an error after which SQLite may have ended the transaction by
// itself: nothing of this batch may commit then.
func (t *Tx) note(err error) {
	t.failed = t.failed || err != nil
	switch c := classify2(err); {
	case t.fatal == nil && (c == errFull || c == errAway):
		t.fatal = err
	case t.retry == nil && c == errRetry:
		t.retry = err
	}
}

func classify2(err error) errClass {
	if err == nil {
		return errOther
	}
	return classify(err)
}

// Now is the time of this transaction, in UTC, to the microsecond.
func (t *Tx) Now() time.Time { return t.now }

// Random returns n random bytes; take randomness from nowhere else.
func (t *Tx) Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// View is one read-only snapshot, of state or of observations.
type View struct {
	ctx context.Context
	tx  *sql.Tx
}

func (v *View) rows(q string, args []any) (*sql.Rows, error) {
	return v.tx.QueryContext(v.ctx, q, args...)
}

// Obs is a transaction on observations.
type Obs struct {
	ctx context.Context
	tx  *sql.Tx
	now time.Time
}

func (o *Obs) rows(q string, args []any) (*sql.Rows, error) {
	return o.tx.QueryContext(o.ctx, q, args...)
}

// Exec changes rows and says how many.
func (o *Obs) Exec(q string, args ...any) (int64, error) {
	n, err := txRunner{o.tx}.exec(o.ctx, q, args...)
	return n, asFault(err, "write observations")
}

// Now is the time of this transaction, in UTC.
func (o *Obs) Now() time.Time { return o.now }

// View runs fn on one snapshot of state. What fn reads may be old by the time
// it returns: decide inside Record.
func (s *Store) View(ctx context.Context, fn func(*View) error) error {
	return s.view(ctx, s.state, fn)
}

// ViewObserved runs fn on one snapshot of the observations.
func (s *Store) ViewObserved(ctx context.Context, fn func(*View) error) error {
	return s.view(ctx, s.obsR, fn)
}

func (s *Store) view(ctx context.Context, db *sql.DB, fn func(*View) error) error {
	if err := s.reachable("read the database"); err != nil {
		return err
	}
	var opts *sql.TxOptions // SQLite: a deferred transaction is a snapshot, and query_only forbids writing
	if s.db.name == "postgres" {
		opts = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	}
	tx, err := begin(ctx, db, opts)
	if err != nil {
		return asFault(err, "read the database")
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return fn(&View{ctx: ctx, tx: tx})
}

// begin opens a transaction. A pool may hand out connections that have died
// meanwhile; nothing has happened yet, so another is tried.
func begin(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*sql.Tx, error) {
	for tries := 0; ; tries++ {
		tx, err := db.BeginTx(ctx, opts)
		if err == nil || tries >= postgresConns || !lostConnection(err) || ctx.Err() != nil {
			return tx, err
		}
	}
}

// Observe writes observations, which nothing may be granted for. It leaves no
// entry in the ledger.
func (s *Store) Observe(ctx context.Context, fn func(*Obs) error) error {
	s.obsMu.Lock() // one writer; waiting here is cheaper than waiting for a lock of the database
	defer s.obsMu.Unlock()
	tx, err := begin(ctx, s.obs, nil)
	if err != nil {
		return asFault(err, "write observations")
	}
	defer func() { _ = tx.Rollback() }() // no-op after Commit
	if err := fn(&Obs{ctx: ctx, tx: tx, now: time.Now().UTC().Truncate(time.Microsecond)}); err != nil {
		return err
	}
	return asFault(tx.Commit(), "write observations")
}
