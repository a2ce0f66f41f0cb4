package roster_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// braked is one call of the brake.
type braked struct{ person, reason string }

// house is a new installation with everything that roster stands on.
type house struct {
	t         *testing.T
	store     *store.Store
	people    *identity.People
	hosts     *target.Hosts
	force     *policy.Force
	approvals *approval.Approvals
	roster    *roster.Roster
	door      *doorway.Door

	mu    sync.Mutex
	calls []braked
	open  func() // runs inside the brake, where a test wants something to happen meanwhile
}

// resident is somebody who is logged in with a device.
type resident struct {
	identity.Principal
	Bearer string
	key    ssh.Signer
}

func build(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	must(t, keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "test.handrail.internal"))
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	must(t, err)
	flag := &identity.Flag{}
	h := &house{t: t}
	h.store, err = store.Open(t.Context(), store.Config{
		DSN: "sqlite:" + dir, Spool: dir, Origin: ring.Origin(), Signer: ring.Log(), Verifier: ring.LogVerifier(), Seals: ring.Subjects(), Bootstrap: flag.Active,
		Migrations: slices.Concat(identity.Schema(), target.Schema(), policy.Schema(), approval.Schema(), roster.Schema(), directory.Schema()),
		Unspool:    func(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) { return h.roster.Unspool(tx, e) },
	})
	must(t, err)
	t.Cleanup(func() { _ = h.store.Close() })
	h.people = identity.New(identity.Deps{Store: h.store, Ring: ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost"}})
	must(t, h.people.Start(t.Context()))
	h.hosts, h.force = target.NewHosts(h.store), policy.NewForce(h.store)
	must(t, h.force.Seed(t.Context()))
	h.approvals = approval.New(approval.Deps{Store: h.store, People: h.people, Kinds: append(roster.Kinds(h.people, h.hosts, h.force), roster.DirectoryKinds(h.people)...)})
	h.door = doorway.New(doorway.Deps{Store: h.store, People: h.people, Hosts: h.hosts, Policy: h.force})
	h.roster = roster.New(roster.Deps{
		Store: h.store, Ring: ring, People: h.people, Hosts: h.hosts, Policy: h.force, Approvals: h.approvals, Door: h.door,
		Brake: h.brake,
	})
	return h
}

func (h *house) brake(_ context.Context, person, reason string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, braked{person, reason})
	if h.open != nil {
		h.open()
	}
	return 1
}

func (h *house) braked() []braked {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err error, kind fault.Kind, part string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v (%v), want %v with %q", err, fault.KindOf(err), kind, part)
	}
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	must(t, err)
	return signer
}

// enter opens a login link on a new device.
func (h *house) enter(secret string) resident {
	h.t.Helper()
	key := newKey(h.t)
	login, _, _, err := h.people.Redeem(h.t.Context(), secret, key.PublicKey().Marshal(), "laptop", identity.ViaDevice, "192.0.2.1:1")
	must(h.t, err)
	who, err := h.people.Authenticate(h.t.Context(), login.Bearer)
	must(h.t, err)
	return resident{who, login.Bearer, key}
}

// first is the first admin, named ada.
func (h *house) first() resident {
	h.t.Helper()
	secret, err := h.people.EnsureBootstrapLink(h.t.Context())
	must(h.t, err)
	r := h.enter(secret)
	_, err = h.people.SetName(h.t.Context(), r.Principal, "ada")
	must(h.t, err)
	r.Name = "ada"
	return r
}

// moved is a house with two admins, ada and bob, after bootstrap.
func moved(t *testing.T) (h *house, ada, bob resident) {
	h = build(t)
	ada = h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"admin"}, "")
	must(t, err)
	bob = h.enter(added.Secret)
	must(t, h.roster.EndBootstrap(t.Context(), ada.Principal))
	return h, ada, bob
}

func (h *house) record(fn func(*store.Tx) ([]ledger.Entry, error)) error {
	h.t.Helper()
	_, err := h.store.Record(h.t.Context(), "test-"+rand.Text(), fn)
	return err
}

// approve signs and approves a request as it is shown.
func (h *house) approve(by resident, id string) error {
	h.t.Helper()
	a, err := h.approvals.Get(h.t.Context(), id)
	must(h.t, err)
	sig, err := by.key.Sign(rand.Reader, identity.ApprovalMessage(a.Hash))
	must(h.t, err)
	return h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.ApproveTx(tx, by.Principal, id, a.Hash, approval.Evidence{DeviceSignature: ssh.Marshal(sig)})
		return entries, err
	})
}

func (h *house) count(action ledger.Action) int {
	h.t.Helper()
	list, err := h.store.Entries(h.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000})
	must(h.t, err)
	return len(list)
}

func nodeRequest(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return csr
}
