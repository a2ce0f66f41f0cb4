package access_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/postgres"
	"handrail.dev/handrail/test/shelf"
)

// sessions remembers which grants' sessions were ended, and why.
type sessions struct {
	mu    sync.Mutex
	ended map[string]string
	done  chan string
}

func (s *sessions) EndByGrant(_ context.Context, grant, why string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended[grant] == "" {
		s.ended[grant] = why
		select {
		case s.done <- grant:
		default:
		}
		return 1
	}
	return 0
}

func (s *sessions) why(grant string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended[grant]
}

// house is an installation with hosts, people and their device keys.
type house struct {
	t         *testing.T
	config    store.Config
	store     *store.Store
	people    *identity.People
	hosts     *target.Hosts
	policy    *policy.Force
	approvals *approval.Approvals
	access    *access.Access
	sessions  *sessions
	more      int // approvers beyond what policy says
	keys      map[string]ssh.Signer
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build makes an installation whose policy is the default with some texts
// replaced in its settings.
func build(t *testing.T, replace ...string) *house {
	t.Helper()
	return buildOn(t, "", replace...)
}

// cluster is set once, before any test runs.
var cluster *postgres.Cluster

func TestMain(m *testing.M) {
	cluster = postgres.Start()
	code := m.Run()
	cluster.Stop()
	os.Exit(code)
}

// onBoth runs a test on SQLite, where one writes at a time, and on PostgreSQL,
// where many do.
func onBoth(t *testing.T, test func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, "") })
	t.Run("postgres", func(t *testing.T) { test(t, cluster.Database(t)) })
}

// buildOn is build on a database; "" is SQLite.
func buildOn(t *testing.T, dsn string, replace ...string) *house {
	t.Helper()
	h := &house{t: t, keys: map[string]ssh.Signer{}}
	h.config = shelf.Config(t, slices.Concat(identity.Schema(), target.Schema(), policy.Schema(), approval.Schema(), access.Schema()))
	if dsn != "" {
		h.config.DSN = dsn
	}
	h.config.Unspool = func(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) {
		entries, _, err := h.access.Unspool(tx, e)
		return entries, err
	}
	h.start()
	t.Cleanup(func() { _ = h.store.Close() })
	set := policy.Default()
	for i := range set.Files {
		set.Files[i].Text = strings.NewReplacer(replace...).Replace(set.Files[i].Text)
	}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.policy.ApplyTx(tx, "system", set, 0)
		return []ledger.Entry{e}, err
	})
	for _, host := range []target.Host{{Name: "gate-1", Environment: "dev", Server: true}, {Name: "web-1", Environment: "production"}, {Name: "web-2", Environment: "staging"}, {Name: "pay-1", Environment: "production", Scope: "pci"}} {
		h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
			e, err := h.hosts.AddTx(tx, host)
			return []ledger.Entry{e}, err
		})
	}
	return h
}

// start opens the store and wires what stands on it; called again, it is a
// restart.
func (h *house) start() {
	h.t.Helper()
	s, err := store.Open(h.t.Context(), h.config)
	fatal(h.t, err)
	h.store, h.people, h.hosts, h.policy = s, identity.New(identity.Deps{Store: s}), target.NewHosts(s), policy.NewForce(s)
	h.approvals = approval.New(approval.Deps{Store: s, People: h.people, Kinds: access.Kinds(h.hosts)})
	h.sessions = &sessions{ended: map[string]string{}, done: make(chan string, 100)}
	door := doorway.New(doorway.Deps{Store: s, People: h.people, Hosts: h.hosts, Policy: h.policy, Grants: access.Standing{}})
	h.access = access.New(access.Deps{Store: s, Door: door, Approvals: h.approvals, Policy: h.policy, Hosts: h.hosts, People: h.people, Sessions: h.sessions,
		MoreApprovers: func(store.Queryer, time.Time) (int, error) { return h.more, nil },
	})
}

func (h *house) record(fn func(tx *store.Tx) ([]ledger.Entry, error)) {
	h.t.Helper()
	_, err := h.store.Record(h.t.Context(), store.NewID('x'), fn)
	fatal(h.t, err)
}

// person adds somebody with a device key that is old enough to approve.
func (h *house) person(name string, groups ...string) context.Context {
	h.t.Helper()
	var p identity.Person
	h.record(func(tx *store.Tx) (entries []ledger.Entry, err error) {
		if p, entries, err = h.people.AddTx(tx, identity.Principal{ID: "system"}, name, groups); err != nil {
			return nil, err
		}
		return entries, h.deviceTx(tx, p.ID)
	})
	return identity.WithPrincipal(h.t.Context(), identity.Principal{ID: p.ID, Name: p.Name, Kind: identity.KindPerson, Groups: p.Groups, Epoch: p.Epoch})
}

