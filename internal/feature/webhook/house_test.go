package webhook_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// home is a house with two admins, after bootstrap.
type home struct {
	*house.House
	t         *testing.T
	approvals *approval.Approvals
	deps      webhook.Deps
	hooks     *webhook.Hooks
	ada, bob  house.Resident
}

// quick are bounds under which a test sees days of retries.
var quick = webhook.Bounds{
	Retry: []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}, Answer: 5 * time.Second, Beat: 20 * time.Millisecond, Told: 50 * time.Millisecond,
}

func build(t *testing.T, b webhook.Bounds) *home {
	t.Helper()
	h := &home{t: t}
	h.House = house.Build(t, house.Plan{
		Migrations:   slices.Concat(approval.Schema(), roster.Schema(), webhook.Schema()),
		Observations: webhook.Observations(),
	})
	t.Cleanup(h.Close)
	kinds := slices.Concat(roster.Kinds(h.People, h.Hosts, h.Force), webhook.Kinds(func() *webhook.Hooks { return h.hooks }))
	h.approvals = approval.New(approval.Deps{Store: h.Store, People: h.People, Kinds: kinds})
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	r := roster.New(roster.Deps{Store: h.Store, Ring: h.Ring, People: h.People, Hosts: h.Hosts, Policy: h.Force, Approvals: h.approvals, Door: door, Brake: func(context.Context, string, string) int { return 0 }})
	h.deps = webhook.Deps{
		Store: h.Store, Door: door, Approvals: h.approvals, People: h.People, Policy: h.Force, Seals: h.Ring.Subjects(), Ledger: h.Ring.Origin(), Bounds: b,
	}
	h.hooks = webhook.New(h.deps)
	secret, err := h.People.EnsureBootstrapLink(t.Context())
	house.Must(t, err)
	h.ada = h.Enter(secret)
	_, err = h.People.SetName(t.Context(), h.ada.Principal, "ada")
	house.Must(t, err)
	h.ada.Name = "ada"
	added, err := r.AddPerson(t.Context(), h.ada.Principal, "bob", []string{"admin"}, "")
	house.Must(t, err)
	h.bob = h.Enter(added.Secret)
	house.Must(t, r.EndBootstrap(t.Context(), h.ada.Principal))
	return h
}

func (h *home) record(fn func(*store.Tx) ([]ledger.Entry, error)) store.Receipt {
	h.t.Helper()
	r, err := h.Store.Record(h.t.Context(), "test-"+rand.Text(), fn)
	house.Must(h.t, err)
	return r
}

// happen records an entry that hooks may be told of, and returns where it is.
func (h *home) happen(action ledger.Action, payload any) int64 {
	h.t.Helper()
	return h.record(func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: action, Subjects: []string{h.ada.ID}, Payload: payload}}, nil
	}).Entries()[0].Seq
}

// approve has a second person agree to exactly what is shown.
func (h *home) approve(by house.Resident, id string) error { return h.Approve(h.approvals, by, id) }

// add is a hook that two people agreed to.
func (h *home) add(url string, actions ...string) webhook.Added {
	h.t.Helper()
	return h.addAs(webhook.Wanted{Name: "siem", URL: url, Actions: actions})
}

func (h *home) addAs(w webhook.Wanted) webhook.Added {
	h.t.Helper()
	a, err := h.hooks.Add(h.t.Context(), h.ada.Principal, w)
	house.Must(h.t, err)
	house.Must(h.t, h.approve(h.bob, a.Approval))
	return a
}

// run runs hooks until the test ends, or stop is called.
func (h *home) run(x *webhook.Hooks) (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = x.Run(ctx) }()
	stop = func() { cancel(); <-done }
	h.t.Cleanup(stop)
	return stop
}

// until waits for an entry.
func (h *home) until(action ledger.Action) ledger.Recorded {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	var found ledger.Recorded
	_ = h.Store.Follow(ctx, -1, func(r ledger.Recorded) error {
		if r.Parsed.Action == action {
			found = r
			return io.EOF
		}
		return nil
	})
	if found.Leaf == nil {
		h.t.Fatalf("no entry says %s", action)
	}
	return found
}

// got is one request that a receiver took.
type got struct {
	ID, Timestamp, Signature string
	Body                     []byte
	Type                     string
	Seq                      int64
	Payload                  string
}

// receiver answers what a test wants, over TLS, and hands out what came.
type receiver struct {
	*httptest.Server
	came chan got
}

func receive(t *testing.T, answer func(n int, g got, w http.ResponseWriter)) *receiver {
	t.Helper()
	r := &receiver{came: make(chan got, 1024)}
	n := make(chan int, 1)
	n <- 0
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		g := got{ID: q.Header.Get("webhook-id"), Timestamp: q.Header.Get("webhook-timestamp"), Signature: q.Header.Get("webhook-signature"), Body: body}
		var m struct {
			Type string
			Data struct {
				Seq     int64
				Payload json.RawMessage
			}
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Errorf("what was sent is no JSON: %s", body)
		}
		g.Type, g.Seq, g.Payload = m.Type, m.Data.Seq, string(m.Data.Payload)
		i := <-n
		n <- i + 1
		if answer != nil {
			answer(i, g, w)
		}
		r.came <- g
	}))
	t.Cleanup(r.Close)
	return r
}

// eventually waits until something is so.
func (h *home) eventually(what string, f func() bool) {
	h.t.Helper()
	end, again := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for !f() {
		select {
		case <-end:
			h.t.Fatalf("waited in vain for %s", what)
		case <-again.C:
		}
	}
}

// await waits for what must happen.
func await(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it did not happen")
	}
}

// next is the next request that came.
func (r *receiver) next(t *testing.T) got {
	t.Helper()
	select {
	case g := <-r.came:
		return g
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return got{}
}

// trusted are bounds and roots with which r can be told.
func (h *home) trust(r *receiver) {
	h.deps.Roots = x509.NewCertPool()
	h.deps.Roots.AddCert(r.Certificate())
	h.hooks = webhook.New(h.deps)
}
