package store

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"handrail.dev/handrail/internal/foundation/fault"
)

// One server at a time sequences. Who it is stands in ledger_head beside the
// tree, with a term that grows at each change; every append is a
// compare-and-set on size and term. The advisory lock of the leader's
// connection only says quickly that a leader died: whoever gets it takes the
// next term. A leader that hangs keeps its lock, so whoever waits too long for
// an entry takes the next term without it, and the old leader finds out at its
// next append.
type leadership struct {
	me    string
	term  int64       // ours, while leading
	leads bool        // of the sequencer's goroutine alone
	usurp atomic.Bool // take the next term without the lock
}

// Bounds of the sequencer.
const (
	maxClaim = 64      // rows of the outbox in one pass
	seqLock  = 7246392 // advisory lock of the leader's connection
	keepLock = 7246393 // of who writes checkpoints and erases
	patience = 2 * time.Second
	// Below this many entries statements in one round trip are quicker than COPY.
	copyFrom = 24
)

func (e *postgresEngine) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // it is awake
	}
}

// sequencer appends what is pending, until nothing is. At the end it appends
// what was committed before.
func (e *postgresEngine) sequencer(ctx context.Context) {
	q := &sequencer{e: e}
	defer q.drop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
			defer cancel()
			q.drain(last)
			return
		case <-e.wake:
			q.drain(ctx)
		}
	}
}

// sequencer is the connection on which this server leads, or tries to.
type sequencer struct {
	e    *postgresEngine
	conn *sql.Conn
}

func (q *sequencer) drop() {
	q.e.lead.leads = false
	if q.conn != nil {
		_ = q.conn.Raw(func(any) error { return errDropped }) // its advisory lock goes with it
		_ = q.conn.Close()
		q.conn = nil
	}
}

func (q *sequencer) drain(ctx context.Context) {
	s := q.e.s
	for tries := 0; ctx.Err() == nil && s.Damage() == nil; {
		n, err := q.once(ctx)
		switch {
		case err == nil && n == 0:
			return
		case err == nil:
			continue
		case fault.KindOf(err) == fault.Conflict:
			s.setDamage(err)
			return
		}
		// Callers poke again while they wait, so that giving up loses nothing.
		if tries++; tries > 3 || !errors.Is(err, errMoved) && !lostConnection(err) {
			return
		}
	}
}

// once appends one batch, when this server leads or comes to lead.
func (q *sequencer) once(ctx context.Context) (int, error) {
	if q.conn == nil {
		conn, err := q.e.seq.Conn(ctx)
		if err != nil {
			return 0, err
		}
		q.conn = conn
	}
	if !q.e.lead.leads {
		if ok, err := q.takeLead(ctx); err != nil || !ok {
			if err != nil {
				q.drop()
			}
			return 0, err
		}
	}
	n, err := q.pass(ctx)
	if err != nil {
		if errors.Is(err, errMoved) && !q.broken() {
			q.e.lead.leads = false
			_, err2 := q.conn.ExecContext(ctx, `SELECT pg_advisory_unlock_all()`)
			if err2 == nil {
				return n, errors.Join(err, q.e.s.catchUp(ctx))
			}
		}
		q.drop()
	}
	return n, err
}

// takeLead takes the next term, when nobody leads or the leader hangs.
func (q *sequencer) takeLead(ctx context.Context) (bool, error) {
	var free bool
	err := q.conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, int64(seqLock)).Scan(&free)
	if err != nil {
		return false, err
	}
	if !free && !q.e.lead.usurp.Swap(false) {
		_, err := q.conn.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, newsPending)
		return false, err
	}
	q.e.lead.usurp.Store(false)
	err = q.conn.QueryRowContext(ctx, `UPDATE ledger_head SET term = term + 1, leader = $1 WHERE id = 1 RETURNING term`, q.e.lead.me).Scan(&q.e.lead.term)
	if errors.Is(err, sql.ErrNoRows) {
		return false, fault.New(fault.Conflict, "cannot use the ledger: its head is gone").WithHint("handrail ledger verify")
	}
	if err != nil {
		return false, err
	}
	if err := q.e.s.catchUp(ctx); err != nil {
		return false, err
	}
	q.e.lead.leads = true
	return true, nil
}

// pendingRow is a claimed row of the outbox.
type pendingRow struct {
	n       int64
	record  string
	entries []byte // empty when it was handed over in memory
}

// pass sequences one batch in one transaction. It returns the number of rows.
func (q *sequencer) pass(ctx context.Context) (int, error) {
	e := q.e
	e.s.growing.Lock() // of two copies of a frontier only one may grow
	defer e.s.growing.Unlock()
	base := e.s.head.Load()
	handed := e.handedNow()
	rows, err := q.claim(ctx, base.tree.N, handed)
	if err != nil || len(rows) == 0 {
		return 0, q.rollback(err)
	}
	b := newBatch(base)
	placed := make([]*outgoing, len(rows))
	var ids []string
	var firsts []int64
	for i, r := range rows {
		if placed[i], err = opened(r, handed); err != nil {
			return 0, q.rollback(fault.Wrap(fault.Conflict, err, "cannot sequence record %q", r.record))
		}
		for j, drafts := range placed[i].drafts {
			ids, firsts = append(ids, placed[i].ids[j]), append(firsts, b.add(drafts))
		}
	}
	err = q.append(ctx, b, ids, firsts)
	if err != nil {
		if c := classify(err); c == errAway || ctx.Err() != nil {
			// Whether it committed is found by the next look at the head.
			q.drop()
			return 0, errMoved
		}
		return 0, q.rollback(err)
	}
	for _, r := range rows {
		e.take(r.record)
	}
	e.s.publish(&b.tree)
	e.tell(ids, firsts)
	select {
	case e.news <- struct{}{}:
	default: // it will be told anyway
	}
	return len(rows), nil
}

