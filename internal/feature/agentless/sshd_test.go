package agentless_test

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/sshd"
)

func TestStockClientsReachAHostWithoutANode(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	server, h := w.debian("dev")
	ada := w.person("ada")
	if r := ada.run("", "ssh", "db-7@gateway", "id -un; exit 7"); r.status != 7 || strings.TrimSpace(r.out) != h.SSHUser {
		t.Fatalf("ssh: %+v\n%s", r, server.Log())
	}
	if r := ada.run("one\ntwo\n", "ssh", "db-7@gateway", "wc -l; echo e >&2"); strings.TrimSpace(r.out) != "2" || !strings.Contains(r.err, "e") {
		t.Errorf("standard input: %+v", r)
	}
	if r := ada.run("echo $((6*7)); exit 3\n", "ssh", "-T", "db-7@gateway"); r.status != 3 || !strings.Contains(r.out, "42") {
		t.Errorf("shell: %+v", r)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	file := filepath.Join(sshd.Home(t, h.SSHUser), "big")
	fatal(t, os.WriteFile(file, []byte(big), 0o644))
	for _, c := range [][]string{
		{"scp", "db-7@gateway:" + file, "got"}, {"scp", "-O", "db-7@gateway:" + file, "got"}, {"rsync", "db-7@gateway:" + file, "got"},
	} {
		_ = os.Remove(filepath.Join(w.Dir, "got"))
		r := ada.run("", c[0], c[1:]...)
		if got, _ := os.ReadFile(filepath.Join(w.Dir, "got")); r.status != 0 || string(got) != big {
			t.Errorf("%v: exit %d, %d bytes: %s", c, r.status, len(got), r.err)
		}
	}
	fatal(t, os.WriteFile(filepath.Join(w.Dir, "batch"), []byte("get "+file+" got2\n"), 0o600))
	if r := ada.run("", "sftp", "-b", filepath.Join(w.Dir, "batch"), "db-7@gateway"); r.status != 0 {
		t.Errorf("sftp: %+v", r)
	}
	eventually(t, "all are closed", func() bool {
		return len(w.entries(session.Closed)) == len(w.entries(session.Opened)) && w.sessions.CountLive() == 0
	})
	i := must(w.sessions.Latest(context.Background(), ada.by.ID))
	if i.Floor != wire.FloorAccount || len(i.FloorMissing) == 0 || i.Account != h.SSHUser {
		t.Errorf("the row says floor %q %v, account %q", i.Floor, i.FloorMissing, i.Account)
	}
	if found := w.entries(agentless.SessionSwept); len(found) != 0 {
		t.Errorf("something was swept after plain commands: %s", found[0].Payload)
	}
	if !strings.Contains(server.Log(), "handrail:"+i.ID+":"+ada.by.ID) {
		t.Errorf("the host's log names neither session nor person:\n%s", server.Log())
	}
}

func TestWhatOnlyAnAccountKeepsFromWritingIsRefusedWhereMoreIsAsked(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	server, _ := w.debian("production")
	r := w.person("ada").run("", "ssh", "db-7@gateway", "id")
	if r.status != 255 || !strings.Contains(r.err, "has no node") || !strings.Contains(r.err, "handrail host adopt db-7") || !strings.Contains(r.err, "rule least-floor") {
		t.Errorf("%+v", r)
	}
	if strings.Contains(server.Log(), "Accepted publickey") || len(w.entries(session.Opened)) != 0 {
		t.Error("the host was reached")
	}
	if len(w.entries(doorway.ActDenied)) != 1 {
		t.Error("the refusal is no entry")
	}
}

func TestWritingThereTakesAGrantAndAnotherAccount(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	_, h := w.debian("production")
	ada := w.person("ada")
	if r := ada.run("", "ssh", "db-7+write@gateway", "id"); r.status != 255 {
		t.Errorf("without a grant: %+v", r)
	}
	ada.grant(h.ID, doorway.GrantInForce{Root: true})
	if r := ada.run("", "ssh", "db-7+write@gateway", "id"); r.status != 255 || !strings.Contains(r.err, "no-root-without-a-node") {
		t.Errorf("root: %+v", r)
	}
	ada.grant(h.ID, doorway.GrantInForce{Account: "other"})
	if r := ada.run("", "ssh", "db-7+write@gateway", "id"); r.status != 255 || !strings.Contains(r.err, "is for the account other") {
		t.Errorf("another account: %+v", r)
	}
	ada.grant(h.ID, doorway.GrantInForce{})
	if r := ada.run("", "ssh", "db-7+write@gateway", "id -un"); r.status != 0 || strings.TrimSpace(r.out) != h.SSHWrite {
		t.Errorf("with one: %+v", r)
	}
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		h.SSHWrite = ""
		e, err := w.Hosts.SetTx(tx, h)
		return []ledger.Entry{e}, err
	})
	if r := ada.run("", "ssh", "db-7+write@gateway", "id"); r.status != 255 || !strings.Contains(r.err, "--ssh-write") {
		t.Errorf("without an account: %+v", r)
	}
}

