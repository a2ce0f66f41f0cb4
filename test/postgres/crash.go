package postgres

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Crash kills the server and all that it started, as a power cut does but for
// the disk; Again starts it on the same data.
func (c *Cluster) Crash() {
	if c.process == nil {
		return
	}
	// Stopped first: it starts nobody while the others are counted.
	_ = c.process.Signal(syscall.SIGSTOP)
	for _, pid := range childrenOf(c.process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // one that ended meanwhile is as dead
	}
	c.end(syscall.SIGKILL)
}

// Runs says whether the server was started, and neither stopped nor killed.
func (c *Cluster) Runs() bool { return c.process != nil }

// Journal is the folder that every commit is written to.
func (c *Cluster) Journal() string { return filepath.Join(c.dir, "data", "pg_wal") }

func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest) // from the state on
		if len(f) > 1 && f[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}
