package sshgate_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
)

func TestStockSSHRunsACommandAndGetsItsStatus(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	r := ada.run("", "ssh", "web-1@gate", "echo out; echo err >&2; exit 7")
	if r.out != "out\n" || r.err != "err\n" || r.status != 7 {
		t.Fatalf("got %+v", r)
	}
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	if n := len(w.entries(session.Opened)); n != 1 {
		t.Fatalf("%d sessions opened", n)
	}
}

func TestAWriteNeedsAGrantAndTheRefusalSaysWhatToDo(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	r := ada.run("", "ssh", "web-1+write@gate", "true")
	if r.status != 255 || !strings.Contains(r.err, "handrail: ") || !strings.Contains(r.err, "try: handrail elevate") {
		t.Fatalf("got %+v", r)
	}
	ada.grant(doorway.GrantInForce{ID: "g-00000001", Kind: "routine", Reason: "a test"})
	if r := ada.run("", "ssh", "web-1+write@gate", "echo done"); r.status != 0 || r.out != "done\n" {
		t.Fatalf("got %+v", r)
	}
	if spec := w.node.specs[0]; spec.Level != "write" || spec.Account != "root" || spec.Grant != "g-00000001" {
		t.Fatalf("the order says %+v", spec)
	}
}

func TestWhoIsUnknownGetsNoFurtherThanTheHandshake(t *testing.T) {
	w := newWorld(t)
	eve := newWorld(t).person("eve", "admin") // of another installation
	_, err := ssh.Dial("tcp", w.addr.String(), &ssh.ClientConfig{User: "web-1", Auth: []ssh.AuthMethod{ssh.PublicKeys(eve.signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err == nil {
		t.Fatal("a certificate of another authority was let in")
	}
	if len(w.entries(session.Opened)) != 0 {
		t.Fatal("a session was opened")
	}
}

func TestSFTPCopiesBothWays(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	ada.grant(doorway.GrantInForce{ID: "g-00000001"})
	fatal(t, os.WriteFile(w.Dir+"/up", []byte("payload\n"), 0o644))
	r := ada.run("put up there\nget there back\n", "sftp", "-b", "-", "web-1+write@gate")
	if r.status != 0 || string(must(os.ReadFile(w.Dir+"/back"))) != "payload\n" {
		t.Fatalf("got %+v", r)
	}
}

func TestSCPCopiesWithBothProtocols(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	ada.grant(doorway.GrantInForce{ID: "g-00000001"})
	fatal(t, os.WriteFile(w.Dir+"/up", []byte("payload\n"), 0o644))
	for _, flags := range [][]string{nil, {"-O"}} {
		if r := ada.run("", "scp", append(flags, "-q", "up", "web-1+write@gate:there")...); r.status != 0 {
			t.Fatalf("scp %v up: %+v", flags, r)
		}
		if r := ada.run("", "scp", append(flags, "-q", "web-1@gate:there", "back")...); r.status != 0 {
			t.Fatalf("scp %v down: %+v", flags, r)
		}
		if string(must(os.ReadFile(w.Dir+"/back"))) != "payload\n" {
			t.Fatalf("scp %v changed the file", flags)
		}
		fatal(t, os.Remove(w.Dir+"/back"))
	}
}

func TestRsyncCopiesATreeBothWays(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	ada.grant(doorway.GrantInForce{ID: "g-00000001"})
	fatal(t, os.MkdirAll(w.Dir+"/tree/deep", 0o755))
	fatal(t, os.WriteFile(w.Dir+"/tree/deep/file", []byte(strings.Repeat("payload\n", 10_000)), 0o644))
	if r := ada.run("", "rsync", "-a", "tree/", "web-1+write@gate:copy/"); r.status != 0 {
		t.Fatalf("up: %+v", r)
	}
	if r := ada.run("", "rsync", "-a", "web-1@gate:copy/", "back/"); r.status != 0 {
		t.Fatalf("down: %+v", r)
	}
	if string(must(os.ReadFile(w.Dir+"/back/deep/file"))) != strings.Repeat("payload\n", 10_000) {
		t.Fatal("the file changed on the way")
	}
}

func TestGitClonesReadOnlyAndPushesWithAGrant(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	if r := ada.run("", "git", "init", "-q", "--bare", "-b", "main", w.node.home+"/repo.git"); r.status != 0 {
		t.Fatalf("init: %+v", r)
	}
	if r := ada.run("", "git", "clone", "-q", "web-1@gate:repo.git", "work"); r.status != 0 {
		t.Fatalf("clone: %+v", r)
	}
	if r := ada.run("", "git", "-C", "work", "commit", "-q", "--allow-empty", "-m", "one"); r.status != 0 {
		t.Fatalf("commit: %+v", r)
	}
	if r := ada.run("", "git", "-C", "work", "push", "-q", "ssh://web-1+write@gate/"+w.node.home+"/repo.git", "HEAD:main"); r.status == 0 {
		t.Fatal("pushed without a grant")
	}
	ada.grant(doorway.GrantInForce{ID: "g-00000001"})
	if r := ada.run("", "git", "-C", "work", "push", "-q", "ssh://web-1+write@gate/"+w.node.home+"/repo.git", "HEAD:main"); r.status != 0 {
		t.Fatalf("push: %+v", r)
	}
}

func TestWhatNoGrantNamesIsNotForwarded(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	r := ada.run("", "ssh", "-o", "LogLevel=INFO", "-W", "127.0.0.1:22", "web-1@gate")
	if r.status == 0 || !strings.Contains(r.err, "cannot forward to 127.0.0.1:22 in a read session") {
		t.Fatalf("got %+v", r)
	}
	ada.grant(doorway.GrantInForce{ID: "g-00000001", Forwards: []string{"127.0.0.1:5432"}})
	r = ada.run("", "ssh", "-o", "LogLevel=INFO", "-W", "127.0.0.1:22", "web-1+write@gate")
	if r.status == 0 || !strings.Contains(r.err, `handrail elevate web-1 --forward 127.0.0.1:22 --reason "why"`) {
		t.Fatalf("got %+v", r)
	}
	if r := ada.run("", "ssh", "-o", "ExitOnForwardFailure=yes", "-R", "9999:127.0.0.1:22", "web-1@gate", "true"); r.status == 0 {
		t.Fatalf("got %+v", r)
	}
	if r := ada.run("", "ssh", "-A", "web-1@gate", "echo agent=$SSH_AUTH_SOCK"); r.out != "agent=\n" {
		t.Fatalf("got %+v", r)
	}
}