func TestAnotherHostKeyIsRefusedAndAlarms(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	server, h := w.debian("dev")
	ada := w.person("ada")
	if r := ada.run("", "ssh", "db-7@gateway", "true"); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	server.Stop()
	server.NewKey()
	server.Run()
	before := strings.Count(server.Log(), "Accepted publickey")
	for range 3 {
		r := ada.run("", "ssh", "db-7@gateway", "true")
		if r.status != 255 || !strings.Contains(r.err, "host key changed") || !strings.Contains(r.err, "handrail host set db-7 --host-key") {
			t.Fatalf("%+v", r)
		}
	}
	if strings.Count(server.Log(), "Accepted publickey") != before {
		t.Error("somebody logged in all the same")
	}
	if n := len(w.entries(agentless.HostMismatched)); n != 1 {
		t.Errorf("%d entries about the key", n)
	}
	if s := w.reach.Seen(h.ID); s.State != agentless.StateMismatch {
		t.Errorf("the host is %+v", s)
	}
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		h.SSHKey = server.Key
		e, err := w.Hosts.SetTx(tx, h)
		return []ledger.Entry{e}, err
	})
	if r := ada.run("", "ssh", "db-7@gateway", "true"); r.status != 0 {
		t.Errorf("with the new key: %+v", r)
	}
}

// running counts the processes of an account whose command line holds a word.
func running(t *testing.T, account, word string) (n int) {
	t.Helper()
	u := must(user.Lookup(account))
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found {
		st, err := os.Stat(dir)
		if err != nil || strconv.Itoa(int(st.Sys().(*syscall.Stat_t).Uid)) != u.Uid {
			continue
		}
		if line, _ := os.ReadFile(filepath.Join(dir, "cmdline")); strings.Contains(string(line), word) {
			n++
		}
	}
	return n
}

const stubborn = `trap "" HUP TERM; setsid sh -c 'trap "" HUP TERM; sleep 4711' >/dev/null 2>&1 & nohup sleep 4711 >/dev/null 2>&1 & echo up; sleep 4711`

func TestAStopReachesWhatLeftTheSession(t *testing.T) {
	for _, how := range []string{"stop", "lock", "hangup", "deadline", "exit"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, agentless.Bounds{}, session.Bounds{})
			_, h := w.debian("dev")
			ada, ben := w.person("ada"), w.person("ben", "operator")
			command := stubborn
			if how == "exit" {
				command = strings.TrimSuffix(stubborn, "; sleep 4711")
			}
			l, o := ada.open(session.OpenRequest{Host: "db-7", Command: command})
			eventually(t, "it runs", func() bool {
				return strings.Contains(o.text(), "up") && running(t, h.SSHUser, "4711") >= 2 || how == "exit"
			})
			switch how {
			case "stop":
				must(w.sessions.Stop(context.Background(), ben.by, l.ID(), "enough"))
			case "lock":
				w.sessions.EndByPerson(context.Background(), ada.by.ID, ada.by.Epoch+1, "lost laptop")
			case "hangup":
				l.Hangup()
			case "deadline":
				for _, s := range w.reach.Streams() {
					fatal(t, s.Write(wire.FrameDeadline, wire.EncodeDeadline(1)))
				}
			}
			<-l.Done()
			eventually(t, "nothing is left", func() bool { return running(t, h.SSHUser, "4711") == 0 })
			_, why, _ := l.Result()
			want := map[string]string{"stop": session.WhyStopped, "lock": session.WhyLocked, "hangup": session.WhyHangup, "deadline": session.WhyExpired, "exit": session.WhyExit}[how]
			if why != want {
				t.Errorf("it ended by %q, not %q", why, want)
			}
			closing := w.entries(session.Closed)[0]
			if closing.Parsed.Outcome != ledger.OK {
				t.Errorf("the outcome is %s", closing.Parsed.Outcome)
			}
			if how == "exit" {
				eventually(t, "the sweep is an entry", func() bool { return len(w.entries(agentless.SessionSwept)) == 1 })
			}
		})
	}
}

