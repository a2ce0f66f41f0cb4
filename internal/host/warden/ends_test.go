package warden

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// daemonise leaves children that have nothing to do with the shell any more.
const daemonise = "for i in 1 2 3; do setsid nohup sleep 98765 >/dev/null 2>&1 & done; echo ready; exec sleep 98765"

// alive counts the processes that daemonise started, under this uid.
func alive(t *testing.T, uid int64) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		st, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err == nil && strings.Contains(string(st), "Uid:\t"+strconv.FormatInt(uid, 10)+"\t") && !strings.Contains(string(st), "State:\tZ") {
			n++
		}
	}
	return n
}

func TestTheDeadlineKillsChildrenThatLeftTheSession(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(func(s *wire.SessionSpec) {
		execSpec(daemonise)(s)
		s.RemainingMS = 1500
	})
	s.sees("ready")
	if n := alive(t, a.UID); n < 4 {
		t.Fatalf("%d processes run, want at least 4", n)
	}
	if e := s.ends(); e.Why != keeper.WhyDeadline {
		t.Fatalf("%+v", e)
	}
	if n := alive(t, a.UID); n != 0 {
		t.Fatalf("%d processes outlived the deadline", n)
	}
}

func TestADeadlineCanBeShortenedNeverMoved(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(func(s *wire.SessionSpec) {
		execSpec("echo ready; exec sleep 1000")(s)
		s.RemainingMS = 30_000
	})
	s.sees("ready")
	for _, ms := range []int64{3_600_000, 200, 3_600_000} {
		if err := s.w.Write(wire.FrameDeadline, wire.EncodeDeadline(ms)); err != nil {
			t.Fatal(err)
		}
	}
	if e := s.ends(); e.Why != keeper.WhyDeadline {
		t.Fatalf("%+v", e)
	}
}

func TestALockKillsEverythingAtOnce(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	start := time.Now()
	k := b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 2})
	took := time.Since(start)
	if n := alive(t, a.UID); n != 0 || k.Sessions != 1 || k.Killed < 4 {
		t.Fatalf("%d processes live on; the brake says %+v", n, k)
	}
	t.Logf("from lock to dead: %s", took)
	if took > time.Second {
		t.Fatalf("it took %s", took)
	}
	if e := s.ends(); e.Why != keeper.WhyLocked {
		t.Fatalf("%+v", e)
	}
	if _, _, err := b.tryOpen(nil); err == nil {
		t.Fatal("a locked person's next order is accepted")
	}
	if e := b.event(wire.EventAlarm); e.Rule != RuleEpoch {
		t.Fatalf("%+v", e)
	}
}

func TestALeaseEndsSessionsWhoseBrakeWasLost(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec(daemonise))
	s.sees("ready")
	b.renew(func(a *wire.LeaseAnswer) { a.PersonEpochs = map[string]int64{"p-ada00001": 9} })
	if e := s.ends(); e.Why != keeper.WhyLocked {
		t.Fatalf("%+v", e)
	}
}

func TestPauseStandsStillAndResumeNeedsAnOrder(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec("while read x; do echo got $x; done"))
	s.enter("one\n")
	s.sees("got one")
	if k := b.brake(wire.Brake{Kind: wire.BrakePauseSession, Session: s.id}); k.Sessions != 1 || k.Error != "" {
		t.Fatalf("%+v", k)
	}
	s.until("it says paused", func() bool { return s.has(wire.FramePaused) })
	s.enter("two\n")
	<-time.After(100 * time.Millisecond)
	s.mu.Lock()
	still := !strings.Contains(s.out.String(), "two")
	s.mu.Unlock()
	if !still {
		t.Fatal("a paused session goes on")
	}
	b.resume(s.id)
	s.sees("got two")
}

func TestAGatewayThatIsGoneEndsTheSession(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	s.conn.Close()
	b.eventually("everything is dead", func() bool { return alive(t, a.UID) == 0 })
	if e := b.event(wire.EventSessionEnded); e.Why != keeper.WhyGateway {
		t.Fatalf("%+v", e)
	}
}

func TestAKilledKeeperLeavesNothing(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	pid := keeperOf(t, os.Getpid())
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("everything is dead", func() bool { return alive(t, a.UID) == 0 })
	if e := b.event(wire.EventResidue); e.Session != s.id {
		t.Fatalf("%+v", e)
	}
	if e := b.event(wire.EventSessionEnded); e.Why != keeper.WhyLost {
		t.Fatalf("%+v", e)
	}
}

// keeperOf finds the keeper that is a child of a process and holds a session;
// another may be waiting for one.
func keeperOf(t *testing.T, parent int) int {
	t.Helper()
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmd, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/status")
		kids, _ := filepath.Glob("/proc/" + e.Name() + "/task/*/children")
		holds := false
		for _, k := range kids {
			b, _ := os.ReadFile(k)
			holds = holds || len(b) > 0
		}
		if holds && string(cmd) == keeper.Arg0+"\x00" && strings.Contains(string(stat), "\nPPid:\t"+strconv.Itoa(parent)+"\n") {
			pid, _ := strconv.Atoi(e.Name())
			return pid
		}
	}
	t.Fatal("no keeper runs")
	return 0
}

func TestAKilledWardenLeavesNothing(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.eventually("everything is dead", func() bool { return alive(t, a.UID) == 0 })
}

func TestWhatAKilledWardenAndKeeperLeaveIsKilledByTheNext(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	s, a := b.open(execSpec(daemonise))
	s.sees("ready")
	pid := keeperOf(t, cmd.Process.Pid)
	_ = cmd.Process.Signal(unix.SIGSTOP) // it must not see its keeper die
	_ = unix.Kill(pid, unix.SIGKILL)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if alive(t, a.UID) == 0 {
		t.Log("nothing was left to clear up")
	}
	b.c.Close()
	b.start(nil)
	if n := alive(t, a.UID); n != 0 {
		t.Fatalf("%d processes outlived the next warden's start", n)
	}
	if e := b.event(wire.EventResidue); e.Session != s.id {
		t.Fatalf("%+v", e)
	}
}

func TestAStaleLeaseEndsSessionsAndStartsNone(t *testing.T) {
	b := newBench(t)
	var mu sync.Mutex
	skip := time.Duration(0)
	b.start(func(c *Config) {
		c.Boot = func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return bootTime() + skip
		}
	})
	s, _ := b.open(func(s *wire.SessionSpec) {
		execSpec("echo ready; exec sleep 1000")(s)
		s.RemainingMS = 3_600_000
	})
	s.sees("ready")
	mu.Lock()
	skip = leaseFresh + time.Second
	mu.Unlock()
	if _, _, err := b.tryOpen(nil); err == nil {
		t.Fatal("a session starts on a stale lease")
	}
	if e := b.event(wire.EventAlarm); e.Rule != RuleLease {
		t.Fatalf("%+v", e)
	}
	mu.Lock()
	skip = staleKill + time.Second
	mu.Unlock()
	if e := s.ends(); e.Why != keeper.WhyLease {
		t.Fatalf("%+v", e)
	}
}

func TestTooMuchOutputEndsAReadSession(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(func(s *wire.SessionSpec) {
		execSpec("cat /dev/zero")(s)
		s.Limits.BytesOut = 1 << 20
	})
	if e := s.ends(); e.Why != keeper.WhyBudget {
		t.Fatalf("%+v", e)
	}
}
