package spine_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/host/lab"
)

// invite asks for a token with which a host may join.
func (p person) invite(args ...string) string {
	p.i.t.Helper()
	var invited struct{ Token string }
	p.json(&invited, append([]string{"host", "invite", "-o", "json"}, args...)...)
	if invited.Token == "" {
		p.i.t.Fatal("an invitation without a token")
	}
	return invited.Token
}

// labHost starts another host that joins with token and runs its node. Files are
// in its /etc before.
func (i *installation) labHost(name, token string, files ...map[string]string) (*lab.Host, *lockedBuffer) {
	i.t.Helper()
	said := &lockedBuffer{}
	ctx, cancel := context.WithCancel(context.Background())
	i.t.Cleanup(cancel)
	const data = "/var/lib/handrail-node"
	script := "set -e; " + lab.ProgramPath + " join --data " + data + " --name " + name + " --token-file /etc/handrail-token; " +
		"rm /etc/handrail-token; exec " + lab.ProgramPath + " node --data " + data
	all := map[string]string{"/etc/handrail-token": token + "\n"}
	for _, more := range files {
		maps.Copy(all, more)
	}
	h, err := lab.Start(ctx, lab.Config{
		Name: name, Dir: i.t.TempDir(), Program: binary, Run: []string{"/bin/sh", "-c", script},
		Files: all, Hide: []string{i.data}, Stdout: said, Stderr: said,
	})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() {
		h.Kill()
		if i.t.Failed() {
			i.t.Logf("%s said:\n%s", name, said)
		}
	})
	return h, said
}

// stateOf is what the list of hosts says of one.
func (p person) stateOf(host string) string {
	p.i.t.Helper()
	var list struct {
		Hosts []struct{ Name, State string }
	}
	p.json(&list, "hosts", "-o", "json")
	for _, h := range list.Hosts {
		if h.Name == host {
			return h.State
		}
	}
	return ""
}

func TestAnotherHost(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	token := ada.invite("web-1", "--env", "staging")
	host, _ := i.labHost("web-1", token)
	i.until("web-1 to be online", func() bool { return ada.stateOf("web-1") == "online" })

	if out := cleo.ok("ssh", "web-1", "--", "hostname; whoami"); out != "web-1\ncleo\n" {
		t.Errorf("hostname and whoami are %q", out)
	}
	t.Run("the jump works there", func(t *testing.T) {
		var ask asked
		cleo.json(&ask, "elevate", "web-1", "--reason", "disk full", "--ticket", "OPS-7", "--for", "30m", "-o", "json")
		ben.ok("approve", ask.ID, "--yes")
		cleo.ok("ssh", "--write", "web-1", "--", "touch /var/tmp/handrail-lab-written && test -e /var/tmp/handrail-lab-written")
		if _, err := os.Stat("/var/tmp/handrail-lab-written"); err == nil {
			t.Error("the file was written on this machine, not on the lab host")
		}
		if r := ada.run("ssh", "--write", "web-1", "--", "true"); r.code != 255 {
			t.Errorf("the grant is cleo's alone, but ada's write session exits with %d", r.code)
		}
	})
	t.Run("a lock kills there", func(t *testing.T) {
		mark := marker(t)
		long := cleo.start("ssh", "--write", "web-1", "--", "echo up; setsid sleep "+mark+" & sleep "+mark)
		long.waitFor("up")
		i.until("the marked processes", func() bool { return len(running(mark)) >= 2 })
		if out := ada.ok("lock", "cleo", "--reason", "lost laptop"); !strings.Contains(out, "1 session\n") {
			t.Errorf("the lock counts what it killed:\n%s", out)
		}
		long.wait()
		i.until("the end of the marked processes", func() bool { return len(running(mark)) == 0 })
	})
	t.Run("a host that vanishes in mid-session", func(t *testing.T) {
		mark := marker(t)
		long := ben.start("ssh", "web-1", "--", "echo up; sleep "+mark)
		long.waitFor("up")
		id := i.liveSession(ada)
		host.Kill()
		long.wait()
		if long.cmd.ProcessState.ExitCode() != 255 || !strings.Contains(long.out.String(), "lost") {
			t.Errorf("the person is told (exit %d):\n%s", long.cmd.ProcessState.ExitCode(), long.out)
		}
		i.until("web-1 to be offline", func() bool { return ada.stateOf("web-1") == "offline" })
		ada.closedAsLost(id)
		if r := ben.refused(255, "ssh", "web-1", "--", "true"); !strings.Contains(r.err, "not connected") {
			t.Errorf("why there is no session is not said: %s", r.err)
		}
	})
	ada.ok("ledger", "verify")
}

// closedAsLost waits for the entry that says so.
func (p person) closedAsLost(session string) {
	p.i.t.Helper()
	if outcome := p.closed(session); outcome != "lost" {
		p.i.t.Errorf("%s was closed as %q, want lost", session, outcome)
	}
}

// closed waits for the entry that closes a session and returns its outcome.
func (p person) closed(session string) (outcome string) {
	p.i.t.Helper()
	p.i.until("an entry that closes "+session, func() bool {
		var list struct {
			Entries []struct{ Action, Outcome, Session string }
		}
		p.json(&list, "ledger", "list", "--limit", "500", "-o", "json")
		for _, e := range list.Entries {
			if e.Action == "session.closed" && e.Session == session {
				outcome = e.Outcome
				return true
			}
		}
		return false
	})
	return outcome
}

func TestJoinTokensThatMustNotWork(t *testing.T) {
	i := up(t, t.TempDir())
	ada := i.first()
	ada.hostname()
	other := up(t, t.TempDir())
	bob := other.first()
	bob.hostname()
	join := func(token string) result {
		return person{i, t.TempDir()}.run("join", "--name", "web-9", "--data", filepath.Join(t.TempDir(), "node"), "--token-file", i.tokenFile(token))
	}
	refused := func(t *testing.T, token string, words ...string) {
		t.Helper()
		r := join(token)
		if r.code == 0 || !strings.Contains(r.err, "cannot ") {
			t.Fatalf("exit %d: %s%s", r.code, r.out, r.err)
		}
		for _, word := range words {
			if !strings.Contains(r.err, word) {
				t.Errorf("the refusal does not say %q: %s", word, r.err)
			}
		}
	}
	used := ada.invite()
	if r := join(used); r.code != 0 {
		t.Fatalf("join: exit %d: %s", r.code, r.err)
	}
	t.Run("used", func(t *testing.T) { refused(t, used, "used", "handrail host invite") })
	ours, err := ledger.ParseToken(ada.invite())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ledger.ParseToken(bob.invite())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("secret of another installation", func(t *testing.T) {
		refused(t, ledger.Token{Address: ours.Address, RootHash: ours.RootHash, Secret: theirs.Secret}.String(), "wrong")
	})
	t.Run("a server that is not the one of the token", func(t *testing.T) {
		refused(t, ledger.Token{Address: theirs.Address, RootHash: ours.RootHash, Secret: ours.Secret}.String())
	})
	t.Run("garbage", func(t *testing.T) {
		for _, token := range []string{"hr1", "hr1.x.y.z", strings.Repeat("A", 3000), "handrail host invite"} {
			refused(t, token)
		}
	})
	t.Run("expired", func(t *testing.T) {
		late := ada.invite()
		i.stop()
		i.age()
		i.restart()
		refused(t, late, "expired")
	})
}
