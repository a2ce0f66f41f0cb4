package keeper

import (
	"context"
	"os"
	"strconv"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Pausing where there is no cgroup: an ordinary user's session lives in a pid
// namespace of its own, so its processes can be found and stopped one by one.
// A process that forks meanwhile is found in the next round; a stopped one does
// not fork. It is not as good as a freezer: a parent may see its child stop.

const maxRounds = 100

// members are the processes in the child's pid namespace.
func members(child int) []int {
	want, err := os.Readlink("/proc/" + strconv.Itoa(child) + "/ns/pid")
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err == nil && ns == want {
			pids = append(pids, pid)
		}
	}
	return pids
}

// state is the one letter of a process's state, 0 when it is gone.
func state(pid int) byte {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	for i := len(b) - 1; i > 0; i-- { // the name before may hold anything
		if b[i] == ')' && i+2 < len(b) {
			return b[i+2]
		}
	}
	return 0
}

// still stops every process but the namespace's own init, or lets them go on.
func still(ctx context.Context, child int, stop bool) error {
	own, err := os.Readlink("/proc/self/ns/pid")
	if theirs, terr := os.Readlink("/proc/" + strconv.Itoa(child) + "/ns/pid"); err != nil || terr != nil || own == theirs {
		return fault.New(fault.Unavailable, "cannot pause: the session has no process namespace of its own")
	}
	sig := syscall.SIGCONT
	if stop {
		sig = syscall.SIGSTOP
	}
	for range maxRounds {
		moving := 0
		for _, pid := range members(child) {
			if pid == child {
				continue // it only waits
			}
			switch s := state(pid); {
			case s == 0 || s == 'Z' || s == 'X':
			case stop && s != 'T' && s != 't':
				moving++
				_ = syscall.Kill(pid, sig)
			case !stop && s == 'T':
				moving++
				_ = syscall.Kill(pid, sig)
			}
		}
		if moving == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, ctx.Err(), "cannot pause: some processes do not stop")
		case <-time.After(2 * time.Millisecond):
		}
	}
	return fault.New(fault.Unavailable, "cannot pause: the session starts processes faster than they can be stopped")
}
