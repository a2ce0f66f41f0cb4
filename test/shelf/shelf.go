// Package shelf opens stores for tests of what stands on a store and needs no
// keys of an installation: a log key of its own, and seals that seal nothing.
package shelf

import (
	"crypto/rand"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/store"
)

// Origin is whose ledger it is.
const Origin = "test.example"

// plain seals nothing: what is tested with it is not secrecy.
type plain struct{}

func (plain) Seal(_ string, text, _ []byte) ([]byte, error)   { return text, nil }
func (plain) Open(_ string, sealed, _ []byte) ([]byte, error) { return sealed, nil }
func (plain) Destroy(string) error                            { return nil }

// Config is a new SQLite database in a folder of its own, with a new log key,
// out of bootstrap. A test that opens it twice restarts.
func Config(t testing.TB, migrations []store.Migration) store.Config {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, Origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return store.Config{
		DSN: "sqlite:" + dir, Spool: dir, Origin: Origin, Signer: signer, Verifier: verifier, Seals: plain{},
		Bootstrap: func() bool { return false }, Migrations: migrations,
	}
}

// Open opens such a store until the test ends.
func Open(t testing.TB, migrations []store.Migration) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), Config(t, migrations))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}
