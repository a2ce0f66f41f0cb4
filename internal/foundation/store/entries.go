package store

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// EntryQuery selects entries, newest first; oldest first when Oldest or After
// is set. Pages of the latter kind set Oldest, so that After 0 means after #0.
type EntryQuery struct {
	Before, After                    int64 // exclusive; 0 is unset; After -1 is from the start
	Oldest                           bool
	Limit                            int // 0 is 100, at most 1,000
	Action, Subject, Target, Session string
}

type entryRow struct {
	Seq  int64  `db:"seq"`
	Leaf []byte `db:"leaf"`
	Body []byte `db:"body"`
}

const selectEntry = `SELECT e.seq, e.leaf, p.body FROM ledger_entry e LEFT JOIN ledger_payload p ON p.seq = e.seq `

// Entries lists entries with their payloads.
func (s *Store) Entries(ctx context.Context, q EntryQuery) ([]Recorded, error) {
	text, args := q.text(s.head.Load().tree.N)
	var out []Recorded
	err := s.View(ctx, func(v *View) error {
		rows, err := All[entryRow](v, text, args...)
		if err != nil {
			return err
		}
		out, err = s.openAll(rows)
		return err
	})
	return out, err
}

// text builds the query. Only what is durable and published is listed.
func (q EntryQuery) text(size int64) (string, []any) {
	var where []string
	var args []any
	add := func(cond string, v any) {
		args = append(args, v)
		where = append(where, fmt.Sprintf(cond, len(args)))
	}
	if q.Before <= 0 || q.Before > size {
		q.Before = size
	}
	add("e.seq < $%d", q.Before)
	q.Oldest = q.Oldest || q.After != 0
	if q.Oldest {
		add("e.seq > $%d", q.After)
	}
	if q.Action != "" {
		add("e.action = $%d", q.Action)
	}
	if q.Session != "" {
		add("e.session <> '' AND e.session = $%d", q.Session)
	}
	if q.Target != "" {
		add("e.target <> '' AND e.target = $%d", q.Target)
	}
	if q.Subject != "" {
		add("e.seq IN (SELECT seq FROM ledger_subject WHERE subject = $%d)", q.Subject)
	}
	order := "DESC"
	if q.Oldest {
		order = "ASC"
	}
	switch {
	case q.Limit <= 0:
		q.Limit = 100
	case q.Limit > 1000:
		q.Limit = 1000
	}
	args = append(args, q.Limit)
	return selectEntry + "WHERE " + strings.Join(where, " AND ") + " ORDER BY e.seq " + order + fmt.Sprintf(" LIMIT $%d", len(args)), args
}

func (s *Store) openAll(rows []entryRow) ([]Recorded, error) {
	out := make([]Recorded, 0, len(rows))
	for _, r := range rows {
		rec, err := s.openRow(r)
		if err != nil {
			return nil, err
		}
		out = append(out, rec)
	}
	return out, nil
}

// openRow parses the leaf and opens the payload. A payload that is erased, or
// is not the one that the leaf commits to, is not shown; Verify says which.
func (s *Store) openRow(r entryRow) (Recorded, error) {
	l, err := ledger.ParseLeaf(r.Leaf)
	if err != nil {
		return Recorded{}, fault.Wrap(fault.Internal, err, "cannot read entry #%d", r.Seq).WithHint("handrail ledger verify")
	}
	rec := Recorded{Seq: r.Seq, Leaf: r.Leaf, Parsed: l}
	if len(r.Body) == 0 {
		return rec, nil
	}
	plain, err := s.cfg.Seals.Open(l.Sealer(), r.Body, r.Leaf)
	if err == nil && len(plain) >= 32 && bytes.Equal(ledger.Commit(plain[:32], plain[32:]), l.Commit) {
		rec.Salt, rec.Payload = plain[:32], plain[32:]
	}
	return rec, nil
}

// recordOf finds what an earlier Record of that id wrote.
func (s *Store) recordOf(ctx context.Context, id string) ([]Recorded, error) {
	var out []Recorded
	err := s.View(ctx, func(v *View) error {
		first, err := One[int64](v, `SELECT first FROM ledger_record WHERE id = $1`, id)
		if err != nil {
			return err
		}
		rows, err := All[entryRow](v, selectEntry+`WHERE e.seq >= $1 AND e.seq < COALESCE((SELECT MIN(first) FROM ledger_record WHERE first > $1), $2) ORDER BY e.seq`, first, s.head.Load().tree.N)
		if err != nil {
			return err
		}
		out, err = s.openAll(rows)
		return err
	})
	return out, err
}

// followStep is how many entries a follower reads at once.
const followStep = 256

// Follow calls fn for every entry after seq, in order, as they come; -1 is from
// the start. It returns when ctx ends or fn errs. A slow follower delays nobody.
func (s *Store) Follow(ctx context.Context, after int64, fn func(Recorded) error) error {
	for {
		grown := s.grown.wait() // taken before the read, so no growth is missed
		rec, err := s.after(ctx, after, followStep)
		if err != nil {
			return err
		}
		for _, r := range rec {
			if err := fn(r); err != nil {
				return err
			}
			after = r.Seq
		}
		if len(rec) == followStep {
			continue
		}
		if err := s.waitGrown(ctx, grown); err != nil {
			return err
		}
	}
}

func (s *Store) after(ctx context.Context, after int64, limit int) ([]Recorded, error) {
	rows, err := s.rowsAfter(ctx, after, s.head.Load().tree.N, limit)
	if err != nil {
		return nil, err
	}
	return s.openAll(rows)
}

func (s *Store) rowsAfter(ctx context.Context, after, size int64, limit int) (rows []entryRow, err error) {
	if after+1 >= size {
		return nil, nil
	}
	err = s.View(ctx, func(v *View) (err error) {
		rows, err = All[entryRow](v, selectEntry+`WHERE e.seq > $1 AND e.seq < $2 ORDER BY e.seq LIMIT $3`, after, size, limit)
		return err
	})
	return rows, err
}

// waitGrown waits for entries, of this server or another.
func (s *Store) waitGrown(ctx context.Context, grown <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-grown:
		return nil
	}
}
