package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// A tampering changes the database below the store, with its triggers dropped,
// and says how a finding about it may be named ("" is: any finding will do).
type tampering struct {
	name string
	do   func(x *tamperer) (want []string, err error)
}

// tamperer is one attacker: a transaction that is rolled back afterwards.
type tamperer struct {
	tx   *sql.Tx
	rng  *rand.Rand
	size int64
	s    *Store
}

func (x *tamperer) exec(q string, args ...any) error {
	res, err := x.tx.Exec(q, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("%s: %d rows, %v", q, n, err)
	}
	return nil
}

func (x *tamperer) seq() int64 { return x.rng.Int64N(x.size) }

func (x *tamperer) two() (a, b int64) {
	for a == b {
		a, b = x.seq(), x.seq()
	}
	return a, b
}

// flip changes one byte of a column; text stays text.
func (x *tamperer) flip(table, column, where string, args ...any) error {
	var b []byte
	if err := x.tx.QueryRow("SELECT CAST("+column+" AS BLOB) FROM "+table+" WHERE "+where, args...).Scan(&b); err != nil {
		return err
	}
	if len(b) == 0 {
		return errSkip
	}
	i := x.rng.IntN(len(b))
	b[i] ^= byte(1 << x.rng.IntN(7))
	cast := ""
	if table == "ledger_checkpoint" {
		cast = "TEXT"
	}
	var v any = b
	if cast != "" {
		v = string(b)
	}
	return x.exec("UPDATE "+table+" SET "+column+" = $"+strconv.Itoa(len(args)+1)+" WHERE "+where, append(args, v)...)
}

// errSkip says that this attack does not apply here; another is tried.
var errSkip = fmt.Errorf("not applicable")

func entryNamed(seq int64) []string { return []string{fmt.Sprintf("entry #%d", seq)} }

func payloadNamed(seq int64) []string { return []string{fmt.Sprintf("payload of #%d", seq)} }

const entryColumns = `at, action, session, target, object, version, outcome, leaf, hash`

