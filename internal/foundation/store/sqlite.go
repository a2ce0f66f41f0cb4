package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Bounds of one group commit: what is appended together, and how long the
// first caller may wait for the others to run.
const (
	maxGroup      = 512
	maxGroupTime  = 5 * time.Millisecond
	maxQueue      = 1024
	nestedSuspect = 50 * time.Millisecond
)

// sqliteEngine is one goroutine that owns the writing connection. Callers that
// come while it works share its next transaction, each in a savepoint.
type sqliteEngine struct {
	s       *Store
	db      *sql.DB
	conn    *sql.Conn
	st      statements
	queue   chan *request
	stop    chan struct{}
	stopped chan struct{}
	writer  int64 // goroutine that runs fn
}

// request is one Record, or one upkeep, on its way through the writer.
type request struct {
	ctx      context.Context // PostgreSQL: of the caller
	id       string
	fn       func(*Tx) ([]ledger.Entry, error)
	upkeep   func(*Tx) error
	done     chan struct{}
	taken    atomic.Int32 // 0 queued, 1 taken by the writer, 2 withdrawn
	err      error
	drafts   []draft
	first    int64
	existing bool // the id was recorded before
	panicked any
}

func (r *request) take() bool     { return r.taken.CompareAndSwap(0, 1) }
func (r *request) withdraw() bool { return r.taken.CompareAndSwap(0, 2) }

func (d dialect) engine(ctx context.Context, s *Store) (engine, error) {
	if d.name == "postgres" {
		return newPostgresEngine(ctx, s)
	}
	db := s.writer()
	conn, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close()
		return nil, asFault(err, "open the writer")
	}
	e := &sqliteEngine{s: s, db: db, conn: conn, st: statements{conn: conn}, queue: make(chan *request, maxQueue), stop: make(chan struct{}), stopped: make(chan struct{})}
	started := make(chan struct{})
	go e.loop(started)
	<-started
	return e, nil
}

func (e *sqliteEngine) close() {
	close(e.stop)
	<-e.stopped
	e.st.close()
	_ = e.conn.Close() // everything was committed or rolled back
	_ = e.db.Close()
}

var errClosed = fault.New(fault.Unavailable, "cannot record: the store is closed")

func (e *sqliteEngine) record(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) ([]Recorded, error) {
	r := &request{id: id, fn: fn, done: make(chan struct{})}
	if err := e.do(ctx, r); err != nil {
		return nil, err
	}
	if r.existing {
		return e.s.recordOf(ctx, id)
	}
	out := make([]Recorded, len(r.drafts))
	for i, d := range r.drafts {
		out[i] = d.recorded(r.first + int64(i))
	}
	return out, nil
}

func (e *sqliteEngine) maintain(ctx context.Context, fn func(*Tx) error) error {
	return e.do(ctx, &request{upkeep: fn, done: make(chan struct{})})
}

// do hands the request to the writer and waits. A caller that gives up before
// the writer took its request has changed nothing; after that it waits, so that
// its answer is never a guess.
func (e *sqliteEngine) do(ctx context.Context, r *request) error {
	select {
	case e.queue <- r:
	case <-ctx.Done():
		return asFault(ctx.Err(), "record")
	case <-e.stopped:
		return errClosed
	}
	// Record inside Record would wait for itself for ever. The check costs
	// more than a Record, so it is made only by who waits for long.
	suspect := time.NewTimer(nestedSuspect)
	defer suspect.Stop()
	for {
		select {
		case <-r.done:
			if r.panicked != nil {
				panic(r.panicked) // in the goroutine whose fn it was
			}
			return r.err
		case <-ctx.Done():
			if r.withdraw() {
				return asFault(ctx.Err(), "record")
			}
			<-r.done
			return r.err
		case <-suspect.C:
			if goroutine() == e.writer && r.withdraw() {
				return errNested
			}
		case <-e.stopped:
			if r.withdraw() {
				return errClosed
			}
			<-r.done
			return r.err
		}
	}
}

var errNested = fault.New(fault.Internal, "cannot record inside of Record: return all entries from one function")

