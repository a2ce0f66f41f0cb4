package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"sort"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// postgresEngine lets each caller have a transaction of its own, which writes
// state and an outbox row (ledger_pending); the sequencer then appends what is
// committed to the tree. Claiming deletes the rows in the transaction that
// appends them, so rows are found whatever the order of their numbers, and a
// crash leaves them either pending or in the tree, never neither nor both.
type postgresEngine struct {
	s      *Store
	write  *sql.DB
	seq    *sql.DB
	wake   chan struct{}
	quit   context.CancelFunc
	idle   sync.WaitGroup
	inside sync.Map // goroutine number → true, while it runs fn

	mu      sync.Mutex
	waiting map[string]chan int64 // record id → its first entry
}

// Bounds of the sequencer and of retries.
const (
	maxClaim   = 2048
	maxRetries = 32
	seqLock    = 7246392 // advisory lock: one sequencer at a time
	unstarted  = -1      // ledger_record.first before it is sequenced
	lookAgain  = 250 * time.Millisecond
)

func newPostgresEngine(ctx context.Context, s *Store) (engine, error) {
	e := &postgresEngine{s: s, wake: make(chan struct{}, 1), waiting: map[string]chan int64{}}
	var err error
	if e.write, err = s.db.pool(ctx, "state", "write"); err != nil {
		return nil, err
	}
	if e.seq, err = s.db.pool(ctx, "state", "sequence"); err != nil {
		return nil, errors.Join(err, e.write.Close())
	}
	// Not the caller's context: what is committed is sequenced before Close.
	run, quit := context.WithCancel(context.WithoutCancel(ctx))
	e.quit = quit
	e.idle.Add(1)
	go e.sequencer(run)
	e.poke()
	return e, nil
}

func (e *postgresEngine) close() {
	e.quit()
	e.idle.Wait()
	_ = e.write.Close() // everything was committed or rolled back
	_ = e.seq.Close()
}

func (e *postgresEngine) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // it is awake
	}
}

