package spine_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// install puts the test's binary at path, with something behind its end that
// makes it another file, as the installer of a package does.
func install(t *testing.T, path, more string) {
	t.Helper()
	from, err := os.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	next, err := os.OpenFile(path+".next", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err == nil {
		_, err = io.Copy(next, io.MultiReader(from, strings.NewReader(more)))
		next.Close()
	}
	if err == nil {
		err = os.Rename(path+".next", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runs says whether a process runs the file that is at path now.
func runs(pid int, path string) bool {
	var its, now syscall.Stat_t
	return syscall.Stat(fmt.Sprintf("/proc/%d/exe", pid), &its) == nil && syscall.Stat(path, &now) == nil && its.Ino == now.Ino && its.Dev == now.Dev
}

func TestAnUpgradeOfANodeLeavesItsSessionsRunning(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "handrail")
	install(t, program, "")
	// Longer than a socket's path may be.
	data := filepath.Join(dir, strings.Repeat("d", 120))
	i := upBy(t, exec.Command(program, upArgs(t, data)...), data)
	ada := i.first()
	host := ada.hostname()
	in, keys, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	enter := func(text string) {
		t.Helper()
		if _, err := io.WriteString(keys, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	mark := marker(t)
	typed := ada.startWith(in, "ssh", host, "--", "while read x; do echo got $x; done; exit 3")
	in.Close()
	left := ada.start("ssh", host, "--", "echo up; setsid sleep "+mark+" & sleep "+mark)
	left.waitFor("up")
	enter("one")
	typed.waitFor("got one")
	warden := i.role("warden")

	if err := os.Chmod(program, 0o757); err != nil {
		t.Fatal(err)
	}
	if r := ada.refused(3, "node", "upgrade", "--data", data); !strings.Contains(r.err, "others may write") {
		t.Errorf("a program that others may write: %s", r.err)
	}
	install(t, program, "a newer one")
	ada.ok("node", "upgrade", "--data", data)
	if now := i.role("warden"); len(now) != 1 || now[0] != warden[0] || !runs(now[0], program) {
		t.Fatalf("the warden was %v and is %v; it runs the newer program: %v", warden, now, runs(now[0], program))
	}
	enter("two")
	typed.waitFor("got two")
	if out := ada.ok("ssh", host, "--", "echo begun later"); out != "begun later\n" {
		t.Errorf("a session of the newer program said %q", out)
	}
	keys.Close()
	typed.wait()
	if code := typed.cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("it ended with %d, want 3:\n%s", code, typed.out)
	}
	var list struct {
		Sessions []struct{ ID, State string }
	}
	ada.json(&list, "sessions", "--live", "-o", "json")
	if len(list.Sessions) != 1 {
		t.Fatalf("live: %+v", list)
	}
	stopped := list.Sessions[0].ID
	ada.ok("stop", stopped)
	i.until("what the stopped session ran is dead", func() bool { return len(running(mark)) == 0 })
	ada.closed(stopped)

	var entries struct {
		Entries []struct{ Action, Session string }
	}
	ada.json(&entries, "ledger", "list", "--limit", "500", "-o", "json")
	ends := map[string]int{}
	for _, e := range entries.Entries {
		if e.Action == "session.closed" {
			ends[e.Session]++
		}
	}
	if len(ends) != 3 {
		t.Errorf("%d sessions have an end, want 3: %v", len(ends), ends)
	}
	for id, n := range ends {
		if n != 1 {
			t.Errorf("session %s ended %d times", id, n)
		}
		if out := ada.ok("replay", id); strings.Contains(out, "got one") != strings.Contains(out, "got two") {
			t.Errorf("the recording of %s breaks off:\n%s", id, out)
		}
	}
	ada.ok("ledger", "verify")
}
