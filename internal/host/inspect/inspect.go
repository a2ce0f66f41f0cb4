// Package inspect looks at a host for a person who gets no shell: stack dumps,
// the busiest processes, the journal, ports, open files, an environment. It is
// a process of its own for each look, started by the warden, with as little
// power as the look needs; what it says is masked here, before it leaves.
//
//	warden ── order ──▶ prepare (root: cgroup, which process, who to be)
//	                        │ exec
//	                        ▼
//	                    look (an unused uid, at most two capabilities, filter)
//	                        │ records, masked
//	                        ▼
//	                    session socket ── link ══ server
//
// What must stay true:
//
//   - the warden reads nothing of a target: whatever a process says of itself
//     is read here, under bounds on time, memory and processor;
//   - nobody is changed: no signal but the one a JVM catches to talk, no write
//     into memory, no file but the JVM's own handshake;
//   - who is held for a moment goes on, whatever becomes of us: ptrace lets go
//     when the tracer dies;
//   - a process is held by its pidfd and start time, so that a number that is
//     used again is not mistaken for it;
//   - what the answer does not show, it says.
package inspect

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

// Names by which this executable knows, from argv[0], what it is to be.
const (
	Arg0     = "handrail-inspect"
	arg0Look = "handrail-look"
)

// Descriptors that a look is born with.
const (
	orderFD   = 3 // the warden's order; its closing ends the look
	sessionFD = 4 // where records go
	planFD    = 5
	pidFD     = 6 // the process that is looked at
	rootFD    = 7 // its root folder, of a JVM
)

// Order is what the warden tells, over the order socket, never in argv.
type Order struct {
	Spec   wire.InspectSpec `json:"spec"`
	UID    uint32           `json:"uid"`    // a number that nobody has; 0: this process stays who it is
	Cgroup string           `json:"cgroup"` // name; "" where there is none
	Hide   []string         `json:"hide"`   // handrail's own folders
	Kin    []File           `json:"kin"`    // handrail's programs beside this one
}

// plan is what prepare found out, and what look does.
type plan struct {
	Spec       wire.InspectSpec `json:"spec"`
	Process    *process         `json:"process,omitempty"`    // the one that is meant
	Of         []process        `json:"of,omitempty"`         // those of a unit, or of the same name
	Unit       string           `json:"unit,omitempty"`       // what the target names, if it names one
	Candidates []process        `json:"candidates,omitempty"` // where several could be meant
	Runtime    string           `json:"runtime,omitempty"`
	Secret     []secret         `json:"secret,omitempty"`
	Notes      []string         `json:"notes,omitempty"`
	Weak       bool             `json:"weak,omitempty"` // no root here: only what this account may see
	Kind       string           `json:"kind,omitempty"` // of the fault that ends it
	Error      string           `json:"error,omitempty"`
	Hint       string           `json:"hint,omitempty"`

	kin []File
}

// Bounds of one look.
var limits = sandbox.Limits{Pids: 64, MemoryBytes: 768 << 20, CPUPercent: 100}

// Main returns at once unless this process was started to look.
func Main() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case Arg0:
		runtime.LockOSThread() // its credentials become the next one's
		fail(prepare())
		os.Exit(1)
	case arg0Look:
		os.Exit(look())
	}
}

// fail says on the session socket why there is no answer.
func fail(err error) {
	f := fault.From(err)
	a := newAnswer(os.NewFile(sessionFD, "session"), wire.InspectSpec{})
	a.end.Kind, a.end.Error, a.end.Hint = f.Kind.String(), f.Text, f.Hint
	a.close()
}

