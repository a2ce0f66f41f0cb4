package postgres

import (
	"database/sql"
	"testing"
)

// Rows is all that a database of ours hands out: every row of every table as
// text after its table's name, the statistics, and a line for each table that
// still holds dead rows.
func Rows(t testing.TB, url string) (all []string) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	texts := func(q string) (out []string) {
		rows, err := db.QueryContext(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var s sql.NullString
			if err := rows.Scan(&s); err != nil {
				t.Fatal(err)
			}
			out = append(out, s.String)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, table := range texts(`SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('state', 'observed')`) {
		for _, row := range texts(`SELECT t::text FROM ` + table + ` t`) {
			all = append(all, table+": "+row)
		}
		if n := texts(`SELECT pg_stat_get_dead_tuples('` + table + `'::regclass)::text`); n[0] != "0" {
			all = append(all, "dead rows of "+table+": "+n[0])
		}
	}
	return append(all, texts(`SELECT 'statistics: ' || most_common_vals::text FROM pg_stats WHERE schemaname IN ('state', 'observed')`)...)
}
