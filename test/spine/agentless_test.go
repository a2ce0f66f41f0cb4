package spine_test

import (
	"os"
	"path/filepath"
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
	account := sshd.RootAccount(t, "hr-root")
	ada.ok("host", "add", "db-7", "--ssh", account+"@"+server.Address, "--host-key", server.Key, "--env", "production", "--ssh-node")
	ada.trusts(t, "db-7")
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
		left, _ := filepath.Glob("/run/handrail-visit-*")
		more, _ := filepath.Glob("/dev/shm/handrail-*")
		return len(left)+len(more) == 0
	})
	ada.ok("ledger", "verify")
}
