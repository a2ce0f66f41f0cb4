package store

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// twoServers are two stores over one database, each with a folder of its own
// and the same keys.
func twoServers(t *testing.T) (a, b *Store, c Config) {
	c = testConfig(t)
	c.DSN, c.Seals = shared.Database(t), derivedKeys{}
	other := c
	other.Spool = t.TempDir()
	return mustOpen(t, c), mustOpen(t, other), c
}

// derivedKeys are keys that every process of a test has.
type derivedKeys struct{}

func (derivedKeys) key(subject string) cipher.AEAD {
	k := sha256.Sum256([]byte("test " + subject))
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (d derivedKeys) Seal(subject string, plain, ad []byte) ([]byte, error) {
	return d.key(subject).Seal(nil, nil, plain, ad), nil
}

func (d derivedKeys) Open(subject string, sealed, ad []byte) ([]byte, error) {
	return d.key(subject).Open(nil, nil, sealed, ad)
}

func (derivedKeys) Destroy(string) error { return nil }

func TestTwoServersKeepOneLedger(t *testing.T) {
	a, b, _ := twoServers(t)
	const callers, each = 6, 30
	var wg sync.WaitGroup
	for i, s := range []*Store{a, b} {
		for w := range callers {
			wg.Go(func() {
				for n := range each {
					r := mustRecord(t, s, fmt.Sprintf("%d-%d-%d", i, w, n), bump("all"))
					if len(r.Entries()) != 1 || len(r.Entries()[0].Payload) == 0 {
						t.Errorf("receipt %+v", r.Entries())
					}
					if _, err := r.Proof(t.Context(), 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if n := count(t, a, "all"); n != 2*callers*each {
		t.Errorf("%d changes instead of %d", n, 2*callers*each)
	}
	for _, s := range []*Store{a, b} {
		if err := s.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, s)
	}
	ta, na, err := a.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tb, nb, err := b.Head(t.Context()); err != nil || ta != tb || string(na) != string(nb) {
		t.Errorf("two heads: %v and %v, %v", ta, tb, err)
	}
}

// A server that only follows hears of the other's entries at once.
func TestAFollowerOnAnotherServerSeesEveryEntry(t *testing.T) {
	a, b, _ := twoServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen := make(chan int64, 100)
	go func() {
		_ = b.Follow(ctx, -1, func(r Recorded) error {
			seen <- r.Seq
			return nil
		})
	}()
	for want := range int64(20) {
		if want > 0 { // the first is the genesis
			mustRecord(t, a, fmt.Sprint(want), bump("a"))
		}
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("entry #%d instead of #%d", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("entry #%d was never seen", want)
		}
	}
}

func TestALeaderThatHangsIsReplacedAndCannotAppendAfter(t *testing.T) {
	a, b, c := twoServers(t)
	mustRecord(t, a, "one", bump("a"))
	term := termOf(t, a)
	// a leads, and holds the lock for as long as its connection lives; b takes
	// the next term all the same, as it does when its work is left lying.
	mustRecord(t, b, "two", bump("a"))
	eb := b.eng.(*postgresEngine)
	eb.lead.usurp.Store(true)
	eb.poke()
	mustRecord(t, b, "three", bump("a"))
	if now := termOf(t, b); now <= term {
		t.Fatalf("term %d follows %d", now, term)
	}
	var wg sync.WaitGroup
	for i, s := range []*Store{a, b} {
		wg.Go(func() {
			for n := range 20 {
				mustRecord(t, s, fmt.Sprintf("%d-%d", i, n), bump("a"))
			}
		})
	}
	wg.Wait()
	if n := count(t, a, "a"); n != 43 {
		t.Errorf("a is %d", n)
	}
	mustVerify(t, a)
	mustVerify(t, b)
	_ = c
}

func termOf(t *testing.T, s *Store) (term int64) {
	t.Helper()
	err := s.View(t.Context(), func(v *View) (err error) {
		term, err = One[int64](v, `SELECT term FROM ledger_head WHERE id = 1`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// Somebody else holds the leader's lock and does nothing: what a leader looks
// like whose machine is stopped.
func TestWorkThatALeaderLeavesLyingIsDone(t *testing.T) {
	c := testConfig(t)
	c.DSN = shared.Database(t)
	first := mustOpen(t, c)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := first.db.pool(t.Context(), "state", "sequence")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_lock($1)`, int64(seqLock)); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, c)
	mustRecord(t, s, "one", bump("a"))
	mustVerify(t, s)
}

const severalEnv = "HANDRAIL_TEST_SEVERAL_DSN"

// runs is how often a long test is repeated.
func runs(t *testing.T, few int) int {
	if n, err := strconv.Atoi(os.Getenv("HANDRAIL_TEST_RUNS")); err == nil && n > 0 {
		return n
	}
	return few
}

// Two processes work on one database; one of them, in turns, is killed in the
// middle. What was acknowledged is there once, and nobody saw two heads.
func TestServersThatAreKilledLoseNothingAndForkNothing(t *testing.T) {
	if dsn := os.Getenv(severalEnv); dsn != "" {
		severalWriter(t, dsn)
		return
	}
	c := testConfig(t)
	c.DSN, c.Seals = shared.Database(t), derivedKeys{}
	if err := mustOpen(t, c).Close(); err != nil { // not two that migrate at once
		t.Fatal(err)
	}
	spools := [2]string{t.TempDir(), t.TempDir()}
	heard := &several{acknowledged: map[string]bool{}, heads: map[int64]string{}}
	var servers [2]*serverProcess
	for i := range servers {
		servers[i] = startServer(t, heard, c.DSN, spools[i], fmt.Sprintf("%d-first", i))
	}
	for round := range 2 * runs(t, 1) {
		victim := round % 2
		heard.wait(t, 60)
		servers[victim].kill()
		heard.wait(t, 60) // the other goes on alone
		servers[victim] = startServer(t, heard, c.DSN, spools[victim], fmt.Sprintf("%d-%d", victim, round))
	}
	heard.wait(t, 60)
	for _, s := range servers {
		s.kill()
	}
	s := mustOpen(t, c)
	mustRecord(t, s, "last", bump("last")) // and with it, what was pending
	mustVerify(t, s)
	heard.check(t, s)
}

// several is what two servers said.
type several struct {
	mu           sync.Mutex
	acknowledged map[string]bool
	heads        map[int64]string
	forks, bad   []string
	more         broadcast
}

func (h *several) hear(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "done":
		h.acknowledged[rest] = true
	case "head":
		n, root, _ := strings.Cut(rest, " ")
		size, _ := strconv.ParseInt(n, 10, 64)
		if was, ok := h.heads[size]; ok && was != root {
			h.forks = append(h.forks, line)
		}
		h.heads[size] = root
	case "bad":
		h.bad = append(h.bad, rest)
	}
	h.more.wake()
}

// wait until that many more were acknowledged.
func (h *several) wait(t *testing.T, more int) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	size := func() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.acknowledged) }
	for want := size() + more; ; {
		next := h.more.wait()
		if size() >= want {
			return
		}
		select {
		case <-next:
		case <-limit:
			t.Fatalf("%d are acknowledged, %d are wanted: %v", size(), want, h.bad)
		}
	}
}

func (h *several) check(t *testing.T, s *Store) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.forks)+len(h.bad) > 0 {
		t.Errorf("forks %v, failures %v", h.forks, h.bad)
	}
	for id := range h.acknowledged {
		if rec, err := s.recordOf(t.Context(), id); err != nil || len(rec) != 1 {
			t.Fatalf("%s was acknowledged and is gone: %v", id, err)
		}
	}
	n, err := One[int64](viewOf(t, s), `SELECT count(*) FROM ledger_record WHERE id LIKE 'w-%'`)
	if err != nil || count(t, s, "crash") != n {
		t.Fatalf("%d changes for %d records, %v", count(t, s, "crash"), n, err)
	}
	p := s.head.Load()
	for size, root := range h.heads {
		err := s.withReader(t.Context(), p, func(r tlog.HashReader) error {
			h, err := tlog.TreeHash(size, r)
			if err == nil && h.String() != root {
				t.Errorf("a server signed another tree of %d", size)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d acknowledged, %d heads, %d entries, term %d", len(h.acknowledged), len(h.heads), p.tree.N, termOf(t, s))
}

type serverProcess struct {
	cmd  *exec.Cmd
	read chan struct{}
}

func startServer(t *testing.T, h *several, dsn, spool, name string) *serverProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestServersThatAreKilledLoseNothingAndForkNothing$")
	cmd.Env = append(os.Environ(), severalEnv+"="+dsn, "HANDRAIL_TEST_ROUND="+name, "HANDRAIL_TEST_SPOOL="+spool)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &serverProcess{cmd: cmd, read: make(chan struct{})}
	go func() {
		defer close(p.read)
		in := bufio.NewReader(out)
		for {
			line, err := in.ReadString('\n') // a line that was cut was not said
			if err != nil {
				_, _ = io.Copy(io.Discard, in)
				return
			}
			h.hear(strings.TrimSpace(line))
		}
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *serverProcess) kill() {
	_ = p.cmd.Process.Kill()
	<-p.read
	_ = p.cmd.Wait() // killed
}

// severalWriter records until it is killed, and says what was acknowledged.
func severalWriter(t *testing.T, dsn string) {
	c := testConfig(t)
	c.DSN, c.Seals, c.Spool = dsn, derivedKeys{}, os.Getenv("HANDRAIL_TEST_SPOOL")
	s, err := Open(context.Background(), c)
	if err != nil {
		fmt.Println("bad cannot open:", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	say := func(line ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(line...)
	}
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("w-%s-%d-%d", os.Getenv("HANDRAIL_TEST_ROUND"), w, i)
				_, err := s.Record(context.Background(), id, bump("crash"))
				for tries := 0; fault.KindOf(err) == fault.Unavailable && tries < 100 && err != nil; tries++ {
					_, err = s.Record(context.Background(), id, bump("crash"))
				}
				if err != nil {
					say("bad", id, err)
					return
				}
				say("done", id)
				if tree, _, err := s.Head(context.Background()); err == nil {
					say("head", tree.N, tree.Hash)
				} else {
					say("bad", err)
				}
			}
		}()
	}
	select {}
}
