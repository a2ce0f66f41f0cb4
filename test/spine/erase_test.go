package spine_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// traces greps raw files for words, whatever format they have.
func traces(t *testing.T, dir string, words []string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // what goes meanwhile holds nothing
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		b = bytes.ToLower(b)
		for _, w := range words {
			if bytes.Contains(b, []byte(strings.ToLower(w))) {
				found = append(found, filepath.Base(path)+": "+w)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAnErasedPersonLeavesNoTraceAndEveryProofStands(t *testing.T) {
	i := up(t, t.TempDir())
	i.needWrites()
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	const name = "zyxquetzal"
	zyx := ada.add(name, "developer")
	words := []string{name, "ququxreason", "ququxcommand", "ququxoutput", "ququxticket", "ququxdenied"}

	// Everything that a person leaves behind: sessions, a grant, words of theirs,
	// a decision, a recording.
	zyx.ok("ssh", host, "--", "echo ququxoutput; echo ququxcommand >/dev/null")
	var ask asked
	zyx.json(&ask, "elevate", host, "--reason", "ququxreason", "--ticket", "ququxticket", "--for", "30m", "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	zyx.ok("ssh", "--write", host, "--", "echo ququxoutput")
	var second asked
	zyx.json(&second, "elevate", host, "--reason", "ququxreason again", "--for", "20m", "-o", "json")
	ben.ok("deny", second.ID, "--reason", "ququxdenied")
	var list struct{ Sessions []struct{ ID string } }
	ada.json(&list, "sessions", "-o", "json")
	if len(list.Sessions) == 0 {
		t.Fatal("there is no session")
	}
	session := list.Sessions[0].ID
	if found := traces(t, i.data, words[:1]); len(found) == 0 {
		t.Fatal("the name is nowhere to begin with: this test finds nothing")
	}
	if out := ada.ok("replay", session); !strings.Contains(out, "ququxoutput") {
		t.Errorf("the replay says %q", out)
	}

	if r := ada.refused(1, "ledger", "erase", name, "--ground", "left", "--yes"); !strings.Contains(r.err, "not locked") {
		t.Errorf("somebody who still works here is erased: %s", r.err)
	}
	ada.ok("lock", name, "--reason", "ququxreason for the lock")
	if r := ada.refused(2, "ledger", "erase", name, "--ground", name+" left", "--yes"); !strings.Contains(r.err, "names them") {
		t.Errorf("the ground may name whom it erases: %s", r.err)
	}
	asking := ada.refused(4, "ledger", "erase", name, "--ground", "left, request 12", "--yes", "-o", "name")
	ben.ok("approve", strings.TrimSpace(asking.out), "--yes")
	i.until("the erasure to be finished", func() bool {
		return strings.Contains(ada.ok("ledger", "list", "--action", "erasure.finished"), "erasure.finished")
	})
	// What lies in the warden's folder is the host's own, the newest tails only.
	if found := traces(t, filepath.Join(i.data, "server"), words); len(found) != 0 {
		t.Errorf("left behind: %s", strings.Join(found, "\n"))
	}
	ada.refused(1, "replay", session)
	zip := filepath.Join(t.TempDir(), "ledger.zip")
	ada.ok("ledger", "export", zip)
	if found := traces(t, filepath.Dir(zip), words); len(found) != 0 {
		t.Errorf("in an export made afterwards: %s", strings.Join(found, "\n"))
	}
	if out := ada.ok("ledger", "verify", "--file", zip); !strings.Contains(out, "nothing was touched") {
		t.Errorf("an export does not verify:\n%s", out)
	}
	if out := ada.ok("ledger", "verify"); !strings.Contains(out, "nothing was touched") {
		t.Errorf("the ledger does not verify:\n%s", out)
	}
	if out := ada.ok("people"); strings.Contains(out, name) || !strings.Contains(out, "erased-") {
		t.Errorf("the stub is not in the list:\n%s", out)
	}
	if out := ada.ok("ledger", "list", "--action", "subject.erased", "--limit", "50"); !strings.Contains(out, "left, request 12") {
		t.Errorf("who erased and why is not said:\n%s", out)
	}
}
