package spine_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

// role finds a role of an installation by what the kernel says of its processes.
func (i *installation) role(name string) (pids []int) {
	for _, f := range below(i.cmd.Process.Pid) {
		if f.args[0] != name && !(len(f.args) > 1 && f.args[1] == name) {
			continue
		}
		pids = append(pids, f.pid)
	}
	return pids
}

// wounded is an installation with one read and one write session that run.
type wounded struct {
	*installation
	ada         person
	host        string
	read, write *process
	marks       []string
	sessions    []string
}

// work starts the two sessions, each with a process that left its group.
func (w *wounded) work() {
	w.t.Helper()
	w.marks = []string{marker(w.t), marker(w.t)}
	run := func(mark string) string { return "echo up; setsid sleep " + mark + " & sleep " + mark }
	w.read = w.ada.start("ssh", w.host, "--", run(w.marks[0]))
	w.write = w.ada.start("ssh", "--write", w.host, "--", run(w.marks[1]))
	w.read.waitFor("up")
	w.write.waitFor("up")
	w.until("the sessions' processes", func() bool { return len(w.left()) == 4 })
	w.sessions = nil
	var list struct {
		Sessions []struct{ ID, State string }
	}
	w.ada.json(&list, "sessions", "--live", "-o", "json")
	for _, s := range list.Sessions {
		w.sessions = append(w.sessions, s.ID)
	}
	if len(w.sessions) != 2 {
		w.t.Fatalf("sessions: %+v", list)
	}
}

// left are the processes of both sessions that still run.
func (w *wounded) left() []found { return append(running(w.marks[0]), running(w.marks[1])...) }

// lost waits until nothing of the sessions runs and their loss is an entry.
func (w *wounded) lost() {
	w.t.Helper()
	w.over()
	for _, id := range w.sessions {
		w.ada.closedAsLost(id)
	}
}

// over waits until nothing of the sessions runs, and all works again.
func (w *wounded) over() {
	w.t.Helper()
	w.read.wait()
	w.write.wait()
	w.until("the end of everything that the sessions started", func() bool { return len(w.left()) == 0 })
	w.works()
	w.ada.ok("ledger", "verify")
}

// works waits until both kinds of session open again.
func (w *wounded) works() {
	w.t.Helper()
	for _, words := range [][]string{{"ssh", w.host, "--", "echo in"}, {"ssh", "--write", w.host, "--", "echo in"}} {
		w.until("a session to open again", func() bool { return w.ada.run(words...).out == "in\n" })
	}
}

func TestKillingAnyRoleLeavesNothingBehind(t *testing.T) {
	i := up(t, t.TempDir())
	i.needWrites()
	w := &wounded{installation: i, ada: i.first()}
	w.host = w.ada.hostname()
	var ask asked
	w.ada.json(&ask, "elevate", w.host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "30m", "-o", "json")
	ben := w.ada.add("ben", "operator")
	ben.ok("approve", ask.ID, "--yes")

	for _, role := range []string{"server-role", "link", "warden"} {
		t.Run(role, func(t *testing.T) {
			i.t = t
			w.work()
			before := i.role(role)
			if len(before) != 1 {
				t.Fatalf("%d processes are the %s: %v", len(before), role, below(i.cmd.Process.Pid))
			}
			kill(t, before[0])
			w.lost()
			after := i.role(role)
			if len(after) != 1 || slices.Equal(before, after) {
				t.Errorf("the %s was %v and is %v", role, before, after)
			}
		})
	}
	t.Run("keepers", func(t *testing.T) {
		i.t = t
		w.work()
		for _, pid := range w.keepers() {
			kill(t, pid)
		}
		w.lost()
	})
	t.Run("supervisor", func(t *testing.T) {
		i.t = t
		w.work()
		all := below(i.cmd.Process.Pid)
		kill(t, i.cmd.Process.Pid)
		<-i.done
		i.until("the end of every role", func() bool {
			for _, f := range everything() {
				if slices.ContainsFunc(all, func(was found) bool { return was.pid == f.pid && same(was, f) }) {
					return false
				}
			}
			return true
		})
		next := i.restart()
		w.installation, w.ada.i = next, next
		w.ada.hostname()
		w.over()
		// The roles end with it, in any order: the sessions are lost or unknown,
		// or the node could still tell that it stopped them. None ended by itself.
		var list struct {
			Sessions []struct{ ID, EndedWhy string }
		}
		w.ada.json(&list, "sessions", "-o", "json")
		why := map[string]string{}
		for _, s := range list.Sessions {
			why[s.ID] = s.EndedWhy
		}
		for _, id := range w.sessions {
			if outcome := w.ada.closed(id); outcome == "ok" && why[id] != "stopped" && why[id] != "shutdown" || why[id] == "exit" || why[id] == "" {
				t.Errorf("%s was closed as %s: %q", id, outcome, why[id])
			}
		}
	})
}

// same says whether a process is still the one that it was.
func same(a, b found) bool { return strings.Join(a.args, " ") == strings.Join(b.args, " ") }

// keepers are the processes between the warden and what sessions run.
func (w *wounded) keepers() (pids []int) {
	w.t.Helper()
	parents := map[int]found{}
	for _, f := range everything() {
		parents[f.pid] = f
	}
	wardens := w.role("warden")
	for _, sleeping := range w.left() {
		for pid := sleeping.pid; pid > 1; pid = parents[pid].parent {
			if slices.Contains(wardens, parents[pid].parent) && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		w.t.Fatalf("no keeper of %v below warden %v", w.left(), wardens)
	}
	return pids
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("cannot kill %d: %v", pid, err)
	}
}