// prepare finds out which process is meant and becomes who looks. It reads only
// what the kernel says of processes.
func prepare() error {
	order := os.NewFile(orderFD, "order")
	defer runtime.KeepAlive(order) // the next one is born with it: whoever forgets a file closes it, sooner or later
	conn, err := net.FileConn(order)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot begin to look")
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := wire.ReadBlock(conn, wire.MaxPayload)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read what to look at")
	}
	var o Order
	if err := json.Unmarshal(b, &o); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read what to look at")
	}
	_ = conn.Close() // ours is a copy: the descriptor itself stays
	if o.Cgroup != "" {
		group, err := sandbox.NewCgroup(o.Cgroup, limits)
		if err != nil {
			return err
		}
		if err := group.Join(os.Getpid()); err != nil {
			return err
		}
	}
	p := plan{Spec: o.Spec, Weak: os.Geteuid() != 0 || o.UID == 0, kin: o.Kin}
	var pidfd int
	if pidfd, err = p.resolve(); err != nil {
		f := fault.From(err)
		p.Kind, p.Error, p.Hint = f.Kind.String(), f.Text, f.Hint
	}
	if o.Spec.What == wire.InspectFiles || o.Spec.What == wire.InspectJournal {
		p.Secret = secretsOf(sandbox.SecretPaths(o.Spec.Secrets, o.Hide))
	}
	who, err := p.identity(o)
	if err != nil {
		return err
	}
	return p.become(who, pidfd)
}

// identity is who looks: somebody that nobody else is, with the capabilities
// of that look alone; for a JVM the JVM's own account, with none.
func (p *plan) identity(o Order) (sandbox.Look, error) {
	who := sandbox.Look{UID: o.UID, GID: o.UID}
	onProcess := p.Process != nil || len(p.Of) > 0
	switch {
	case p.readsFiles():
		names := p.Spec.Groups
		if len(names) == 0 {
			names = []string{"adm", "systemd-journal"}
		}
		var err error
		who.Groups, err = sandbox.ReadGroups(names)
		return who, err
	case p.Runtime == runtimeJVM && p.Spec.What == wire.InspectStacks && p.Process != nil:
		who.UID, who.GID = uint32(p.Process.EUID), uint32(p.Process.EGID)
	case p.Spec.What == wire.InspectTop || p.Spec.What == wire.InspectPorts || onProcess:
		who.Caps = []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}
	}
	return who, nil
}

// readsFiles says whether the look is at what people wrote, not at processes:
// then it may no more than a read session.
func (p *plan) readsFiles() bool {
	return p.Spec.What == wire.InspectJournal || p.Spec.What == wire.InspectFiles && isPath(p.Spec.Target)
}

// become hands the plan over and is exec'ed again with the new identity.
func (p *plan) become(who sandbox.Look, pidfd int) error {
	root := -1
	if p.Runtime == runtimeJVM && p.Process != nil && p.Spec.What == wire.InspectStacks {
		var err error
		if root, err = unix.Open(fmt.Sprintf("/proc/%d/root", p.Process.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot look into the root folder of process %d", p.Process.PID)
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot hand over what to look at")
	}
	memfd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err == nil {
		_, err = unix.Pwrite(memfd, b, 0)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot hand over what to look at")
	}
	if err := inherit(map[int]int{planFD: memfd, pidFD: pidfd, rootFD: root}); err != nil {
		return err
	}
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0) // after the others have their places
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot find this executable")
	}
	if p.Weak {
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else if err := who.Become(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot give up power before looking")
	}
	return execSelf(self, arg0Look)
}

// inherit puts each descriptor where the next one looks for it; -1 is none.
// All are moved out of the way first, so that none is covered before its turn.
func inherit(to map[int]int) error {
	high := map[int]int{}
	for at, fd := range to {
		if fd < 0 {
			continue
		}
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 32)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "cannot hand over what to look at")
		}
		high[at] = n
	}
	for at := range to {
		if n, ok := high[at]; ok {
			if err := unix.Dup3(n, at, 0); err != nil {
				return fault.Wrap(fault.Internal, err, "cannot hand over what to look at")
			}
		} else {
			_ = unix.Close(at)
		}
	}
	for _, fd := range []int{orderFD, sessionFD} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot hand over what to look at")
		}
	}
	return nil
}

