package spine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keyList is what `keys list -o json` prints.
type keyList struct {
	Keys []struct{ Kind, State, Public string }
	// Bundle is a string in JSON, being of 64 bits.
	Bundle      string
	HandingOver bool
}

// handedOver waits until the new keys act alone.
func (p person) handedOver(bundle string) {
	p.i.t.Helper()
	p.i.until("the keys of bundle "+bundle+" to act alone", func() bool {
		var now keyList
		if r := p.run("keys", "list", "-o", "json"); r.code != 0 {
			return false // the server starts again
		}
		p.json(&now, "keys", "list", "-o", "json")
		return now.Bundle == bundle && !now.HandingOver
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unjson(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("no JSON: %v\n%s", err, text)
	}
}

func TestKeysAreReplacedWhileSessionsGoOn(t *testing.T) {
	t.Parallel()
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator", "admin")
	away := ada.add("cleo", "operator")
	root := filepath.Join(i.data, "root", "root.key")

	old := filepath.Join(t.TempDir(), "old")
	ada.ok("ledger", "export", old)
	in, typed, err := pipe()
	must(t, err)
	live := ben.startWith(in, "ssh", host, "--", "echo up; while read line; do echo got $line; done")
	live.waitFor("up")

	// Asked by one, agreed to by another, signed by who holds the root key.
	if r := ada.refused(1, "keys", "sign", "--with", root); !strings.Contains(r.err, "handrail keys rotate") {
		t.Errorf("nothing is open, and the next command is not named: %s", r.err)
	}
	var asked struct{ Rotation struct{ ID, Approval string } }
	r := ada.run("keys", "rotate", "log", "order", "ca", "ssh-user-ca", "ssh-host-ca", "--reason", "quarterly", "-o", "json")
	if r.code != 4 {
		t.Fatalf("a rotation needs somebody else: exit %d\n%s%s", r.code, r.out, r.err)
	}
	unjson(t, r.out, &asked)
	ada.refused(4, "keys", "sign", "--with", root, "--yes")
	ada.refused(3, "approve", asked.Rotation.Approval, "--yes")
	ben.ok("approve", asked.Rotation.Approval, "--yes")
	// As if the root key were on a machine without network.
	carried := filepath.Join(t.TempDir(), "proposal")
	must(t, os.WriteFile(carried, []byte(ada.ok("keys", "proposal")), 0o600))
	signed := filepath.Join(t.TempDir(), "signed")
	must(t, os.WriteFile(signed, []byte(ada.ok("keys", "sign", "--with", root, "--proposal", carried, "--yes")), 0o600))
	tampered := filepath.Join(t.TempDir(), "tampered")
	text, err := os.ReadFile(signed)
	must(t, err)
	must(t, os.WriteFile(tampered, []byte(strings.Replace(string(text), "version 2", "version 3", 1)), 0o600))
	if r := ada.run("keys", "install", tampered); r.code == 0 {
		t.Error("a bundle that the root key did not sign was put in force")
	}
	ada.ok("keys", "install", signed)
	if r := ada.run("keys", "install", signed); r.code == 0 {
		t.Error("the same bundle was put in force twice")
	}

	if _, err := typed.WriteString("one\n"); err != nil {
		t.Fatal(err)
	}
	live.waitFor("got one")
	ada.handedOver("2")
	if _, err := typed.WriteString("two\n"); err != nil {
		t.Fatal(err)
	}
	live.waitFor("got two")
	typed.Close()
	live.wait()

	// Who was away comes back by themselves, the node too.
	if out := away.ok("ssh", host, "--", "echo in"); out != "in\n" {
		t.Errorf("a session after the rotation: %q", out)
	}
	i.until("the node to have a certificate of the new authority", func() bool {
		return strings.Contains(ada.ok("ledger", "list", "-o", "json"), "node.renewed")
	})
	// The server is killed in the middle of the second hand-over, and finishes it.
	r = ada.run("keys", "rotate", "order", "log", "--reason", "again", "-o", "json")
	unjson(t, r.out, &asked)
	ben.ok("approve", asked.Rotation.Approval, "--yes")
	ada.ok("keys", "sign", "--with", root, "--yes")
	kill(t, i.role("server-role")[0])
	ada.handedOver("3")
	i.until("a session to open", func() bool { return ben.run("ssh", host, "--", "echo in").out == "in\n" })

	ada.ok("ledger", "verify")
	export := filepath.Join(t.TempDir(), "export")
	ada.ok("ledger", "export", export)
	ada.ok("ledger", "verify", export)
	if r := ada.run("ledger", "verify", old); r.code != 0 {
		t.Errorf("an export from before the rotation: exit %d\n%s%s", r.code, r.out, r.err)
	}
}
