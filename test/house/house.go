// Package house builds what features stand on, for their tests: an installation
// with its keys, its store, people, hosts and the policy that it is born with.
package house

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// House is a new installation.
type House struct {
	t      testing.TB
	Dir    string
	Ring   *keyring.Ring
	Store  *store.Store
	People *identity.People
	Hosts  *target.Hosts
	Force  *policy.Force
}

// Plan is what a feature adds to a house.
type Plan struct {
	Migrations   []store.Migration // after those of people, hosts and policy
	Observations []store.Migration
	Unspool      func(*store.Tx, ledger.Entry) ([]ledger.Entry, error)
}

// Build builds a house. Its store stays open when the test ends: what runs on
// it ends first, so whoever builds closes it.
func Build(t testing.TB, plan Plan) *House {
	t.Helper()
	dir, ctx := t.TempDir(), context.Background()
	Must(t, keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "test.handrail.internal"))
	h := &House{t: t, Dir: dir}
	var err error
	h.Ring, err = keyring.Open(filepath.Join(dir, "keys"))
	Must(t, err)
	flag := &identity.Flag{}
	h.Store, err = store.Open(ctx, store.Config{
		DSN: "sqlite:" + filepath.Join(dir, "db"), Spool: filepath.Join(dir, "spool"),
		Origin: h.Ring.Origin(), Signer: h.Ring.Log(), Verifier: h.Ring.LogVerifier(), Seals: h.Ring.Subjects(), Bootstrap: flag.Active,
		Migrations:   slices.Concat(identity.Schema(), target.Schema(), policy.Schema(), plan.Migrations),
		Observations: plan.Observations, Unspool: plan.Unspool,
	})
	Must(t, err)
	h.People = identity.New(identity.Deps{Store: h.Store, Ring: h.Ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost:4747"}})
	Must(t, h.People.Start(ctx))
	h.Hosts, h.Force = target.NewHosts(h.Store), policy.NewForce(h.Store)
	Must(t, h.Force.Seed(ctx))
	return h
}

// Close closes the store.
func (h *House) Close() { _ = h.Store.Close() }

// Record records what fn says.
func (h *House) Record(fn func(*store.Tx) ([]ledger.Entry, error)) {
	h.t.Helper()
	_, err := h.Store.Record(context.Background(), store.Once(), fn)
	Must(h.t, err)
}

// Host adds a host with a node.
func (h *House) Host(name, environment string) target.Host {
	h.t.Helper()
	h.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := h.Hosts.AddTx(tx, target.Host{Name: name, Environment: environment})
		return []ledger.Entry{e}, err
	})
	host, err := h.Hosts.Get(context.Background(), name)
	Must(h.t, err)
	return host
}

// Resident is somebody who is logged in with a device.
type Resident struct {
	identity.Principal
	Bearer string
	Key    ssh.Signer
}

// Enter opens a login link on a new device.
func (h *House) Enter(secret string) Resident {
	h.t.Helper()
	key := NewKey(h.t)
	login, _, _, err := h.People.Redeem(context.Background(), secret, key.PublicKey().Marshal(), "laptop", identity.ViaDevice, "192.0.2.1:1")
	Must(h.t, err)
	who, err := h.People.Authenticate(context.Background(), login.Bearer)
	Must(h.t, err)
	return Resident{who, login.Bearer, key}
}

// Person adds somebody of a group, who logs in on a new device.
func (h *House) Person(name, group string) Resident {
	h.t.Helper()
	var link string
	h.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		p, entries, err := h.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, []string{group})
		if err != nil {
			return nil, err
		}
		secret, e, err := h.People.LoginTokenTx(tx, p.ID, ledger.System, time.Hour)
		link = secret
		return append(entries, e), err
	})
	return h.Enter(link)
}

// EndBootstrap ends the time in which one person does what later takes two.
func (h *House) EndBootstrap() {
	h.t.Helper()
	h.Record(func(tx *store.Tx) ([]ledger.Entry, error) { return h.People.EndBootstrapTx(tx, ledger.System) })
	Must(h.t, h.People.Reload(context.Background()))
}

// Lock locks somebody out.
func (h *House) Lock(who Resident) {
	h.t.Helper()
	h.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.People.LockTx(tx, ledger.System, who.ID, "lost laptop")
		return entries, err
	})
}

// Approve is what comes of it when somebody signs a request, as it is shown,
// with their device.
func (h *House) Approve(all *approval.Approvals, by Resident, id string) error {
	h.t.Helper()
	ctx := context.Background()
	a, err := all.Get(ctx, id)
	Must(h.t, err)
	sig, err := by.Key.Sign(rand.Reader, identity.ApprovalMessage(a.Hash))
	Must(h.t, err)
	_, err = h.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := all.ApproveTx(tx, by.Principal, a.ID, a.Hash, approval.Evidence{DeviceSignature: ssh.Marshal(sig)})
		return entries, err
	})
	return err
}

// Root signs a trust bundle as whoever holds the root key does.
func (h *House) Root(text []byte) []byte {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.Dir, "root", "root.key"))
	Must(h.t, err)
	signer, err := note.NewSigner(strings.TrimSpace(string(raw)))
	Must(h.t, err)
	b, err := ledger.ReadBundle(text)
	Must(h.t, err)
	signed, err := ledger.SignBundle(b, signer)
	Must(h.t, err)
	return signed
}

// NewKey is a new device key.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, raw, err := ed25519.GenerateKey(rand.Reader)
	Must(t, err)
	key, err := ssh.NewSignerFromKey(raw)
	Must(t, err)
	return key
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Want ends the test unless the error is of that kind and says part.
func Want(t testing.TB, err error, kind fault.Kind, part string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v (%v), want %v with %q", err, fault.KindOf(err), kind, part)
	}
}
