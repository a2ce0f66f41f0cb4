package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/test/postgres"
)

// dump is all that a database holds: SQLite's raw files, and every row and
// statistic that PostgreSQL hands out.
func dump(t *testing.T, dsn string) string {
	t.Helper()
	var out bytes.Buffer
	if dir, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		files, err := filepath.Glob(filepath.Join(dir, "*.db*"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(b)
		}
		return out.String()
	}
	return strings.Join(postgres.Rows(t, dsn), "\n")
}

func TestNothingOfWhatWasErasedIsLeftInTheDatabase(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		const word = "ququxword"
		s := mustOpen(t, c)
		for n := range 50 { // enough for free pages, dead rows and statistics
			mustRecord(t, s, fmt.Sprint("plant ", n), func(tx *Tx) ([]ledger.Entry, error) {
				if _, err := tx.Exec(`INSERT INTO counter (name, n, live, data) VALUES ($1, $2, $3, $4)`, fmt.Sprint(word, n), n, true, bytes.Repeat([]byte(word), 200)); err != nil {
					return nil, err
				}
				return []ledger.Entry{{Action: "login.opened", Subjects: []string{"p-john"}, Payload: map[string]string{"name": word}}}, nil
			})
		}
		mustRecord(t, s, "scrub", func(tx *Tx) ([]ledger.Entry, error) {
			_, err := tx.Exec(`DELETE FROM counter WHERE n >= 0`)
			return []ledger.Entry{{Action: "test.scrubbed", Payload: map[string]any{"v": 1}}}, err
		})
		if _, ok := strings.CutPrefix(c.DSN, "sqlite:"); ok && !strings.Contains(dump(t, c.DSN), word) {
			t.Fatal("what was deleted is gone by itself: this test finds nothing")
		}
		if _, err := s.Erase(t.Context(), "erase", "p-john", ledger.Entry{Subjects: []string{"p-mary"}, Payload: map[string]string{"ground": "asked"}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := dump(t, c.DSN); strings.Contains(left, word) || strings.Contains(left, "dead rows") {
			t.Error("something is left of it")
		}
		mustRecord(t, s, "after", func(*Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.grown", Payload: map[string]any{"v": 1}}}, nil
		})
		report, err := s.Verify(t.Context(), nil)
		if err != nil || !report.OK || report.Erased != 50 {
			t.Errorf("%+v, %v", report, err)
		}
	})
}

// BenchmarkErase erases somebody with 100,000 entries.
func BenchmarkErase(b *testing.B) {
	const entries, step = 100_000, 500
	for b.Loop() {
		b.StopTimer()
		s := mustOpen(b, testConfig(b))
		for n := range entries / step {
			mustRecord(b, s, fmt.Sprint("of ", n), func(*Tx) (all []ledger.Entry, _ error) {
				for range step {
					all = append(all, ledger.Entry{Action: "login.opened", Subjects: []string{"p-john"}, Payload: map[string]string{"address": "192.0.2.7", "name": "john"}})
				}
				return all, nil
			})
		}
		b.StartTimer()
		at := time.Now()
		if _, err := s.Erase(b.Context(), "erase", "p-john", ledger.Entry{Subjects: []string{"p-mary"}, Payload: map[string]string{"ground": "asked"}}); err != nil {
			b.Fatal(err)
		}
		emptied := time.Since(at)
		if err := s.Compact(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(emptied.Seconds(), "s-emptied")
		b.ReportMetric(time.Since(at).Seconds(), "s-in-all")
		b.ReportMetric(entries/time.Since(at).Seconds(), "entries/s")
	}
}
