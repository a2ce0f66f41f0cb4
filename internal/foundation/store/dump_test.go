package store

import (
	"bytes"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func everyTable(string, string) bool { return true }

// A dump of either database makes the same ledger in either.
func TestADumpMakesTheSameLedgerInEitherDatabase(t *testing.T) {
	onBoth(t, func(t *testing.T, from Config) {
		from.Seals = derivedKeys{}
		s := mustOpen(t, from)
		for _, id := range []string{"one", "two", "three"} {
			mustRecord(t, s, id, bump("a"))
		}
		if err := s.Observe(t.Context(), func(o *Obs) error {
			_, err := o.Exec(`INSERT INTO seen (host, at) VALUES ('h-1', 7)`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		tree, _, err := s.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var dump bytes.Buffer
		n, err := Dump(t.Context(), from, &dump, everyTable) // while it is open
		if err != nil || n != tree.N {
			t.Fatalf("%d entries, %v", n, err)
		}
		onBoth(t, func(t *testing.T, to Config) {
			to.Seals = derivedKeys{}
			if err := Load(t.Context(), to, bytes.NewReader(dump.Bytes())); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, to)
			if got, _, err := s.Head(t.Context()); err != nil || got != tree {
				t.Errorf("the head is %v, %v", got, err)
			}
			if r := mustRecord(t, s, "two", bump("never")); r.Entries()[0].Seq != 2 || count(t, s, "a") != 3 {
				t.Errorf("two is #%d, a is %d", r.Entries()[0].Seq, count(t, s, "a"))
			}
			mustRecord(t, s, "four", bump("a"))
			mustVerify(t, s)
			if err := Load(t.Context(), to, bytes.NewReader(dump.Bytes())); fault.KindOf(err) != fault.Conflict {
				t.Errorf("loaded over a ledger: %v", err)
			}
		})
	})
}

func TestADumpThatIsCutShortLeavesNoLedger(t *testing.T) {
	c := testConfig(t)
	s := mustOpen(t, c)
	mustRecord(t, s, "one", bump("a"))
	var dump bytes.Buffer
	if _, err := Dump(t.Context(), c, &dump, everyTable); err != nil {
		t.Fatal(err)
	}
	to := testConfig(t)
	to.Seals = c.Seals
	for _, cut := range []int{1, 30, dump.Len() / 2, dump.Len() - 1} {
		if err := Load(t.Context(), to, bytes.NewReader(dump.Bytes()[:cut])); err == nil {
			t.Errorf("%d bytes of %d are enough", cut, dump.Len())
		}
	}
	if err := Load(t.Context(), to, &dump); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, mustOpen(t, to))
}

func FuzzReadDump(f *testing.F) {
	f.Add([]byte("{\"schema\":\"state\",\"table\":\"a\",\"columns\":[\"b\"]}\n\x01t\x00\x00\x00\x01x\x01n\x01y\x00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newDumpReader(bytes.NewReader(b))
		for {
			table, err := r.table()
			if err != nil || table == nil {
				return
			}
			if !dumpName(table.Table) {
				t.Fatalf("table %q", table.Table)
			}
			for {
				row, err := r.row(len(table.Columns))
				if err != nil {
					return
				}
				if row == nil {
					break
				}
			}
		}
	})
}
