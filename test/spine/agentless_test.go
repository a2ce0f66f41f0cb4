package spine_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"handrail.dev/handrail/test/sshd"
)

// trusts makes a host's accounts trust the installation, as `host trust` says.
func (p person) trusts(t *testing.T, host string) {
	t.Helper()
	var trust struct {
		Lines []struct{ Account, Line string }
	}
	p.json(&trust, "host", "trust", host, "-o", "json")
	for _, l := range trust.Lines {
		sshd.Authorize(t, l.Account, l.Line)
	}
}

func TestAHostWithoutANodeIsReachedThroughItsOwnSSHD(t *testing.T) {
	needRoot(t)
	sshd.Need(t)
	i := up(t, t.TempDir())
	ada := i.first()
	server := sshd.Start(t)
	reader, writer := sshd.Account(t, "hr-r"), sshd.Account(t, "hr-w")
	if r := ada.refused(2, "host", "add", "db-7", "--ssh", reader+"@"+server.Address); !strings.Contains(r.err, "--host-key SHA256:") {
		t.Errorf("without a terminal the key must be named: %s", r.err)
	}
	ada.refused(3, "host", "add", "db-7", "--ssh", reader+"@"+server.Address, "--host-key", "SHA256:AAAA")
	out := ada.ok("host", "add", "db-7", "--ssh", reader+"@"+server.Address, "--ssh-write", writer, "--host-key", server.Key, "--env", "dev")
	for _, want := range []string{"NOT kernel-enforced", "TrustedUserCAKeys", "cert-authority,restrict,pty,principals="} {
		if !strings.Contains(out, want) {
			t.Errorf("host add does not say %q:\n%s", want, out)
		}
	}
	if r := ada.refused(255, "ssh", "db-7", "--", "id"); !strings.Contains(r.err, "handrail host trust db-7") {
		t.Errorf("a host that does not trust us yet: %s", r.err)
	}
	ada.trusts(t, "db-7")
	if out := ada.ok("ssh", "db-7", "--", "id -un"); strings.TrimSpace(out) != reader {
		t.Errorf("it ran as %q", out)
	}
	if out := ada.ok("host", "show", "db-7"); !strings.Contains(out, "none: NOT kernel-enforced") || !strings.Contains(out, "handrail host adopt db-7") {
		t.Errorf("host show:\n%s", out)
	}
	if r := ada.refused(3, "inspect", "db-7", "top"); !strings.Contains(r.err, "no node to look") || !strings.Contains(r.err, "handrail host set db-7 --ssh-node") {
		t.Errorf("a look where no node may come: %s", r.err)
	}
	ada.ok("host", "set", "db-7", "--env", "production")
	if r := ada.refused(255, "ssh", "db-7", "--", "id"); !strings.Contains(r.err, "least-floor") {
		t.Errorf("production: %s", r.err)
	}
	ada.ok("ledger", "verify")
}

func TestANodeComesForTheLengthOfASession(t *testing.T) {
	needRoot(t)
	sshd.Need(t)
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	server := sshd.Start(t, "PermitRootLogin yes")
	account, there := sshd.RootAccount(t, "hr-root"), visits()
	ada.ok("host", "add", "db-7", "--ssh", account+"@"+server.Address, "--host-key", server.Key, "--env", "production", "--ssh-node")
	ada.trusts(t, "db-7")
	looked := ada.run("inspect", "db-7", "env", aSleeper(t, "DB_PASSWORD=hunter2"))
	if looked.code != 0 || !strings.Contains(looked.out, "DB_PASSWORD") || strings.Contains(looked.out+looked.err, "hunter2") ||
		!strings.Contains(looked.err, "1 masked") || !strings.Contains(looked.err, "one came for this look (floor: brokered)") {
		t.Fatalf("a look by a node that comes for it: exit %d\n%s%s\n%s", looked.code, looked.out, looked.err, i.errs)
	}
	open := openFolder(t)
	r := ada.run("ssh", "db-7", "--", "id -un; touch "+open+"/x")
	if r.code == 0 || !strings.Contains(r.out, "admin") || !strings.Contains(r.err, "Read-only") {
		t.Fatalf("exit %d\n%s%s\n%s", r.code, r.out, r.err, i.errs)
	}
	if _, err := os.Stat(filepath.Join(open, "x")); err == nil {
		t.Error("a read session wrote")
	}
	var last []struct{ Floor, Account string }
	var sessions struct {
		Sessions []struct{ Floor, Host string }
	}
	ada.json(&sessions, "sessions", "-o", "json")
	if len(sessions.Sessions) == 0 || sessions.Sessions[0].Floor == "account" || sessions.Sessions[0].Floor == "" {
		t.Errorf("the floor in force: %+v %v", sessions, last)
	}
	i.until("the node has gone and left nothing", func() bool {
		return !slices.ContainsFunc(visits(), func(path string) bool { return !slices.Contains(there, path) })
	})
	if out := ada.ok("inspect", "show", recordedAs(t, looked.err)); !strings.Contains(out, "DB_PASSWORD") || strings.Contains(out, "hunter2") {
		t.Errorf("the look, out of the ledger:\n%s", out)
	}
	ada.ok("ledger", "verify")
}

