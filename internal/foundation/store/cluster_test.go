package store

import (
	"os"
	"testing"

	"handrail.dev/handrail/test/postgres"
)

// shared is set once, before any test runs.
var shared *postgres.Cluster

func TestMain(m *testing.M) {
	shared = postgres.Start()
	code := m.Run()
	shared.Stop()
	os.Exit(code)
}

// onBoth runs the test on SQLite and on PostgreSQL.
func onBoth(t *testing.T, test func(t *testing.T, c Config)) {
	t.Run("sqlite", func(t *testing.T) { test(t, testConfig(t)) })
	t.Run("postgres", func(t *testing.T) {
		c := testConfig(t)
		c.DSN = shared.Database(t)
		test(t, c)
	})
}
