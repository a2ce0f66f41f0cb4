package spine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A host whose own administrator names the approvers' keys starts a write
// session only with what they signed, whatever the server says.
func TestAHostThatDemandsSignaturesTakesWhatTheCommandsSigned(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	eve := ada.add("eve", "operator")
	cleo := ada.add("cleo", "developer")
	key, err := os.ReadFile(filepath.Join(ben.home, "id_handrail.pub"))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := json.Marshal(map[string]any{"approvers": []string{strings.TrimSpace(string(key))}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.data, "warden", "policy.json"), policy, 0o600); err != nil {
		t.Fatal(err)
	}
	i = i.again()
	for _, p := range []*person{&ada, &ben, &eve, &cleo} {
		p.i = i
	}
	ada.hostname()

	var ask asked
	cleo.json(&ask, "elevate", host, "--reason", "disk full", "-o", "json")
	eve.ok("approve", ask.ID, "--yes") // the server believes her, this host does not
	if r := cleo.refused(255, "ssh", "--write", host, "--", "true"); !strings.Contains(r.err, "signatures that this host wants") {
		t.Errorf("the host does not say what it wants: %s", r.err)
	}
	cleo.ok("done", ask.ID)

	cleo.json(&ask, "elevate", host, "--reason", "disk full", "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	var shown struct {
		Approval struct {
			RequesterSigned bool
			Decisions       []struct{ PersonName, SignedBy string }
		}
	}
	cleo.json(&shown, "requests", ask.ID, "-o", "json")
	if a := shown.Approval; !a.RequesterSigned || len(a.Decisions) != 1 || a.Decisions[0].PersonName != "ben" || a.Decisions[0].SignedBy != "device" {
		t.Errorf("who signed is not shown: %+v", a)
	}
	if out := cleo.ok("ssh", "--write", host, "--", "echo in"); out != "in\n" {
		t.Errorf("the session of a signed grant printed %q", out)
	}
	ada.ok("ledger", "verify")
}
