package spine_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asked is what `elevate -o json` prints.
type asked struct {
	ID       string
	Approval string
}

func TestICanJump(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")

	if r := cleo.refused(255, "ssh", "--write", host, "--", "true"); !strings.Contains(r.err, "handrail elevate "+host) {
		t.Errorf("the refusal does not name the next command: %s", r.err)
	}
	var ask asked
	cleo.json(&ask, "elevate", host, "--reason", "disk full", "--ticket", "OPS-7", "--for", "30m", "-o", "json")
	if !strings.HasPrefix(ask.ID, "g-") {
		t.Fatalf("elevate gave no id: %+v", ask)
	}
	cleo.refused(3, "approve", ask.ID, "--yes")
	if r := cleo.refused(3, "elevate", host, "--root", "--reason", "fix it"); !strings.Contains(r.err, "root-owns-the-server") {
		t.Errorf("root where the server runs is not refused by its rule: %s", r.err)
	}
	if out := ben.ok("requests"); !strings.Contains(out, "cleo") {
		t.Errorf("ben does not see the request:\n%s", out)
	}
	ben.ok("approve", ask.ID, "--yes")

	open := openFolder(t)
	if out := cleo.ok("ssh", "--write", host, "--", "touch "+open+"/written && rm "+open+"/written && id -un"); strings.TrimSpace(out) != "handrail-write" {
		t.Errorf("a write session must run as the account that policy names, it is %q", out)
	}
	if r := cleo.run("ssh", host, "--", "touch "+open+"/read"); r.code == 0 {
		t.Error("a read session could write although a grant is in force")
	}

	t.Run("revoke ends what runs", func(t *testing.T) {
		long := cleo.start("ssh", "--write", host, "--", "echo up; setsid sleep 300 & sleep 300")
		long.waitFor("up")
		ben.ok("revoke", ask.ID, "--reason", "enough")
		long.wait()
		cleo.refused(255, "ssh", "--write", host, "--", "true")
	})
	t.Run("lock kills everything at once and stays", func(t *testing.T) {
		long := cleo.start("ssh", host, "--", "echo up; sleep 300")
		long.waitFor("up")
		ada.ok("lock", "cleo", "--reason", "lost laptop")
		long.wait()
		if r := cleo.run("hosts"); r.code != 3 {
			t.Errorf("a locked person's command exits with %d: %s", r.code, r.err)
		}
	})
	ada.ok("ledger", "verify")
}

// A session that is let through just before the grant ends is found and ended;
// one that comes just after is refused.
func TestARevokeThatRacesASessionLeavesNothing(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	for round := range 4 {
		mark := marker(t)
		var ask asked
		cleo.json(&ask, "elevate", host, "--reason", "disk full", "-o", "json")
		ben.ok("approve", ask.ID, "--yes")
		session := cleo.start("ssh", "--write", host, "--", "setsid sleep "+mark+" & sleep "+mark)
		if round%2 == 1 {
			i.until("the session to be let through", func() bool { return ben.ok("sessions", "--live", "-o", "name") != "" })
		}
		revoke := ben.start("revoke", ask.ID, "--reason", "enough")
		revoke.wait()
		session.wait()
		if revoke.cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("revoke: exit %d:\n%s", revoke.cmd.ProcessState.ExitCode(), revoke.out)
		}
		i.until("the end of everything that ran under the grant", func() bool { return len(running(mark)) == 0 })
		if out := ben.ok("sessions", "--live", "-o", "name"); out != "" {
			t.Errorf("a session lives on: %s", out)
		}
	}
	ada.ok("ledger", "verify")
}

// openFolder is a folder in which every account may write.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/opt", "handrail-open")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBreakGlassIsLoudAndOwesAReview(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")

	watching := ben.start("ssh", host, "--", "echo up; sleep 300")
	watching.waitFor("up")
	var ask asked
	cleo.json(&ask, "break-glass", host, "--reason", "site is down", "-o", "json")
	watching.waitFor("BREAK-GLASS")
	if out := cleo.ok("ssh", "--write", host, "--", "echo in"); strings.TrimSpace(out) != "in" {
		t.Errorf("break-glass did not open the door: %q", out)
	}
	if out := ada.ok("status"); !strings.Contains(out, "BREAK-GLASS") {
		t.Errorf("status is calm:\n%s", out)
	}
	ben.ok("revoke", ask.ID, "--reason", "site is up")
	cleo.refused(3, "review", ask.ID, "--verdict", "justified", "--notes", "I was right")
	ben.ok("review", ask.ID, "--verdict", "justified", "--notes", "the site was down")
	watching.kill()
	ada.ok("ledger", "verify")
}

