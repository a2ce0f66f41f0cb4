package main

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/postgres"
)

// The ledger's rows have another peer: the same database, without handrail. A
// plain caller updates the same row, inserts as many bytes as an entry with its
// payload, and commits durably.

// oneKey seals for everybody, as the real key ring does but for its files.
type oneKey struct{ aead cipher.AEAD }

func (k oneKey) Seal(_ string, plain, ad []byte) ([]byte, error) {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return k.aead.Seal(nonce, nonce, plain, ad), nil
}

func (k oneKey) Open(_ string, sealed, ad []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	return k.aead.Open(nil, sealed[:n], sealed[n:], ad)
}

func (oneKey) Destroy(string) error { return nil }

const benchOrigin = "bench.example"

func benchStore(dsn, spool string) (store.Config, error) {
	aead, err := chacha20poly1305.NewX(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		return store.Config{}, err
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, benchOrigin)
	if err != nil {
		return store.Config{}, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return store.Config{}, err
	}
	verifier, err := note.NewVerifier(vkey)
	return store.Config{DSN: dsn, Origin: benchOrigin, Signer: signer, Verifier: verifier, Seals: oneKey{aead}, Spool: spool,
		Migrations: []store.Migration{{Name: "bench-1", SQL: `CREATE TABLE counter (name TEXT PRIMARY KEY, n BIGINT NOT NULL)`}}}, err
}

// entryBytes is about what one entry with its payload weighs.
const entryBytes = 700

// callers run act until the time is up, and say how many a second and how long
// one took.
func callers(n int, long time.Duration, act func(caller, i int) error) (rate float64, p50 time.Duration, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []float64
	var failed atomic.Pointer[error]
	start := time.Now()
	for c := range n {
		wg.Go(func() {
			var own []float64
			for i := 0; time.Since(start) < long && failed.Load() == nil; i++ {
				t := time.Now()
				if err := act(c, i); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				own = append(own, float64(time.Since(t)))
			}
			mu.Lock()
			took = append(took, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return 0, 0, *e
	}
	return float64(len(took)) / time.Since(start).Seconds(), time.Duration(median(took)), nil
}

// side is handrail or the plain database: one durable change, and one of 64
// leaves.
type side struct {
	change func(caller, i int) error
	group  func(caller, i int) error
	close  func() error
}

func recorded(ctx context.Context, dsn, spool string) (side, error) {
	c, err := benchStore(dsn, spool)
	if err != nil {
		return side{}, err
	}
	s, err := store.Open(ctx, c)
	if err != nil {
		return side{}, err
	}
	entry := func(name string) ledger.Entry {
		return ledger.Entry{Action: "counter.bumped", Subjects: []string{"p-00000001"}, Target: "host/h-00000001", Object: name, Version: 1,
			Payload: json.RawMessage(`{"v":1,"text":"` + string(bytes.Repeat([]byte("x"), entryBytes/2)) + `"}`)}
	}
	record := func(fn func(*store.Tx) ([]ledger.Entry, error)) error {
		_, err := s.Record(ctx, store.Once(), fn)
		return err
	}
	for n := range 64 {
		err = errors.Join(err, record(func(tx *store.Tx) ([]ledger.Entry, error) {
			_, err := tx.Exec(`INSERT INTO counter (name, n) VALUES ($1, 0)`, fmt.Sprint(n))
			return []ledger.Entry{entry(fmt.Sprint(n))}, err
		}))
	}
	return side{
		change: func(caller, _ int) error {
			name := fmt.Sprint(caller)
			return record(func(tx *store.Tx) ([]ledger.Entry, error) {
				_, err := tx.Exec(`UPDATE counter SET n = n + 1 WHERE name = $1`, name)
				return []ledger.Entry{entry(name)}, err
			})
		},
		group: func(caller, _ int) error {
			return record(func(*store.Tx) ([]ledger.Entry, error) {
				all := make([]ledger.Entry, 64)
				for i := range all {
					all[i] = entry("x")
				}
				return all, nil
			})
		},
		close: s.Close,
	}, err
}

func plain(ctx context.Context, driver, dsn string, conns int, blob string) (side, error) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return side{}, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	for _, q := range []string{`CREATE TABLE plain_counter (name TEXT PRIMARY KEY, n BIGINT NOT NULL)`, `CREATE TABLE plain_entry (id TEXT PRIMARY KEY, body ` + blob + ` NOT NULL)`} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return side{}, err
		}
	}
	for n := range 64 {
		if _, err := db.ExecContext(ctx, `INSERT INTO plain_counter VALUES ($1, 0)`, fmt.Sprint(n)); err != nil {
			return side{}, err
		}
	}
	body := bytes.Repeat([]byte{1}, entryBytes)
	act := func(caller, entries int) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // no-op after Commit
		if _, err := tx.ExecContext(ctx, `UPDATE plain_counter SET n = n + 1 WHERE name = $1`, fmt.Sprint(caller)); err != nil {
			return err
		}
		for range entries {
			if _, err := tx.ExecContext(ctx, `INSERT INTO plain_entry VALUES ($1, $2)`, store.Once(), body); err != nil {
				return err
			}
		}
		return tx.Commit()
	}
	return side{
		change: func(caller, _ int) error { return act(caller, 1) },
		group:  func(caller, _ int) error { return act(caller, 64) },
		close:  db.Close,
	}, nil
}

