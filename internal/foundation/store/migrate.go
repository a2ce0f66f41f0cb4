package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Migration is one step of the schema: one text for both databases, with the
// tokens {{BLOB}}, {{IDENTITY}} (a key that the database gives), {{KEY}} (an
// integer key that the caller gives), {{NOROWID}} (the table is its key) and
// {{APPENDONLY table}}; what follows {{POSTGRES}} is for that one alone. A step is never
// changed once it was released; a new one follows it.
type Migration struct{ Name, SQL string }

// ObservationMigration is a step of the schema of observations.
type ObservationMigration = Migration

// ledgerSchema: index columns of ledger_entry and ledger_subject are derived
// from the leaf, as is hash, so that Verify can tell a touched leaf from a
// touched tile. ledger_record remembers which Record
// wrote which entries: its own, up to the next record's first.
// ledger_pending is the outbox of PostgreSQL.
var ledgerSchema = []Migration{
	{Name: "ledger-1", SQL: `
CREATE TABLE ledger_entry (
	seq {{KEY}},
	at BIGINT NOT NULL,
	action TEXT NOT NULL,
	session TEXT NOT NULL,
	target TEXT NOT NULL,
	object TEXT NOT NULL,
	version BIGINT NOT NULL,
	outcome TEXT NOT NULL,
	leaf {{BLOB}} NOT NULL,
	hash {{BLOB}} NOT NULL
);
CREATE INDEX ledger_entry_action ON ledger_entry (action, seq);
CREATE INDEX ledger_entry_session ON ledger_entry (session, seq) WHERE session <> '';
CREATE INDEX ledger_entry_target ON ledger_entry (target, seq) WHERE target <> '';
CREATE TABLE ledger_subject (
	subject TEXT NOT NULL,
	seq BIGINT NOT NULL,
	PRIMARY KEY (subject, seq)
){{NOROWID}};
CREATE TABLE ledger_payload (
	seq {{KEY}},
	sealer TEXT NOT NULL,
	body {{BLOB}} NOT NULL
);
CREATE INDEX ledger_payload_sealer ON ledger_payload (sealer, seq) WHERE sealer <> 'system';
CREATE TABLE ledger_tile (
	level BIGINT NOT NULL,
	idx BIGINT NOT NULL,
	hashes {{BLOB}} NOT NULL,
	PRIMARY KEY (level, idx)
);
CREATE TABLE ledger_checkpoint (
	n {{KEY}},
	signed TEXT NOT NULL,
	chain TEXT NOT NULL,
	at BIGINT NOT NULL
);
CREATE TABLE ledger_head (
	id {{KEY}},
	n BIGINT NOT NULL,
	root TEXT NOT NULL
);
INSERT INTO ledger_head (id, n, root) VALUES (1, 0, '');
CREATE TABLE ledger_record (
	id TEXT PRIMARY KEY,
	first BIGINT NOT NULL
){{NOROWID}};
CREATE INDEX ledger_record_first ON ledger_record (first);
CREATE TABLE ledger_pending (
	n {{IDENTITY}},
	record TEXT NOT NULL,
	entries {{BLOB}} NOT NULL
);
{{APPENDONLY ledger_entry}}
{{APPENDONLY ledger_subject}}
{{APPENDONLY ledger_tile}}
{{APPENDONLY ledger_checkpoint}}
`},
	// Who sequences, over several servers: see leadership.
	{Name: "ledger-2-term", SQL: `
ALTER TABLE ledger_head ADD COLUMN term BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ledger_head ADD COLUMN leader TEXT NOT NULL DEFAULT '';
`},
	// What waits is sealed, so that compressing it is in vain; and its rows come
	// and go faster than the vacuum's usual measure expects.
	{Name: "ledger-3-outbox", SQL: `{{POSTGRES}}
ALTER TABLE ledger_pending ALTER COLUMN entries SET STORAGE EXTERNAL;
ALTER TABLE ledger_pending SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE ledger_record SET (fillfactor = 70);
`},
}

// migrate brings one schema up to date, under a lock, in one transaction.
func (d dialect) migrate(ctx context.Context, db *sql.DB, schema string, steps []Migration) error {
	tx, err := db.BeginTx(ctx, nil) // SQLite: immediate
	if err != nil {
		return asFault(err, "migrate the database")
	}
	defer func() { _ = tx.Rollback() }() // no-op after Commit
	prepare := []string{`CREATE TABLE IF NOT EXISTS schema_migration (name TEXT PRIMARY KEY, hash TEXT NOT NULL, at BIGINT NOT NULL)`}
	if d.name == "postgres" {
		prepare = append([]string{`SELECT pg_advisory_xact_lock(7246391)`, `CREATE SCHEMA IF NOT EXISTS ` + schema}, prepare...)
	}
	for _, q := range prepare {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return asFault(err, "migrate the database")
		}
	}
	applied := map[string]string{}
	rows, err := tx.QueryContext(ctx, `SELECT name, hash FROM schema_migration`)
	if err != nil {
		return asFault(err, "migrate the database")
	}
	for rows.Next() {
		var name, hash string
		if err := rows.Scan(&name, &hash); err != nil {
			return asFault(err, "migrate the database")
		}
		applied[name] = hash
	}
	if err := rows.Close(); err != nil {
		return asFault(err, "migrate the database")
	}
	for _, m := range steps {
		h := sha256.Sum256([]byte(m.SQL))
		hash := hex.EncodeToString(h[:])
		was, done := applied[m.Name]
		if delete(applied, m.Name); done {
			if was != hash {
				return fault.New(fault.Internal, "cannot migrate the database: step %q was changed after it was applied", m.Name)
			}
			continue
		}
		if _, err := tx.ExecContext(ctx, d.expand(m.SQL)); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot migrate the database: step %q", m.Name)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO schema_migration (name, hash, at) VALUES ($1, $2, $3)`, m.Name, hash, time.Now().UnixMicro()); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot migrate the database: step %q", m.Name)
		}
	}
	for name := range applied {
		if err := refuseMoved(name); err != nil {
			return err
		}
		return fault.New(fault.Conflict, "cannot use the database: a newer handrail wrote it (step %q)", name).WithHint("start the newer version again")
	}
	return asFault(tx.Commit(), "migrate the database")
}

// openPools connects, and migrates both parts.
func (s *Store) openPools(ctx context.Context) error {
	steps := append(append([]Migration{}, ledgerSchema...), s.cfg.Migrations...)
	err := s.db.create(ctx, map[string][]Migration{"state": steps, "observed": s.cfg.Observations})
	if err != nil {
		return err
	}
	if s.first, err = s.db.pool(ctx, "state", "write"); err != nil {
		return err
	}
	if err := s.db.migrate(ctx, s.first, "state", steps); err != nil {
		return err
	}
	if s.obs, err = s.db.pool(ctx, "observed", "write"); err != nil {
		return err
	}
	if err := s.db.migrate(ctx, s.obs, "observed", s.cfg.Observations); err != nil {
		return err
	}
	if s.obsR, err = s.db.pool(ctx, "observed", "read"); err != nil {
		return err
	}
	s.state, err = s.db.pool(ctx, "state", "read")
	return err
}
