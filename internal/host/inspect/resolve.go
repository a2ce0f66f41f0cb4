package inspect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Runtimes, by which a stack dump is picked.
const (
	runtimeGo     = "go"
	runtimeJVM    = "jvm"
	runtimePython = "python"
	runtimeNode   = "node"
	runtimeNative = "native"
	runtimeKernel = "kernel"
)

const maxCandidates = 24

func isPath(target string) bool { return strings.HasPrefix(target, "/") }

// resolve finds out which process is meant: by number, by unit, or by a name
// that only one has. It returns a hold on it, -1 without.
func (p *plan) resolve() (pidfd int, err error) {
	t := p.Spec.Target
	switch agreed := p.agreed(); {
	case agreed.PID != 0:
		return p.holdAgreed(agreed)
	case t == "" || p.readsFiles() && isPath(t):
		return -1, p.wholeHost()
	case isPath(t):
		return -1, fault.New(fault.Invalid, "cannot look at %s of a path: name a process, its number or a unit", p.Spec.What).WithHint("handrail inspect HOST top")
	}
	if pid, err := strconv.Atoi(t); err == nil {
		found, err := readProcess(pid)
		if err != nil {
			return -1, fault.New(fault.NotFound, "cannot find process %d on this host", pid).WithHint("handrail inspect HOST top")
		}
		p.Of = []process{found}
		return p.hold(found)
	}
	return p.byName(t)
}

// wholeHost is a look without a process.
func (p *plan) wholeHost() error {
	switch p.Spec.What {
	case wire.InspectStacks, wire.InspectEnv, wire.InspectCore:
		return fault.New(fault.Invalid, "cannot look at %s: of which process? Name its number, its unit or its name", p.Spec.What).
			WithHint("handrail inspect HOST top")
	case wire.InspectFiles:
		if p.Spec.Target == "" {
			return fault.New(fault.Invalid, "cannot look at files: of which process, or which path?").WithHint("handrail inspect HOST files /var/log")
		}
	}
	return nil
}

// byName finds the processes of a unit, or those that are called so.
func (p *plan) byName(name string) (int, error) {
	var ofUnit, named []process
	for _, pid := range pids() {
		q, err := readProcess(pid)
		if err != nil || q.Kernel && p.Spec.What != wire.InspectTop {
			continue
		}
		switch {
		case q.Unit != "" && (q.Unit == name || strings.TrimSuffix(q.Unit, ".service") == name):
			ofUnit = append(ofUnit, q)
		case q.called(name):
			named = append(named, q)
		}
	}
	found := named
	if len(ofUnit) > 0 {
		found, p.Unit = ofUnit, ofUnit[0].Unit
	}
	switch {
	case len(found) == 0 && p.Spec.What == wire.InspectJournal:
		p.Unit = name // a unit that does not run has a journal too
		return -1, nil
	case len(found) == 0:
		return -1, fault.New(fault.NotFound, "cannot find %q on this host: no process or unit is called so", name).
			WithHint("handrail inspect HOST top")
	}
	p.Of = found
	tops := topmost(found)
	if len(tops) > 1 {
		if p.Unit != "" && (p.Spec.What == wire.InspectTop || p.Spec.What == wire.InspectPorts || p.Spec.What == wire.InspectJournal) {
			return -1, nil // of all of them
		}
		p.Candidates = tops[:min(len(tops), maxCandidates)]
		return -1, fault.New(fault.Conflict, "cannot tell which process %q is: %d are called so", name, len(tops)).WithHint("name its number")
	}
	if len(found) > 1 && p.Spec.What != wire.InspectTop {
		var others []string
		for _, q := range found {
			if q.PID != tops[0].PID {
				others = append(others, strconv.Itoa(q.PID))
			}
		}
		more := ""
		if len(others) > 12 {
			others, more = others[:12], ", …"
		}
		p.Notes = append(p.Notes, "This is the parent of "+strconv.Itoa(len(found)-1)+" more: "+strings.Join(others, ", ")+more+".")
	}
	return p.hold(tops[0])
}

// topmost are those whose parent is not among them.
func topmost(of []process) []process {
	in := map[int]bool{}
	for _, q := range of {
		in[q.PID] = true
	}
	var out []process
	for _, q := range of {
		if !in[q.Parent] {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, func(a, b process) int { return a.PID - b.PID })
	return out
}

// hold takes a hold on the process by which it cannot be mistaken for a later
// one of the same number, and finds its runtime.
func (p *plan) hold(q process) (int, error) {
	if own(q, p.kin) && p.Spec.What != wire.InspectTop && p.Spec.What != wire.InspectPorts && p.Spec.What != wire.InspectJournal {
		return -1, fault.New(fault.Denied, "cannot look into process %d: it is handrail's own", q.PID).WithHint("handrail inspect HOST top %d", q.PID)
	}
	pidfd, err := unix.PidfdOpen(q.PID, 0)
	if err == unix.ESRCH {
		return -1, fault.New(fault.NotFound, "cannot look at process %d: it has ended", q.PID)
	}
	if err != nil {
		pidfd = -1 // a kernel without: the start time alone says who it is
	}
	again, err := readProcess(q.PID)
	if err != nil || again.Start != q.Start {
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
		return -1, fault.New(fault.NotFound, "cannot look at process %d: it has ended", q.PID)
	}
	p.Process = &again
	p.Runtime = runtimeOf(again)
	return pidfd, nil
}

// own says whether a process is a part of handrail: what it holds is the keys
// of production. The node's program may be another than the server's, which is
// among kin then.
func own(q process, kin []File) bool {
	mine, err := FileAt("/proc/self/exe")
	if err != nil {
		return true
	}
	its, err := FileAt(procPath(q.PID, "exe"))
	return err == nil && (its == mine || slices.Contains(kin, its))
}

// File is one file of the host, whatever its name.
type File struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// FileAt is the file that a path leads to.
func FileAt(path string) (File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return File{}, err
	}
	return File{uint64(st.Dev), st.Ino}, nil
}

// String is the file for an argument.
func (f File) String() string { return fmt.Sprintf("%d:%d", f.Dev, f.Ino) }

// ParseFile reads what String wrote.
func ParseFile(s string) (f File, err error) {
	if n, err := fmt.Sscanf(s, "%d:%d", &f.Dev, &f.Ino); n != 2 || err != nil || f.String() != s {
		return File{}, fault.New(fault.Invalid, "cannot read %q as a file's numbers", s)
	}
	return f, nil
}

// runtimeOf is told from the names of what a process has mapped. It decides
// only how it is looked at. Whether it is Go, its file says: that is read later,
// without power.
func runtimeOf(q process) string {
	if q.Kernel {
		return runtimeKernel
	}
	b, err := readSome(procPath(q.PID, "maps"), maxProcFil)
	if err != nil {
		return runtimeNative
	}
	python, node := false, false
	seen := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || seen[f[5]] {
			continue
		}
		seen[f[5]] = true
		name := f[5][strings.LastIndexByte(f[5], '/')+1:]
		switch {
		case name == "libjvm.so":
			return runtimeJVM
		case strings.HasPrefix(name, "libpython") || strings.HasPrefix(name, "python2") || strings.HasPrefix(name, "python3") || name == "python":
			python = true
		case name == "node" || name == "nodejs" || strings.HasPrefix(name, "libnode.so"):
			node = true
		}
	}
	switch {
	case python:
		return runtimePython
	case node:
		return runtimeNode
	}
	return runtimeNative
}
