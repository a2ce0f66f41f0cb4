package witness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// history is a log that a test writes, with its key.
type history struct {
	t      testing.TB
	origin string
	signer note.Signer
	vkey   string
	hashes []tlog.Hash // stored hashes
	n      int64
}

func newHistory(t testing.TB, origin string) *history {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.NewChaCha8([32]byte{7}), origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &history{t: t, origin: origin, signer: s, vkey: vkey}
}

// fork is the same log with the same key, as it was at n, to be continued
// otherwise: what whoever stole the key can make.
func (h *history) fork(n int64) *history {
	f := &history{t: h.t, origin: h.origin, signer: h.signer, vkey: h.vkey}
	f.hashes, f.n = append(f.hashes, h.hashes[:tlog.StoredHashCount(n)]...), n
	return f
}

func (h *history) grow(what string, count int) *history {
	for range count {
		hs, err := tlog.StoredHashes(h.n, fmt.Appendf(nil, "%s %d", what, h.n), h.reader())
		if err != nil {
			h.t.Fatal(err)
		}
		h.hashes, h.n = append(h.hashes, hs...), h.n+1
	}
	return h
}

func (h *history) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = h.hashes[n]
		}
		return out, nil
	})
}

func (h *history) tree() tlog.Tree {
	hash, err := tlog.TreeHash(h.n, h.reader())
	if err != nil {
		h.t.Fatal(err)
	}
	return tlog.Tree{N: h.n, Hash: hash}
}

