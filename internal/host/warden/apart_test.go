package warden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

// writeAccount makes the account of ordinary write sessions, as a node does.
func writeAccount(t *testing.T) sandbox.Account {
	t.Helper()
	if _, err := ProvideWriteAccount(t.Context()); err != nil {
		t.Skip(err)
	}
	a, err := sandbox.LookupAccount(WriteAccount)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func writeSpec(change func(*wire.SessionSpec)) func(*wire.SessionSpec) {
	return func(s *wire.SessionSpec) {
		change(s)
		s.Level, s.Account = wire.LevelWrite, WriteAccount
	}
}

func TestOneWriteSessionCannotReachAnother(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	a := writeAccount(t)
	victim, answer := b.open(writeSpec(func(s *wire.SessionSpec) {
		shellSpec(s)
		s.Env = map[string]string{"WORD": "victims-own"}
	}))
	if answer.UID != int64(a.UID) || answer.Account != WriteAccount {
		t.Fatalf("%+v", answer)
	}
	victim.enter("trap 'echo was-hit' USR1; echo at=$$ $(tty) rea''dy\n")
	victim.sees(" ready\r\n")
	var pid, tty string
	said := victim.said()
	if _, err := fmt.Sscanf(said[strings.LastIndex(said, "at="):], "at=%s %s ready", &pid, &tty); err != nil {
		t.Fatalf("%v in %q", err, said)
	}
	attacker, _ := b.open(writeSpec(execSpec(strings.NewReplacer("PID", pid, "TTY", tty).Replace(`
		echo as $(id -un)
		kill -USR1 PID && echo through: signal
		tr '\0' '\n' < /proc/PID/environ | grep -q victims-own && echo through: environment
		ls -l /proc/PID/fd/ 2>/dev/null | grep -q pts && echo through: descriptors
		(exec 3<>/proc/PID/mem) && echo through: memory
		(exec 3<>TTY) && echo through: terminal
		[ "$(readlink /proc/PID/cwd)" ] && echo through: folder
		echo tried`))))
	attacker.ends()
	said = attacker.said()
	if !strings.Contains(said, "as "+WriteAccount) || !strings.Contains(said, "tried") {
		t.Fatalf("nothing was tried:\n%s", said)
	}
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "through") {
			t.Errorf("one write session reaches another: %s", line)
		}
	}
	victim.enter("echo still-$((1+1))\n")
	victim.sees("still-2")
	if strings.Contains(victim.said(), "was-hit\r\n") {
		t.Error("the signal arrived")
	}
}

func TestNothingThatAWriteSessionPlantsActsInTheNext(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	a := writeAccount(t)
	s, _ := b.open(writeSpec(execSpec(`cd && for f in .bashrc .bash_profile .bash_login .profile .ssh/authorized_keys; do
		mkdir -p .ssh; echo 'echo planted-$((40+2))' > $f || echo cannot; done; cat .profile`)))
	s.ends()
	if !strings.Contains(s.said(), "planted-") || strings.Contains(s.said(), "cannot") {
		t.Errorf("the home cannot be used:\n%s", s.said())
	}
	next, _ := b.open(writeSpec(shellSpec))
	next.enter("ls -A ~; echo home-$((1+1))\n")
	next.sees("home-2")
	if said := next.said(); strings.Contains(said, "planted-42") || strings.Contains(said, "authorized_keys") || strings.Contains(said, ".bash_profile") {
		t.Errorf("the earlier session acts in this one:\n%s", said)
	}
	for _, f := range []string{".bashrc", ".profile", ".ssh/authorized_keys"} {
		if _, err := os.Lstat(a.Home + "/" + f); err == nil {
			t.Errorf("%s/%s is on the host", a.Home, f)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(a.Home, &st); err != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
		t.Errorf("the account's home: uid %d, mode %o, %v", st.Uid, st.Mode, err)
	}
}

func TestAHomeThatTheAccountCouldWriteIsPutAside(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	a := sandbox.Account{Name: "x", UID: 65534, GID: 65534, Home: dir + "/home"}
	if err := os.MkdirAll(a.Home+"/.ssh", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(a.Home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := emptyHome(a); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(a.Home)
	if err != nil || len(left) != 0 {
		t.Fatalf("%v %v", left, err)
	}
	aside, err := filepath.Glob(a.Home + ".before-*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("%v %v", aside, err)
	}
	if i, err := os.Stat(aside[0]); err != nil || i.Mode().Perm() != 0o700 {
		t.Fatalf("others reach what was put aside: %v %v", i.Mode(), err)
	}
	if _, err := os.Stat(aside[0] + "/home/.ssh"); err != nil {
		t.Fatal(err)
	}
}

func TestACopyThatNamesNoFolderFailsRatherThanVanish(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	writeAccount(t)
	s, _ := b.open(writeSpec(func(s *wire.SessionSpec) { s.Kind = wire.SessionSFTP }))
	c, err := sftp.NewClientPipe(sftpPipe{s}, sftpPipe{s})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := c.Create("backup.sql"); err == nil {
		t.Errorf("%s would end with the session", f.Name())
	}
	f, err := c.Create("/var/tmp/handrail-test-backup.sql")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := c.Remove("/var/tmp/handrail-test-backup.sql"); err != nil {
		t.Error(err)
	}
	_ = s.w.Write(wire.FrameEOF, nil)
	s.ends()
}

func TestASessionWithSudoHasAHomeThatOthersDoNotSeeAndThatEndsWithIt(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	a := writeAccount(t)
	for _, root := range []bool{false, true} {
		s, _ := b.open(writeSpec(func(s *wire.SessionSpec) {
			execSpec(`cd && touch kept && ls -A . && stat -c 'mode=%a' . && cd $TMUX_TMPDIR && pwd; echo ready; exec sleep 1000`)(s)
			s.Sudo, s.Root = true, root
		}))
		s.sees("ready")
		home := a.Home + "/" + s.id
		if want := ".run\nkept\nmode=700\n" + home + "/.run\nready\n"; s.said() != want {
			t.Errorf("root %v: it said %q, want %q", root, s.said(), want)
		}
		other, _ := b.open(writeSpec(execSpec("ls -A " + a.Home + "; cat " + home + "/kept && echo seen")))
		other.ends()
		if said := other.said(); strings.Contains(said, s.id+"\n") || strings.Contains(said, "seen") {
			t.Errorf("another session sees it: %s", said)
		}
		b.brake(wire.Brake{Kind: wire.BrakeStopSession, Session: s.id})
		s.ends()
		b.eventually("its home is gone", func() bool {
			_, err := os.Lstat(home)
			return os.IsNotExist(err)
		})
	}
}
