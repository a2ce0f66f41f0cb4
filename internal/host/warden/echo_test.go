package warden

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// TestAKeystrokeComesBack logs what the host's half of an echo costs: from the
// socket that the link holds to the terminal and back.
func TestAKeystrokeComesBack(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(func(s *wire.SessionSpec) {
		execSpec("exec cat")(s)
		shellSpec(s)
		s.RemainingMS = 600_000
	})
	s.enter("ready\n")
	s.sees("ready\r\nready\r\n")
	start := len(s.said())
	cpu := cpuOf(t, keeperOf(t, os.Getpid()))
	var took []time.Duration
	for i := range 300 {
		want := start + i + 1
		began := time.Now()
		s.enter("x")
		s.until("it is echoed", func() bool { return s.out.Len() >= want })
		took = append(took, time.Since(began))
	}
	cpu = cpuOf(t, keeperOf(t, os.Getpid())) - cpu
	slices.Sort(took)
	t.Logf("key to echo: p50 %s, p95 %s, least %s; the keeper's own work %s", took[len(took)/2], took[len(took)*95/100], took[0], cpu/time.Duration(len(took)))
}

// cpuOf is the processor time that a process has used.
func cpuOf(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Skip("no schedstat")
	}
	for _, path := range tasks {
		var ns time.Duration
		b, _ := os.ReadFile(path)
		_, _ = fmt.Sscan(string(b), &ns)
		sum += ns
	}
	return sum
}
