package peer_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// house is an installation with one server, which others may join.
type house struct {
	t         *testing.T
	store     *store.Store
	people    *identity.People
	approvals *approval.Approvals
	roster    *roster.Roster
	peers     *peer.Peers
	deps      peer.Deps
}

type resident struct {
	identity.Principal
	key ssh.Signer
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
		Migrations:   slices.Concat(identity.Schema(), target.Schema(), policy.Schema(), approval.Schema(), roster.Schema(), peer.Schema()),
		Observations: peer.Observations(),
	})
	must(t, err)
	t.Cleanup(func() { _ = h.store.Close() })
	h.people = identity.New(identity.Deps{Store: h.store, Ring: ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost"}})
	must(t, h.people.Start(t.Context()))
	hosts, force := target.NewHosts(h.store), policy.NewForce(h.store)
	must(t, force.Seed(t.Context()))
	h.approvals = approval.New(approval.Deps{Store: h.store, People: h.people, Kinds: slices.Concat(roster.Kinds(h.people, hosts, force), peer.Kinds())})
	door := doorway.New(doorway.Deps{Store: h.store, People: h.people, Hosts: hosts, Policy: force})
	h.roster = roster.New(roster.Deps{Store: h.store, Ring: ring, People: h.people, Hosts: hosts, Policy: force, Approvals: h.approvals, Door: door})
	h.deps = peer.Deps{Store: h.store, Ring: ring, Door: door, People: h.people, Policy: force, Approvals: h.approvals,
		Self: peer.Self{ID: "v-first", Name: "a", Address: "a.example:7080", SSH: "a.example:7022", Version: "test"}, Load: func() peer.Presence { return peer.Presence{} }}
	h.peers = peer.New(h.deps)
	must(t, h.peers.Start(t.Context()))
	return h
}

func (h *house) enter(secret string) resident {
	h.t.Helper()
	_, raw, err := ed25519.GenerateKey(rand.Reader)
	must(h.t, err)
	key, err := ssh.NewSignerFromKey(raw)
	must(h.t, err)
	login, _, _, err := h.people.Redeem(h.t.Context(), secret, key.PublicKey().Marshal(), "laptop", identity.ViaDevice, "192.0.2.1:1")
	must(h.t, err)
	who, err := h.people.Authenticate(h.t.Context(), login.Bearer)
	must(h.t, err)
	return resident{who, key}
}

// moved is a house with two admins and a developer, after bootstrap.
func moved(t *testing.T) (h *house, ada, bob, dev resident) {
	h = build(t)
	secret, err := h.people.EnsureBootstrapLink(t.Context())
	must(t, err)
	ada = h.enter(secret)
	for name, into := range map[string]*resident{"bob": &bob, "dev": &dev} {
		group := map[string]string{"bob": "admin", "dev": "developer"}[name]
		added, err := h.roster.AddPerson(t.Context(), ada.Principal, name, []string{group}, "")
		must(t, err)
		*into = h.enter(added.Secret)
	}
	must(t, h.roster.EndBootstrap(t.Context(), ada.Principal))
	return h, ada, bob, dev
}

func (h *house) approve(by resident, id string) error {
	h.t.Helper()
	a, err := h.approvals.Get(h.t.Context(), id)
	must(h.t, err)
	sig, err := by.key.Sign(rand.Reader, identity.ApprovalMessage(a.Hash))
	must(h.t, err)
	_, err = h.store.Record(h.t.Context(), "test-"+rand.Text(), func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.ApproveTx(tx, by.Principal, id, a.Hash, approval.Evidence{DeviceSignature: ssh.Marshal(sig)})
		return entries, err
	})
	return err
}

func (h *house) question(secret string) (peer.Question, *keyring.Chest) {
	h.t.Helper()
	chest, err := keyring.MakeChest(filepath.Join(h.t.TempDir(), "chest"))
	must(h.t, err)
	return peer.Question{Secret: secret, Chest: chest.Public(), Address: "b.example:7080", SSH: "b.example:7022"}, chest
}

