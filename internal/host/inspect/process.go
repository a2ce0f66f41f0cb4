package inspect

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/mask"
)

// process is what the kernel says of a process.
type process struct {
	PID     int      `json:"pid"`
	Parent  int      `json:"parent"`
	Name    string   `json:"name"` // as it calls itself
	Exe     string   `json:"exe,omitempty"`
	Args    []string `json:"args,omitempty"`
	UID     int      `json:"uid"`
	EUID    int      `json:"euid"`
	EGID    int      `json:"egid"`
	State   string   `json:"state"`
	Threads int      `json:"threads"`
	Start   uint64   `json:"start"` // ticks since boot: with the number, it is this process
	Inner   int      `json:"inner"` // its number in its own namespace
	Unit    string   `json:"unit,omitempty"`
	Cgroup  string   `json:"cgroup,omitempty"`
	Kernel  bool     `json:"kernel,omitempty"`
	Inside  bool     `json:"inside,omitempty"` // its namespace of processes is not ours
	Caught  uint64   `json:"caught"`           // signals that it handles
}

// Bounds of what is read of one process.
const (
	maxArgs    = 64 << 10
	maxProcs   = 1 << 16
	maxProcFil = 4 << 20
)

// readSome reads a file of procfs up to a bound.
func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// readProcess reads one process. Nothing in it is believed but numbers.
func readProcess(pid int) (process, error) {
	p := process{PID: pid, Inner: pid}
	stat, err := readSome(procPath(pid, "stat"), 4096)
	if err != nil {
		return p, err
	}
	if err := p.parseStat(stat); err != nil {
		return p, err
	}
	status, err := readSome(procPath(pid, "status"), 16<<10)
	if err != nil {
		return p, err
	}
	p.parseStatus(status)
	if b, err := readSome(procPath(pid, "cmdline"), maxArgs); err == nil && len(b) > 0 {
		p.Args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	}
	p.Exe, _ = os.Readlink(procPath(pid, "exe"))
	p.Kernel = p.Exe == "" && len(p.Args) == 0
	if b, err := readSome(procPath(pid, "cgroup"), 16<<10); err == nil {
		p.Cgroup, p.Unit = parseCgroup(string(b))
	}
	return p, nil
}

// parseStat reads the line whose second field is a name in brackets, which may
// itself hold brackets and spaces.
func (p *process) parseStat(b []byte) error {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open || end+2 > len(b) {
		return fmt.Errorf("cannot read what the kernel says of process %d", p.PID)
	}
	p.Name = string(b[open+1 : end])
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return fmt.Errorf("cannot read what the kernel says of process %d", p.PID)
	}
	p.State = f[0]
	p.Parent, _ = strconv.Atoi(f[1])
	p.Threads, _ = strconv.Atoi(f[17])
	p.Start, _ = strconv.ParseUint(f[19], 10, 64)
	return nil
}

func (p *process) parseStatus(b []byte) {
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(line, ":")
		f := strings.Fields(value)
		if !ok || len(f) == 0 {
			continue
		}
		switch name {
		case "Uid":
			p.UID, _ = strconv.Atoi(f[0])
			if len(f) > 1 {
				p.EUID, _ = strconv.Atoi(f[1])
			}
		case "Gid":
			if len(f) > 1 {
				p.EGID, _ = strconv.Atoi(f[1])
			}
		case "NSpid":
			p.Inner, _ = strconv.Atoi(f[len(f)-1])
			p.Inside = len(f) > 1
		case "SigCgt":
			p.Caught, _ = strconv.ParseUint(f[0], 16, 64)
		}
	}
}

// parseCgroup returns the group's path and the systemd unit in it.
func parseCgroup(text string) (path, unit string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" || f[1] == "name=systemd" || path == "" {
			path = f[2]
		}
		for _, part := range strings.Split(f[2], "/") {
			if strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope") {
				unit = part
			}
		}
	}
	return path, unit
}

// catches says whether the process handles a signal.
func (p *process) catches(sig unix.Signal) bool { return p.Caught>>(uint(sig)-1)&1 == 1 }

// started is the wall clock's time of the start.
func (p *process) started() int64 {
	var boot, now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil {
		return 0
	}
	const perTick = int64(time.Second / 100) // USER_HZ is 100 wherever this runs
	return (now.Nano() - boot.Nano() + int64(p.Start)*perTick) / 1000
}

// command is the command line as it may be shown.
func (p *process) command() (string, int) {
	args, n := mask.Args(p.Args)
	text := strings.Join(args, " ")
	if text == "" {
		text = "[" + p.Name + "]"
	}
	cut(&text, 1024)
	return text, n
}

func (p *process) target() wire.InspectTarget {
	t := wire.InspectTarget{PID: int64(p.PID), Name: p.Name, User: userName(p.EUID), Unit: p.Unit, State: stateWord(p.State),
		Threads: int64(p.Threads), Started: p.started()}
	t.Command, _ = p.command()
	if p.Inside {
		t.Inside = "container"
	}
	return t
}

// base are the names by which a person may call it.
func (p *process) called(name string) bool {
	if p.Name == name {
		return true
	}
	if p.Exe != "" && filepath.Base(strings.TrimSuffix(p.Exe, " (deleted)")) == name {
		return true
	}
	return len(p.Args) > 0 && filepath.Base(p.Args[0]) == name
}

func stateWord(s string) string {
	switch s {
	case "R":
		return "running"
	case "S":
		return "sleeping"
	case "D":
		return "waiting for a device"
	case "T":
		return "stopped"
	case "t":
		return "traced"
	case "Z":
		return "dead, not yet reaped"
	case "I":
		return "idle"
	}
	return s
}

// pids lists every process.
func pids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxProcs)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out
}

var users = sync.OnceValue(func() map[int]string {
	names := map[int]string{}
	b, err := readSome("/etc/passwd", maxProcFil)
	if err != nil {
		return names
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":")
		if len(f) < 3 {
			continue
		}
		if uid, err := strconv.Atoi(f[2]); err == nil && names[uid] == "" {
			names[uid] = f[0]
		}
	}
	return names
})

func userName(uid int) string {
	if n := users()[uid]; n != "" {
		return n
	}
	return strconv.Itoa(uid)
}