func TestSomebodyWatches(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")

	in, out, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	shell := ada.startWith(in, "ssh", host, "--", "cat")
	in.Close()
	id := i.liveSession(ben)
	watcher := ben.start("watch", id)
	i.until("ben to be shown as watching", func() bool {
		return strings.Contains(ben.ok("session", "show", id), "ben")
	})
	if _, err := out.WriteString("hello from ada\n"); err != nil {
		t.Fatal(err)
	}
	shell.waitFor("hello from ada")
	watcher.waitFor("hello from ada")
	ben.ok("pause", id, "--reason", "wait")
	i.until("the session to be paused", func() bool { return strings.Contains(ben.ok("session", "show", id), "paused") })
	ben.ok("resume", id)
	ben.ok("stop", id, "--reason", "enough")
	shell.wait()
	watcher.wait()
	if out := ben.ok("replay", id); !strings.Contains(out, "hello from ada") {
		t.Errorf("the replay lacks what was shown:\n%s", out)
	}
	if out := ada.ok("ledger", "list", "--limit", "500", "-o", "json"); !strings.Contains(out, "session.replayed") {
		t.Error("a replay is no entry")
	}
	ada.ok("ledger", "verify")
}

func TestALockEndsWhatSomebodyLooksAt(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")

	shell := ada.start("ssh", host, "--", "echo up; sleep 300")
	shell.waitFor("up")
	id := i.liveSession(ada)
	joined := ben.start("watch", id)
	joined.waitFor("up")
	followed := ben.start("requests", "--follow")
	var before, after asked
	ada.json(&before, "elevate", host, "--reason", "before the lock", "-o", "json")
	followed.waitFor(before.Approval)
	var agreed asked
	ada.json(&agreed, "elevate", host, "--reason", "on his word", "-o", "json")
	ben.ok("approve", agreed.ID, "--yes")
	if out := ada.ok("lock", "ben", "--reason", "lost laptop"); !strings.Contains(out, agreed.ID+" in force: handrail revoke "+agreed.ID) {
		t.Errorf("who locks an approver is not told what stands on their word:\n%s", out)
	}
	if out := ada.ok("grants", "--agreed-by", "ben"); !strings.Contains(out, agreed.ID) || strings.Contains(out, before.ID) {
		t.Errorf("%s stands on ben's word, and nothing else:\n%s", agreed.ID, out)
	}
	joined.waitFor("lost laptop")
	joined.wait()
	ada.json(&after, "elevate", host, "--reason", "after the lock", "-o", "json")
	followed.wait()
	if out := followed.out.String(); strings.Contains(out, after.Approval) {
		t.Errorf("a locked person goes on to see:\n%s", out)
	}
	ada.ok("stop", id, "--reason", "done")
	shell.wait()
}

// liveSession is the id of the one live session.
func (i *installation) liveSession(p person) (id string) {
	i.t.Helper()
	i.until("a live session", func() bool {
		for _, id = range i.live(p) {
			return true
		}
		return false
	})
	return id
}

// live are the ids of the live sessions.
func (i *installation) live(p person) (ids []string) {
	i.t.Helper()
	var list struct {
		Sessions []struct{ ID, State string }
	}
	p.json(&list, "sessions", "--live", "-o", "json")
	for _, s := range list.Sessions {
		if s.State == "live" {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// TestStockClients runs the clients that people have, unchanged.
func TestStockClients(t *testing.T) {
	needRoot(t)
	for _, client := range []string{"ssh", "scp", "sftp", "rsync", "git"} {
		if _, err := exec.LookPath(client); err != nil {
			t.Skipf("%s is missing", client)
		}
	}
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	stock(t, ada, host)
}
