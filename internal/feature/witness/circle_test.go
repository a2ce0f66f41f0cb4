package witness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// installation is a ledger with a circle over it.
type installation struct {
	t      *testing.T
	ring   *keyring.Ring
	store  *store.Store
	circle *Circle
}

// quick is a circle whose witness is missing soon.
var quick = Bounds{Every: 5 * time.Millisecond, Renew: 20 * time.Millisecond, Answer: 10 * time.Second, Missing: 300 * time.Millisecond}

func newRing(t *testing.T) *keyring.Ring {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(dir+"/keys", dir+"/root", "handrail/test"); err != nil {
		t.Fatal(err)
	}
	r, err := keyring.Open(dir + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// install opens a ledger of that ring; two of them over one ring are what
// whoever stole the keys can keep.
func install(t *testing.T, r *keyring.Ring, b Bounds) *installation {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), store.Config{
		DSN: "sqlite:" + dir, Origin: r.Origin(), Signer: r.Log(), Verifier: r.LogVerifier(), Seals: r.Subjects(), Spool: dir,
		Migrations: Schema(), Observations: Observations(),
	})
	if err != nil {
		t.Fatal(err)
	}
	i := &installation{t, r, s, New(Deps{Store: s, Bounds: b})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = i.circle.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	return i
}

// policy puts a policy in force as an approval would.
func (i *installation) policy(base int64, text string) {
	i.t.Helper()
	_, err := i.store.Record(i.t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		return setTx(tx, ledger.System, request{V: 1, Base: base, Text: text})
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) grow(n int) {
	i.t.Helper()
	for range n {
		_, err := i.store.Record(i.t.Context(), store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: "test.grown", Payload: map[string]any{"v": 1}}}, nil
		})
		if err != nil {
			i.t.Fatal(err)
		}
	}
}

func (i *installation) entries(action ledger.Action) []store.Recorded {
	i.t.Helper()
	all, err := i.store.Entries(i.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000})
	if err != nil {
		i.t.Fatal(err)
	}
	return all
}

func (i *installation) until(what string, ok func() bool) {
	i.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			states, _, _ := i.circle.List()
			i.t.Fatalf("after a minute there is still not %s: %+v, %+v", what, states, i.circle.Tail())
		}
	}
}

func logKey(t *testing.T, r *keyring.Ring) string {
	t.Helper()
	b, _ := r.Bundle()
	return b.LogKey
}

// outside starts a witness process that knows the log of the ring.
func outside(t *testing.T, dir string, r *keyring.Ring) (w ledger.PolicyWitness, kill func()) {
	t.Helper()
	if err := Trust(dir, logKey(t, r)); err != nil {
		t.Fatal(err)
	}
	url, kill := process(t, dir)
	return ledger.PolicyWitness{Name: filepath.Base(dir), Key: readKey(t, dir), URL: url}, kill
}

func readKey(t *testing.T, dir string) ledger.WitnessKey {
	t.Helper()
	text := readFile(t, filepath.Join(dir, filePublic))
	k, err := ledger.ParseWitnessKey(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTheWholeLedgerIsCosignedSoon(t *testing.T) {
	r := newRing(t)
	i := install(t, r, Bounds{Every: 5 * time.Millisecond})
	w1, _ := outside(t, filepath.Join(t.TempDir(), "w1"), r)
	w2, _ := outside(t, filepath.Join(t.TempDir(), "w2"), r)
	i.policy(0, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w1, w2}, 2))
	for range 3 {
		i.grow(50)
		size := i.store.Size()
		tree, signed, err := i.circle.Cosigned(t.Context(), size)
		if err != nil || tree.N < size {
			t.Fatalf("%d of %d entries are cosigned: %v", tree.N, size, err)
		}
		if got := ledger.Cosignatures(signed, w1.Key, w2.Key); len(got) != 2 {
			t.Errorf("%d cosignatures", len(got))
		}
		if opened, err := ledger.OpenCheckpoint(signed, r.Origin(), r.LogVerifier()); err != nil || opened != tree {
			t.Errorf("%v, %v", opened, err)
		}
	}
	var out bytes.Buffer
	if err := i.store.Export(t.Context(), &out, i.circle); err != nil {
		t.Fatal(err)
	}
	report, err := ledger.VerifyExport(bytes.NewReader(out.Bytes()), int64(out.Len()), ledger.ExportOptions{
		LogKey: r.LogVerifier(), Origin: r.Origin(), Witnesses: []ledger.WitnessKey{w1.Key, w2.Key},
	}, nil)
	if err != nil || !report.OK || len(report.Witnesses) != 2 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestAWitnessThatIsMissingIsOneEntryAndItsReturnAnother(t *testing.T) {
	r := newRing(t)
	i := install(t, r, quick)
	dir := filepath.Join(t.TempDir(), "w1")
	w, kill := outside(t, dir, r)
	i.policy(0, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1))
	i.grow(3)
	if _, _, err := i.circle.Cosigned(t.Context(), i.store.Size()); err != nil {
		t.Fatal(err)
	}
	kill()
	i.grow(3)
	i.until("an entry that it is missing", func() bool { return len(i.entries(ActionMissing)) > 0 })
	i.until("that it is shown, once it is recorded", func() bool {
		states, _, _ := i.circle.List()
		tail := i.circle.Tail()
		return !states[0].Missing.IsZero() && states[0].Why != "" && tail.Late && tail.Entries > 0
	})
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := i.circle.Cosigned(soon, i.store.Size()); fault.KindOf(err) != fault.Unavailable || fault.From(err).Hint == "" {
		t.Errorf("who waits is told %v", err)
	}
	again, _ := process(t, dir)
	// It comes back at another address, which is another policy; the outage goes on.
	w.URL = again
	i.policy(1, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1))
	i.until("an entry that it is back", func() bool { return len(i.entries(ActionReturned)) > 0 })
	i.until("no alarm", func() bool { return !i.circle.Tail().Late })
	if missing, back := len(i.entries(ActionMissing)), len(i.entries(ActionReturned)); missing != 1 || back != 1 {
		t.Errorf("%d entries that it is missing, %d that it is back", missing, back)
	}
}