// claim locks the head, checks that we lead and know the tree, and takes rows
// out of the outbox, in one round trip.
func (q *sequencer) claim(ctx context.Context, base int64, handed map[string]*outgoing) ([]pendingRow, error) {
	var n, term int64
	var rows []pendingRow
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	b.Queue(`SELECT n, term FROM ledger_head WHERE id = 1 FOR UPDATE`).QueryRow(func(row pgx.Row) error { return row.Scan(&n, &term) })
	b.Queue(`DELETE FROM ledger_pending WHERE n IN (SELECT n FROM ledger_pending ORDER BY n LIMIT $1)
RETURNING n, record, CASE WHEN record = ANY($2::text[]) THEN ''::bytea ELSE entries END`, maxClaim, slices.Collect(maps.Keys(handed))).Query(func(found pgx.Rows) (err error) {
		rows, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (r pendingRow, err error) {
			return r, row.Scan(&r.n, &r.record, &r.entries)
		})
		return err
	})
	if err := batchOn(ctx, q.conn, b); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, fault.New(fault.Conflict, "cannot use the ledger: its head is gone").WithHint("handrail ledger verify")
		}
		return nil, err
	}
	if n != base || term != q.e.lead.term {
		return nil, errMoved
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].n < rows[j].n })
	return rows, nil
}

// append writes the batch, the numbers of its records and the head, and commits.
func (q *sequencer) append(ctx context.Context, b *batch, ids []string, firsts []int64) error {
	b.grow()
	out := &pgx.Batch{}
	out.Queue(`UPDATE ledger_record r SET first = v.first FROM unnest($1::text[], $2::bigint[]) AS v (id, first) WHERE r.id = v.id AND r.first = -1`, ids, firsts).Exec(func(ct pgconn.CommandTag) error {
		if ct.RowsAffected() != int64(len(ids)) {
			return fault.New(fault.Conflict, "cannot sequence %d records: only %d of them are receipts", len(ids), ct.RowsAffected())
		}
		return nil
	})
	if len(b.drafts) < copyFrom {
		for _, t := range b.tables() {
			out.Queue(t.unnest(), t.arrays()...)
		}
	} else if err := q.conn.Raw(func(driver any) error {
		conn := driver.(*stdlib.Conn).Conn().PgConn()
		for _, t := range b.tables() {
			if err := t.copyTo(ctx, conn); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	tree := b.tree.Tree()
	// Compare-and-set, beside the lock on the row: were it ever not ours, the
	// division by zero ends the transaction before its COMMIT.
	out.Queue(`WITH moved AS (UPDATE ledger_head SET n = $1, root = $2 WHERE id = 1 AND n = $3 AND term = $4 RETURNING n) SELECT 1 / count(*) FROM moved`,
		tree.N, tree.Hash.String(), b.base, q.e.lead.term)
	committed := false
	out.Queue(`COMMIT`).Exec(func(ct pgconn.CommandTag) error {
		committed = ct.String() == "COMMIT"
		return nil
	})
	err := batchOn(ctx, q.conn, out)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "22012" || err == nil && !committed {
		return errMoved
	}
	return err
}

func (q *sequencer) rollback(err error) error {
	if q.conn == nil {
		return err
	}
	if _, rerr := q.conn.ExecContext(context.Background(), `ROLLBACK`); rerr != nil {
		q.drop()
		if err == nil {
			err = rerr
		}
	}
	return err
}

func (q *sequencer) broken() bool {
	return q.conn == nil || q.conn.Raw(func(driver any) error {
		if driver.(*stdlib.Conn).Conn().IsClosed() {
			return errDropped
		}
		return nil
	}) != nil
}

// opened are the drafts of a row: those that were handed over, or else parsed.
func opened(r pendingRow, handed map[string]*outgoing) (*outgoing, error) {
	if o, ok := handed[r.record]; ok {
		return o, nil
	}
	return unpackOutgoing(r.record, r.entries)
}

func (e *postgresEngine) handedNow() map[string]*outgoing {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.handed)
}

func (e *postgresEngine) tell(ids []string, firsts []int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, id := range ids {
		if p, ok := e.waiting[id]; ok && p.first == unstarted {
			p.first = firsts[i]
			close(p.known)
		}
	}
}

// maintain is upkeep that is no sequencing: checkpoints, erasures.
func (e *postgresEngine) maintain(ctx context.Context, fn func(*Tx) error) error {
	sqlTx, err := begin(ctx, e.seq, nil)
	if err != nil {
		return asFault(err, "maintain the ledger")
	}
	defer func() { _ = sqlTx.Rollback() }() // no-op after Commit
	if _, err := sqlTx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(keepLock)); err != nil {
		return asFault(err, "maintain the ledger")
	}
	if err := fn(&Tx{ctx: ctx, run: txRunner{sqlTx}, now: time.Now().UTC()}); err != nil {
		return asFault(err, "maintain the ledger")
	}
	return asFault(sqlTx.Commit(), "maintain the ledger")
}
