package store

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// postgresEngine has two halves. The lanes (this file) run callers' functions
// in serialisable transactions that write state, receipts and one row of the
// outbox (ledger_pending). The sequencer (postgres_sequence.go), one over all
// servers, claims what is committed by deleting it in the transaction that
// appends it to the tree: rows are found whatever the order of their numbers,
// and a crash leaves them either pending or in the tree, never neither nor both.
//
//	callers ─▶ queue ─▶ lane ─ COMMIT ─▶ outbox ─▶ sequencer ─ COMMIT ─▶ head
//
// Callers who wait while a lane works share its next transaction: on two cores
// the round trips of BEGIN, receipt, outbox and COMMIT cost more than the
// change itself. When anything in a shared transaction fails, it is rolled back
// and each of its callers gets a transaction of their own.
type postgresEngine struct {
	s     *Store
	write *sql.DB
	seq   *sql.DB
	queue chan *request
	lanes map[int64]bool // goroutines that run functions; written before any does
	free  atomic.Int32   // lanes that wait for work
	stop  chan struct{}
	busy  sync.WaitGroup // lanes

	wake chan struct{}
	quit context.CancelFunc // sequencer, listener and announcer
	idle sync.WaitGroup
	lead leadership
	news chan struct{} // the head moved by our own work

	mu      sync.Mutex
	waiting map[string]*placement // by record id
	handed  map[string]*outgoing  // first id of an outbox row → what is in it
}

// Bounds of the lanes.
const (
	maxLanes     = 8
	maxLaneGroup = 64
	maxRetries   = 32
	unstarted    = -1 // ledger_record.first before it is sequenced
	lookAgain    = 250 * time.Millisecond
	// A caller who gives up while others share the transaction waits this long
	// before the connection is cut.
	grace = 250 * time.Millisecond
)

// lanes is how many transactions of callers run at a time. Over a network they
// wait rather than work. Beside the database, more of them than processors only
// make smaller groups, which conflict with each other.
func (d dialect) lanes() (int, error) {
	c, err := d.config("state", "write")
	if err != nil {
		return 0, err
	}
	if ip := net.ParseIP(c.Host); !strings.HasPrefix(c.Host, "/") && c.Host != "localhost" && !ip.IsLoopback() {
		return maxLanes, nil
	}
	return min(maxLanes, max(2, runtime.GOMAXPROCS(0))), nil
}

func newPostgresEngine(ctx context.Context, s *Store) (engine, error) {
	e := &postgresEngine{
		s: s, queue: make(chan *request, maxQueue), lanes: map[int64]bool{}, stop: make(chan struct{}), wake: make(chan struct{}, 1),
		news: make(chan struct{}, 1), waiting: map[string]*placement{}, handed: map[string]*outgoing{},
	}
	e.lead.me = NewID('v') + NewID('v')
	lanes, err := s.db.lanes()
	if err != nil {
		return nil, err
	}
	e.write = s.writer()
	if e.seq, err = s.db.pool(ctx, "state", "sequence"); err != nil {
		return nil, errors.Join(err, e.write.Close())
	}
	numbers, start := make(chan int64), make(chan struct{})
	for range lanes {
		e.busy.Go(func() {
			numbers <- goroutine()
			<-start
			e.lane()
		})
	}
	for range lanes {
		e.lanes[<-numbers] = true
	}
	close(start)
	// Not the caller's context: what is committed is sequenced before Close.
	run, quit := context.WithCancel(context.WithoutCancel(ctx))
	e.quit = quit
	for _, f := range []func(context.Context){e.sequencer, e.listen, e.announce} {
		e.idle.Go(func() { f(run) })
	}
	e.poke()
	return e, nil
}

func (e *postgresEngine) close() {
	close(e.stop)
	e.busy.Wait()
	e.quit()
	e.idle.Wait()
	_ = e.write.Close() // everything was committed or rolled back
	_ = e.seq.Close()
}

// record returns when the entries have their numbers and are durable.
func (e *postgresEngine) record(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) ([]Recorded, error) {
	if e.lanes[goroutine()] {
		return nil, errNested
	}
	r := &request{ctx: ctx, id: id, fn: fn, done: make(chan struct{})}
	placed := e.expect(id)
	defer e.forget(id, placed)
	select {
	case e.queue <- r:
	case <-ctx.Done():
		return nil, asFault(ctx.Err(), "record")
	case <-e.stop:
		return nil, errClosed
	}
	if err := e.answered(r); err != nil || !r.existing && len(r.drafts) == 0 {
		return nil, err
	}
	first, err := e.await(ctx, id, placed)
	if err != nil {
		return nil, err
	}
	if r.existing {
		return e.s.recordOf(ctx, id)
	}
	out := make([]Recorded, len(r.drafts))
	for i, d := range r.drafts {
		out[i] = d.recorded(first + int64(i))
	}
	return out, nil
}