func TestASecondHistoryUnderStolenKeysIsFoundByTheWitness(t *testing.T) {
	r := newRing(t)
	honest := install(t, r, quick)
	w, _ := outside(t, filepath.Join(t.TempDir(), "w1"), r)
	text := ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1)
	honest.policy(0, text)
	honest.grow(40)
	if _, _, err := honest.circle.Cosigned(t.Context(), honest.store.Size()); err != nil {
		t.Fatal(err)
	}
	thief := install(t, r, quick)
	thief.policy(0, text)
	thief.until("word that the witness knows more than this", func() bool {
		return len(thief.entries(ActionMissing))+len(thief.entries(ActionRefused)) > 0
	})
	thief.grow(60) // now it is longer than what the witness saw
	thief.until("an entry that the witness refuses", func() bool { return len(thief.entries(ActionRefused)) > 0 || len(thief.entries(ActionMissing)) > 0 })
	thief.until("its reason", func() bool {
		states, _, _ := thief.circle.List()
		return strings.Contains(states[0].Why, "does not extend")
	})
	if _, _, ok := thief.circle.Newest(); ok {
		t.Error("the second history has a cosigned checkpoint")
	}
	honest.grow(1)
	if _, _, err := honest.circle.Cosigned(t.Context(), honest.store.Size()); err != nil {
		t.Errorf("the first history is not cosigned any more: %v", err)
	}
}

// What says where a witness stands is signed by nobody: whoever sits in between
// for a moment must not silence it for longer.
func TestAWitnessOfWhomSomebodyElseLiedOnceIsHeardAgain(t *testing.T) {
	r := newRing(t)
	i := install(t, r, quick)
	w, _ := outside(t, filepath.Join(t.TempDir(), "w"), r)
	there, err := url.Parse(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	var lied atomic.Int64
	pass := httputil.NewSingleHostReverseProxy(there)
	between := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if lied.Add(1) == 1 {
			rw.WriteHeader(http.StatusConflict)
			fmt.Fprint(rw, "9223372036854775807\n")
			return
		}
		pass.ServeHTTP(rw, r)
	}))
	t.Cleanup(between.Close)
	w.URL = between.URL
	i.policy(0, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1))
	i.until("a cosignature after the lie", func() bool {
		_, _, ok := i.circle.Newest()
		return ok && lied.Load() > 1
	})
}

// liars answer in every way that a witness should not.
func TestAWitnessThatLiesOrHangsDelaysNothingThatOthersVouchFor(t *testing.T) {
	r := newRing(t)
	i := install(t, r, Bounds{Every: 5 * time.Millisecond, Grace: 10 * time.Millisecond, Answer: 10 * time.Second})
	good, _ := outside(t, filepath.Join(t.TempDir(), "good"), r)
	all := []ledger.PolicyWitness{good}
	hang := make(chan struct{})
	for n, answer := range []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) { <-hang },
		func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "— x AAAA\n") },
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(409); fmt.Fprint(w, "-7\n") },
		func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(409)
			fmt.Fprint(w, "9223372036854775807\n")
		},
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(409); fmt.Fprint(w, "3\n") },
		func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, good.URL+"/add-checkpoint", 307) },
		func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 64<<10))
			}
		},
	} {
		srv := &http.Server{Handler: answer}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close() })
		name := fmt.Sprintf("liar%d", n)
		all = append(all, ledger.PolicyWitness{Name: name, Key: newKeyNamed(t, name), URL: "http://" + l.Addr().String()})
	}
	t.Cleanup(sync.OnceFunc(func() { close(hang) }))
	i.policy(0, ledger.SimplePolicy(nil, all, 1))
	for range 5 {
		i.grow(5)
		_, signed, err := i.circle.Cosigned(t.Context(), i.store.Size())
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range all[1:] {
			if len(ledger.Cosignatures(signed, w.Key)) != 0 {
				t.Errorf("%s is counted", w.Name)
			}
		}
	}
}