// deviceTx gives somebody a new device key, with which they sign from now on.
func (h *house) deviceTx(tx *store.Tx, person string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	h.keys[person] = signer
	_, err = tx.Exec(`INSERT INTO devices (id, person, name, public_key, fingerprint, created, may_approve_from, revoked, version) VALUES ($1, $2, 'laptop', $3, $4, 1, 1, 0, 1)`,
		store.NewID('d'), person, signer.PublicKey().Marshal(), ssh.FingerprintSHA256(signer.PublicKey()))
	return err
}

func id(ctx context.Context) string {
	p, _ := identity.FromContext(ctx)
	return p.ID
}

// sign makes the device signature of whoever acts in ctx.
func (h *house) sign(ctx context.Context, hash []byte) approval.Evidence {
	h.t.Helper()
	sig, err := h.keys[id(ctx)].Sign(rand.Reader, identity.ApprovalMessage(hash))
	fatal(h.t, err)
	return approval.Evidence{DeviceSignature: ssh.Marshal(sig)}
}

// stand makes the signature with which whoever acts in ctx stands by a request
// of their own.
func (h *house) stand(ctx context.Context, hash []byte) approval.Evidence {
	h.t.Helper()
	sig, err := h.keys[id(ctx)].Sign(rand.Reader, identity.RequestMessage(hash))
	fatal(h.t, err)
	return approval.Evidence{DeviceSignature: ssh.Marshal(sig)}
}

func (h *house) approve(ctx context.Context, a approval.Approval) (approval.Approval, error) {
	return h.access.Approve(ctx, a.ID, a.Hash, h.sign(ctx, a.Hash))
}

func (h *house) active(ctx context.Context, host string) (force doorway.GrantInForce, ok bool) {
	h.t.Helper()
	at, err := h.hosts.Get(h.t.Context(), host)
	fatal(h.t, err)
	fatal(h.t, h.store.View(h.t.Context(), func(v *store.View) (err error) {
		force, ok, err = access.Standing{}.Active(v, id(ctx), at.ID, time.Now())
		return err
	}))
	return force, ok
}

// until waits for what follows soon: a brake that the database did not take at
// once is recorded from the spool.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			h.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// run starts Run and returns a function that stops it.
func (h *house) run() (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	finished := make(chan error, 1)
	go func() { finished <- h.access.Run(ctx) }()
	return func() {
		cancel()
		fatal(h.t, <-finished)
	}
}

// ended waits until the sessions of a grant are ended.
func (h *house) ended(grant string) string {
	h.t.Helper()
	late := time.After(time.Minute)
	for h.sessions.why(grant) == "" {
		select {
		case <-h.sessions.done:
		case <-late:
			h.t.Fatalf("the sessions of %s are not ended", grant)
		}
	}
	return h.sessions.why(grant)
}

// folds checks that the ledger alone gives the table of grants.
func (h *house) folds() {
	h.t.Helper()
	auditor := h.person("auditor-"+store.NewID('x')[2:], "auditor")
	// On PostgreSQL a row is there a moment before its entry has a number, which
	// only the one who recorded it waits for; a spooled brake has no such one.
	var wrong []string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); ; {
		if wrong = h.unfolded(auditor); len(wrong) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			h.t.Fatal(strings.Join(wrong, "\n"))
		}
	}
}

// unfolded is where the table of grants is not what the ledger folds to.
func (h *house) unfolded(auditor context.Context) (wrong []string) {
	h.t.Helper()
	var all []ledger.Recorded
	for after := int64(-1); ; {
		page, err := h.store.Entries(h.t.Context(), store.EntryQuery{After: after, Limit: 1000})
		fatal(h.t, err)
		if len(page) == 0 {
			break
		}
		all, after = append(all, page...), page[len(page)-1].Seq
	}
	mrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	folded, err := access.Fold(all)
	fatal(h.t, err)
	rows, err := h.access.List(auditor, access.Filter{})
	fatal(h.t, err)
	if len(rows) != len(folded) {
		wrong = append(wrong, fmt.Sprintf("%d grants in the table, %d in the ledger", len(rows), len(folded)))
	}
	for _, g := range rows {
		if !reflect.DeepEqual(g, folded[g.ID]) {
			wrong = append(wrong, fmt.Sprintf("the ledger folds to\n%+v, the table has\n%+v", folded[g.ID], g))
		}
	}
	return wrong
}
