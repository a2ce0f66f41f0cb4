package sandbox

import (
	"bytes"
	"strconv"
)

// Bound counts how often a session met its limits.
type Bound struct {
	Memory int64 // programs that the kernel ended for want of memory
	Pids   int64 // processes that were not started
}

// Bound reads the counts; what this host does not count stays 0.
func (c *Cgroup) Bound() Bound {
	memory, file := c.unified, "memory.events"
	if dir := c.legacy["memory"]; dir != "" {
		memory, file = dir, "memory.oom_control"
	}
	pids := c.unified
	if dir := c.legacy["pids"]; dir != "" {
		pids = dir
	}
	return Bound{Memory: c.count(memory, file, "oom_kill"), Pids: c.count(pids, "pids.events", "max")}
}

// count reads the number of one line.
func (c *Cgroup) count(dir, file, name string) int64 {
	if dir == "" {
		return 0
	}
	b, err := c.read(dir, file)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == name {
			n, _ := strconv.ParseInt(string(f[1]), 10, 64)
			return n
		}
	}
	return 0
}