// goroutine is the number of the running goroutine.
func goroutine() int64 {
	var buf [64]byte
	fields := bytes.Fields(buf[:runtime.Stack(buf[:], false)])
	if len(fields) < 2 {
		return -1
	}
	n, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (e *sqliteEngine) loop(started chan<- struct{}) {
	e.writer = goroutine()
	close(started)
	defer close(e.stopped)
	for {
		select {
		case r := <-e.queue:
			e.group(r)
		case <-e.stop:
			for { // what was queued before the stop is still written
				select {
				case r := <-e.queue:
					e.group(r)
				default:
					return
				}
			}
		}
	}
}

// group commits the request and whatever else waits.
func (e *sqliteEngine) group(r *request) {
	if !r.take() {
		return
	}
	g := &group{e: e, reqs: []*request{r}, join: true}
	err := g.try()
	for attempt := 0; attempt < 3 && (errors.Is(err, errAgain) || errors.Is(err, errMoved)); attempt++ {
		g.join, g.careful = false, true
		if errors.Is(err, errMoved) {
			// Another process appended: learn its entries, then run again.
			if rerr := e.s.reload(context.Background()); rerr != nil {
				if err = rerr; fault.KindOf(rerr) == fault.Conflict {
					e.s.setDamage(rerr)
				}
				break
			}
		}
		err = g.try()
	}
	if errors.Is(err, errUndo) {
		err = nil
	}
	for _, r := range g.reqs {
		if r.err == nil && err != nil && r.panicked == nil {
			r.err = asFault(err, "record")
		}
		close(r.done)
	}
}

// group is what one transaction commits. At first it runs without savepoints,
// which cost a fifth of a Record; when one of several requests fails, all are
// taken back and run again, carefully.
type group struct {
	e       *sqliteEngine
	reqs    []*request
	join    bool // later requests may join
	careful bool // each request in a savepoint
	ids     rowsOf
	batch   *batch
}

// errAgain says that the group must run again, carefully.
var errAgain = errors.New("again")

// errUndo says that the only request failed, and that the transaction goes with it.
var errUndo = errors.New("undo")

// try runs the requests, and those that join, in one transaction.
func (g *group) try() (err error) {
	ctx, st := context.Background(), &g.e.st
	if err := g.e.s.Damage(); err != nil && g.reqs[0].upkeep == nil {
		return err
	}
	if _, err := st.exec(ctx, `BEGIN IMMEDIATE`); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, _ = st.exec(ctx, `ROLLBACK`) // fails when SQLite already did
		}
	}()
	g.batch = newBatch(g.e.s.head.Load())
	g.ids = rowsOf{table: "ledger_record", columns: []string{"id", "first"}}
	start := time.Now()
	for ran := 0; ran < len(g.reqs); {
		if g.join && len(g.reqs) < maxGroup && time.Since(start) < maxGroupTime {
			g.gather()
		}
		if err := g.known(ctx, g.reqs[ran:]); err != nil {
			return err
		}
		for ; ran < len(g.reqs); ran++ {
			if err := g.one(ctx, g.reqs[ran]); err != nil {
				return err
			}
		}
		if g.join {
			g.gather() // what came meanwhile
		}
	}
	if err := g.ids.insert(ctx, st); err != nil {
		return err
	}
	if len(g.batch.drafts) > 0 {
		if _, err := g.batch.write(ctx, st); err != nil {
			return err
		}
	}
	if _, err := st.exec(ctx, `COMMIT`); err != nil {
		return err
	}
	g.e.s.publish(&g.batch.tree)
	return nil
}

// gather takes what waits, without waiting.
func (g *group) gather() {
	for len(g.reqs) < maxGroup {
		select {
		case r := <-g.e.queue:
			if r.take() {
				g.reqs = append(g.reqs, r)
			}
		default:
			return
		}
	}
}

// known marks the requests whose id was recorded before, or stands twice in
// this group.
func (g *group) known(ctx context.Context, reqs []*request) error {
	seen := make(map[string]bool, len(g.reqs))
	for i := 0; i < len(g.ids.args); i += len(g.ids.columns) {
		seen[g.ids.args[i].(string)] = true
	}
	for rest := reqs; len(rest) > 0; {
		n := 1
		if len(rest) >= knownStep {
			n = knownStep
		}
		args := make([]any, n)
		for i, r := range rest[:n] {
			args[i] = r.id
		}
		rows, err := g.e.st.query(ctx, knownText[n > 1], args...)
		if err != nil {
			return err
		}
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return errors.Join(err, rows.Close())
			}
			seen[id] = true
		}
		if err := rows.Close(); err != nil {
			return err
		}
		rest = rest[n:]
	}
	for _, r := range reqs {
		r.existing = r.upkeep == nil && seen[r.id]
		seen[r.id] = true
	}
	return nil
}

const knownStep = 16

var knownText = map[bool]string{
	false: `SELECT id FROM ledger_record WHERE id = ?`,
	true:  `SELECT id FROM ledger_record WHERE id IN (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
}

// one runs one request. The error returned ends the whole group; the request's
// own stays in it.
func (g *group) one(ctx context.Context, r *request) error {
	r.err, r.drafts, r.panicked = nil, nil, nil
	if r.existing {
		return nil
	}
	st := &g.e.st
	if g.careful {
		if _, err := st.exec(ctx, `SAVEPOINT one`); err != nil {
			return err
		}
	}
	tx := &Tx{ctx: ctx, run: st, now: time.Now().UTC().Truncate(time.Microsecond)}
	keep := g.inside(r, tx)
	if tx.fatal != nil {
		return tx.fatal
	}
	if !g.careful {
		switch {
		case keep || !tx.wrote:
			return nil
		case len(g.reqs) == 1:
			return errUndo
		}
		return errAgain
	}
	if !keep {
		if _, err := st.exec(ctx, `ROLLBACK TO one`); err != nil {
			return err
		}
	}
	_, err := st.exec(ctx, `RELEASE one`)
	return err
}

// inside says whether what the request did is kept.
func (g *group) inside(r *request, tx *Tx) (keep bool) {
	defer func() {
		if p := recover(); p != nil {
			r.panicked, keep = p, false
		}
		tx.done = true
	}()
	if r.upkeep != nil {
		r.err = r.upkeep(tx)
		return r.err == nil
	}
	if r.drafts, r.err = g.e.s.call(tx, r.fn); r.err != nil || len(r.drafts) == 0 {
		return false
	}
	r.first = g.batch.add(r.drafts)
	g.ids.add(r.id, r.first)
	return true
}
