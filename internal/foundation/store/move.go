package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// A moved SQLite database carries a mark among its migrations, where every
// release refuses what it does not know, and a trigger that lets no entry be
// appended, whoever has it open. So the two can never both go on.
const (
	markMoving = "moving to "
	markMoved  = "moved to "
)

// Moved is what a move did.
type Moved struct {
	Entries int64
	Root    string
	Tables  int
	Rows    int64
	To      string // the new database, without its password
}

// Move copies a SQLite store (c.DSN) into an empty PostgreSQL database: every
// row, leaf, tile, checkpoint and id, byte for byte, so that root and proofs
// are the same. No server may run on either.
//
//	mark SQLite "moving" → copy in one transaction → verify → mark it "moved"
//
// Killed anywhere, it is run again: before the copy's COMMIT nothing of it is
// there, after it only what follows is done again. From the first mark on, the
// old database takes no entry and no server starts on it.
func Move(ctx context.Context, c Config, to string, progress func(table string, rows int64)) (Moved, error) {
	m := &move{c: c, progress: progress}
	if err := m.open(ctx, to); err != nil {
		return Moved{}, err
	}
	defer m.close()
	done, err := m.target(ctx)
	if err != nil {
		return Moved{}, err
	}
	if !done {
		if err := m.mark(ctx, markMoving); err != nil {
			return Moved{}, err
		}
		if err := m.copy(ctx); err != nil {
			return Moved{}, err
		}
	}
	if err := m.verify(ctx); err != nil {
		return Moved{}, err
	}
	if err := m.mark(ctx, markMoved); err != nil {
		return Moved{}, err
	}
	return m.did, nil
}

type move struct {
	c        Config
	progress func(string, int64)
	from, to dialect
	old      *sql.DB // the one writing connection
	head     headRow
	did      Moved
	steps    map[string][]Migration // by schema
}

func (m *move) open(ctx context.Context, to string) (err error) {
	if m.from, err = parseDSN(m.c.DSN); err != nil {
		return err
	}
	if m.to, err = parseDSN(to); err != nil {
		return err
	}
	if m.from.name != "sqlite" || m.to.name != "postgres" {
		return fault.New(fault.Invalid, "cannot move the store: it moves from SQLite to PostgreSQL only")
	}
	address, err := m.to.config("state", "read")
	if err != nil {
		return err
	}
	m.did.To = fmt.Sprintf("postgres://%s/%s", address.Host, address.Database)
	m.steps = map[string][]Migration{"state": append(append([]Migration{}, ledgerSchema...), m.c.Migrations...), "observed": m.c.Observations}
	if m.old, err = m.from.pool(ctx, "state", "write"); err != nil {
		return err
	}
	err = m.from.migrate(ctx, m.old, "state", m.steps["state"])
	if to, moving := movedTo(err, markMoving); moving && to == m.did.To {
		err = nil // it is ours to finish
	}
	if err == nil {
		err = m.old.QueryRowContext(ctx, `SELECT n, root FROM ledger_head WHERE id = 1`).Scan(&m.head.N, &m.head.Root)
	}
	if err == nil && m.head.N == 0 {
		err = fault.New(fault.NotFound, "cannot move the store: there is no ledger in %s", m.from.dir)
	}
	m.did.Entries, m.did.Root = m.head.N, m.head.Root
	if err != nil {
		m.close()
	}
	return asFault(err, "move the store")
}

func (m *move) close() { _ = m.old.Close() } // everything was committed or rolled back

// movedError says that a database was moved away.
type movedError struct{ mark string }

func (e *movedError) Error() string { return "its ledger is " + e.mark }

func movedTo(err error, mark string) (string, bool) {
	var e *movedError
	if !errors.As(err, &e) {
		return "", false
	}
	return strings.CutPrefix(e.mark, mark)
}

// refuseMoved names a step that is a move's mark.
func refuseMoved(name string) error {
	switch {
	case strings.HasPrefix(name, markMoved):
		return fault.Wrap(fault.Conflict, &movedError{name}, "cannot use the database").
			WithHint("start with --database and the new database's URL; this one stays as it was")
	case strings.HasPrefix(name, markMoving):
		return fault.Wrap(fault.Conflict, &movedError{name}, "cannot use the database").
			WithHint("finish the move: handrail store move --database URL")
	}
	return nil
}