func TestAServerGetsTheKeysOnlyAfterSomebodyElseAgreedToItsKey(t *testing.T) {
	h, ada, bob, dev := moved(t)
	_, err := h.peers.Invite(t.Context(), dev.Principal, "b")
	want(t, err, fault.Denied, "cannot")
	invited, err := h.peers.Invite(t.Context(), ada.Principal, "b")
	must(t, err)
	_, err = h.peers.Invite(t.Context(), ada.Principal, "b")
	want(t, err, fault.Conflict, "of that name")

	q, chest := h.question("a guess")
	_, err = h.peers.Join(t.Context(), q, "192.0.2.9")
	want(t, err, fault.Unauthenticated, "wrong")
	q.Secret = invited.Secret
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	must(t, err)
	if asked.Keys != nil || asked.Approval == "" || asked.Fingerprint != keyring.Fingerprint(chest.Public()) {
		t.Fatalf("it gets %d bytes of keys for the asking, approval %q, key %q", len(asked.Keys), asked.Approval, asked.Fingerprint)
	}
	thief, _ := h.question(invited.Secret)
	_, err = h.peers.Join(t.Context(), thief, "192.0.2.9")
	want(t, err, fault.Denied, "another key")
	want(t, h.approve(ada, asked.Approval), fault.Denied, "")
	if again, err := h.peers.Join(t.Context(), q, "192.0.2.9"); err != nil || again.Keys != nil {
		t.Fatalf("keys before anybody agreed: %v", err)
	}
	must(t, h.approve(bob, asked.Approval))
	done, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	must(t, err)
	dir := filepath.Join(t.TempDir(), "keys")
	must(t, chest.Unpack(dir, h.deps.Ring.RootHash(), done.Server.ID, done.Keys))
	_, err = h.peers.Join(t.Context(), thief, "192.0.2.9")
	want(t, err, fault.Denied, "another key")
	for _, action := range []ledger.Action{peer.Invited, peer.Asked, peer.Sealed} {
		list, err := h.store.Entries(t.Context(), store.EntryQuery{Action: string(action), Limit: 10})
		if must(t, err); len(list) != 1 {
			t.Errorf("%d entries say %s", len(list), action)
		}
	}
}

func TestAServerThatNobodyAgreedToIsNobody(t *testing.T) {
	h, ada, bob, _ := moved(t)
	invited, err := h.peers.Invite(t.Context(), ada.Principal, "b")
	must(t, err)
	q, _ := h.question(invited.Secret)
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	must(t, err)
	_, err = h.store.Record(t.Context(), "deny", func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.DenyTx(tx, bob.Principal, asked.Approval, "who is that")
		return entries, err
	})
	must(t, err)
	_, err = h.peers.Join(t.Context(), q, "192.0.2.9")
	want(t, err, fault.Unauthenticated, "withdrawn")
	other := h.deps
	other.Self = peer.Self{ID: asked.Server.ID, Name: "b", Address: "b.example:7080", SSH: "b.example:7022"}
	want(t, peer.New(other).Start(t.Context()), fault.Denied, "not in the list")
	other.Self.ID = "v-stranger"
	want(t, peer.New(other).Start(t.Context()), fault.Denied, "not invited")
}

func TestTheListGrowsInVersionAndARemovedServerLeavesIt(t *testing.T) {
	h, ada, bob, _ := moved(t)
	version := int64(0)
	list := func(serve int) {
		t.Helper()
		must(t, h.store.View(t.Context(), func(v *store.View) error {
			told, err := peer.ListTx(v)
			if err == nil && (told.Version <= version || len(told.Servers) != serve) {
				t.Errorf("version %d after %d, %d servers, not %d", told.Version, version, len(told.Servers), serve)
			}
			version = told.Version
			return err
		}))
	}
	list(1)
	invited, err := h.peers.Invite(t.Context(), ada.Principal, "b")
	must(t, err)
	q, _ := h.question(invited.Secret)
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	must(t, err)
	list(1)
	must(t, h.approve(bob, asked.Approval))
	list(2)
	_, err = h.peers.Drain(t.Context(), bob.Principal, "b", "upgrade", 0)
	must(t, err)
	list(2)
	_, err = h.peers.Drain(t.Context(), bob.Principal, "b", "again", 0)
	want(t, err, fault.Conflict, "draining")
	_, err = h.peers.Remove(t.Context(), bob.Principal, "v-first", "x")
	want(t, err, fault.Conflict, "by itself")
	_, err = h.peers.Remove(t.Context(), bob.Principal, "b", "gone")
	must(t, err)
	list(1)
}
