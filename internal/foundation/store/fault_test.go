package store

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// crashEnv makes the test binary a writer that is killed: see the test below.
const crashEnv = "HANDRAIL_TEST_CRASH_DIR"

func TestWhatWasAcknowledgedSurvivesKillNine(t *testing.T) {
	if dir := os.Getenv(crashEnv); dir != "" {
		crashWriter(t, dir)
		return
	}
	c := testConfig(t)
	acknowledged := map[string]bool{}
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWhatWasAcknowledgedSurvivesKillNine$")
		cmd.Env = append(os.Environ(), crashEnv+"="+strings.TrimPrefix(c.DSN, "sqlite:"), "HANDRAIL_TEST_ROUND="+fmt.Sprint(round), "HANDRAIL_TEST_SPOOL="+c.Spool)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 150 && lines.Scan(); n++ {
			if id, ok := strings.CutPrefix(lines.Text(), "done "); ok {
				acknowledged[id] = true
			}
		}
		_ = cmd.Process.Kill()
		for lines.Scan() { // what it said before it died
			if id, ok := strings.CutPrefix(lines.Text(), "done "); ok {
				acknowledged[id] = true
			}
		}
		_ = cmd.Wait() // killed
		s := mustOpen(t, c)
		if s.Damage() != nil {
			t.Fatal(s.Damage())
		}
		for id := range acknowledged {
			if rec, err := s.recordOf(t.Context(), id); err != nil || len(rec) != 1 {
				t.Fatalf("%s was acknowledged and is gone: %v", id, err)
			}
		}
		n, err := One[int64](viewOf(t, s), `SELECT count(*) FROM ledger_record`)
		if err != nil || count(t, s, "crash") != n-1 {
			t.Fatalf("%d changes for %d records, %v", count(t, s, "crash"), n-1, err)
		}
		// Keys of the dead process died with it, so payloads do not open here;
		// everything else must add up.
		rep, err := s.Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range rep.Findings {
			if !strings.HasPrefix(f.Where, "payload of #") {
				t.Errorf("after a crash: %s", f)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) < 100 {
		t.Errorf("only %d records were acknowledged", len(acknowledged))
	}
}

func viewOf(t *testing.T, s *Store) *View {
	tx, err := s.state.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return &View{ctx: context.Background(), tx: tx}
}

// crashWriter records until it is killed, and says what was acknowledged.
func crashWriter(t *testing.T, dir string) {
	c := testConfig(t)
	c.DSN, c.Spool = "sqlite:"+dir, os.Getenv("HANDRAIL_TEST_SPOOL")
	s, err := Open(context.Background(), c)
	if err != nil {
		fmt.Println("cannot open:", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", os.Getenv("HANDRAIL_TEST_ROUND"), w, i)
				r, err := s.Record(context.Background(), id, bump("crash"))
				if err == nil && i%10 == 0 {
					_, err = r.Proof(context.Background(), 0) // signs, and remembers
				}
				mu.Lock()
				if err == nil {
					fmt.Println("done", id)
				}
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestAFullDiskRefusesChangesAndTakesBrakes(t *testing.T) {
	s := mustOpen(t, testConfig(t))
	mustRecord(t, s, "before", bump("a"))
	limit := func(pages int) {
		err := s.eng.maintain(t.Context(), func(tx *Tx) error {
			_, err := All[int64](tx, fmt.Sprintf("PRAGMA max_page_count = %d", pages))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // SQLite rounds up to what is used
	var err error
	for i := 0; i < 2000 && err == nil; i++ {
		_, err = s.Record(t.Context(), fmt.Sprint(i), bump("a"))
	}
	if fault.KindOf(err) != fault.Exhausted || fault.From(err).Hint == "" {
		t.Fatalf("got %v", err)
	}
	lock := ledger.Entry{Action: "person.locked", Subjects: []string{"p-1"}, Payload: map[string]string{"reason": strings.Repeat("x", 9000)}}
	if _, err := s.Brake(t.Context(), "lock", func(*Tx) ([]ledger.Entry, error) { return []ledger.Entry{lock}, nil }, lock); err != nil {
		t.Fatalf("the brake does not work: %v", err)
	}
	held := s.Spool().Held()
	if held != 1 {
		t.Fatalf("%d brakes are held", held)
	}
	limit(1 << 20)
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, err := s.Entries(t.Context(), EntryQuery{Action: "person.locked"})
	if err != nil || len(rec) != 1 || s.Spool().Held() != 0 {
		t.Errorf("%d entries, %d held: %v", len(rec), s.Spool().Held(), err)
	}
	mustVerify(t, s)
}

func TestAFullSpoolSaysSoAndATornFrameIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	p, err := openSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	big := ledger.Entry{Action: "person.locked", Payload: map[string]string{"reason": strings.Repeat("x", 30_000)}}
	n := 0
	for ; n < 20 && err == nil; n++ {
		err = p.Append(big)
	}
	if fault.KindOf(err) != fault.Exhausted || p.Held() != n-1 {
		t.Fatalf("after %d: %v", n, err)
	}
	end := p.end
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "brakes"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, end-5); err != nil { // within the last frame
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = openSpool(dir); err != nil || p.Held() != n-2 {
		t.Fatalf("%d frames are read: %v", p.Held(), err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzReadSpool(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		if end, _ := readSpool(b); end > int64(len(b)) {
			t.Fatal("it reads beyond the end")
		}
	})
}

func FuzzUnpackOutgoing(f *testing.F) {
	l := ledger.Leaf{V: 1, Time: 1, Action: "a.b", Outcome: ledger.OK, Subjects: []string{"p-1"}, Commit: make([]byte, 32)}
	var o outgoing
	o.add("one", []draft{{leaf: l.Marshal(), body: []byte("x")}, {leaf: l.Marshal()}})
	o.add("two", []draft{{leaf: l.Marshal(), body: []byte("y")}})
	f.Add(o.pack())
	f.Add(o.pack()[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := unpackOutgoing("id", b)
		if err != nil {
			return
		}
		if o.size() == 0 && len(b) != 4 {
			t.Fatal("rows without entries are read")
		}
		again, err := unpackOutgoing("", o.pack())
		if err != nil || !reflect.DeepEqual(o, again) {
			t.Fatal("what was read is written otherwise")
		}
	})
}

func TestTheRememberedCheckpointSurvivesATornWriteAndIsNotForgottenSilently(t *testing.T) {
	c := testConfig(t)
	s := mustOpen(t, c)
	for i := range 3 {
		mustRecord(t, s, fmt.Sprint(i), bump("a"))
		if _, _, err := s.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Spool, "remembered")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(slots ...int) {
		b := append([]byte(nil), image...)
		for _, i := range slots {
			b[i*anchorSlot+20] ^= 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for slot := range 2 {
		spoil(slot)
		s := mustOpen(t, c)
		if s.Damage() != nil {
			t.Errorf("slot %d torn: %v", slot, s.Damage())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	spoil(0, 1)
	if s := mustOpen(t, c); s.Damage() == nil {
		t.Error("both slots are unreadable and nobody says so")
	}
}

func TestBrokenConnectionsLoseNothingAndDoubleNothing(t *testing.T) {
	c := testConfig(t)
	c.DSN = shared.Database(t)
	s := mustOpen(t, c)
	admin, err := sql.Open("pgx", c.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	var wg sync.WaitGroup
	var done atomic.Int64
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for last := int64(-1); ; {
			select {
			case <-stop:
				return
			default:
			}
			if n := done.Load(); n/20 != last/20 { // now and then, in the middle of things
				last = n
				_, _ = admin.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'handrail' AND pid <> pg_backend_pid() AND datname = current_database()`)
			}
		}
	})
	const callers, each = 4, 50
	for w := range callers {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("%d-%d", w, i)
				for attempt := 0; ; attempt++ { // what any caller does: ask again with the same id
					_, err := s.Record(t.Context(), id, bump("k"))
					if err == nil {
						break
					}
					if fault.KindOf(err) != fault.Unavailable || attempt > 200 {
						t.Errorf("%s: %v (%v)", id, err, fault.KindOf(err))
						return
					}
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	close(stop)
	killer.Wait()
	if n := count(t, s, "k"); n != callers*each {
		t.Errorf("%d changes instead of %d", n, callers*each)
	}
	mustVerify(t, s)
}