func TestALookWithoutRootSaysSoAndIsNotForProduction(t *testing.T) {
	t.Parallel() // it waits for nodes to come
	needRoot(t)
	sshd.Need(t)
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	server := sshd.Start(t)
	account := sshd.Account(t, "hr-r")
	ada.ok("host", "add", "db-7", "--ssh", account+"@"+server.Address, "--host-key", server.Key, "--env", "production", "--ssh-node")
	ada.trusts(t, "db-7")
	if r := ada.refused(3, "inspect", "db-7", "files", "/etc/hostname"); r.out != "" || !strings.Contains(r.err, "which is production") || !strings.Contains(r.err, "host adopt db-7") {
		t.Errorf("production: %s%s", r.out, r.err)
	}
	ada.ok("host", "set", "db-7", "--env", "dev")
	if r := ada.run("inspect", "db-7", "files", "/etc/hostname"); r.code != 0 || strings.TrimSpace(r.out) == "" || !strings.Contains(r.err, "has no root here") {
		t.Fatalf("exit %d\n%s%s\n%s", r.code, r.out, r.err, i.errs)
	}
	if r := ada.run("inspect", "db-7", "env", aSleeper(t, "LANG=C")); r.code == 0 || !strings.Contains(r.err, "permission denied") {
		t.Errorf("another account's process: exit %d\n%s%s", r.code, r.out, r.err)
	}
	ada.ok("host", "set", "db-7", "--env", "production") // the node is still there
	if r := ada.refused(3, "inspect", "db-7", "files", "/etc/hostname"); r.out != "" || !strings.Contains(r.err, "which is production") {
		t.Errorf("production again: %s%s", r.out, r.err)
	}
	ada.ok("ledger", "verify")
}

// recordedAs is the look of which a command spoke.
func recordedAs(t *testing.T, said string) string {
	t.Helper()
	_, after, ok := strings.Cut(said, "recorded as ")
	id, _, _ := strings.Cut(after, "\n")
	if !ok || !strings.HasPrefix(id, "n-") {
		t.Fatalf("it does not say under which name it is recorded:\n%s", said)
	}
	return id
}

// visits are the folders of nodes that came for a while, whoever brought them.
func visits() (all []string) {
	for _, pattern := range []string{"/run/handrail-visit-*", "/dev/shm/handrail-*"} {
		some, _ := filepath.Glob(pattern)
		all = append(all, some...)
	}
	return all
}

func TestAHostIsAdoptedAndTheNodeTakenAwayAgain(t *testing.T) {
	needRoot(t)
	sshd.Need(t)
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	data := filepath.Join(t.TempDir(), "node")
	server := sshd.Start(t, "PermitRootLogin yes", "SetEnv HANDRAIL_DATA="+data)
	account, writer := sshd.RootAccount(t, "hr-root"), sshd.Account(t, "hr-w")
	ada.ok("host", "add", "db-7", "--ssh", account+"@"+server.Address, "--ssh-write", writer, "--host-key", server.Key, "--env", "dev")
	ada.trusts(t, "db-7")
	typed, typing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer typing.Close()
	long := ada.startWith(typed, "ssh", "db-7", "--", "echo up; read line; echo got $line")
	long.waitFor("up")
	defer ada.run("host", "adopt", "--undo", "db-7") // nothing of it outlives the test
	out := ada.ok("host", "adopt", "db-7")
	if !strings.Contains(out, "joined as db-7") || !strings.Contains(out, "online") || strings.Contains(out, "NOT kernel-enforced") {
		t.Fatalf("adopt said:\n%s", out)
	}
	if out := ada.ok("host", "show", "db-7"); strings.Contains(out, "NOT kernel-enforced") {
		t.Errorf("host show after the adoption:\n%s", out)
	}
	open := openFolder(t)
	if r := ada.run("ssh", "db-7", "--", "id -un; touch "+open+"/x"); r.code == 0 || !strings.Contains(r.out, "admin") {
		t.Errorf("a read session after the adoption: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if r := ada.run("host", "adopt", "db-7"); r.code == 0 {
		t.Error("it was adopted twice")
	}
	if _, err := typing.WriteString("on\n"); err != nil {
		t.Error(err)
	}
	long.waitFor("got on")
	ada.ok("host", "adopt", "--undo", "db-7")
	if _, err := os.Stat(data); err == nil {
		t.Error("the node's folder is still there")
	}
	if out := ada.ok("ssh", "db-7", "--", "id -un"); strings.TrimSpace(out) != account && strings.TrimSpace(out) != "root" {
		t.Errorf("over SSH again it ran as %q", out)
	}
	ada.ok("ledger", "verify")
}
