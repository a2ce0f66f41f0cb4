package servers_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/host/lab"
	"handrail.dev/handrail/test/slapd"
)

// house is two servers, four people and two hosts.
type house struct {
	t              *testing.T
	a, b           *server
	ada, ben, cleo person // at a
	hosts          map[string]*lab.Host
}

func open(t *testing.T) *house {
	t.Helper()
	return enter(t, place(t, "a", cluster.Database(t)), func(string) string { return "" })
}

// enter opens the house at its first server; net says in which network a host is.
func enter(t *testing.T, first *server, net func(host string) string) *house {
	t.Helper()
	h := &house{t: t, a: first.start(), hosts: map[string]*lab.Host{}}
	h.ada = h.a.first()
	h.ben, h.cleo = h.ada.add("ben", "operator"), h.ada.add("cleo", "developer")
	tokens := map[string]string{"web-1": h.ada.invite("web-1"), "web-2": h.ada.invite("web-2")}
	h.ada.ok("bootstrap", "end")
	h.b = h.ada.another(t, "b", h.ben).start()
	for name, token := range tokens {
		h.hosts[name] = labHost(t, name, token, net(name), h.a.data, h.b.data)
	}
	until(t, "both hosts to be online at both servers", func() bool {
		for _, p := range []person{h.ada, h.ada.via(h.b)} {
			if p.stateOf("web-1") != "online" || p.stateOf("web-2") != "online" {
				return false
			}
		}
		return true
	})
	return h
}

type entry struct{ Seq, Action, Outcome, Session, Object string }

// entries are those of one action, as a server tells them.
func (p person) entries(action string) (found []entry) {
	p.t.Helper()
	var list struct{ Entries []entry }
	p.json(&list, "ledger", "list", "--limit", "1000", "-o", "json")
	for _, e := range list.Entries {
		if e.Action == action {
			found = append(found, e)
		}
	}
	return found
}