var tamperings = []tampering{
	{"flip leaf", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return entryNamed(k), x.flip("ledger_entry", "leaf", "seq = $1", k)
	}},
	{"flip leaf, hash made to fit", func(x *tamperer) ([]string, error) {
		k := x.seq()
		if err := x.flip("ledger_entry", "leaf", "seq = $1", k); err != nil {
			return nil, err
		}
		return entryNamed(k), x.rehash(k)
	}},
	{"flip hash column", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return entryNamed(k), x.flip("ledger_entry", "hash", "seq = $1", k)
	}},
	{"change index column", func(x *tamperer) ([]string, error) {
		k := x.seq()
		column := []string{"at", "action", "session", "target", "object", "version", "outcome"}[x.rng.IntN(7)]
		if column == "at" || column == "version" {
			return entryNamed(k), x.exec("UPDATE ledger_entry SET "+column+" = "+column+" + $2 WHERE seq = $1", k, 1+x.rng.Int64N(9))
		}
		return entryNamed(k), x.exec("UPDATE ledger_entry SET "+column+" = "+column+" || $2 WHERE seq = $1", k, "x")
	}},
	{"change leaf and its index, hash made to fit", func(x *tamperer) ([]string, error) {
		k := x.seq()
		if err := x.exec(`UPDATE ledger_entry SET outcome = 'lost', leaf = CAST(replace(CAST(leaf AS TEXT), '"outcome":"ok"', '"outcome":"lost"') AS BLOB) WHERE seq = $1`, k); err != nil {
			return nil, err
		}
		return entryNamed(k), x.rehash(k)
	}},
	{"delete entry", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return entryNamed(k), x.exec("DELETE FROM ledger_entry WHERE seq = $1", k)
	}},
	{"delete entry, close the gap", func(x *tamperer) ([]string, error) {
		k := x.seq()
		if k == x.size-1 {
			return nil, errSkip
		}
		return nil, x.shift(k, -1)
	}},
	{"insert entry at the end", func(x *tamperer) ([]string, error) {
		return entryNamed(x.size), x.copyEntry(x.seq(), x.size)
	}},
	{"insert entry, move the rest", func(x *tamperer) ([]string, error) { return nil, x.shift(x.seq(), +1) }},
	{"swap entries", func(x *tamperer) ([]string, error) {
		a, b := x.two()
		return append(entryNamed(a), entryNamed(b)...), x.swap("ledger_entry", "seq", a, b)
	}},
	{"swap entries with payloads", func(x *tamperer) ([]string, error) {
		a, b := x.two()
		if err := x.swap("ledger_payload", "seq", a, b); err != nil {
			return nil, err
		}
		return nil, x.swap("ledger_entry", "seq", a, b)
	}},
	{"flip payload", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return payloadNamed(k), x.flip("ledger_payload", "body", "seq = $1", k)
	}},
	{"delete payload", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return payloadNamed(k), x.unlessErased(k, "DELETE FROM ledger_payload WHERE seq = $1")
	}},
	{"empty payload", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return payloadNamed(k), x.unlessErased(k, "UPDATE ledger_payload SET body = x'' WHERE seq = $1")
	}},
	{"call a payload erased", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return payloadNamed(k), x.unlessErased(k, "UPDATE ledger_payload SET body = x'', sealer = 'p-erased' WHERE seq = $1")
	}},
	{"swap payloads", func(x *tamperer) ([]string, error) {
		a, b := x.two()
		if x.unlessErased(a, "UPDATE ledger_payload SET seq = seq WHERE seq = $1") != nil || x.unlessErased(b, "UPDATE ledger_payload SET seq = seq WHERE seq = $1") != nil {
			return nil, errSkip
		}
		return append(payloadNamed(a), payloadNamed(b)...), x.swap("ledger_payload", "seq", a, b)
	}},
	{"insert payload", func(x *tamperer) ([]string, error) {
		return payloadNamed(x.size + 3), x.exec("INSERT INTO ledger_payload (seq, sealer, body) VALUES ($1, 'p-1', x'00')", x.size+3)
	}},
	{"delete from the index of subjects", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return entryNamed(k), x.exec("DELETE FROM ledger_subject WHERE seq = $1", k)
	}},
	{"insert into the index of subjects", func(x *tamperer) ([]string, error) {
		k := x.seq()
		return entryNamed(k), x.exec("INSERT INTO ledger_subject (subject, seq) VALUES ('p-mallory', $1)", k)
	}},
	{"flip tile", func(x *tamperer) ([]string, error) {
		i := x.rng.Int64N(x.size / 256)
		return []string{fmt.Sprintf("tile 0/%d", i)}, x.flip("ledger_tile", "hashes", "level = 0 AND idx = $1", i)
	}},
	{"delete tile", func(x *tamperer) ([]string, error) {
		i := x.rng.Int64N(x.size / 256)
		return []string{fmt.Sprintf("tile 0/%d", i)}, x.exec("DELETE FROM ledger_tile WHERE level = 0 AND idx = $1", i)
	}},
	{"cut tile short", func(x *tamperer) ([]string, error) {
		i := x.rng.Int64N(x.size / 256)
		return []string{fmt.Sprintf("tile 0/%d", i)}, x.exec("UPDATE ledger_tile SET hashes = substr(hashes, 1, $2) WHERE level = 0 AND idx = $1", i, 32*x.rng.Int64N(256))
	}},
	{"insert tile", func(x *tamperer) ([]string, error) {
		level, i := x.rng.Int64N(3), x.size/256+x.rng.Int64N(5)
		return []string{fmt.Sprintf("tile %d/%d", level, i)}, x.exec("INSERT INTO ledger_tile (level, idx, hashes) VALUES ($1, $2, zeroblob(8192))", level, i)
	}},
	{"move tile", func(x *tamperer) ([]string, error) {
		return []string{"tile 0/0", "tile 1/0"}, x.exec("UPDATE ledger_tile SET level = 1 WHERE level = 0 AND idx = 0")
	}},
	{"flip checkpoint", func(x *tamperer) ([]string, error) {
		n, err := x.checkpoint()
		if err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("checkpoint at %d", n)}, x.flip("ledger_checkpoint", "signed", "n = $1", n)
	}},
	{"move checkpoint", func(x *tamperer) ([]string, error) {
		n, err := x.checkpoint()
		if err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("checkpoint at %d", n-1)}, x.unlessTaken(x.exec("UPDATE ledger_checkpoint SET n = n - 1 WHERE n = $1", n))
	}},
	{"delete checkpoint", func(x *tamperer) ([]string, error) {
		n, err := x.checkpoint()
		if err != nil {
			return nil, err
		}
		return nil, x.exec("DELETE FROM ledger_checkpoint WHERE n = $1", n)
	}},
	{"delete checkpoint, rebuild the chain", func(x *tamperer) ([]string, error) {
		n, err := x.checkpoint()
		if err != nil {
			return nil, err
		}
		if err := x.exec("DELETE FROM ledger_checkpoint WHERE n = $1", n); err != nil {
			return nil, err
		}
		return nil, x.rechain()
	}},
	{"delete all checkpoints", func(x *tamperer) ([]string, error) { return nil, x.exec("DELETE FROM ledger_checkpoint") }},
	{"change head", func(x *tamperer) ([]string, error) {
		return []string{"head"}, x.exec("UPDATE ledger_head SET root = $1", tlog.Hash{byte(x.rng.Uint32())}.String())
	}},
	{"shorten head", func(x *tamperer) ([]string, error) {
		return nil, x.exec("UPDATE ledger_head SET n = n - $1", 1+x.rng.Int64N(20))
	}},
	{"delete head", func(x *tamperer) ([]string, error) { return []string{"head"}, x.exec("DELETE FROM ledger_head") }},
	{"truncate entries", func(x *tamperer) ([]string, error) {
		k := x.size - 1 - x.rng.Int64N(40)
		return entryNamed(k), x.exec("DELETE FROM ledger_entry WHERE seq >= $1", k)
	}},
	{"roll everything back", func(x *tamperer) ([]string, error) {
		return []string{"ledger"}, x.rollBack(x.size - 1 - x.rng.Int64N(300))
	}},
	{"fork: change an entry and rebuild all", func(x *tamperer) ([]string, error) {
		return nil, x.fork(false)
	}},
	{"fork with the log key", func(x *tamperer) ([]string, error) {
		return nil, x.fork(true)
	}},
	{"disable a guard", func(x *tamperer) ([]string, error) {
		return []string{"table ledger_entry"}, x.exec("UPDATE ledger_head SET n = n")
	}},
}

