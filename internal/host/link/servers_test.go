package link

import (
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// joined is an identity that knows one address by its join.
func joined(t *testing.T) (*identity, ed25519.PrivateKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	return &identity{V: 1, Host: "h-1", Addresses: []string{"join.example:1"}, dir: t.TempDir(),
		open: ledger.Bundle{Origin: "here", OrderKey: key.Public().(ed25519.PublicKey)}}, key
}

func told(t *testing.T, key ed25519.PrivateKey, version int64, addresses ...string) []byte {
	t.Helper()
	list := wire.Servers{V: 1, Origin: "here", Version: version}
	for i, a := range addresses {
		list.Servers = append(list.Servers, wire.ServerAt{ID: "v-" + string(rune('a'+i)), Address: a})
	}
	signed, err := wire.SignServers(list, key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func addresses(at []wire.ServerAt) (out []string) {
	for _, s := range at {
		out = append(out, s.Address)
	}
	slices.Sort(out)
	return out
}

func TestANodeGoesToNoAddressThatIsNotInASignedList(t *testing.T) {
	id, key := joined(t)
	if _, at := id.known(); !slices.Equal(addresses(at), []string{"join.example:1"}) {
		t.Fatalf("before there is a list: %v", at)
	}
	other := ed25519.NewKeyFromSeed([]byte("another key of thirty-two bytes!"))
	if err := id.learnServers(told(t, other, 9, "evil.example:1")); err == nil {
		t.Error("a list that the order key did not sign is kept")
	}
	if err := id.learnServers(told(t, key, 5, "a.example:1", "b.example:1")); err != nil {
		t.Fatal(err)
	}
	for what, list := range map[string][]byte{"older": told(t, key, 4, "evil.example:1"), "of the same version": told(t, key, 5, "evil.example:1")} {
		if err := id.learnServers(list); err != nil {
			t.Errorf("a list that is %s is an error: %v", what, err)
		}
		if _, at := id.known(); !slices.Equal(addresses(at), []string{"a.example:1", "b.example:1"}) {
			t.Errorf("a list that is %s is kept: %v", what, at)
		}
	}
	kept := &identity{dir: id.dir}
	if err := readJSON(t, id.dir, kept); err != nil {
		t.Fatal(err)
	}
	if _, at := kept.known(); !slices.Equal(addresses(at), []string{"a.example:1", "b.example:1"}) {
		t.Errorf("after a restart it goes to %v", at)
	}
	if id.listed("v-z") || !id.listed("v-a") || !id.listed("") {
		t.Error("who is in the list is not known")
	}
}

func TestATourVisitsEveryServerAndTheOneThatWasLeftLast(t *testing.T) {
	list := []wire.ServerAt{{ID: "v-a", Address: "a:1"}, {ID: "v-b", Address: "b:1"}, {ID: "v-c", Address: "c:1", Draining: true}}
	begins := map[string]bool{}
	for range 200 {
		var tr tour
		var seen []string
		for i := range 2 * len(list) {
			at, lap := tr.next(7, slices.Clone(list))
			if lap != (i == len(list)) {
				t.Fatalf("try %d ends a lap: %v", i, lap)
			}
			seen = append(seen, at.Address)
		}
		if seen[2] != "c:1" || seen[0] == seen[1] {
			t.Fatalf("the tour is %v: the one that drains comes last", seen)
		}
		begins[seen[0]] = true
		// The connection to seen[5] lived and ended: the next is another.
		tr.settle()
		if at, lap := tr.next(7, slices.Clone(list)); lap || at.Address == seen[5] {
			t.Fatalf("after %v it goes to %v again", seen, at)
		}
	}
	if len(begins) != 2 {
		t.Errorf("all nodes begin at %v: they come as a herd", begins)
	}
}

func readJSON(t *testing.T, dir string, into *identity) error {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, infoName))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
