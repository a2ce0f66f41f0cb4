package store

import (
	"runtime"
	"testing"
)

func TestAsManyLanesAsTheDatabaseHasUseFor(t *testing.T) {
	beside := min(maxLanes, max(2, runtime.GOMAXPROCS(0)))
	for dsn, want := range map[string]int{
		"postgres://u@/d?host=/run/postgresql": beside,
		"postgres://u@127.0.0.1/d":             beside,
		"postgres://u@[::1]:5433/d":            beside,
		"postgres://u@localhost/d":             beside,
		"postgres://u@database.example/d":      maxLanes,
		"postgres://u@192.0.2.7/d":             maxLanes,
	} {
		d, err := parseDSN(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.lanes(); err != nil || got != want {
			t.Errorf("%s: %d lanes, not %d (%v)", dsn, got, want, err)
		}
	}
}
