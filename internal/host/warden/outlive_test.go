package warden

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// rootSpec is a command as root, which a grant gives.
func rootSpec(command string) func(*wire.SessionSpec) {
	return func(s *wire.SessionSpec) {
		execSpec(command)(s)
		s.Level, s.Account, s.Root, s.Sudo, s.RemainingMS = wire.LevelWrite, "root", true, true, 3_600_000
	}
}

// audited skips where the kernel gives no audit session: there, who leaves the
// cgroup is not found.
func audited(t *testing.T, a wire.SessionAnswer) {
	t.Helper()
	if a.AuditSession == 0 {
		t.Skip("this kernel has no audit sessions")
	}
}

// leaves moves a shell out of every cgroup of its session, out of its terminal
// and its parent, and gives it a loginuid of its own if it can.
const leaves = `
d=$(mktemp -d); mount -t cgroup2 none $d || exit 3
for g in $d $(mount | awk '$5 == "cgroup" {print $3}'); do mount -o remount,bind,rw $g 2>/dev/null; echo 0 > $g/cgroup.procs 2>/dev/null; done
umount -l $d; rmdir $d
{ echo 1234 > /proc/self/loginuid; } 2>/dev/null
f=$(mktemp -u); mkfifo $f
setsid -f sh -c 'trap "" TERM HUP INT; echo up > $0; while :; do sleep SECONDS; done' $f >/dev/null 2>&1 </dev/null
read up < $f; rm $f
grep -c handrail- /proc/self/cgroup
echo rea""dy
`

func TestRootThatLeftItsCgroupEndsWithTheSession(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(rootSpec(strings.ReplaceAll(leaves, "SECONDS", "98764")))
	audited(t, a)
	if e := s.ends(); e.Status != 0 || !strings.HasPrefix(s.said(), "0\n") {
		t.Fatalf("it did not leave: %+v %s", e, s.said())
	}
	e := b.event(wire.EventResidue)
	if e.Session != s.id || e.Count < 1 || !strings.Contains(e.Text, "sh") {
		t.Errorf("%+v", e)
	}
	if running("sleep\x0098764") {
		t.Error("what left the cgroup outlived the session")
	}
}

func TestAStoppedKeeperHoldsNothingUp(t *testing.T) {
	b := newBench(t)
	b.start(func(c *Config) { c.Silence = 5 * time.Second })
	s, _ := b.open(rootSpec(`for p in /proc/[0-9]*; do
		[ "$(tr -d '\0' < $p/cmdline 2>/dev/null)" = handrail-keeper ] && kill -STOP ${p#/proc/}; done; exec sleep 98763`))
	b.eventually("it runs", func() bool { return running("sleep\x0098763") })
	e := b.event(wire.EventResidue)
	if e.Session != s.id || !strings.Contains(e.Text, "stopped answering") {
		t.Errorf("%+v", e)
	}
	b.eventually("it is dead", func() bool { return !running("sleep\x0098763") })
	if e := b.event(wire.EventSessionEnded); e.Session != s.id || e.Why != keeper.WhyLost {
		t.Errorf("%+v", e)
	}
}

// The keeper of a session is stopped long before its deadline, and time passes
// second by second, each with a new lease: nothing else ends the session.
func TestTheWardenHoldsTheDeadlineToo(t *testing.T) {
	b := newBench(t)
	var passed atomic.Int64
	b.start(func(c *Config) {
		c.Silence = time.Hour
		c.Boot = func() time.Duration { return bootTime() + time.Duration(passed.Load()) }
	})
	const length = 2 * time.Minute
	s, _ := b.open(func(s *wire.SessionSpec) {
		rootSpec(`echo ready; exec sleep 98762`)(s)
		s.RemainingMS = length.Milliseconds()
	})
	s.sees("ready")
	if err := unix.Kill(keeperOf(t, os.Getpid()), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range int((length + deadlineGrace) / time.Second) {
		passed.Add(int64(time.Second))
		b.renew(nil)
	}
	if e := b.event(wire.EventResidue); e.Session != s.id || !strings.Contains(e.Text, "did not end it at its deadline") {
		t.Errorf("%+v", e)
	}
	b.eventually("it is dead", func() bool { return !running("sleep\x0098762") })
}

func TestWhatLeftAndItsKeeperAndItsWardenAreEndedByTheNext(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	s, a := b.open(rootSpec(strings.ReplaceAll(leaves, "SECONDS", "98761") + "exec sleep 98761"))
	audited(t, a)
	s.sees("ready")
	pid := keeperOf(t, cmd.Process.Pid)
	_ = cmd.Process.Signal(unix.SIGSTOP)
	_ = unix.Kill(pid, unix.SIGKILL)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	b.c.Close()
	if !running("sleep\x0098761") {
		t.Fatal("nothing was left to clear up")
	}
	b.start(nil)
	if running("sleep\x0098761") {
		t.Error("what left its cgroup outlived the next warden's start")
	}
	if e := b.event(wire.EventResidue); e.Session != s.id {
		t.Errorf("%+v", e)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, "live")); len(left) != 0 {
		t.Errorf("remembered for ever: %v", left)
	}
}

func TestWhatRootLeavesOnTheHostIsNamed(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	job := "/etc/cron.d/handrail-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { os.Remove(job) })
	s, _ := b.open(rootSpec("mkdir -p /etc/cron.d; echo '# nothing' > " + job))
	s.ends()
	e := b.event(wire.EventResidue)
	if e.Session != s.id || !strings.Contains(e.Text, job) {
		t.Errorf("%+v", e)
	}
}

// TestWhatADaemonStartsWhenAskedIsNotSeen holds what the approval says: only a
// change of the files from which daemons start something is noticed.
func TestWhatADaemonStartsWhenAskedIsNotSeen(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	door := filepath.Join(t.TempDir(), "door")
	if err := unix.Mkfifo(door, 0o600); err != nil {
		t.Fatal(err)
	}
	started := make(chan *exec.Cmd, 1)
	go func() { // the daemon
		defer close(started)
		if text, err := os.ReadFile(door); err == nil && string(text) == "start it\n" {
			if cmd := exec.Command("sleep", "98761"); cmd.Start() == nil {
				started <- cmd
			}
		}
	}()
	s, _ := b.open(rootSpec("echo start it > " + door))
	s.ends()
	cmd := <-started
	if cmd == nil {
		t.Fatal("the daemon was not asked")
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if e := b.event(wire.EventSessionEnded); e.Session != s.id {
		t.Fatalf("%+v", e)
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("what the daemon started has ended: %v", err)
	}
	for _, e := range b.seen {
		if e.Kind == wire.EventResidue {
			t.Errorf("it is noticed after all, so the approval should say so: %+v", e)
		}
	}
}

// A write session without root cannot leave, so nothing is searched for it.
func TestAnEndedSessionOfNobodysIsNotAnEvent(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(rootSpec("true"))
	s.ends()
	if e := b.event(wire.EventSessionEnded); e.Session != s.id {
		t.Fatalf("%+v", e)
	}
	for _, e := range b.seen {
		if e.Kind == wire.EventResidue {
			t.Errorf("a session that left nothing: %+v", e)
		}
	}
}

// What a killed warden was starting holds its lock for a moment longer.
func TestAWardenWaitsForTheLockOfOneThatWasKilled(t *testing.T) {
	b := newBench(t)
	locked, err := lock(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	held := time.AfterFunc(200*time.Millisecond, func() { locked.Close() })
	defer held.Stop()
	b.start(nil)
}