// live are the open sessions of a person, as a server tells them.
func (p person) live(name string) (ids []string) {
	p.t.Helper()
	var list struct {
		Sessions []struct{ ID, PersonName string }
	}
	p.json(&list, "sessions", "--live", "-o", "json")
	for _, s := range list.Sessions {
		if s.PersonName == name {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (p person) oneLive(name string) (id string) {
	p.t.Helper()
	until(p.t, "a live session of "+name+" at "+p.at.name, func() bool {
		ids := p.live(name)
		if len(ids) == 1 {
			id = ids[0]
		}
		return len(ids) == 1
	})
	return id
}

// noTwice sees that nothing was done twice: each session opened and closed once,
// each grant ended once, and the ledger adds up.
func (h *house) noTwice(p person) {
	h.t.Helper()
	for _, action := range []string{"session.opened", "session.closed", "grant.ended", "person.locked"} {
		seen := map[string]bool{}
		for _, e := range p.entries(action) {
			what := e.Session + e.Object
			if seen[what] && action != "person.locked" {
				h.t.Errorf("%s of %s is there twice", action, what)
			}
			seen[what] = true
		}
	}
	p.ok("ledger", "verify")
}

func TestTwoServersAreOne(t *testing.T) {
	needRoot(t)
	d, directory := company(t)
	configure(t, directory)
	h := open(t)
	adaB, benB, cleoB := h.ada.via(h.b), h.ben.via(h.b), h.cleo.via(h.b)
	t.Run("who leaves the directory loses what they have at a server that does not lead", func(t *testing.T) {
		_, other := h.leader(h.ada)
		h.leaves(t, "emil", "30029", other, func() { d.Leave("dev", slapd.Person("emil")) })
	})
	t.Run("a stock client reaches both hosts through either server", func(t *testing.T) {
		for _, p := range []person{h.cleo, cleoB} {
			for _, host := range []string{"web-1", "web-2"} {
				r := begin(t, exec.Command("ssh", "-F", filepath.Join(p.home, "ssh_config"), host+"@handrail", "hostname; whoami"))
				if code := r.ends(); code != 0 || r.out.String() != host+"\ncleo\n" {
					t.Errorf("ssh %s at %s: exit %d: %s", host, p.at.name, code, r.out)
				}
			}
		}
	})
	t.Run("a session is watched, paused and stopped where it does not live", func(t *testing.T) {
		long := h.cleo.begin("ssh", "web-1", "--", "echo up; sleep 2; echo seen; sleep 300")
		long.says("up")
		id := adaB.oneLive("cleo")
		watch := adaB.begin("watch", id)
		watch.says("up")
		adaB.ok("pause", id)
		adaB.ok("resume", id)
		adaB.ok("stop", id, "--reason", "enough")
		if code := long.ends(); code == 0 || !strings.Contains(long.out.String(), "enough") {
			t.Errorf("exit %d: %s", code, long.out)
		}
		watch.says("enough")
		if out := adaB.ok("replay", id, "--speed", "64"); !strings.Contains(out, "up") {
			t.Errorf("the recording that lies with the other server says %q", out)
		}
	})
	t.Run("asked for here, approved there, used there, revoked here", func(t *testing.T) {
		var ask struct{ ID string }
		h.cleo.json(&ask, "elevate", "web-2", "--reason", "disk full", "--for", "30m", "-o", "json")
		benB.ok("approve", ask.ID, "--yes")
		long := cleoB.begin("ssh", "--write", "web-2", "--", "echo up; sleep 300")
		long.says("up")
		h.ada.ok("revoke", ask.ID, "--reason", "no")
		if code := long.ends(); code == 0 {
			t.Errorf("exit %d: %s", code, long.out)
		}
	})
	t.Run("a lock at one server kills at the other", func(t *testing.T) {
		var all []*process
		for _, host := range []string{"web-1", "web-2"} {
			for _, p := range []person{h.cleo, cleoB} {
				long := p.begin("ssh", host, "--", "echo up; sleep 300")
				long.says("up")
				all = append(all, long)
			}
		}
		began := time.Now()
		adaB.ok("lock", "cleo", "--reason", "lost laptop")
		t.Logf("the lock returned after %s", time.Since(began).Round(time.Millisecond))
		for _, p := range all {
			if code := p.ends(); code == 0 {
				t.Errorf("exit %d: %s", code, p.out)
			}
		}
		t.Logf("all clients ended after %s", time.Since(began).Round(time.Millisecond))
		for _, p := range []person{h.cleo, cleoB} {
			if r := p.run("ssh", "web-1", "--", "true"); r.code == 0 {
				t.Errorf("who is locked gets a session at %s", p.at.name)
			}
		}
	})
	t.Run("a server that drains sends nodes and people to the other", func(t *testing.T) {
		long, enter := benB.beginTyping("ssh", "web-1", "--", "echo up; read -r line; echo bye $line")
		long.says("up")
		h.ada.ok("server", "drain", "b", "--reason", "upgrade", "--within", "1h")
		long.says("about to restart: upgrade")
		until(t, "b to refuse sessions", func() bool { return benB.run("ssh", "web-2", "--", "true").code != 0 })
		enter("now\n") // a drain waits for what runs
		long.says("bye now")
		until(t, "both nodes at a", func() bool {
			var list struct {
				Servers []struct{ Name, Nodes string }
			}
			h.ada.json(&list, "servers", "-o", "json")
			for _, s := range list.Servers {
				if s.Name == "b" && s.Nodes != "0" {
					return false
				}
			}
			return h.ada.stateOf("web-1") == "online" && h.ada.stateOf("web-2") == "online"
		})
		if out := h.ben.ok("ssh", "web-2", "--", "hostname"); out != "web-2\n" {
			t.Error(out)
		}
		h.b.stop()
		h.b.start()
		until(t, "b to take sessions again", func() bool { return benB.run("ssh", "web-2", "--", "true").code == 0 })
	})
	h.noTwice(adaB)
	h.killed(t)
	h.noTwice(h.ada)
	h.noTwice(h.ada.via(h.b))
}

// long says that there is time for what takes a minute.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("HANDRAIL_TEST_LONG") == "" {
		t.Skip("takes a minute: make test-servers")
	}
}

// TestAServerThatIsCutOffIsLeft stops a server's process, as a machine does that
// hangs: its connections stay open and nothing answers.
func TestAServerThatIsCutOffIsLeft(t *testing.T) {
	needRoot(t)
	long(t)
	h := open(t)
	benB := h.ben.via(h.b)
	stuck := h.a.role()
	if err := unix.Kill(stuck, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(stuck, unix.SIGCONT) })
	began := time.Now()
	until(t, "both hosts to be usable at b", func() bool {
		return benB.run("ssh", "web-1", "--", "true").code == 0 && benB.run("ssh", "web-2", "--", "true").code == 0
	})
	t.Logf("both hosts were usable at b %s after a was cut off", time.Since(began).Round(time.Millisecond))
	if err := unix.Kill(stuck, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "a to serve again", func() bool { return h.ben.run("ssh", "web-1", "--", "true").code == 0 })
	h.noTwice(h.ada)
	h.noTwice(h.ada.via(h.b))
}