// ledgers prints what a durable change with its leaf costs, on both databases,
// and what verifying costs.
func (b *bench) ledgers(ctx context.Context) error {
	spool := filepath.Join(b.dir, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return err
	}
	ours, err := recorded(ctx, "sqlite:"+filepath.Join(b.dir, "ledger"), "")
	if err != nil {
		return err
	}
	bare, err := plain(ctx, "sqlite", "file:"+filepath.Join(b.dir, "plain.db")+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate", 1, "BLOB")
	if err != nil {
		return err
	}
	if err := b.compare("SQLite", ours, bare, 0.3, 50_000, 0); err != nil {
		return err
	}
	cluster := postgres.Start()
	defer cluster.Stop()
	url, err := cluster.New()
	if err != nil {
		b.t.note("PostgreSQL: %v", err)
		return b.verified()
	}
	if ours, err = recorded(ctx, url, spool); err != nil {
		return err
	}
	if bare, err = plain(ctx, "pgx", url, 64, "BYTEA"); err != nil {
		return err
	}
	if err := b.compare("PostgreSQL", ours, bare, 0, 10_000, 80_000); err != nil {
		return err
	}
	return b.verified()
}

func (b *bench) compare(name string, ours, bare side, p50, many, leaves float64) error {
	defer func() { _, _ = ours.close(), bare.close() }()
	rows := []struct {
		what string
		unit unit
		goal float64
		of   func(side) (float64, error)
	}{
		{name + ": one change and its leaf, p50", ms, p50, func(s side) (float64, error) {
			_, p, err := callers(1, b.parallelFor, s.change)
			return millis(p), err
		}},
		{name + ": the same by 64 callers", perSecond, many, func(s side) (float64, error) {
			rate, _, err := callers(64, b.parallelFor, s.change)
			return rate, err
		}},
		{name + ": leaves in groups of 64, 8 callers", perSecond, leaves, func(s side) (float64, error) {
			rate, _, err := callers(8, b.parallelFor, s.group)
			return 64 * rate, err
		}},
	}
	for _, r := range rows {
		var all [2][]float64
		for range b.turns {
			for i, s := range []side{ours, bare} {
				v, err := r.of(s)
				if err != nil {
					return fmt.Errorf("%s: %w", r.what, err)
				}
				all[i] = append(all[i], v)
			}
		}
		b.t.add(row{what: r.what, unit: r.unit, values: [3]value{known(median(all[0])), known(median(all[1]))}, goal: r.goal})
	}
	return nil
}

// verified is what an export of ten million entries would take, from one of
// two hundred thousand, beside the bare hashing of the same bytes.
func (b *bench) verified() error {
	const entries, of = 200_000, 10_000_000
	c, err := benchStore("sqlite:"+b.dir, "")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	e := ledger.NewExport(&out, nil, "")
	var tree ledger.Frontier
	salt, payload := make([]byte, 32), []byte(`{"v":1,"text":"`+string(bytes.Repeat([]byte("x"), 100))+`"}`)
	hashed := 0
	for i := range int64(entries) {
		l := ledger.Leaf{V: ledger.LeafVersion, Time: 1763730000000000 + i, Action: "counter.bumped", Subjects: []string{"p-00000001"},
			Session: "s-00000001", Target: "host/h-00000001", Object: "o", Version: i, Outcome: ledger.OK, Commit: ledger.Commit(salt, payload)}
		leaf := l.Marshal()
		tree.Append(ledger.HashOf(leaf), nil)
		if err := e.Entry(leaf, salt, payload); err != nil {
			return err
		}
		hashed += len(leaf) + 1
	}
	signed, err := ledger.SignCheckpoint(benchOrigin, tree.Tree(), c.Signer)
	if err == nil {
		err = e.Close(signed)
	}
	if err != nil {
		return err
	}
	var ours, bare []float64
	for range b.turns {
		start := time.Now()
		report, err := ledger.VerifyExport(bytes.NewReader(out.Bytes()), int64(out.Len()), ledger.ExportOptions{LogKey: c.Verifier, Origin: benchOrigin}, nil)
		if err != nil {
			return err
		}
		if report.Entries != entries {
			return fmt.Errorf("%d of %d entries were verified", report.Entries, entries)
		}
		ours = append(ours, time.Since(start).Seconds()*of/entries)
		bare = append(bare, hashing(entries, hashed/entries, 32+len(payload)).Seconds()*of/entries)
	}
	b.t.add(row{what: "verify an export of 10 M entries (leaves, payloads, tree)", unit: seconds, values: [3]value{known(median(ours)), known(median(bare))}, peer: "bare SHA-256", goal: 3})
	return nil
}

// hashing is the bare SHA-256 of as many leaves, tree nodes and payloads, on
// all processors.
func hashing(entries, leaf, payload int) time.Duration {
	start := time.Now()
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for range workers {
		wg.Go(func() {
			a, b, c := make([]byte, leaf), make([]byte, 65), make([]byte, payload)
			for range entries / workers {
				_, _, _ = sha256.Sum256(a), sha256.Sum256(b), sha256.Sum256(c)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}