// record commits in the caller's own transaction, and returns when its entries
// have their numbers and are durable.
func (e *postgresEngine) record(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) ([]Recorded, error) {
	me := goroutine()
	if _, nested := e.inside.LoadOrStore(me, true); nested {
		return nil, errNested
	}
	release := sync.OnceFunc(func() { e.inside.Delete(me) })
	defer release()
	sequenced := e.expect(id)
	defer e.forget(id, sequenced)
	var drafts []draft
	var err error
	for attempt := 0; ; attempt++ {
		var existing bool
		drafts, existing, err = e.attempt(ctx, id, fn)
		if existing {
			release()
			if _, err := e.await(ctx, id, sequenced); err != nil {
				return nil, err
			}
			return e.s.recordOf(ctx, id)
		}
		// Serialisation failures, and a COMMIT whose outcome is not known:
		// the next attempt finds the id when it did commit.
		if c := classify2(err); err == nil || c != errRetry && !errors.Is(err, errUnknownCommit) || attempt >= maxRetries {
			break
		}
		if !pause(ctx, time.Duration(attempt)*time.Millisecond) {
			break
		}
	}
	if err != nil || len(drafts) == 0 {
		return nil, asFault(err, "record")
	}
	release()
	first, err := e.await(ctx, id, sequenced)
	if err != nil {
		return nil, err
	}
	out := make([]Recorded, len(drafts))
	for i, d := range drafts {
		out[i] = d.recorded(first + int64(i))
	}
	return out, nil
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

func (e *postgresEngine) attempt(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) (drafts []draft, existing bool, err error) {
	// Serialisable: what fn read is still so when its change commits.
	sqlTx, err := begin(ctx, e.write, &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = sqlTx.Rollback() }() // no-op after Commit
	run := txRunner{sqlTx}
	n, err := run.exec(ctx, `INSERT INTO ledger_record (id, first) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, id, int64(unstarted))
	if err != nil || n == 0 {
		return nil, err == nil, err
	}
	tx := &Tx{ctx: ctx, run: run, now: time.Now().UTC().Truncate(time.Microsecond)}
	if drafts, err = e.s.call(tx, fn); err != nil || len(drafts) == 0 {
		if tx.retry != nil {
			err = tx.retry // whatever fn made of it
		}
		return nil, false, err
	}
	if _, err := run.exec(ctx, `INSERT INTO ledger_pending (record, entries) VALUES ($1, $2)`, id, packDrafts(drafts)); err != nil {
		return nil, false, err
	}
	if err := sqlTx.Commit(); err != nil {
		if classify(err) == errAway {
			err = errUnknownCommit
		}
		return nil, false, err
	}
	return drafts, false, nil
}

func (e *postgresEngine) expect(id string) chan int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch, ok := e.waiting[id]; ok {
		return ch // another caller with the same id
	}
	ch := make(chan int64, 1)
	e.waiting[id] = ch
	return ch
}

func (e *postgresEngine) forget(id string, ch chan int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting[id] == ch {
		delete(e.waiting, id)
	}
}

// await waits until the record is in the tree, and durable.
func (e *postgresEngine) await(ctx context.Context, id string, sequenced chan int64) (int64, error) {
	e.poke()
	look := time.NewTicker(lookAgain) // another server may have sequenced it
	defer look.Stop()
	for {
		select {
		case first := <-sequenced:
			sequenced <- first // for another caller with the same id
			return first, nil
		case <-ctx.Done():
			return 0, fault.New(fault.Unavailable, "cannot say which entry this is: it is recorded, and waits for the sequencer").WithHint("ask again with the same id")
		case <-look.C:
			var first int64
			err := e.s.View(ctx, func(v *View) (err error) {
				first, err = One[int64](v, `SELECT first FROM ledger_record WHERE id = $1`, id)
				return err
			})
			if err == nil && first >= 0 {
				return first, e.s.catchUp(ctx)
			}
			e.poke()
		}
	}
}

// sequencer appends what is pending, until nothing is.
func (e *postgresEngine) sequencer(ctx context.Context) {
	defer e.idle.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		}
		for ctx.Err() == nil && e.s.Damage() == nil {
			n, err := e.pass(ctx)
			if errors.Is(err, errMoved) {
				if err = e.s.reload(ctx); err == nil {
					continue
				}
			}
			if err != nil && fault.KindOf(err) == fault.Conflict {
				e.s.setDamage(err)
			}
			if err != nil || n == 0 {
				break // callers poke again while they wait
			}
		}
	}
}

type pendingRow struct {
	N       int64  `db:"n"`
	Record  string `db:"record"`
	Entries []byte `db:"entries"`
}

// pass sequences one batch, in one transaction that only one server has at a
// time. It returns the number of records.
func (e *postgresEngine) pass(ctx context.Context) (int, error) {
	sqlTx, err := begin(ctx, e.seq, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sqlTx.Rollback() }() // no-op after Commit
	tx := &Tx{ctx: ctx, run: txRunner{sqlTx}}
	if mine, err := One[bool](tx, `SELECT pg_try_advisory_xact_lock($1)`, int64(seqLock)); err != nil || !mine {
		return 0, err
	}
	rows, err := All[pendingRow](tx, `DELETE FROM ledger_pending WHERE n IN (SELECT n FROM ledger_pending ORDER BY n LIMIT $1) RETURNING n, record, entries`, maxClaim)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].N < rows[j].N })
	b := newBatch(e.s.head.Load())
	firsts := make([]int64, len(rows))
	done := 0
	for i, r := range rows {
		drafts, err := unpackDrafts(r.Entries)
		if err != nil {
			return 0, fault.Wrap(fault.Conflict, err, "cannot sequence record %q", r.Record)
		}
		firsts[i] = b.add(drafts)
		done++
	}
	if err := e.number(ctx, tx.run, rows, firsts); err != nil {
		return 0, err
	}
	if _, err := b.write(ctx, tx.run); err != nil {
		return 0, err
	}
	if err := sqlTx.Commit(); err != nil {
		// Whether it committed is found by the compare-and-set of the next.
		return 0, errMoved
	}
	e.s.publish(&b.tree)
	e.tell(rows, firsts)
	return done, nil
}

// number writes the entries' numbers into the receipts, many at a time.
func (e *postgresEngine) number(ctx context.Context, run runner, rows []pendingRow, firsts []int64) error {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.Record
	}
	n, err := run.exec(ctx, `UPDATE ledger_record r SET first = v.first FROM unnest($1::text[], $2::bigint[]) AS v (id, first) WHERE r.id = v.id AND r.first = -1`, ids, firsts)
	if err == nil && n != int64(len(rows)) {
		err = fault.New(fault.Conflict, "cannot sequence %d records: only %d of them are receipts", len(rows), n)
	}
	return err
}

func (e *postgresEngine) tell(rows []pendingRow, firsts []int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, r := range rows {
		if ch, ok := e.waiting[r.Record]; ok {
			select {
			case ch <- firsts[i]:
			default: // told before
			}
		}
	}
}

func (e *postgresEngine) maintain(ctx context.Context, fn func(*Tx) error) error {
	sqlTx, err := begin(ctx, e.seq, nil)
	if err != nil {
		return asFault(err, "maintain the ledger")
	}
	defer func() { _ = sqlTx.Rollback() }() // no-op after Commit
	if _, err := sqlTx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(seqLock)); err != nil {
		return asFault(err, "maintain the ledger")
	}
	if err := fn(&Tx{ctx: ctx, run: txRunner{sqlTx}, now: time.Now().UTC()}); err != nil {
		return asFault(err, "maintain the ledger")
	}
	return asFault(sqlTx.Commit(), "maintain the ledger")
}

// packDrafts is how entries wait in the outbox: leaf and sealed payload, each
// with its length. No payload lies there in clear.
func packDrafts(drafts []draft) []byte {
	var b []byte
	for _, d := range drafts {
		for _, part := range [][]byte{d.leaf, d.body} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
			b = append(b, part...)
		}
	}
	return b
}

func unpackDrafts(b []byte) ([]draft, error) {
	next := func() ([]byte, bool) {
		if len(b) < 4 || uint64(len(b)) < 4+uint64(binary.BigEndian.Uint32(b)) {
			return nil, false
		}
		n := 4 + int(binary.BigEndian.Uint32(b))
		part := b[4:n]
		b = b[n:]
		return part, true
	}
	var out []draft
	for len(b) > 0 {
		leaf, ok1 := next()
		body, ok2 := next()
		if !ok1 || !ok2 {
			return nil, fault.New(fault.Invalid, "cannot read pending entries: they are cut short")
		}
		l, err := ledger.ParseLeaf(leaf)
		if err != nil {
			return nil, err
		}
		out = append(out, draft{leaf: leaf, parsed: l, body: body, hash: ledger.HashOf(leaf)})
	}
	return out, nil
}