func (h *history) checkpoint() []byte {
	b, err := ledger.SignCheckpoint(h.origin, h.tree(), h.signer)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// submission is what an honest log sends when old was cosigned last.
func (h *history) submission(old int64) []byte {
	s := ledger.Submission{Old: old, Checkpoint: h.checkpoint()}
	if old > 0 && old < h.n {
		proof, err := tlog.ProveTree(h.n, old, h.reader())
		if err != nil {
			h.t.Fatal(err)
		}
		s.Proof = proof
	}
	return s.Marshal()
}

func open(t testing.TB, dir string, logs ...*history) *Witness {
	t.Helper()
	for _, l := range logs {
		if err := Trust(dir, l.vkey); err != nil {
			t.Fatal(err)
		}
	}
	w, err := Open(dir, "", LogsOf(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// post submits and says the status and the answer.
func post(t testing.TB, w http.Handler, body []byte) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	rec := &answer{header: http.Header{}, status: 200}
	w.ServeHTTP(rec, r)
	return rec.status, rec.String(), rec.header
}

type answer struct {
	bytes.Buffer
	header http.Header
	status int
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) WriteHeader(n int)   { a.status = n }

func TestAWitnessSpeaksTheProtocolToTheLetter(t *testing.T) {
	l, stranger := newHistory(t, "example.org/log").grow("a", 5), newHistory(t, "example.org/other").grow("a", 5)
	forger := newHistory(t, l.origin).grow("a", 5)
	skey, _, _ := note.GenerateKey(rand.NewChaCha8([32]byte{9}), l.origin)
	forger.signer, _ = note.NewSigner(skey)
	w := open(t, t.TempDir(), l)
	signedWith := func(status int, body, wantBody string, got int, answer string) {
		t.Helper()
		if got != status || wantBody != "" && answer != wantBody {
			t.Errorf("%s: %d %q, want %d %q", body, got, answer, status, wantBody)
		}
	}
	status, body, _ := post(t, w, l.submission(0))
	if status != 200 || len(ledger.Cosignatures([]byte(string(l.checkpoint())+body), w.Key())) != 1 {
		t.Fatalf("the first submission: %d %q", status, body)
	}
	got, text, head := post(t, w, l.grow("a", 3).submission(0))
	signedWith(409, "an old size that is not the last one", "5\n", got, text)
	if head.Get("Content-Type") != "text/x.tlog.size" {
		t.Errorf("the size is of type %q", head.Get("Content-Type"))
	}
	got, text, _ = post(t, w, l.submission(5))
	signedWith(200, "the right old size", "", got, text)
	got, text, _ = post(t, w, l.submission(8))
	signedWith(200, "the same tree again", "", got, text)
	got, text, _ = post(t, w, stranger.submission(0))
	signedWith(404, "an unknown origin", "", got, text)
	got, text, _ = post(t, w, forger.submission(8))
	signedWith(403, "another key for a known origin", "", got, text)
	got, text, _ = post(t, w, ledger.Submission{Old: 9, Checkpoint: l.checkpoint()}.Marshal())
	signedWith(400, "an old size beyond the checkpoint", "", got, text)
	got, text, _ = post(t, w, []byte("nonsense"))
	signedWith(400, "nonsense", "", got, text)
	got, text, _ = post(t, w, bytes.Repeat([]byte("x"), ledger.MaxSubmission+1))
	signedWith(400, "too much", "", got, text)
	bad := ledger.Submission{Old: 8, Proof: []tlog.Hash{{1}}, Checkpoint: l.grow("a", 4).checkpoint()}
	got, text, _ = post(t, w, bad.Marshal())
	signedWith(422, "a proof that does not verify", "", got, text)
	got, text, _ = post(t, w, l.submission(8))
	signedWith(200, "after all of it", "", got, text)
}

func TestAForkAndARollbackAreRefusedWhateverIsTried(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 20)
	dir := t.TempDir()
	w := open(t, dir, l)
	if status, body, _ := post(t, w, l.submission(0)); status != 200 {
		t.Fatal(status, body)
	}
	forks := map[string]*history{
		"shorter": l.fork(12), "of the same size": l.fork(15).grow("b", 5), "longer": l.fork(15).grow("b", 30), "from nothing": l.fork(0).grow("b", 40),
	}
	for name, f := range forks {
		for _, old := range []int64{0, 1, 12, 15, 19, 20, min(f.n, 20)} {
			if old > f.n {
				continue
			}
			status, body, _ := post(t, w, f.submission(old))
			if status == 200 {
				t.Errorf("a fork that is %s is cosigned from %d", name, old)
			}
			if old == 20 && f.n > 20 && status != 422 || old != 20 && status != 409 || old == 20 && f.n == 20 && status != 409 {
				t.Errorf("a fork that is %s is refused from %d with %d %q", name, old, status, body)
			}
		}
	}
	kept, err := os.ReadDir(filepath.Join(dir, dirEvidence))
	if err != nil || len(kept) == 0 {
		t.Errorf("no evidence of the contradiction is kept: %v", err)
	}
	if status, body, _ := post(t, w, l.grow("a", 1).submission(20)); status != 200 {
		t.Errorf("the honest log is refused afterwards: %d %q", status, body)
	}
}

func TestAMemoryThatCannotBeReadIsNeverStartedOver(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 20)
	dir := t.TempDir()
	w := open(t, dir, l)
	if status, body, _ := post(t, w, l.submission(0)); status != 200 {
		t.Fatal(status, body)
	}
	w.Close()
	files, _ := filepath.Glob(filepath.Join(dir, dirSeen, "*"))
	if len(files) != 1 {
		t.Fatalf("the memory is %v", files)
	}
	whole, _ := os.ReadFile(files[0])
	rotten := bytes.Clone(whole)
	rotten[slotHead+3]++
	if err := os.WriteFile(files[0], rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	w = open(t, dir)
	if status, body, _ := post(t, w, l.submission(20)); status != 200 {
		t.Errorf("one slot rots and the other is not read: %d %q", status, body)
	}
	w.Close()
	for name, b := range map[string][]byte{"empty": {}, "cut": whole[:50], "flipped": bytes.ReplaceAll(whole, []byte("\n20\n"), []byte("\n10\n"))} {
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		w := open(t, dir)
		for _, old := range []int64{0, 10, 20} {
			if status, body, _ := post(t, w, l.submission(old)); status != 500 || !strings.Contains(body, "damaged") {
				t.Errorf("%s, from %d: %d %q", name, old, status, body)
			}
		}
		w.Close()
	}
	if err := os.Remove(filepath.Join(dir, fileKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "", LogsOf(dir)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a new key over an old memory: %v", err)
	}
}

// A crash of the machine tears the slot that was being written: the other one
// is whole, and what it forgets was never signed.
func TestASlotThatTearsLeavesTheLastThatWasSigned(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 20)
	dir := t.TempDir()
	w := open(t, dir, l)
	for l.n < 30 {
		if status, body, _ := post(t, w, l.submission(max(0, l.n-1)*min(1, l.n-20))); status != 200 {
			t.Fatal(status, body)
		}
		last := w.of(l.origin)
		was, slot := l.n, last.slot
		l.grow("a", 1)
		w.Close()
		path := last.path
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		torn := bytes.Clone(whole)
		next := pack(l.checkpoint())
		copy(torn[(1-slot)*slotSize:], next[:len(next)/2])
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		w = open(t, dir)
		if status, body, _ := post(t, w, l.fork(was-1).submission(was-1)); status != 409 || body != fmt.Sprintln(was) {
			t.Fatalf("after a torn write it remembers %q, not %d (%d)", body, was, status)
		}
	}
}

func TestTwoProcessesNeverShareAFolder(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	if _, err := Open(dir, "", LogsOf(dir)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second one opens it: %v", err)
	}
	key := w.Key().String()
	w.Close()
	if again := open(t, dir); again.Key().String() != key {
		t.Error("it has another key after a restart")
	}
}

// TestMain becomes a witness that kills itself between the memory and the
// signature, or before both, when a test asks.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HANDRAIL_TEST_WITNESS"); dir != "" {
		actAsWitness(dir)
	}
	os.Exit(m.Run())
}

