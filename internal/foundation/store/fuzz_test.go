package store

import "testing"

// The file that remembers the last checkpoint may be anything after a crash.
func FuzzReadSlot(f *testing.F) {
	f.Add(make([]byte, 2*anchorSlot), 1)
	f.Fuzz(func(t *testing.T, buf []byte, i int) {
		if r, ok := readSlot(buf, i&1); ok && r.Seq <= 0 {
			t.Fatal("remembered, and nothing")
		}
	})
}

func FuzzParseDSN(f *testing.F) {
	f.Add("sqlite:/var/lib/handrail")
	f.Add("postgres://handrail@db/handrail")
	f.Fuzz(func(t *testing.T, dsn string) {
		if d, err := parseDSN(dsn); err == nil && d.dir == "" && d.url == "" {
			t.Fatalf("%q is a database nowhere", dsn)
		}
	})
}