// mark writes down where the database goes, and closes it to new entries.
func (m *move) mark(ctx context.Context, mark string) error {
	tx, err := m.old.BeginTx(ctx, nil) // immediate
	if err != nil {
		return asFault(err, "mark the old database")
	}
	defer func() { _ = tx.Rollback() }() // no-op after Commit
	var n int64
	if err := tx.QueryRowContext(ctx, `SELECT n FROM ledger_head WHERE id = 1`).Scan(&n); err != nil {
		return asFault(err, "mark the old database")
	}
	if n != m.head.N {
		return fault.New(fault.Conflict, "cannot move the store: its ledger grew meanwhile").WithHint("stop the server, and move it again")
	}
	for _, q := range []string{
		`DELETE FROM schema_migration WHERE name LIKE '` + markMoving + `%'`,
		`CREATE TRIGGER IF NOT EXISTS ledger_moved BEFORE INSERT ON ledger_entry BEGIN SELECT RAISE(ABORT, 'this ledger was moved to another database'); END`,
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return asFault(err, "mark the old database")
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_migration (name, hash, at) VALUES ($1, '', $2) ON CONFLICT (name) DO NOTHING`, mark+m.did.To, time.Now().UnixMicro()); err != nil {
		return asFault(err, "mark the old database")
	}
	return asFault(tx.Commit(), "mark the old database")
}

// target makes the tables, and says whether the copy is there already. A
// database that holds anything else is refused.
func (m *move) target(ctx context.Context) (done bool, err error) {
	for _, schema := range []string{"state", "observed"} {
		db, err := m.to.pool(ctx, schema, "sequence")
		if err != nil {
			return false, err
		}
		err = m.to.migrate(ctx, db, schema, m.steps[schema])
		if err == nil && schema == "state" {
			var there headRow
			err = db.QueryRowContext(ctx, `SELECT n, root FROM ledger_head WHERE id = 1`).Scan(&there.N, &there.Root)
			if done = err == nil && there == m.head; err == nil && !done && there.N > 0 {
				err = fault.New(fault.Conflict, "cannot move the store: %s holds a ledger of %d entries already", m.did.To, there.N).WithHint("name an empty database")
			}
		}
		_ = db.Close() // everything was committed or rolled back
		if err != nil {
			return false, asFault(err, "prepare the new database")
		}
	}
	return done, nil
}

// copy writes everything in one transaction.
func (m *move) copy(ctx context.Context) error {
	db, err := m.to.pool(ctx, "state", "sequence")
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return asFault(err, "copy the store")
	}
	defer func() { _ = conn.Close() }()
	observed, err := m.from.pool(ctx, "observed", "read")
	if err != nil {
		return err
	}
	defer func() { _ = observed.Close() }()
	return conn.Raw(func(driver any) error {
		to := driver.(*stdlib.Conn).Conn()
		tx, err := to.Begin(ctx)
		if err != nil {
			return asFault(err, "copy the store")
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // no-op after Commit
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return asFault(err, "copy the store")
		}
		for _, part := range []struct {
			schema string
			from   *sql.DB
		}{{"state", m.old}, {"observed", observed}} {
			if err := m.copySchema(ctx, part.from, tx, part.schema); err != nil {
				return err
			}
		}
		return asFault(tx.Commit(ctx), "copy the store")
	})
}

func (m *move) copySchema(ctx context.Context, from *sql.DB, tx pgx.Tx, schema string) error {
	tables, err := texts(ctx, from, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'schema_migration' ORDER BY rowid`)
	if err != nil {
		return asFault(err, "read the old database")
	}
	for _, table := range tables {
		n, err := copyTable(ctx, from, tx, schema, table)
		if err != nil {
			return fault.Wrap(fault.KindOf(asFault(err, "copy")), err, "cannot copy table %s", table)
		}
		m.did.Tables, m.did.Rows = m.did.Tables+1, m.did.Rows+n
		if m.progress != nil {
			m.progress(table, n)
		}
	}
	return nil
}

