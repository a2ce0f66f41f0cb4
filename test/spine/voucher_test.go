package spine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/host/lab"
	"handrail.dev/handrail/test/port"
)

// guestHost is a lab host with an entrance for vouchers at a port of its own.
func (i *installation) guestHost(ada person, name string) (at string) {
	i.t.Helper()
	at, release, err := port.Reserve()
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(release)
	said := &lockedBuffer{}
	ctx, cancel := context.WithCancel(context.Background())
	i.t.Cleanup(cancel)
	const data = "/var/lib/handrail-node"
	script := "set -e; " + lab.ProgramPath + " join --data " + data + " --name " + name + " --token-file /etc/handrail-token; " +
		"rm /etc/handrail-token; exec " + lab.ProgramPath + " node --data " + data + " --entrance " + at
	h, err := lab.Start(ctx, lab.Config{
		Name: name, Dir: i.t.TempDir(), Program: binary, Run: []string{"/bin/sh", "-c", script},
		Files: map[string]string{"/etc/handrail-token": ada.invite(name, "--env", "staging") + "\n"}, Hide: []string{i.data}, Stdout: said, Stderr: said,
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
	i.until(name+" to be online", func() bool { return ada.stateOf(name) == "online" })
	return at
}

// entries are the ledger's entries of an action.
func (p person) entries(action string) (all []struct{ Action, Outcome, Session, Sentence string }) {
	p.i.t.Helper()
	var list struct {
		Entries []struct{ Action, Outcome, Session, Sentence string }
	}
	p.json(&list, "ledger", "list", "--action", action, "-o", "json")
	return list.Entries
}

// offline is the stock client with this device's voucher.
func (p person) offline(host string, args ...string) *exec.Cmd {
	return exec.Command("ssh", append([]string{"-F", filepath.Join(p.home, "voucher_ssh_config"), "bg-" + host}, args...)...)
}

func TestADrillOpensARecordedShellWithStockSSHAndTheReviewIsNotOwed(t *testing.T) {
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	i.guestHost(ada, "web-1")
	i.until("a voucher", func() bool { return ada.run("voucher", "fetch", "web-1").code == 0 })
	if out := ada.ok("voucher", "show"); !strings.Contains(out, "bg-web-1") || !strings.Contains(out, "on a file key") {
		t.Errorf("what to type is not said:\n%s", out)
	}
	t.Run("a voucher opens nothing while the server answers", func(t *testing.T) {
		if out, err := ada.offline("web-1", "id").CombinedOutput(); err == nil {
			t.Errorf("it opened: %s", out)
		}
	})
	out := ada.ok("drill", "break-glass", "--host", "web-1")
	t.Log(strings.TrimSpace(out))
	if list := ada.ok("drill", "list"); !strings.Contains(list, "ok") {
		t.Errorf("the drill is not kept:\n%s", list)
	}
	i.until("the recording", func() bool { return len(ada.entries("breakglass.offline")) == 1 })
	session := ada.entries("breakglass.offline")[0].Session
	if out := ada.ok("replay", session); !strings.Contains(out, "handrail-drill-shell") {
		t.Errorf("the replay lacks what was shown:\n%s", out)
	}
	for _, action := range []string{"voucher.issued", "voucher.used", "entrance.keyed", "drill.ordered", "drill.ended"} {
		if len(ada.entries(action)) == 0 {
			t.Errorf("no entry %s", action)
		}
	}
	if n := len(ada.entries("grant.declared")); n != 0 {
		t.Errorf("a drill owes %d reviews", n)
	}
	ada.ok("ledger", "verify")
}

// The whole of it takes the two minutes that a host waits, so it has a target
// of its own: make test-offline.
func TestTheServerIsGoneAndComesBack(t *testing.T) {
	if os.Getenv("HANDRAIL_TEST_OFFLINE") == "" {
		t.Skip("takes three minutes: make test-offline")
	}
	needRoot(t)
	i := up(t, t.TempDir())
	ada := i.first()
	ben := ada.add("ben", "operator")
	// The lab shares this machine with the server, where the rules give no root.
	at := i.guestHost(ada, "web-1")
	i.until("a voucher", func() bool { return ben.run("voucher", "fetch", "web-1").code == 0 })
	_ = i.cmd.Process.Kill() // the supervisor; every role ends with it
	<-i.done
	gone := time.Now()
	var open time.Time
	for open.IsZero() {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			open = time.Now()
		} else if time.Since(gone) > 4*time.Minute {
			t.Fatal("the entrance did not open")
		} else {
			<-time.After(100 * time.Millisecond)
		}
	}
	// Strangers found the entrance too, the slow and the loud, of many addresses.
	door := crowded{name: "entrance", at: at, line: "SSH-2.0-slow\r\n"}
	var from []string
	for n := range 100 {
		from = append(from, fmt.Sprintf("127.9.8.%d", n+1))
	}
	slow, last := door.loris(from...)
	loud, over := door.crowd(100)
	out, err := ben.offline("web-1", "id -un; hostname; echo in-the-dark").CombinedOutput()
	in := time.Now()
	<-over
	<-last
	t.Logf("%d strangers at the entrance, %d were not even let in; of %d slow ones %d were sent away", loudOnes, loud.Load(), slowOnes, slow.Load())
	if err != nil || !strings.Contains(string(out), "\nweb-1\nin-the-dark") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("server killed → entrance open %s, → recorded shell %s", open.Sub(gone), in.Sub(gone))
	next := i.restart()
	back := time.Now()
	ada.i, ben.i = next, next
	next.until("all of it in the ledger", func() bool { return len(ada.entries("breakglass.offline")) == 1 })
	t.Logf("server back → all of it in the ledger %s", time.Since(back))
	entry := ada.entries("breakglass.offline")[0]
	if out := ada.ok("replay", entry.Session); !strings.Contains(out, "in-the-dark") {
		t.Errorf("the replay lacks what was shown:\n%s", out)
	}
	var grants struct {
		Grants []struct{ ID, State, Kind, PersonName string }
	}
	ada.json(&grants, "grants", "-o", "json")
	if raw, _ := json.Marshal(grants); len(grants.Grants) != 1 || grants.Grants[0].State != "in-review" {
		t.Errorf("the review is not owed: %s", raw)
	}
	ben.refused(3, "voucher", "fetch", "web-1")
	ada.ok("ledger", "verify")
}
