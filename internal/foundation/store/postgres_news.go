package store

import (
	"context"
	"database/sql/driver"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Servers over one database tell each other, by NOTIFY, that work is pending
// or that the head moved. News may be lost: everything that hears them also
// looks for itself, now and then.
const (
	channel     = "handrail_ledger"
	newsPending = "pending"
	newsHead    = "head "
	// Between two of our own: what follows is told with the next.
	newsEvery = 2 * time.Millisecond
	hearAgain = time.Second
)

var errDropped = driver.ErrBadConn

// announce tells the others that the head moved.
func (e *postgresEngine) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.news:
		}
		// Lost news are found by looking.
		_, _ = e.seq.ExecContext(ctx, `SELECT pg_notify($1, $2)`, channel, newsHead+e.lead.me)
		if !pause(ctx, newsEvery) {
			return
		}
	}
}

// listen hears the others until ctx ends, over a connection of its own.
func (e *postgresEngine) listen(ctx context.Context) {
	for ctx.Err() == nil {
		_ = e.hear(ctx) // what broke is tried again
		pause(ctx, hearAgain)
	}
}

func (e *postgresEngine) hear(ctx context.Context) error {
	c, err := e.s.db.config("state", "sequence")
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	e.heard(ctx, newsHead) // what was missed
	e.heard(ctx, newsPending)
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		e.heard(ctx, n.Payload)
	}
}

func (e *postgresEngine) heard(ctx context.Context, news string) {
	if news == newsPending {
		e.poke()
		return
	}
	if who, ok := strings.CutPrefix(news, newsHead); ok && who != e.lead.me {
		_ = e.s.catchUp(ctx) // what it finds wrong it keeps as damage
		_ = e.tellNumbered(ctx)
	}
}

// tellNumbered tells callers whose entries another server has appended.
func (e *postgresEngine) tellNumbered(ctx context.Context) error {
	e.mu.Lock()
	ids := slices.AppendSeq(slices.Collect(maps.Keys(e.waiting)), maps.Keys(e.handed))
	e.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	type placedRow struct {
		ID    string `db:"id"`
		First int64  `db:"first"`
	}
	var rows []placedRow
	err := e.s.View(ctx, func(v *View) (err error) {
		rows, err = All[placedRow](v, `SELECT id, first FROM ledger_record WHERE id = ANY($1) AND first >= 0`, ids)
		return err
	})
	if err != nil || len(rows) == 0 {
		return err
	}
	if err := e.s.catchUp(ctx); err != nil { // who is told reads its entries next
		return err
	}
	ids = ids[:0]
	firsts := make([]int64, 0, len(rows))
	for _, r := range rows {
		ids, firsts = append(ids, r.ID), append(firsts, r.First)
		e.take(r.ID)
	}
	e.tell(ids, firsts)
	return nil
}