func texts(ctx context.Context, db *sql.DB, q string) (out []string, err error) {
	rows, err := db.QueryContext(ctx, q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// targetColumn is a column as PostgreSQL has it.
type targetColumn struct {
	name, kind string
	identity   bool
}

// copyTable replaces the rows of one table, which holds at most what its
// migration put there.
func copyTable(ctx context.Context, from *sql.DB, tx pgx.Tx, schema, table string) (int64, error) {
	columns, err := targetColumns(ctx, tx, schema, table)
	if err != nil {
		return 0, err
	}
	into := pgx.Identifier{schema, table}
	var there int64
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM `+into.Sanitize()).Scan(&there); err != nil {
		return 0, err
	}
	if there > 0 {
		if _, err := tx.Exec(ctx, `DELETE FROM `+into.Sanitize()); err != nil {
			return 0, err
		}
	}
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.name
	}
	rows, err := from.QueryContext(ctx, `SELECT `+strings.Join(names, ", ")+` FROM `+table)
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	n, err := tx.CopyFrom(ctx, into, names, &movingRows{rows: rows, columns: columns})
	if err != nil {
		return 0, err
	}
	return n, setIdentities(ctx, tx, into, columns)
}

// onPostgres is a connection or a transaction of pgx.
type onPostgres interface {
	Query(ctx context.Context, q string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, q string, args ...any) (pgconn.CommandTag, error)
}

func targetColumns(ctx context.Context, db onPostgres, schema, table string) ([]targetColumn, error) {
	found, err := db.Query(ctx, `SELECT column_name, data_type, is_identity = 'YES' FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position`, schema, table)
	if err != nil {
		return nil, err
	}
	columns, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (c targetColumn, err error) {
		return c, row.Scan(&c.name, &c.kind, &c.identity)
	})
	if err == nil && len(columns) == 0 {
		err = fault.New(fault.Invalid, "the new database has no such table")
	}
	return columns, err
}

// setIdentities lets the keys that the database gives go on after those copied.
func setIdentities(ctx context.Context, db onPostgres, into pgx.Identifier, columns []targetColumn) error {
	for _, c := range columns {
		if !c.identity {
			continue
		}
		q := `SELECT setval(pg_get_serial_sequence($1, $2), GREATEST((SELECT max(` + pgx.Identifier{c.name}.Sanitize() + `) FROM ` + into.Sanitize() + `), 1))`
		if _, err := db.Exec(ctx, q, into.Sanitize(), c.name); err != nil {
			return err
		}
	}
	return nil
}

// fit turns a value of SQLite's into one of the column's kind.
func (c targetColumn) fit(value any) any {
	switch v := value.(type) {
	case int64:
		if c.kind == "boolean" {
			return v != 0
		}
	case []byte:
		if c.kind == "text" {
			return string(v)
		}
	case string:
		if c.kind == "bytea" {
			return []byte(v)
		}
	}
	return value
}

// movingRows hands rows of SQLite to COPY, in the types of the new columns.
type movingRows struct {
	rows    *sql.Rows
	columns []targetColumn
}

func (r *movingRows) Next() bool { return r.rows.Next() }
func (r *movingRows) Err() error { return r.rows.Err() }

func (r *movingRows) Values() ([]any, error) {
	values, into := make([]any, len(r.columns)), make([]any, len(r.columns))
	for i := range values {
		into[i] = &values[i]
	}
	if err := r.rows.Scan(into...); err != nil {
		return nil, err
	}
	for i, c := range r.columns {
		values[i] = c.fit(values[i])
	}
	return values, nil
}

// verify opens the new database as a server would, and recomputes everything.
func (m *move) verify(ctx context.Context) error {
	c := m.c
	c.DSN, c.Spool = m.to.url, ""
	s, err := Open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if d := s.Damage(); d != nil {
		return d
	}
	p := s.head.Load()
	if p.tree.N != m.head.N || p.tree.Hash.String() != m.head.Root {
		return fault.New(fault.Conflict, "cannot move the store: the new database has another root").WithHint("remove it, and move again")
	}
	report, err := s.Verify(ctx, nil)
	if err != nil {
		return err
	}
	if !report.OK {
		return fault.New(fault.Conflict, "cannot move the store: the copy does not verify: %s", firstFinding(report))
	}
	return nil
}

func firstFinding(r ledger.Report) string {
	if len(r.Findings) == 0 {
		return "unknown"
	}
	return r.Findings[0].String()
}
