package store

import (
	"context"
	"strconv"
	"strings"
)

// rowsOf collects rows of one table and inserts them many at a time.
type rowsOf struct {
	into    string // "table (a, b)"
	columns int
	args    []any
}

// chunks are the numbers of rows a statement may have: few, so that each text
// is prepared once.
var chunks = [...]int{64, 16, 4, 1}

func (r *rowsOf) add(values ...any) { r.args = append(r.args, values...) }

func (r *rowsOf) insert(ctx context.Context, run runner) error {
	rest := r.args
	for _, n := range chunks {
		for len(rest) >= n*r.columns {
			if _, err := run.exec(ctx, insertText(r.into, r.columns, n, run.numbered()), rest[:n*r.columns]...); err != nil {
				return err
			}
			rest = rest[n*r.columns:]
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