// execSelf returns only when it fails. The environment is fixed: nothing of
// the warden's surroundings is of use here.
func execSelf(self int, arg0 string) error {
	argv, err := syscall.SlicePtrFromStrings([]string{arg0})
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "GOMAXPROCS=2", "GOMEMLIMIT=512MiB", "TZ=UTC"})
	if err != nil {
		return err
	}
	empty := [1]byte{}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(self), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(env)
	return fault.Wrap(fault.Unavailable, errno, "cannot look: this executable cannot be run again")
}

// look is the second stage: it does the plan and says what it found.
func look() int {
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // a new identity forgot it
	for _, fd := range []int{orderFD, sessionFD, planFD, pidFD, rootFD} {
		unix.CloseOnExec(fd)
	}
	b, err := io.ReadAll(io.LimitReader(os.NewFile(planFD, "plan"), 8<<20))
	var p plan
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		fail(fault.Wrap(fault.Internal, err, "cannot read what to look at"))
		return 1
	}
	if p.Runtime != runtimeJVM {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // nobody traces who traces
	}
	session := os.NewFile(sessionFD, "session")
	go endWith(orderFD)
	a := newAnswer(session, p.Spec)
	limit := time.AfterFunc(time.Duration(p.Spec.TimeMS)*time.Millisecond, func() {
		a.late()
		os.Exit(3) // the kernel lets go of whoever is held
	})
	defer limit.Stop()
	if err := p.do(a); err != nil {
		f := fault.From(err)
		a.end.Kind, a.end.Error, a.end.Hint = f.Kind.String(), f.Text, f.Hint
	}
	a.close()
	return 0
}

// endWith ends this process when the other end of the socket is gone.
func endWith(fd int) {
	var one [1]byte
	for {
		n, err := unix.Read(fd, one[:])
		if n == 0 && err == nil || err != nil && err != unix.EINTR && err != unix.EAGAIN {
			os.Exit(4)
		}
		if err == unix.EAGAIN {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
	}
}

// do dispatches, under the filter of that look.
func (p *plan) do(a *answer) error {
	if p.Weak {
		a.note("This node has no root here: it sees only what its own account may see.")
	}
	for _, n := range p.Notes {
		a.note(n)
	}
	for i := range p.Candidates {
		t := p.Candidates[i].target()
		if !a.put(wire.InspectRecord{Candidate: &t}) {
			break
		}
	}
	if p.Error != "" {
		e := fault.New(fault.ParseKind(p.Kind), "%s", p.Error)
		e.Hint = p.Hint
		return e
	}
	power := sandbox.Power{}
	switch {
	case p.Spec.What == wire.InspectStacks && p.Runtime == runtimeJVM:
		power.Unix = true
	case p.Spec.What == wire.InspectStacks || p.Spec.What == wire.InspectCore:
		power.Trace, power.Memory = true, true
	case p.Spec.What == wire.InspectJournal:
		power.Run = true
	}
	if err := sandbox.Narrow(power); err != nil && !p.Weak {
		return err
	}
	if p.Process != nil && !p.readsFiles() {
		if p.Runtime == runtimeNative && isGo(p.Process.PID) {
			p.Runtime = runtimeGo
		}
		t := p.Process.target()
		t.Runtime, t.Ticks = p.Runtime, int64(p.Process.Start)
		t.Count = int64(len(p.Of))
		a.put(wire.InspectRecord{Target: &t})
	}
	switch p.Spec.What {
	case wire.InspectStacks:
		return p.stacks(a)
	case wire.InspectTop:
		return p.top(a)
	case wire.InspectJournal:
		return p.journal(a)
	case wire.InspectPorts:
		return p.ports(a)
	case wire.InspectFiles:
		return p.files(a)
	case wire.InspectEnv:
		return p.environment(a)
	case wire.InspectCore:
		return p.core(a)
	}
	return fault.New(fault.Invalid, "cannot look at %q: not known here", p.Spec.What)
}

// still says whether the process is the one that was meant: its number may
// have been given to another.
func (p *plan) still() error {
	now, err := readProcess(p.Process.PID)
	if err != nil || now.Start != p.Process.Start {
		return fault.New(fault.NotFound, "cannot look at process %d: it has ended", p.Process.PID)
	}
	return nil
}
