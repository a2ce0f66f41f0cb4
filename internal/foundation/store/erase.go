package store

import (
	"context"
	"database/sql"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Erase makes everything that was sealed to a subject unreadable for good. The
// entry says who erased and on what ground; its proofs, and those of all other
// entries, stay valid. If we crash after the entry, Open finishes the rest.
func (s *Store) Erase(ctx context.Context, id, subject string, e ledger.Entry) (Receipt, error) {
	if subject == "" || subject == ledger.System {
		return nil, fault.New(fault.Invalid, "cannot erase %q: it is no person's", subject)
	}
	r, err := s.Record(ctx, id, func(*Tx) ([]ledger.Entry, error) { return []ledger.Entry{Erasure(subject, e)}, nil })
	if err != nil {
		return nil, err
	}
	return r, s.FinishErasure(ctx, subject)
}

// Erasure is the entry that erases a subject, from the transaction on in which
// it is recorded; FinishErasure then makes it so.
func Erasure(subject string, e ledger.Entry) ledger.Entry {
	e.Action, e.Object, e.Version = ledger.ActionErased, subject, 1
	if e.SealTo == subject || e.SealTo == "" && len(e.Subjects) > 0 && e.Subjects[0] == subject {
		e.SealTo = ledger.System // or the ground would be erased with the rest
	}
	return e
}

// eraseStep is how many payloads are emptied while the writer is held.
const eraseStep = 10_000

// FinishErasure destroys the keys of subjects that an entry erased, and empties
// their payloads. Doing it twice is no error.
func (s *Store) FinishErasure(ctx context.Context, subjects ...string) error {
	for _, subject := range subjects {
		if err := s.cfg.Seals.Destroy(subject); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "cannot erase %s", subject)
		}
		for last, more := int64(-1), true; more; {
			err := s.eng.maintain(ctx, func(tx *Tx) error {
				seqs, err := All[int64](tx, `SELECT seq FROM ledger_payload WHERE sealer = $1 AND sealer <> 'system' AND seq > $2 ORDER BY seq LIMIT $3`, subject, last, eraseStep)
				if more = len(seqs) == eraseStep; err != nil || len(seqs) == 0 {
					return err
				}
				upTo := seqs[len(seqs)-1]
				_, err = tx.Exec(`UPDATE ledger_payload SET body = $1 WHERE sealer = $2 AND sealer <> 'system' AND seq > $3 AND seq <= $4`, []byte{}, subject, last, upTo)
				last = upTo
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// resumeErasures finishes what a crash interrupted.
func (s *Store) resumeErasures(ctx context.Context) error {
	var left []string
	err := s.View(ctx, func(v *View) (err error) {
		left, err = All[string](v, `SELECT DISTINCT e.object FROM ledger_entry e WHERE e.action = $1
AND EXISTS (SELECT 1 FROM ledger_payload p WHERE p.sealer = e.object AND p.sealer <> 'system' AND length(p.body) > 0)`, string(ledger.ActionErased))
		return err
	})
	if err != nil {
		return err
	}
	return s.FinishErasure(ctx, left...)
}

// Compact rewrites the database without what was deleted and changed, so that
// nothing of it is left in free pages, dead rows, statistics or the journal of
// SQLite. Writers wait meanwhile. What lies below (blocks that a disk has not
// overwritten yet, snapshots, backups, the WAL of PostgreSQL) is not reached.
func (s *Store) Compact(ctx context.Context) error {
	for _, part := range []string{"state", "observed"} {
		if err := s.compact(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) compact(ctx context.Context, part string) error {
	db, err := s.db.pool(ctx, part, "compact")
	if err != nil {
		return err
	}
	defer db.Close()
	if s.db.name == "postgres" {
		return s.compactTables(ctx, db, part)
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return asFault(err, "compact the database")
	}
	defer conn.Close()
	for _, q := range []string{`PRAGMA query_only = 0`, `PRAGMA secure_delete = ON`, `VACUUM`, `PRAGMA wal_checkpoint(TRUNCATE)`} {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return asFault(err, "compact the database")
		}
	}
	return nil
}

func (s *Store) compactTables(ctx context.Context, db *sql.DB, part string) error {
	rows, err := db.QueryContext(ctx, `SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = $1 ORDER BY 1`, part)
	if err != nil {
		return asFault(err, "compact the database")
	}
	var tables []string
	for rows.Next() {
		var t string
		if err := rows.Scan(&t); err != nil {
			_ = rows.Close() // the first error is told
			return asFault(err, "compact the database")
		}
		tables = append(tables, t)
	}
	if err := rows.Close(); err != nil {
		return asFault(err, "compact the database")
	}
	for _, t := range tables {
		if _, err := db.ExecContext(ctx, `VACUUM (FULL, ANALYZE) `+part+`.`+t); err != nil {
			return asFault(err, "compact the database")
		}
	}
	return nil
}
