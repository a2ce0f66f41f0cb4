package peer_test

import (
	"path/filepath"
	"testing"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// home is a house with one server, which others may join.
type home struct {
	*house.House
	t         *testing.T
	approvals *approval.Approvals
	peers     *peer.Peers
	deps      peer.Deps
}

func build(t *testing.T) *home {
	t.Helper()
	h := &home{t: t, House: house.Build(t, house.Plan{Migrations: append(approval.Schema(), peer.Schema()...), Observations: peer.Observations()})}
	t.Cleanup(h.Close)
	h.approvals = approval.New(approval.Deps{Store: h.Store, People: h.People, Kinds: peer.Kinds()})
	door := doorway.New(doorway.Deps{Store: h.Store, People: h.People, Hosts: h.Hosts, Policy: h.Force})
	h.deps = peer.Deps{Store: h.Store, Ring: h.Ring, Door: door, People: h.People, Policy: h.Force, Approvals: h.approvals,
		Self: peer.Self{ID: "v-first", Name: "a", Address: "a.example:7080", SSH: "a.example:7022", Version: "test"}, Load: func() peer.Presence { return peer.Presence{} }}
	h.peers = peer.New(h.deps)
	house.Must(t, h.peers.Start(t.Context()))
	return h
}

// moved is a house with two admins and a developer, after bootstrap.
func moved(t *testing.T) (h *home, ada, bob, dev house.Resident) {
	h = build(t)
	ada, bob, dev = h.Person("ada", "admin"), h.Person("bob", "admin"), h.Person("dev", "developer")
	h.EndBootstrap()
	return h, ada, bob, dev
}

func (h *home) approve(by house.Resident, id string) error { return h.Approve(h.approvals, by, id) }

func (h *home) question(secret string) (peer.Question, *keyring.Chest) {
	h.t.Helper()
	chest, err := keyring.MakeChest(filepath.Join(h.t.TempDir(), "chest"))
	house.Must(h.t, err)
	return peer.Question{Secret: secret, Chest: chest.Public(), Address: "b.example:7080", SSH: "b.example:7022"}, chest
}

func TestAServerGetsTheKeysOnlyAfterSomebodyElseAgreedToItsKey(t *testing.T) {
	h, ada, bob, dev := moved(t)
	_, err := h.peers.Invite(t.Context(), dev.Principal, "b")
	house.Want(t, err, fault.Denied, "cannot")
	invited, err := h.peers.Invite(t.Context(), ada.Principal, "b")
	house.Must(t, err)
	_, err = h.peers.Invite(t.Context(), ada.Principal, "b")
	house.Want(t, err, fault.Conflict, "of that name")

	q, chest := h.question("a guess")
	_, err = h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Want(t, err, fault.Unauthenticated, "wrong")
	q.Secret = invited.Secret
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Must(t, err)
	if asked.Keys != nil || asked.Approval == "" || asked.Fingerprint != keyring.Fingerprint(chest.Public()) {
		t.Fatalf("it gets %d bytes of keys for the asking, approval %q, key %q", len(asked.Keys), asked.Approval, asked.Fingerprint)
	}
	thief, _ := h.question(invited.Secret)
	_, err = h.peers.Join(t.Context(), thief, "192.0.2.9")
	house.Want(t, err, fault.Denied, "another key")
	house.Want(t, h.approve(ada, asked.Approval), fault.Denied, "")
	if again, err := h.peers.Join(t.Context(), q, "192.0.2.9"); err != nil || again.Keys != nil {
		t.Fatalf("keys before anybody agreed: %v", err)
	}
	house.Must(t, h.approve(bob, asked.Approval))
	done, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Must(t, err)
	dir := filepath.Join(t.TempDir(), "keys")
	house.Must(t, chest.Unpack(dir, h.deps.Ring.RootHash(), done.Server.ID, done.Keys))
	_, err = h.peers.Join(t.Context(), thief, "192.0.2.9")
	house.Want(t, err, fault.Denied, "another key")
	for _, action := range []ledger.Action{peer.Invited, peer.Asked, peer.Sealed} {
		list, err := h.Store.Entries(t.Context(), store.EntryQuery{Action: string(action), Limit: 10})
		if house.Must(t, err); len(list) != 1 {
			t.Errorf("%d entries say %s", len(list), action)
		}
	}
}

func TestAServerThatNobodyAgreedToIsNobody(t *testing.T) {
	h, ada, bob, _ := moved(t)
	invited, err := h.peers.Invite(t.Context(), ada.Principal, "b")
	house.Must(t, err)
	q, _ := h.question(invited.Secret)
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Must(t, err)
	_, err = h.Store.Record(t.Context(), "deny", func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.DenyTx(tx, bob.Principal, asked.Approval, "who is that")
		return entries, err
	})
	house.Must(t, err)
	_, err = h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Want(t, err, fault.Unauthenticated, "withdrawn")
	other := h.deps
	other.Self = peer.Self{ID: asked.Server.ID, Name: "b", Address: "b.example:7080", SSH: "b.example:7022"}
	house.Want(t, peer.New(other).Start(t.Context()), fault.Denied, "not in the list")
	other.Self.ID = "v-stranger"
	house.Want(t, peer.New(other).Start(t.Context()), fault.Denied, "not invited")
}

func TestTheListGrowsInVersionAndARemovedServerLeavesIt(t *testing.T) {
	h, ada, bob, _ := moved(t)
	version := int64(0)
	list := func(serve int) {
		t.Helper()
		house.Must(t, h.Store.View(t.Context(), func(v *store.View) error {
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
	house.Must(t, err)
	q, _ := h.question(invited.Secret)
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Must(t, err)
	list(1)
	house.Must(t, h.approve(bob, asked.Approval))
	list(2)
	_, err = h.peers.Drain(t.Context(), bob.Principal, "b", "upgrade", 0)
	house.Must(t, err)
	list(2)
	_, err = h.peers.Drain(t.Context(), bob.Principal, "b", "again", 0)
	house.Want(t, err, fault.Conflict, "draining")
	_, err = h.peers.Remove(t.Context(), bob.Principal, "v-first", "x")
	house.Want(t, err, fault.Conflict, "by itself")
	_, err = h.peers.Remove(t.Context(), bob.Principal, "b", "gone")
	house.Must(t, err)
	list(1)
}
