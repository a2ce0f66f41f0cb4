package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	mrand "math/rand/v2"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

const testOrigin = "log.example"

// memoryKeys are subject keys that live as long as the test.
type memoryKeys struct {
	mu   sync.Mutex
	keys map[string]cipher.AEAD
	gone map[string]bool
}

func newMemoryKeys() *memoryKeys {
	return &memoryKeys{keys: map[string]cipher.AEAD{}, gone: map[string]bool{}}
}

func (m *memoryKeys) key(subject string, mayMake bool) (cipher.AEAD, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone[subject] {
		return nil, fault.New(fault.NotFound, "cannot open anything of %s: it was erased", subject)
	}
	k, ok := m.keys[subject]
	if !ok && !mayMake {
		return nil, fault.New(fault.NotFound, "cannot open anything of %s: it has no key", subject)
	}
	if !ok {
		var raw [32]byte
		_, _ = rand.Read(raw[:])
		block, err := aes.NewCipher(raw[:])
		if err != nil {
			return nil, err
		}
		if k, err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, err
		}
		m.keys[subject] = k
	}
	return k, nil
}

func (m *memoryKeys) Seal(subject string, plain, ad []byte) ([]byte, error) {
	k, err := m.key(subject, true)
	if err != nil {
		return nil, err
	}
	return k.Seal(nil, nil, plain, ad), nil
}

func (m *memoryKeys) Open(subject string, sealed, ad []byte) ([]byte, error) {
	k, err := m.key(subject, false)
	if err != nil {
		return nil, err
	}
	return k.Open(nil, nil, sealed, ad)
}

func (m *memoryKeys) Destroy(subject string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, subject)
	m.gone[subject] = true
	return nil
}

var testSchema = []Migration{
	{Name: "test-1", SQL: `CREATE TABLE counter (name TEXT PRIMARY KEY, n BIGINT NOT NULL, live BOOLEAN NOT NULL, data {{BLOB}} NOT NULL);
CREATE TABLE line (id {{IDENTITY}}, text TEXT NOT NULL UNIQUE)`},
}

var testObservations = []Migration{{Name: "seen-1", SQL: `CREATE TABLE seen (host TEXT PRIMARY KEY, at BIGINT NOT NULL)`}}

// testConfig is a store in a folder of its own; the DSN is set by who calls.
func testConfig(t testing.TB) Config {
	t.Helper()
	skey, vkey, err := note.GenerateKey(mrand.NewChaCha8([32]byte{1}), testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return Config{DSN: "sqlite:" + t.TempDir(), Origin: testOrigin, Signer: signer, Verifier: verifier, Seals: newMemoryKeys(),
		Migrations: testSchema, Observations: testObservations, Spool: t.TempDir()}
}

// A new data folder on the database of an installation that exists is a mistake
// that is easily made; nothing of ours may get into the other's ledger.
func TestTheDatabaseOfAnotherInstallationIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		mustRecord(t, s, "one", bump("a"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		other := testConfig(t)
		other.DSN = c.DSN
		skey, vkey, err := note.GenerateKey(mrand.NewChaCha8([32]byte{2}), testOrigin)
		if err != nil {
			t.Fatal(err)
		}
		other.Signer, _ = note.NewSigner(skey)
		other.Verifier, _ = note.NewVerifier(vkey)
		if _, err := Open(t.Context(), other); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "another installation") {
			t.Errorf("opened: %v", err)
		}
		mustVerify(t, mustOpen(t, c))
	})
}

func mustOpen(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

type counter struct {
	Name string `db:"name"`
	N    int64  `db:"n"`
	Live bool   `db:"live"`
	Data []byte `db:"data"`
}

func bump(name string) func(*Tx) ([]ledger.Entry, error) {
	return func(tx *Tx) ([]ledger.Entry, error) {
		n, err := One[int64](tx, `INSERT INTO counter (name, n, live, data) VALUES ($1, 1, $2, $3) ON CONFLICT (name) DO UPDATE SET n = counter.n + 1 RETURNING n`, name, true, []byte{1})
		if err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: "counter.bumped", Subjects: []string{"p-00000001"}, Object: name, Version: n, Payload: map[string]any{"v": 1, "n": n}}}, nil
	}
}

func mustRecord(t testing.TB, s *Store, id string, fn func(*Tx) ([]ledger.Entry, error)) Receipt {
	t.Helper()
	r, err := s.Record(context.Background(), id, fn)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func count(t testing.TB, s *Store, name string) (n int64) {
	t.Helper()
	err := s.View(context.Background(), func(v *View) error {
		c, err := One[counter](v, `SELECT name, n, live, data FROM counter WHERE name = $1`, name)
		if fault.KindOf(err) == fault.NotFound {
			return nil
		}
		n = c.N
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