func TestAPausedSessionStandsStill(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	_, h := w.debian("dev")
	ada, ben := w.person("ada"), w.person("ben", "operator")
	l, o := ada.open(session.OpenRequest{Host: "db-7", Command: "while :; do echo tick; sleep 0.05; done"})
	eventually(t, "it ticks", func() bool { return strings.Contains(o.text(), "tick") })
	must(w.sessions.Pause(context.Background(), ben.by, l.ID(), "look"))
	eventually(t, "the paused shell has met its stop signal", func() bool { return stateOf(t, h.SSHUser, "tick") == "T" })
	before := len(o.text())
	must(w.sessions.Resume(context.Background(), ben.by, l.ID()))
	eventually(t, "it ticks again", func() bool { return len(o.text()) > before+200 })
	must(w.sessions.Pause(context.Background(), ben.by, l.ID(), "once more"))
	must(w.sessions.Stop(context.Background(), ben.by, l.ID(), "enough"))
	<-l.Done()
	eventually(t, "nothing is left", func() bool { return running(t, h.SSHUser, "tick") == 0 })
	if got := w.entries(session.Closed)[0].Parsed.Outcome; got != ledger.OK {
		t.Errorf("the outcome is %s", got)
	}
}

// stateOf is the kernel's letter for a process of an account.
func stateOf(t *testing.T, account, word string) string {
	t.Helper()
	out, _ := exec.Command("ps", "-u", account, "-o", "stat=,args=").Output()
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, word) && !strings.Contains(line, "sshd") {
			return strings.TrimSpace(line)[:1]
		}
	}
	return ""
}

func TestWhatWaitsForABuddyHasNotBegun(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	_, h := w.debian("production")
	ada, ben := w.person("ada"), w.person("ben", "operator")
	ada.grant(h.ID, doorway.GrantInForce{BuddyRequired: true})
	mark := filepath.Join(sshd.Home(t, h.SSHWrite), "begun")
	l, o := ada.open(session.OpenRequest{Host: "db-7", Level: wire.LevelWrite, Command: "touch " + mark + "; echo begun"})
	if _, err := os.Stat(mark); err == nil {
		t.Error("it began without its buddy")
	}
	a := must(w.sessions.Watch(context.Background(), ben.by, l.ID(), session.ModeWatch))
	defer a.Close()
	eventually(t, "it begins", func() bool { return strings.Contains(o.text(), "begun") })
	<-l.Done()
	if _, why, err := l.Result(); why != session.WhyExit || err != nil {
		t.Errorf("it ended by %s: %v", why, err)
	}
}

func TestACertificateIsForOneSessionAndShort(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	server, _ := w.debian("dev")
	ada := w.person("ada")
	server.Stop()
	l, err := w.sessions.Open(context.Background(), ada.by, session.OpenRequest{Host: "db-7", Command: "true"})
	if fault.KindOf(err) != fault.Unavailable || l == nil {
		t.Fatalf("a host that is away: %v", err)
	}
	if n := len(w.entries(session.Opened)); n != 1 {
		t.Errorf("%d openings are in the ledger before anything was dialled", n)
	}
}

func TestWhatACrashOfTheServerLeftIsFoundAtItsNextStart(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	_, h := w.debian("dev")
	l, o := w.person("ada").open(session.OpenRequest{Host: "db-7", Command: stubborn})
	eventually(t, "it runs", func() bool { return strings.Contains(o.text(), "up") && running(t, h.SSHUser, "4711") >= 2 })
	next := agentless.New(agentless.Deps{Store: w.Store, Ring: w.Ring})
	next.SweepLost(h, l.ID(), l.Info().Person, wire.LevelRead)
	eventually(t, "nothing is left", func() bool { return running(t, h.SSHUser, "4711") == 0 })
	eventually(t, "it is an entry", func() bool { return len(w.entries(agentless.SessionSwept)) > 0 })
}
