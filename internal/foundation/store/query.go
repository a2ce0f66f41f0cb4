package store

import (
	"context"
	"database/sql"
	"reflect"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Queryer reads rows, through All and One. Tx, View and Obs are Queryers.
type Queryer interface {
	rows(q string, args []any) (*sql.Rows, error)
}

// All scans every row into a T: a struct whose fields carry db tags named like
// the columns, or one plain value.
func All[T any](q Queryer, query string, args ...any) ([]T, error) {
	return scan[T](q, query, args, -1)
}

// One scans the first row. It is fault.NotFound when there is none.
func One[T any](q Queryer, query string, args ...any) (T, error) {
	var none T
	out, err := scan[T](q, query, args, 1)
	if err != nil {
		return none, err
	}
	if len(out) == 0 {
		return none, fault.New(fault.NotFound, "cannot find it: no such row")
	}
	return out[0], nil
}

func scan[T any](q Queryer, query string, args []any, limit int) ([]T, error) {
	rows, err := q.rows(query, args)
	if err != nil {
		return nil, asFault(err, "read the database")
	}
	defer func() { _ = rows.Close() }() // its error is that of Err below
	var out []T
	var p plan
	for rows.Next() {
		if p.dest == nil {
			columns, err := rows.Columns()
			if err != nil {
				return nil, asFault(err, "read the database")
			}
			if p, err = planFor(reflect.TypeFor[T](), columns); err != nil {
				return nil, err
			}
		}
		var row T
		if err := rows.Scan(p.into(reflect.ValueOf(&row).Elem())...); err != nil {
			return nil, asFault(err, "read the database")
		}
		if out = append(out, row); len(out) == limit {
			break
		}
	}
	return out, asFault(rows.Err(), "read the database")
}

// plan says into which field each column goes.
type plan struct {
	whole  bool // T is one plain value
	fields [][]int
	dest   []any // reused for every row
}

type planKey struct {
	t       reflect.Type
	columns string
}

// plans only ever grows by what the program itself asks, which is bounded by
// its text; it is a cache and holds no state.
var plans sync.Map // planKey → [][]int

func planFor(t reflect.Type, columns []string) (plan, error) {
	p := plan{dest: make([]any, len(columns))}
	if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[sql.Scanner]()) || t == reflect.TypeFor[time.Time]() {
		if p.whole = true; len(columns) != 1 {
			return plan{}, fault.New(fault.Internal, "cannot read %d columns into one %s", len(columns), t)
		}
		return p, nil
	}
	key := planKey{t, strings.Join(columns, "\x00")}
	if known, ok := plans.Load(key); ok {
		p.fields = known.([][]int)
		return p, nil
	}
	byName := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if tag := f.Tag.Get("db"); tag != "" && tag != "-" {
			byName[tag] = f.Index
		}
	}
	for _, c := range columns {
		index, ok := byName[c]
		if !ok {
			return plan{}, fault.New(fault.Internal, "cannot read column %q: %s has no field with that db tag", c, t)
		}
		p.fields = append(p.fields, index)
	}
	plans.Store(key, p.fields)
	return p, nil
}

func (p plan) into(v reflect.Value) []any {
	if p.whole {
		p.dest[0] = v.Addr().Interface()
		return p.dest
	}
	for i, index := range p.fields {
		p.dest[i] = v.FieldByIndex(index).Addr().Interface()
	}
	return p.dest
}

// statements prepares each text once a connection.
type statements struct {
	conn interface {
		PrepareContext(ctx context.Context, q string) (*sql.Stmt, error)
	}
	known map[string]*sql.Stmt
}

// keptStatements bounds the cache; texts are constants, so it rarely fills.
const keptStatements = 512

func (s *statements) get(ctx context.Context, q string) (*sql.Stmt, error) {
	if st, ok := s.known[q]; ok {
		return st, nil
	}
	if len(s.known) >= keptStatements {
		s.close()
	}
	st, err := s.conn.PrepareContext(ctx, q)
	if err != nil {
		return nil, err
	}
	if s.known == nil {
		s.known = map[string]*sql.Stmt{}
	}
	s.known[q] = st
	return st, nil
}

func (s *statements) close() {
	for _, st := range s.known {
		_ = st.Close() // the connection goes next, or the text is prepared again
	}
	clear(s.known)
}

func (s *statements) exec(ctx context.Context, q string, args ...any) (int64, error) {
	st, err := s.get(ctx, q)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (s *statements) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	st, err := s.get(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

func (s *statements) numbered() bool { return false }