// answered waits for the lane. A caller that gives up before a lane took the
// request has changed nothing.
func (e *postgresEngine) answered(r *request) error {
	gone, stop := r.ctx.Done(), e.stop
	for {
		select {
		case <-r.done:
			if r.panicked != nil {
				panic(r.panicked) // in the goroutine whose fn it was
			}
			return r.err
		case <-gone:
			if r.withdraw() {
				return asFault(r.ctx.Err(), "record")
			}
			gone = nil
		case <-stop:
			if r.withdraw() {
				return errClosed
			}
			stop = nil
		}
	}
}

// placement is where a record came to stand in the tree.
type placement struct {
	known   chan struct{} // closed when first is set
	first   int64
	callers int
}

func (e *postgresEngine) expect(id string) *placement {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.waiting[id] // of another caller with the same id
	if !ok {
		p = &placement{known: make(chan struct{}), first: unstarted}
		e.waiting[id] = p
	}
	p.callers++
	return p
}

func (e *postgresEngine) forget(id string, p *placement) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.callers--; p.callers == 0 {
		delete(e.waiting, id)
	}
}

// await waits until the record is in the tree, and durable.
func (e *postgresEngine) await(ctx context.Context, id string, placed *placement) (int64, error) {
	look := time.NewTicker(lookAgain) // in case the news of another server's work was lost
	defer look.Stop()
	for since := time.Now(); ; {
		select {
		case <-placed.known:
			return placed.first, nil
		case <-ctx.Done():
			return 0, fault.New(fault.Unavailable, "cannot say which entry this is: it is recorded, and waits for the sequencer").WithHint("ask again with the same id")
		case <-look.C:
			if err := e.s.Damage(); err != nil {
				return 0, err
			}
			_ = e.tellNumbered(ctx) // tried again at the next tick
			if time.Since(since) > patience {
				e.lead.usurp.Store(true) // who leads leaves work lying
			}
			e.poke()
		}
	}
}

// lane runs what waits until the engine stops.
func (e *postgresEngine) lane() {
	l := &lane{e: e}
	defer l.drop()
	for {
		e.free.Add(1)
		select {
		case <-e.stop:
			return
		case r := <-e.queue:
			e.free.Add(-1)
			if r.take() {
				l.serve(e.gather(r))
			}
		}
	}
}

// gather takes this lane's share of what waits, without waiting.
func (e *postgresEngine) gather(first *request) []*request {
	reqs := []*request{first}
	share := 1 + len(e.queue)/(1+int(e.free.Load()))
	for len(reqs) < min(share, maxLaneGroup) {
		select {
		case r := <-e.queue:
			if r.take() {
				reqs = append(reqs, r)
			}
		default:
			return reqs
		}
	}
	return reqs
}

// lane is one connection on which functions run one after the other.
type lane struct {
	e    *postgresEngine
	conn *sql.Conn
}

// serve answers the requests: together, and when that fails each alone.
func (l *lane) serve(reqs []*request) {
	if len(reqs) > 1 && !repeats(reqs) && l.attempt(reqs) == nil {
		for _, r := range reqs {
			close(r.done)
		}
		return
	}
	for _, r := range reqs {
		l.alone(r)
		close(r.done)
	}
}

func repeats(reqs []*request) bool {
	seen := make(map[string]bool, len(reqs))
	for _, r := range reqs {
		if seen[r.id] {
			return true
		}
		seen[r.id] = true
	}
	return false
}

// alone runs one request in a transaction of its own, again and again when the
// database asks for it.
func (l *lane) alone(r *request) {
	for attempt := 0; ; attempt++ {
		err := r.ctx.Err()
		if err == nil {
			err = l.attempt([]*request{r})
		}
		// Serialisation failures, and a COMMIT whose outcome is not known:
		// the next attempt finds the id when it did commit.
		again := classify2(err) == errRetry || errors.Is(err, errUnknownCommit)
		if again && attempt < maxRetries && pause(r.ctx, time.Duration(attempt)*time.Millisecond) {
			continue
		}
		if err != nil && !errors.Is(err, errUndo) {
			r.err = asFault(err, "record")
		}
		return
	}
}

// pause waits; it is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var errUnknownCommit = fault.New(fault.Unavailable, "cannot record: the connection broke while committing")

// attempt runs the requests in one transaction. When it errs, nothing of them
// happened, or, for errUnknownCommit, all of it may have.
func (l *lane) attempt(reqs []*request) error {
	ctx, done := watch(reqs)
	defer done()
	claimed, err := l.begin(ctx, reqs)
	if err != nil {
		return err
	}
	out, unused, err := l.functions(ctx, reqs, claimed)
	if err != nil || len(out.ids) == 0 {
		l.rollback()
		return err
	}
	l.e.hand(out)
	if err = l.commit(ctx, out, unused); err != nil {
		l.e.take(out.ids[0])
		l.rollback()
		return err
	}
	l.e.poke()
	return nil
}

