package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// rowsOf collects rows of one table and inserts them many at a time: by
// statements of many rows (SQLite), by arrays (PostgreSQL, few rows) or by
// COPY (PostgreSQL, many).
type rowsOf struct {
	table   string
	columns []string
	args    []any // int64, string or []byte, row after row
}

// chunks are the numbers of rows a statement may have: few, so that each text
// is prepared once.
var chunks = [...]int{64, 16, 4, 1}

func (r *rowsOf) add(values ...any) { r.args = append(r.args, values...) }

func (r *rowsOf) into() string { return r.table + " (" + strings.Join(r.columns, ", ") + ")" }

func (r *rowsOf) insert(ctx context.Context, run runner) error {
	rest, columns := r.args, len(r.columns)
	for _, n := range chunks {
		for len(rest) >= n*columns {
			if _, err := run.exec(ctx, insertText(r.into(), columns, n, run.numbered()), rest[:n*columns]...); err != nil {
				return err
			}
			rest = rest[n*columns:]
		}
	}
	return nil
}

// insertText is INSERT INTO t (a, b) VALUES ($1,$2),($3,$4)… For SQLite the
// places are plain: looking up hundreds of numbered ones costs more than the
// rows.
func insertText(into string, columns, rows int, numbered bool) string {
	var b strings.Builder
	b.Grow(len(into) + 32 + rows*columns*5)
	b.WriteString("INSERT INTO " + into + " VALUES ")
	for i := 0; i < rows*columns; i++ {
		switch {
		case i == 0:
			b.WriteByte('(')
		case i%columns == 0:
			b.WriteString("),(")
		default:
			b.WriteByte(',')
		}
		if numbered {
			b.WriteString("$" + strconv.Itoa(i+1))
		} else {
			b.WriteByte('?')
		}
	}
	b.WriteByte(')')
	return b.String()
}

// unnest is one statement for any number of rows; arrays are its arguments.
func (r *rowsOf) unnest() string {
	places := make([]string, len(r.columns))
	for i := range r.columns {
		kind := "text"
		switch r.args[i].(type) {
		case int64:
			kind = "bigint"
		case []byte:
			kind = "bytea"
		}
		places[i] = "$" + strconv.Itoa(i+1) + "::" + kind + "[]"
	}
	return "INSERT INTO " + r.into() + " SELECT * FROM unnest(" + strings.Join(places, ", ") + ")"
}

func (r *rowsOf) arrays() []any {
	out := make([]any, len(r.columns))
	for i := range r.columns {
		switch r.args[i].(type) {
		case int64:
			out[i] = columnOf[int64](r, i)
		case string:
			out[i] = columnOf[string](r, i)
		case []byte:
			out[i] = columnOf[[]byte](r, i)
		}
	}
	return out
}

func columnOf[T any](r *rowsOf, i int) []T {
	out := make([]T, 0, len(r.args)/len(r.columns))
	for ; i < len(r.args); i += len(r.columns) {
		out = append(out, r.args[i].(T))
	}
	return out
}

// copyTo sends the rows in PostgreSQL's binary form.
func (r *rowsOf) copyTo(ctx context.Context, conn *pgconn.PgConn) error {
	b := append(make([]byte, 0, 64*len(r.args)), "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	for i, v := range r.args {
		if i%len(r.columns) == 0 {
			b = binary.BigEndian.AppendUint16(b, uint16(len(r.columns)))
		}
		switch v := v.(type) {
		case int64:
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(v))
		case string:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
		case []byte:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
		}
	}
	b = append(b, 0xff, 0xff)
	_, err := conn.CopyFrom(ctx, bytes.NewReader(b), "COPY "+r.into()+" FROM STDIN (FORMAT binary)")
	return err
}
