package warden

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/wire"
)

// A session that takes all that it can get is bounded, is told by what, and
// costs neither its keeper nor the warden nor anybody else's session.
func TestASessionThatTakesAllIsBoundedAndToldSo(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	defer func() { b.t = t }()
	writeAccount(t)
	for _, c := range []struct {
		name, run  string
		change     func(*wire.SessionSpec)
		says, tell string
	}{
		{name: "memory", run: "head -c 1G /dev/zero | tail -c 900M | wc -c; echo went-on", says: "went-on", tell: "64 MiB of memory",
			change: func(s *wire.SessionSpec) { s.Limits.MemoryBytes = 64 << 20 }},
		{name: "processes", run: "for i in $(seq 200); do sleep 1000 & done; echo went-on", says: "Resource temporarily unavailable", tell: "30 processes",
			change: func(s *wire.SessionSpec) { s.Limits.PIDs = 30 }},
		{name: "descriptors", run: "while exec {f}</dev/null; do :; done; echo went-on", says: "Too many open files"},
		{name: "private folders", run: "for f in /tmp /var/tmp /dev/shm /run; do head -c 2G /dev/zero > $f/x; done; echo went-on", says: "No space left"},
		{name: "names", run: "cd /tmp; seq 100000 | xargs touch; echo went-on", says: "No space left"},
		{name: "home", run: "cd; head -c 2G /dev/zero > x; echo went-on", says: "No space left",
			change: func(s *wire.SessionSpec) { s.Level, s.Account = wire.LevelWrite, WriteAccount }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			b.renew(nil)
			s, _ := b.open(func(s *wire.SessionSpec) {
				execSpec("exec 2>&1; " + c.run)(s)
				s.RemainingMS = 600_000
				if c.change != nil {
					c.change(s)
				}
			})
			s.sees(c.says)
			if c.tell != "" {
				s.until("it is told by what it is bounded", func() bool { return strings.Contains(s.notices, c.tell) })
			}
			other, _ := b.open(execSpec("echo others-$((1+1))"))
			other.sees("others-2")
			if k := b.brake(wire.Brake{Kind: wire.BrakeStopSession, Session: s.id}); k.Error != "" {
				t.Errorf("%+v", k)
			}
			s.ends()
			if strings.Count(s.notices, "\n") > 2 {
				t.Errorf("told too often: %s", s.notices)
			}
		})
	}
}

func TestMemoryOfAWriteSessionIsBoundedByTheHosts(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	writeAccount(t)
	s, _ := b.open(writeSpec(execSpec("g=$(sed -n 's/.*memory://p' /proc/self/cgroup); cat /sys/fs/cgroup/memory$g/memory.limit_in_bytes /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max 2>/dev/null; awk '/MemTotal/ {print $2}' /proc/meminfo")))
	s.ends()
	var limit, total int64
	if _, err := fmt.Sscan(s.said(), &limit, &total); err != nil {
		t.Fatalf("%v: %s", err, s.said())
	}
	if limit <= 0 || limit > total*1024 {
		t.Errorf("%d bytes of %d kB", limit, total)
	}
}

func TestWhoWatchesIsEndedAfterWhoTakes(t *testing.T) {
	b := newBench(t)
	if mine, err := os.ReadFile("/proc/self/oom_score_adj"); err != nil || os.WriteFile("/proc/self/oom_score_adj", []byte(keepAlive), 0) != nil {
		t.Skip("this root may not put itself last")
	} else if err := os.WriteFile("/proc/self/oom_score_adj", mine, 0); err != nil {
		t.Fatal(err)
	}
	cmd := b.apart()
	s, _ := b.open(execSpec("cat /proc/self/oom_score_adj; echo ready; exec sleep 1000"))
	s.sees("ready")
	if said := s.said(); !strings.HasPrefix(said, "0\n") {
		t.Errorf("the session has %s", said)
	}
	for _, pid := range []int{cmd.Process.Pid, keeperOf(t, cmd.Process.Pid)} {
		if v, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(v) != keepAlive+"\n" {
			t.Errorf("%d has %s, %v", pid, v, err)
		}
	}
}
