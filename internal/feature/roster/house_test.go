package roster_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"sync"
	"testing"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// braked is one call of the brake.
type braked struct{ person, reason string }

// home is a house with everything that roster stands on.
type home struct {
	*house.House
	t         *testing.T
	approvals *approval.Approvals
	roster    *roster.Roster
	door      *doorway.Door

	mu    sync.Mutex
	calls []braked
	open  func() // runs inside the brake, where a test wants something to happen meanwhile
}

func build(t *testing.T) *home {
	t.Helper()
	h := &home{t: t}
	h.House = house.Build(t, house.Plan{
		Migrations: slices.Concat(approval.Schema(), roster.Schema(), directory.Schema()),
		Unspool:    func(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) { return h.roster.Unspool(tx, e) },
	})
	t.Cleanup(h.Close)
	h.approvals = approval.New(approval.Deps{Store: h.Store, People: h.People, Kinds: append(roster.Kinds(h.People, h.Hosts, h.Force), roster.DirectoryKinds(h.People)...)})
	h.door = doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	h.roster = roster.New(roster.Deps{
		Store: h.Store, Ring: h.Ring, People: h.People, Hosts: h.Hosts, Policy: h.Force, Approvals: h.approvals, Door: h.door,
		Brake: h.brake,
	})
	return h
}

func (h *home) brake(_ context.Context, person, reason string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, braked{person, reason})
	if h.open != nil {
		h.open()
	}
	return 1
}

func (h *home) braked() []braked {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

// first is the first admin, named ada.
func (h *home) first() house.Resident {
	h.t.Helper()
	secret, err := h.People.EnsureBootstrapLink(h.t.Context())
	house.Must(h.t, err)
	r := h.Enter(secret)
	_, err = h.People.SetName(h.t.Context(), r.Principal, "ada")
	house.Must(h.t, err)
	r.Name = "ada"
	return r
}

// moved is a house with two admins, ada and bob, after bootstrap.
func moved(t *testing.T) (h *home, ada, bob house.Resident) {
	h = build(t)
	ada = h.first()
	added, err := h.roster.AddPerson(t.Context(), ada.Principal, "bob", []string{"admin"}, "")
	house.Must(t, err)
	bob = h.Enter(added.Secret)
	house.Must(t, h.roster.EndBootstrap(t.Context(), ada.Principal))
	return h, ada, bob
}

func (h *home) record(fn func(*store.Tx) ([]ledger.Entry, error)) error {
	h.t.Helper()
	_, err := h.Store.Record(h.t.Context(), "test-"+rand.Text(), fn)
	return err
}

// approve signs and approves a request as it is shown.
func (h *home) approve(by house.Resident, id string) error { return h.Approve(h.approvals, by, id) }

func (h *home) count(action ledger.Action) int {
	h.t.Helper()
	list, err := h.Store.Entries(h.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000})
	house.Must(h.t, err)
	return len(list)
}

func nodeRequest(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	house.Must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	house.Must(t, err)
	return csr
}
