package store

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"handrail.dev/handrail/internal/foundation/fault"
)

// A dump is one snapshot of the database as rows, of either database for
// either: a line of JSON for each table, then its rows, each value with a letter
// for its kind.
//
//	{"schema":"state","table":"grants","columns":["id",…]}\n
//	row: 1, then for each column kind u8 ("n" null, "i", "t", "b", "y"/"f") [length u32, bytes]
//	0 ends the table, an empty line ends the dump
type dumpTable struct {
	Schema  string   `json:"schema"`
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

// Bounds of what Load reads.
const (
	maxDumpLine  = 64 << 10
	maxDumpValue = 64 << 20
)

// Dump writes every table that take wants, from one snapshot of state and one
// of the observations. It only reads: a server may run meanwhile. It returns
// the size of the ledger in it.
func Dump(ctx context.Context, c Config, w io.Writer, take func(schema, table string) bool) (entries int64, err error) {
	s := &Store{cfg: c}
	if s.db, err = parseDSN(c.DSN); err != nil {
		return 0, err
	}
	defer func() { _ = s.closePools() }()
	if s.state, err = s.db.pool(ctx, "state", "read"); err != nil {
		return 0, err
	}
	if s.obsR, err = s.db.pool(ctx, "observed", "read"); err != nil {
		return 0, err
	}
	out := bufio.NewWriterSize(w, 1<<16)
	for _, schema := range []string{"state", "observed"} {
		view := s.View
		if schema == "observed" {
			view = s.ViewObserved
		}
		err := view(ctx, func(v *View) error {
			if schema == "state" {
				if entries, err = One[int64](v, `SELECT n FROM ledger_head WHERE id = 1`); err != nil {
					return err
				}
			}
			tables, err := All[string](v, s.db.tables(schema))
			for _, table := range tables {
				if err == nil && take(schema, table) {
					err = dumpRows(v, out, schema, table)
				}
			}
			return err
		})
		if err != nil {
			return 0, asFault(err, "dump the database")
		}
	}
	_, err = out.WriteString("\n")
	return entries, errors.Join(err, out.Flush())
}

// tables lists what migrations made.
func (d dialect) tables(schema string) string {
	if d.name == "sqlite" {
		return `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'schema_migration' ORDER BY name`
	}
	return `SELECT table_name::text FROM information_schema.tables WHERE table_schema = '` + schema + `' AND table_name <> 'schema_migration' ORDER BY 1`
}

func dumpRows(v *View, out *bufio.Writer, schema, table string) error {
	rows, err := v.rows(`SELECT * FROM `+table, nil)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	t := dumpTable{Schema: schema, Table: table}
	if t.Columns, err = rows.Columns(); err != nil {
		return err
	}
	head, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, _ = out.Write(append(head, '\n')) // its error stays with out
	values, into := make([]any, len(t.Columns)), make([]any, len(t.Columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		_ = out.WriteByte(1)
		for _, value := range values {
			if err := dumpValue(out, value); err != nil {
				return fault.Wrap(fault.Internal, err, "cannot dump table %s", table)
			}
		}
	}
	_ = out.WriteByte(0)
	return rows.Err()
}

func dumpValue(out *bufio.Writer, value any) error {
	var err error
	sized := func(kind byte, b []byte) {
		_ = out.WriteByte(kind)
		_, _ = out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, err = out.Write(b)
	}
	switch x := value.(type) {
	case nil:
		err = out.WriteByte('n')
	case int64:
		_ = out.WriteByte('i')
		_, err = out.Write(binary.BigEndian.AppendUint64(nil, uint64(x)))
	case string:
		sized('t', []byte(x))
	case []byte:
		sized('b', x)
	case bool:
		kind := byte('f')
		if x {
			kind = 'y'
		}
		err = out.WriteByte(kind)
	default:
		return fault.New(fault.Internal, "a value of kind %T", value)
	}
	return err
}

// dumpReader reads what Dump wrote.
type dumpReader struct{ in *bufio.Reader }

func newDumpReader(in io.Reader) dumpReader { return dumpReader{bufio.NewReaderSize(in, maxDumpLine)} }

// table returns the next table, or nil at the end.
func (r dumpReader) table() (*dumpTable, error) {
	line, err := r.in.ReadSlice('\n')
	if err != nil || len(line) > maxDumpLine {
		return nil, errDump
	}
	if len(line) == 1 {
		return nil, nil
	}
	var t dumpTable
	if json.Unmarshal(line, &t) != nil || !dumpName(t.Table) || t.Schema != "state" && t.Schema != "observed" || len(t.Columns) == 0 {
		return nil, errDump
	}
	if slices.ContainsFunc(t.Columns, func(c string) bool { return !dumpName(c) }) {
		return nil, errDump
	}
	return &t, nil
}

// dumpName says that a name is one of ours: it becomes part of a statement.
func dumpName(s string) bool {
	return s != "" && len(s) < 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

var errDump = fault.New(fault.Invalid, "cannot read the dump: it is damaged or cut short")

// row returns the next row, or nil at the end of the table.
func (r dumpReader) row(columns int) ([]any, error) {
	more, err := r.in.ReadByte()
	if err != nil || more > 1 {
		return nil, errDump
	}
	if more == 0 {
		return nil, nil
	}
	row := make([]any, columns)
	for i := range row {
		if row[i], err = r.value(); err != nil {
			return nil, errDump
		}
	}
	return row, nil
}

func (r dumpReader) value() (any, error) {
	kind, err := r.in.ReadByte()
	if err != nil {
		return nil, err
	}
	var b [8]byte
	switch kind {
	case 'n':
		return nil, nil
	case 'y', 'f':
		return kind == 'y', nil
	case 'i':
		_, err := io.ReadFull(r.in, b[:])
		return int64(binary.BigEndian.Uint64(b[:])), err
	case 't', 'b':
		if _, err := io.ReadFull(r.in, b[:4]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(b[:4])
		if n > maxDumpValue {
			return nil, errDump
		}
		value := make([]byte, 0, min(n, 64<<10)) // not what a liar says
		for len(value) < int(n) {
			step := min(int(n)-len(value), 64<<10)
			value = append(value, make([]byte, step)...)
			if _, err := io.ReadFull(r.in, value[len(value)-step:]); err != nil {
				return nil, err
			}
		}
		if kind == 't' {
			return string(value), nil
		}
		return value, nil
	}
	return nil, errDump
}

// Load puts a dump into an empty database, in one transaction of each schema,
// observations first: whatever is killed leaves no ledger behind.
func Load(ctx context.Context, c Config, in io.Reader) error { return loadInto(ctx, c, in, false) }

// LoadMore adds the tables of another dump to what Load has put there.
func LoadMore(ctx context.Context, c Config, in io.Reader) error { return loadInto(ctx, c, in, true) }

func loadInto(ctx context.Context, c Config, in io.Reader, more bool) error {
	d, err := parseDSN(c.DSN)
	if err != nil {
		return err
	}
	l := &load{d: d, more: more, tx: map[string]*sql.Tx{}}
	defer l.close()
	for schema, steps := range map[string][]Migration{"state": append(append([]Migration{}, ledgerSchema...), c.Migrations...), "observed": c.Observations} {
		if err := l.open(ctx, schema, steps); err != nil {
			return asFault(err, "load the dump")
		}
	}
	r := newDumpReader(in)
	for {
		t, err := r.table()
		if err != nil {
			return err
		}
		if t == nil {
			break
		}
		if err := l.table(ctx, r, *t); err != nil {
			return fault.Wrap(fault.KindOf(asFault(err, "load")), err, "cannot load table %s", t.Table)
		}
	}
	for _, schema := range []string{"observed", "state"} {
		if err := l.tx[schema].Commit(); err != nil {
			return asFault(err, "load the dump")
		}
	}
	return nil
}

type load struct {
	d     dialect
	more  bool // the ledger may be there
	pools []*sql.DB
	conns []*sql.Conn
	of    map[string]*sql.Conn
	tx    map[string]*sql.Tx
}

func (l *load) close() {
	for _, tx := range l.tx {
		_ = tx.Rollback() // no-op after Commit
	}
	for _, c := range l.conns {
		_ = c.Close()
	}
	for _, p := range l.pools {
		_ = p.Close() // everything was committed or rolled back
	}
}

func (l *load) open(ctx context.Context, schema string, steps []Migration) error {
	role := "write"
	if l.d.name == "postgres" {
		role = "sequence"
	}
	db, err := l.d.pool(ctx, schema, role)
	if err != nil {
		return err
	}
	l.pools = append(l.pools, db)
	if err := l.d.migrate(ctx, db, schema, steps); err != nil {
		return err
	}
	if schema == "state" && !l.more {
		var n int64
		if err := db.QueryRowContext(ctx, `SELECT n FROM ledger_head WHERE id = 1`).Scan(&n); err != nil || n > 0 {
			return errors.Join(err, fault.New(fault.Conflict, "cannot load the dump: the database holds a ledger already").WithHint("name an empty database, or an empty folder"))
		}
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	l.conns = append(l.conns, conn)
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if l.d.name == "postgres" {
		if _, err := tx.ExecContext(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return err
		}
	}
	if l.of == nil {
		l.of = map[string]*sql.Conn{}
	}
	l.of[schema], l.tx[schema] = conn, tx
	return nil
}

func (l *load) table(ctx context.Context, r dumpReader, t dumpTable) error {
	tx := l.tx[t.Schema]
	var there int64
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM `+t.Table).Scan(&there); err != nil {
		return err
	}
	if there > 0 { // what a migration put there
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+t.Table); err != nil {
			return err
		}
	}
	if l.d.name == "postgres" {
		return l.of[t.Schema].Raw(func(driver any) error {
			return loadPostgres(ctx, driver.(*stdlib.Conn).Conn(), r, t)
		})
	}
	marks := strings.TrimSuffix(strings.Repeat("?,", len(t.Columns)), ",")
	st, err := tx.PrepareContext(ctx, `INSERT INTO `+t.Table+` (`+strings.Join(t.Columns, ", ")+`) VALUES (`+marks+`)`)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	for {
		row, err := r.row(len(t.Columns))
		if err != nil || row == nil {
			return err
		}
		if _, err := st.ExecContext(ctx, row...); err != nil {
			return err
		}
	}
}

// loadPostgres runs inside of the transaction that is open on the connection.
func loadPostgres(ctx context.Context, conn *pgx.Conn, r dumpReader, t dumpTable) error {
	columns, err := targetColumns(ctx, conn, t.Schema, t.Table)
	if err != nil {
		return err
	}
	kinds := make([]targetColumn, len(t.Columns))
	for i, name := range t.Columns {
		at := slices.IndexFunc(columns, func(c targetColumn) bool { return c.name == name })
		if at < 0 {
			return fault.New(fault.Invalid, "the dump has a column %s that the table has not", name)
		}
		kinds[i] = columns[at]
	}
	into := pgx.Identifier{t.Schema, t.Table}
	_, err = conn.CopyFrom(ctx, into, t.Columns, pgx.CopyFromFunc(func() ([]any, error) {
		row, err := r.row(len(t.Columns))
		for i := range row {
			row[i] = kinds[i].fit(row[i])
		}
		return row, err
	}))
	if err != nil {
		return err
	}
	return setIdentities(ctx, conn, into, columns)
}