// watch is a context that ends some time after one of the callers gave up.
func watch(reqs []*request) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var stops []func() bool
	for _, r := range reqs {
		if r.ctx.Done() == nil {
			continue
		}
		stops = append(stops, context.AfterFunc(r.ctx, func() {
			t := time.AfterFunc(grace, cancel)
			context.AfterFunc(ctx, func() { t.Stop() })
		}))
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// begin opens the transaction and claims the ids, in one round trip. Ids go in
// order, or two lanes could wait for each other. A connection that died
// meanwhile is replaced: nothing has happened yet.
func (l *lane) begin(ctx context.Context, reqs []*request) (claimed map[string]bool, err error) {
	ids := make([]string, len(reqs))
	for i, r := range reqs {
		ids[i] = r.id
	}
	sort.Strings(ids)
	for tries := 0; ; tries++ {
		if claimed, err = l.claim(ctx, ids); err == nil {
			return claimed, nil
		}
		l.rollback()
		if tries >= 2 || !lostConnection(err) || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (l *lane) claim(ctx context.Context, ids []string) (map[string]bool, error) {
	if l.conn == nil {
		conn, err := l.e.write.Conn(ctx)
		if err != nil {
			return nil, err
		}
		l.conn = conn
	}
	claimed := make(map[string]bool, len(ids))
	b := &pgx.Batch{}
	// Serialisable: what a function read is still so when its change commits.
	b.Queue(`BEGIN ISOLATION LEVEL SERIALIZABLE`)
	b.Queue(`INSERT INTO ledger_record (id, first) SELECT v.id, -1 FROM unnest($1::text[]) AS v (id) ON CONFLICT (id) DO NOTHING RETURNING id`, ids).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			claimed[id] = true
		}
		return rows.Err()
	})
	return claimed, batchOn(ctx, l.conn, b)
}

// functions runs each caller's function. Its own error stays with the request.
func (l *lane) functions(ctx context.Context, reqs []*request, claimed map[string]bool) (out *outgoing, unused []string, err error) {
	out = &outgoing{}
	for _, r := range reqs {
		r.err, r.drafts, r.panicked, r.existing = nil, nil, nil, !claimed[r.id]
		if r.existing {
			continue
		}
		tx := &Tx{ctx: ctx, run: connRunner{l.conn}, now: time.Now().UTC().Truncate(time.Microsecond)}
		l.inside(r, tx)
		switch {
		case tx.retry != nil:
			return nil, nil, tx.retry // whatever fn made of it
		case classify2(r.err) == errRetry:
			return nil, nil, r.err
		case tx.fatal != nil:
			return nil, nil, tx.fatal
		case r.err == nil && r.panicked == nil && len(r.drafts) > 0 && !tx.failed:
			out.add(r.id, r.drafts)
		case len(reqs) == 1:
			return nil, nil, errUndo
		case tx.wrote || tx.failed:
			return nil, nil, errAgain // its changes must go, and with them all
		default:
			unused = append(unused, r.id)
		}
	}
	return out, unused, nil
}

func (l *lane) inside(r *request, tx *Tx) {
	defer func() {
		if p := recover(); p != nil {
			r.panicked = p
		}
		tx.done = true
	}()
	r.drafts, r.err = l.e.s.call(tx, r.fn)
	if r.err == nil && tx.failed && len(r.drafts) > 0 {
		r.err = fault.New(fault.Internal, "cannot record: a statement failed, and PostgreSQL takes nothing after it")
	}
}

// commit leaves the outbox row and commits, in one round trip.
func (l *lane) commit(ctx context.Context, out *outgoing, unused []string) error {
	b := &pgx.Batch{}
	if len(unused) > 0 {
		b.Queue(`DELETE FROM ledger_record WHERE id = ANY($1)`, unused)
	}
	b.Queue(`INSERT INTO ledger_pending (record, entries) VALUES ($1, $2)`, out.ids[0], out.pack())
	b.Queue(`COMMIT`)
	err := batchOn(ctx, l.conn, b)
	if err != nil && (classify(err) == errAway || ctx.Err() != nil) {
		return errUnknownCommit
	}
	return err
}

// rollback leaves the connection as new, or none.
func (l *lane) rollback() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := l.conn.ExecContext(ctx, `ROLLBACK`); err != nil {
		l.drop()
	}
}

// drop gives the connection back; the pool looks whether it still works.
func (l *lane) drop() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}

// batchOn sends a batch in one round trip.
func batchOn(ctx context.Context, conn *sql.Conn, b *pgx.Batch) error {
	return conn.Raw(func(driver any) error {
		return driver.(*stdlib.Conn).Conn().SendBatch(ctx, b).Close()
	})
}

// connRunner runs statements on a connection whose transaction was begun by hand.
type connRunner struct{ conn *sql.Conn }

func (r connRunner) exec(ctx context.Context, q string, args ...any) (int64, error) {
	res, err := r.conn.ExecContext(ctx, q, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (r connRunner) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return r.conn.QueryContext(ctx, q, args...)
}

func (connRunner) numbered() bool { return true }

// hand leaves the drafts for our own sequencer, which then need not read them.
func (e *postgresEngine) hand(o *outgoing) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handed[o.ids[0]] = o
}

func (e *postgresEngine) take(record string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.handed, record)
}