// tamperedLedger has a full tile and a tail, several stored checkpoints and an
// erased subject.
func tamperedLedger(t *testing.T) (*Store, int64) {
	s := mustOpen(t, testConfig(t))
	for i := range 50 {
		mustRecord(t, s, fmt.Sprint(i), func(tx *Tx) ([]ledger.Entry, error) {
			var out []ledger.Entry
			for j := range 6 {
				out = append(out, ledger.Entry{Action: "thing.done", Subjects: []string{fmt.Sprintf("p-%d", j)}, Session: fmt.Sprintf("s-%d", i), Target: "host/h-1",
					Object: "g-1", Version: int64(i*6 + j + 1), Payload: map[string]int{"v": 1, "i": i, "j": j}})
			}
			return out, nil
		})
		if i%10 == 9 {
			if err := s.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Erase(t.Context(), "erase", "p-3", ledger.Entry{Payload: map[string]string{"ground": "asked"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, s.head.Load().tree.N
}

// tamperings done by default; the seed is printed and can be given.
const tamperRuns = 10_000

func TestTenThousandTamperingsAreAllFound(t *testing.T) {
	runs := tamperRuns
	if testing.Short() {
		runs = 1000
	}
	seed := uint64(20261121)
	if env := os.Getenv("HANDRAIL_TEST_SEED"); env != "" {
		n, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("seed %d (HANDRAIL_TEST_SEED)", seed)
	s, size := tamperedLedger(t)
	mustVerify(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	image := compactImage(t, filepath.Join(strings.TrimPrefix(s.cfg.DSN, "sqlite:"), "state.db"))
	var next, found, alarms atomic.Int64
	var byKind sync.Map
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			w := newTamperWorker(t, s, size, image)
			for {
				i := next.Add(1) - 1
				if i >= int64(runs) || t.Failed() {
					return
				}
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				name, ok := w.run(t, rng, i)
				if ok {
					found.Add(1)
				}
				n, _ := byKind.LoadOrStore(name, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				if i%50 == 0 && !w.clean(t) { // between two attacks
					alarms.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if found.Load() != int64(runs) || alarms.Load() != 0 {
		t.Errorf("%d of %d found, %d false alarms", found.Load(), runs, alarms.Load())
	}
	byKind.Range(func(k, n any) bool { t.Logf("%6d  %s", n.(*atomic.Int64).Load(), k); return true })
}

// compactImage is the database without free space, where old bytes linger that
// nothing reads.
func compactImage(t *testing.T, path string) []byte {
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	out := filepath.Join(t.TempDir(), "image.db")
	if _, err := db.Exec("VACUUM INTO ?", out); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// tamperWorker has a copy of the database for itself.
type tamperWorker struct {
	s     *Store
	size  int64
	image []byte
	path  string
	db    *sql.DB
}

func newTamperWorker(t *testing.T, s *Store, size int64, image []byte) *tamperWorker {
	w := &tamperWorker{s: s, size: size, image: image, path: filepath.Join(t.TempDir(), "copy.db")}
	if err := os.WriteFile(w.path, image, 0o600); err != nil {
		t.Error(err)
		return w
	}
	db, err := sql.Open("sqlite", "file:"+w.path+"?_txlock=immediate&_pragma=synchronous(OFF)&_pragma=journal_mode(MEMORY)")
	if err != nil {
		t.Error(err)
		return w
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	w.db = db
	return w
}

func (w *tamperWorker) verify(t *testing.T, tx *sql.Tx) ledger.Report {
	v := w.s.newVerification(context.Background(), nil)
	if err := v.run(&View{ctx: context.Background(), tx: tx}); err != nil {
		t.Errorf("verify: %v", err)
	}
	return v.report
}

func (w *tamperWorker) clean(t *testing.T) bool {
	tx, err := w.db.Begin()
	if err != nil {
		t.Error(err)
		return false
	}
	defer func() { _ = tx.Rollback() }()
	rep := w.verify(t, tx)
	if len(rep.Findings) > 0 {
		t.Errorf("false alarm: %v", rep.Findings)
	}
	return len(rep.Findings) == 0
}

// run does one attack and says whether it was found under its name.
func (w *tamperWorker) run(t *testing.T, rng *rand.Rand, i int64) (name string, found bool) {
	if rng.IntN(20) == 0 {
		return w.runOnFile(t, rng, i)
	}
	for {
		attack := tamperings[rng.IntN(len(tamperings))]
		tx, err := w.db.Begin()
		if err != nil {
			t.Error(err)
			return attack.name, false
		}
		want, err := w.attack(tx, rng, attack)
		if err == errSkip {
			_ = tx.Rollback()
			continue
		}
		if err != nil {
			_ = tx.Rollback()
			t.Errorf("%d %s: %v", i, attack.name, err)
			return attack.name, false
		}
		rep := w.verify(t, tx)
		_ = tx.Rollback()
		ok := named(rep, want)
		if !ok {
			t.Errorf("attack %d (%s) wants %q, found %v", i, attack.name, want, rep.Findings)
		}
		return attack.name, ok
	}
}

// attack drops the guards, changes something, and puts the guards back, but for
// the one attack that is about them.
func (w *tamperWorker) attack(tx *sql.Tx, rng *rand.Rand, a tampering) ([]string, error) {
	guards := map[string]string{}
	rows, err := tx.Query("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, err
		}
		guards[name] = text
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	for name := range guards {
		if _, err := tx.Exec("DROP TRIGGER " + name); err != nil {
			return nil, err
		}
	}
	want, err := a.do(&tamperer{tx: tx, rng: rng, size: w.size, s: w.s})
	if err != nil {
		return nil, err
	}
	for name, text := range guards {
		if a.name == "disable a guard" && strings.HasPrefix(name, "ledger_entry") {
			continue
		}
		if _, err := tx.Exec(text); err != nil {
			return nil, err
		}
	}
	return want, nil
}

// named says whether every name that is wanted is among the findings.
func named(rep ledger.Report, want []string) bool {
	for _, name := range want {
		ok := false
		for _, f := range rep.Findings {
			ok = ok || f.Where == name
		}
		if !ok {
			return false
		}
	}
	return len(rep.Findings) > 0
}

// runOnFile flips one byte of a leaf or of a tile in the file itself.
func (w *tamperWorker) runOnFile(t *testing.T, rng *rand.Rand, i int64) (string, bool) {
	const name = "flip a byte in the file"
	tx, err := w.db.Begin()
	if err != nil {
		t.Error(err)
		return name, false
	}
	k := rng.Int64N(w.size)
	var leaf []byte
	err = tx.QueryRow("SELECT leaf FROM ledger_entry WHERE seq = $1", k).Scan(&leaf)
	_ = tx.Rollback()
	if err != nil || !bytes.Contains(w.image, leaf) {
		t.Errorf("leaf of #%d: %v", k, err)
		return name, false
	}
	path := filepath.Join(t.TempDir(), "touched.db")
	bad := append([]byte(nil), leaf...)
	bad[rng.IntN(len(bad))] ^= byte(1 << rng.IntN(8))
	touched := bytes.ReplaceAll(w.image, leaf, bad) // a page may hold a dead copy
	if err := os.WriteFile(path, touched, 0o600); err != nil {
		t.Error(err)
		return name, false
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Error(err)
		return name, false
	}
	defer func() { _ = db.Close() }()
	tx, err = db.Begin()
	if err != nil {
		t.Error(err)
		return name, false
	}
	defer func() { _ = tx.Rollback() }()
	if said, err := integrity(&View{ctx: context.Background(), tx: tx}); err != nil || len(said) > 0 {
		t.Logf("%s also shows in the database's own check: %v %v", name, said, err)
	}
	rep := w.verify(t, tx)
	if !named(rep, entryNamed(k)) {
		t.Errorf("attack %d (%s) on #%d: found %v", i, name, k, rep.Findings)
		return name, false
	}
	return name, true
}
