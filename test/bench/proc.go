package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// family maps each process to its children.
func family() map[int][]int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if pid, parent, ok := parentOf(path); ok {
			children[parent] = append(children[parent], pid)
		}
	}
	return children
}

func parentOf(path string) (pid, parent int, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, false // it ended
	}
	s := string(text)
	end := strings.LastIndexByte(s, ')') // a name may hold anything
	if end < 0 {
		return 0, 0, false
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 2 || f[0] == "Z" {
		return 0, 0, false // a dead one that waits for its parent
	}
	pid, err = strconv.Atoi(filepath.Base(filepath.Dir(path)))
	if err != nil {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(f[1])
	return pid, parent, err == nil
}

// descendants of a process, not itself.
func descendants(pid int) []int {
	children := family()
	var all []int
	for next := slices.Clone(children[pid]); len(next) > 0; {
		child := next[0]
		next = append(next[1:], children[child]...)
		all = append(all, child)
	}
	return all
}

func alive(pid int) bool {
	_, _, ok := parentOf("/proc/" + strconv.Itoa(pid) + "/stat")
	return ok
}

func endProcess(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }

func command(pid int) []string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
}

// ownTime is the processor time of this process so far.
func ownTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail with a good pointer
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory of processes, in KiB: what is resident, the share of it that counts
// for them, and what nobody else has.
type memory struct{ rss, pss, private float64 }

func (m memory) minus(o memory) memory {
	return memory{m.rss - o.rss, m.pss - o.pss, m.private - o.private}
}

func (m memory) over(n int) memory {
	return memory{m.rss / float64(n), m.pss / float64(n), m.private / float64(n)}
}

func memoryOf(pids ...int) memory {
	var m memory
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			v, _ := strconv.ParseFloat(f[1], 64)
			switch f[0] {
			case "Rss:":
				m.rss += v
			case "Pss:":
				m.pss += v
			case "Private_Clean:", "Private_Dirty:":
				m.private += v
			}
		}
	}
	return m
}

// ticks are what the kernel counts processor time in (USER_HZ).
const ticks = 100

// processor is how much of it processes have had, in milliseconds, with those
// of their children that have ended.
func processor(pids ...int) (ms float64) {
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(f) < 15 {
			continue
		}
		for _, n := range f[11:15] { // utime, stime, cutime, cstime
			v, _ := strconv.ParseFloat(n, 64)
			ms += v * 1000 / ticks
		}
	}
	return ms
}