func actAsWitness(dir string) {
	w, err := Open(dir, "", LogsOf(dir))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv("HANDRAIL_TEST_KILL") != "" {
		w.wrote = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	_ = w.Serve(context.Background(), l, slog.New(slog.DiscardHandler))
	os.Exit(0)
}

// process starts a witness in a process of its own.
func process(t testing.TB, dir string, env ...string) (url string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "HANDRAIL_TEST_WITNESS="+dir), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once bool
	kill = func() {
		if !once {
			once = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	var address string
	if _, err := fmt.Fscanln(out, &address); err != nil {
		t.Fatal(err)
	}
	return "http://" + address, kill
}

func submit(t testing.TB, url string, body []byte) (int, string) {
	resp, err := http.Post(url+"/add-checkpoint", "text/plain", bytes.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestAWitnessThatIsKilledBeforeItSignsNeverSignsAnotherHistory(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 10)
	dir := t.TempDir()
	if err := Trust(dir, l.vkey); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		old := l.n
		if round == 0 {
			old = 0
		} else {
			l.grow("a", 3)
		}
		url, kill := process(t, dir, "HANDRAIL_TEST_KILL=1")
		if status, body := submit(t, url, l.submission(old)); status != 0 {
			t.Fatalf("it was to be killed before it answers: %d %s", status, body)
		}
		kill()
		url, kill = process(t, dir)
		for _, f := range []*history{l.fork(l.n-1).grow("b", 1), l.fork(l.n-1).grow("b", 9), l.fork(l.n - 1)} {
			for _, from := range []int64{0, old, min(l.n, f.n)} {
				if status, _ := submit(t, url, f.submission(min(from, f.n))); status == 200 {
					t.Fatalf("round %d: after the kill another history of %d entries is cosigned", round, f.n)
				}
			}
		}
		if status, body := submit(t, url, l.submission(l.n)); status != 200 {
			t.Fatalf("round %d: the history that it saw is refused: %d %s", round, status, body)
		}
		kill()
	}
}

func TestOfTwoHistoriesAtOnceOneIsSigned(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 10)
	w := open(t, t.TempDir(), l)
	if status, body, _ := post(t, w, l.submission(0)); status != 200 {
		t.Fatal(status, body)
	}
	const callers = 16
	done := make(chan bool, callers)
	for i := range callers {
		f := l.fork(10).grow(fmt.Sprint("fork ", i), 1+i%3)
		body := f.submission(10)
		go func() {
			_, err := w.Add(body, time.Now())
			done <- err == nil
		}()
	}
	signed := 0
	for range callers {
		if <-done {
			signed++
		}
	}
	if signed != 1 {
		t.Errorf("%d histories that exclude each other are signed", signed)
	}
}

func TestWhoIsSlowOrTalksGarbageKeepsNobodyOut(t *testing.T) {
	l := newHistory(t, "example.org/log").grow("a", 10)
	dir := t.TempDir()
	if err := Trust(dir, l.vkey); err != nil {
		t.Fatal(err)
	}
	url, _ := process(t, dir)
	address := strings.TrimPrefix(url, "http://")
	for i := range 3 * maxGuests {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		switch i % 3 {
		case 0: // silent
		case 1:
			_, _ = io.WriteString(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: 1000000000\r\n\r\nold")
		default:
			_, _ = c.Write(bytes.Repeat([]byte{0xff, 0}, 2000))
		}
	}
	if status, body := submit(t, url, l.submission(0)); status != 200 {
		t.Errorf("the log is kept out: %d %s", status, body)
	}
}

func BenchmarkCosign(b *testing.B) {
	l := newHistory(b, "example.org/log").grow("a", 1)
	dir := b.TempDir()
	if err := Trust(dir, l.vkey); err != nil {
		b.Fatal(err)
	}
	url, _ := process(b, dir)
	if status, body := submit(b, url, l.submission(0)); status != 200 {
		b.Fatal(status, body)
	}
	var took []time.Duration
	for b.Loop() {
		body := l.grow("a", 1).submission(l.n - 1)
		at := time.Now()
		if status, text := submit(b, url, body); status != 200 {
			b.Fatal(status, text)
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func newKeyNamed(t testing.TB, name string) ledger.WitnessKey {
	t.Helper()
	w, err := Open(t.TempDir(), name, func(string) []note.Verifier { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w.Key()
}
