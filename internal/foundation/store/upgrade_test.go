package store

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"testing"
)

// testdata/upgrade holds databases as releases left them, as text: the schema
// and a dozen records each. In that of PostgreSQL a server has died between a
// caller's COMMIT and the sequencer's. They are never changed; each release
// that changes the schema adds one.

func TestADatabaseOfAnEarlierReleaseIsUpgraded(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		c.Seals = derivedKeys{}
		d, err := parseDSN(c.DSN)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile("testdata/upgrade/0001." + d.name + ".sql")
		if err != nil {
			t.Fatal(err)
		}
		old := map[string]string{"state": string(text)}
		if d.name == "sqlite" {
			state, observed, _ := strings.Cut(string(text), "-- observed\n")
			old = map[string]string{"state": state, "observed": observed}
		}
		for part, text := range old {
			db, err := d.pool(t.Context(), part, "write")
			if err != nil {
				t.Fatal(err)
			}
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(t.Context(), text); err != nil {
				t.Fatal(err)
			}
			if err := closeBoth(conn, db); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, c)
		if s.Damage() != nil {
			t.Fatal(s.Damage())
		}
		for i := range 12 {
			if r := mustRecord(t, s, fmt.Sprint("r-", i), bump("never")); r.Entries()[0].Seq != int64(i)+1 {
				t.Errorf("r-%d is #%d", i, r.Entries()[0].Seq)
			}
		}
		want := int64(12)
		if d.name == "postgres" { // what was pending is the next
			want = 13
			if r := mustRecord(t, s, "r-12", bump("never")); r.Entries()[0].Seq != 13 {
				t.Errorf("r-12 is #%d", r.Entries()[0].Seq)
			}
		}
		mustRecord(t, s, "new", bump("a"))
		if n := count(t, s, "a"); n != want+1 {
			t.Errorf("a is %d", n)
		}
		if tree, _, err := s.Head(t.Context()); err != nil || tree.N != want+2 {
			t.Errorf("%d entries, %v", tree.N, err)
		}
		mustVerify(t, s)
	})
}

func closeBoth(conn *sql.Conn, db *sql.DB) error {
	if err := conn.Close(); err != nil {
		return err
	}
	return db.Close()
}