// TestWhatAServerThatIsGoneLeftOpenIsClosedByAnother waits until the other one
// gives it up, and then brings it back.
func TestWhatAServerThatIsGoneLeftOpenIsClosedByAnother(t *testing.T) {
	needRoot(t)
	long(t)
	h := open(t)
	adaB := h.ada.via(h.b)
	// Its time is up while both servers look after it: noTwice counts its ends.
	var brief struct{ ID string }
	h.ada.json(&brief, "elevate", "web-1", "--reason", "a look", "--for", "1m", "-o", "json")
	h.ben.via(h.b).ok("approve", brief.ID, "--yes")
	atA := h.ben.begin("ssh", "web-1", "--", "echo up; sleep 300")
	atA.says("up")
	lost := adaB.oneLive("ben")
	h.a.kill()
	until(t, "the other server to close it as lost", func() bool {
		return slices.ContainsFunc(adaB.entries("session.closed"), func(e entry) bool { return e.Session == lost && e.Outcome == "lost" })
	})
	h.a.start()
	if out := h.ada.ok("replay", lost, "--speed", "64"); !strings.Contains(out, "up") {
		t.Errorf("the recording that its home sealed late says %q", out)
	}
	if out := adaB.ok("replay", lost, "--speed", "64"); !strings.Contains(out, "up") {
		t.Errorf("by way of the other server it says %q", out)
	}
	until(t, "the grant whose time is up to end", func() bool {
		return slices.ContainsFunc(h.ada.entries("grant.ended"), func(e entry) bool { return e.Object == brief.ID })
	})
	h.noTwice(h.ada)
	h.noTwice(adaB)
}

// killed ends one server as a power cut does, and sees what the other makes of it.
func (h *house) killed(t *testing.T) {
	t.Helper()
	adaB, benB := h.ada.via(h.b), h.ben.via(h.b)
	atA := h.ben.begin("ssh", "web-1", "--", "echo up; sleep 300")
	atA.says("up")
	lost := h.ada.oneLive("ben")
	h.a.kill()
	if code := atA.ends(); code == 0 {
		t.Errorf("the session of the server that is gone ended well: %s", atA.out)
	}
	began := time.Now()
	until(t, "both nodes at b", func() bool {
		return benB.run("ssh", "web-1", "--", "true").code == 0 && benB.run("ssh", "web-2", "--", "true").code == 0
	})
	t.Logf("both hosts were usable at b %s after a was killed", time.Since(began).Round(time.Millisecond))
	atB := benB.begin("ssh", "web-1", "--", "echo up; sleep 300")
	atB.says("up")
	h.a.start()
	until(t, "the session of the server that was killed to be closed as lost", func() bool {
		return slices.ContainsFunc(adaB.entries("session.closed"), func(e entry) bool { return e.Session == lost && e.Outcome == "lost" })
	})
	if !atB.running() {
		t.Errorf("a session of the server that lived ended: %s", atB.out)
	}
	_ = atB.cmd.Process.Signal(unix.SIGTERM)
	atB.ends()
}
