package spine_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// flip changes one bit of a file wherever text stands, an offset behind it, while
// the server is off: a database keeps old copies of its pages, too.
func (i *installation) flip(file string, text []byte, offset int) {
	i.t.Helper()
	whole, err := os.ReadFile(file)
	if err != nil {
		i.t.Fatal(err)
	}
	from := 0
	for at := bytes.Index(whole, text); at >= 0; at = bytes.Index(whole[from:], text) {
		whole[from+at+offset] ^= 4
		if from += at + 1; len(text) == 0 {
			break
		}
	}
	if from == 0 {
		i.t.Fatalf("%q is not in %s", text, file)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0) // owner and mode stay
	if err == nil {
		_, err = f.WriteAt(whole, 0)
	}
	if err != nil {
		i.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		i.t.Fatal(err)
	}
}

// keep copies the data folder; the function it returns puts the copy back.
func (i *installation) keep() (restore func()) {
	i.t.Helper()
	kept := filepath.Join(i.t.TempDir(), "kept")
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			i.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run("cp", "-a", i.data, kept)
	return func() {
		run("rm", "-rf", i.data)
		run("cp", "-a", kept, i.data)
	}
}

// Whatever is touched on disk is named by the real binary, to a person who is
// logged in and to the owner of the folder, who needs no login: where nothing
// can be recorded nobody logs in. And whatever was touched, brakes work.
func TestWhatWasTouchedIsNamed(t *testing.T) {
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	ada.add("ben", "operator")
	ada.ok("ssh", host, "--", "echo hello")
	var list struct{ Sessions []struct{ ID string } }
	ada.json(&list, "sessions", "-o", "json")
	session := list.Sessions[0].ID
	var entries struct {
		Entries []struct{ Number, Action string }
	}
	i.until("the recording to be closed in the ledger", func() bool {
		ada.json(&entries, "ledger", "list", "--limit", "1000", "-o", "json")
		return strings.Contains(ada.ok("ledger", "list", "--limit", "1000", "-o", "json"), "recording.closed")
	})
	var early struct{ Leaf string }
	for _, e := range entries.Entries {
		if e.Action == "person.added" {
			early.Leaf = e.Number
		}
	}
	ada.ok("ledger", "verify")
	i.stop()
	restore := i.keep()

	state := filepath.Join(i.data, "server", "state.db")
	last := entries.Entries[0].Number
	for name, c := range map[string]struct {
		file   string
		text   string
		offset int
		says   string
	}{
		"the recording": {filepath.Join(i.data, "server", "recordings", session[2:4], session+".rec"), "", 200, "recording " + session},
		"a leaf":        {state, `"action":"person.added"`, 12, "entry #" + early.Leaf},
		"the last leaf": {state, fmt.Sprintf(`"action":"%s"`, entries.Entries[0].Action), 12, "#" + last},
		"a checkpoint":  {state, "handrail/", 2, "checkpoint"},
	} {
		restore()
		i.flip(c.file, []byte(c.text), c.offset)
		next := i.restart()
		ada.i = next
		told := ada.refused(1, "ledger", "verify")
		owner := ada.refused(1, "ledger", "verify", "--local", "--data", i.data)
		if !strings.Contains(told.out, c.says) || !strings.Contains(owner.out, c.says) {
			t.Errorf("%s was touched, and verify does not name %q:\n%s%s\n%s", name, c.says, told.out, told.err, owner.out)
		}
		if out := ada.ok("status"); !strings.Contains(out, "hosts") {
			t.Errorf("%s was touched, and nothing can be read any more:\n%s", name, out)
		}
		ada.ok("lock", "ben", "--reason", "a brake works")
		next.stop()
	}
}
