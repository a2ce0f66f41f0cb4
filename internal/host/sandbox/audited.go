package sandbox

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// noAudit is the kernel's number for "none".
const noAudit = 1<<32 - 1

// beginAudit puts the account's number and a new audit session on this thread,
// from which the session is exec'ed. Both belong to threads: set anywhere else
// in the process they would reach the session only by chance. It returns 0
// where the kernel or a container gives none.
func beginAudit(uid uint32) int64 {
	before := auditSession()
	_ = os.WriteFile("/proc/thread-self/loginuid", []byte(strconv.FormatUint(uint64(uid), 10)), 0)
	if now := auditSession(); now != before {
		return now
	}
	return 0 // that of whoever started handrail is not the session's
}

func auditSession() int64 {
	b, err := os.ReadFile("/proc/thread-self/sessionid")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n == noAudit {
		return 0
	}
	return n
}

// Processes is the host's list of processes, held open: whoever is root in a
// session can unmount /proc, and this must still find what they left.
type Processes struct{ proc *os.Root }

// HoldProcesses opens the list.
func HoldProcesses() (*Processes, error) {
	proc, err := os.OpenRoot("/proc")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot hold the list of processes")
	}
	return &Processes{proc}, nil
}

// Close lets the list go.
func (p *Processes) Close() { _ = p.proc.Close() }

// KillAudited kills every process, but this one, that carries the audit session
// id, wherever it went: children inherit it, and a session cannot give itself
// another (see becomeUser). It returns when none is left or ctx ends, with the
// names of those that it met, each once. Id 0 is none.
func (p *Processes) KillAudited(ctx context.Context, id int64) (names []string) {
	if id <= 0 || id == noAudit {
		return nil
	}
	want := strconv.FormatInt(id, 10)
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		met := 0
		for _, pid := range p.pids() {
			if pid == os.Getpid() || p.read(pid, "sessionid") != want || !p.alive(pid) {
				continue
			}
			met++
			if name := p.read(pid, "comm"); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if met == 0 {
			return names
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return names
		case <-t.C:
		}
	}
}

func (p *Processes) pids() (pids []int) {
	f, err := p.proc.Open(".")
	if err != nil {
		return nil
	}
	defer f.Close()
	entries, _ := f.Readdirnames(-1)
	for _, name := range entries {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *Processes) read(pid int, file string) string {
	b, err := p.proc.ReadFile(strconv.Itoa(pid) + "/" + file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// alive says that the process is not only waiting for its parent to take note
// of its end.
func (p *Processes) alive(pid int) bool {
	stat := p.read(pid, "stat")
	i := strings.LastIndex(stat, ") ") // the name before may hold anything
	return i > 0 && i+2 < len(stat) && stat[i+2] != 'Z' && stat[i+2] != 'X'
}
