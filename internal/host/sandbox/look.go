package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// This file is for whoever looks at processes on behalf of a person (package
// inspect): not a session's sandbox, but the same means to have little power.

// Look is how little somebody who looks may do.
type Look struct {
	UID, GID uint32
	Groups   []uint32
	Caps     []uintptr // all that are left
}

// Become takes on the identity on this locked thread, with no capability but
// those listed. They last over the next exec, which makes them the process's.
func (l Look) Become() error {
	if err := boundTo(l.Caps); err != nil {
		return err
	}
	if err := prctl(unix.PR_SET_KEEPCAPS, 1); err != nil {
		return fmt.Errorf("cannot keep capabilities: %w", err)
	}
	var list unsafe.Pointer
	if len(l.Groups) > 0 {
		list = unsafe.Pointer(&l.Groups[0])
	}
	if err := raw(unix.SYS_SETGROUPS, uintptr(len(l.Groups)), uintptr(list), 0); err != nil {
		return fmt.Errorf("cannot set the groups: %w", err)
	}
	if err := raw(unix.SYS_SETRESGID, uintptr(l.GID), uintptr(l.GID), uintptr(l.GID)); err != nil {
		return fmt.Errorf("cannot become gid %d: %w", l.GID, err)
	}
	if err := raw(unix.SYS_SETRESUID, uintptr(l.UID), uintptr(l.UID), uintptr(l.UID)); err != nil {
		return fmt.Errorf("cannot become uid %d: %w", l.UID, err)
	}
	var data [2]unix.CapUserData
	for _, c := range l.Caps {
		bit := uint32(1) << (c % 32)
		data[c/32].Effective |= bit
		data[c/32].Permitted |= bit
		data[c/32].Inheritable |= bit
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear ambient capabilities: %w", err)
	}
	for _, c := range l.Caps {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("cannot keep capability %d: %w", c, err)
		}
	}
	return prctl(unix.PR_SET_NO_NEW_PRIVS, 1)
}

// boundTo makes sure that no file can give a capability beside those listed.
func boundTo(caps []uintptr) error {
	kept := map[uintptr]bool{}
	for _, c := range caps {
		kept[c] = true
	}
	for c := uintptr(0); c <= 63; c++ {
		if kept[c] {
			continue
		}
		if err := prctl(unix.PR_CAPBSET_DROP, c); err != nil {
			if err == unix.EINVAL {
				return nil
			}
			return fmt.Errorf("cannot drop capability %d: %w", c, err)
		}
	}
	return nil
}

// ReadGroups turns names into the numbers that this host has, and refuses what
// no read session is given.
func ReadGroups(names []string) ([]uint32, error) {
	file, err := os.ReadFile("/etc/group")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read this host's groups")
	}
	return groupIDs(&Spec{Level: Read, Groups: names}, file)
}

// SecretPaths lists what no read session may open: the default list, what
// policy declares, copies and other names, and handrail's own folders.
func SecretPaths(secrets, hide []string) []string {
	v := &view{spec: &Spec{Level: Read, Secrets: secrets, Hide: hide}}
	found := v.secretPaths()
	return append(found, expand(secrets)...) // those in private folders too: here is no private view
}

// Join puts a process into the cgroup.
func (c *Cgroup) Join(pid int) error {
	dirs := values(c.legacy)
	if c.unified != "" {
		dirs = append(dirs, c.unified)
	}
	for _, dir := range dirs {
		if err := writeFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot put a process under its limits")
		}
	}
	return nil
}

// Power is what a look needs beyond reading files; zero is nothing.
type Power struct {
	Trace  bool // ptrace, without writing
	Memory bool // read another's memory
	Unix   bool // connect a unix socket and make one file: the JVM's handshake
	Run    bool // exec: journalctl
}

// Requests of ptrace(2) that only stop, look and let go.
var lookRequests = []uint32{
	unix.PTRACE_SEIZE, unix.PTRACE_INTERRUPT, unix.PTRACE_DETACH, unix.PTRACE_GETREGSET, unix.PTRACE_CONT, unix.PTRACE_LISTEN, unix.PTRACE_GETSIGINFO,
}

// Narrow puts a filter on every thread of this process: what is open may be
// written to, nothing else; no process may be changed, no capability used for
// anything but looking. It cannot be taken off.
func Narrow(p Power) error {
	f := &filterTable{
		calls:  make([]block, lastCall+1),
		refuse: ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
		absent: ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		note:   ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
	}
	f.inet = f.refuse
	allow := ret(unix.SECCOMP_RET_ALLOW)
	for nr := range f.calls {
		f.calls[nr] = allow
	}
	f.writes()
	f.kernel()
	f.sockets()
	f.locks()
	f.terminals()
	oldCalls(f)
	f.look(p)
	kill := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS}
	program := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, auditArch, 1, 0), kill,
		load(offNr), jump(unix.BPF_JSET, x32Bit, 0, 1), kill,
	}
	program = append(program, search(spansOf(f.calls, f.absent))...)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fault.Wrap(fault.Unavailable, errno, "cannot narrow what may be done")
	}
	return nil
}

// look is what differs from a read session.
func (f *filterTable) look(p Power) {
	allow := ret(unix.SECCOMP_RET_ALLOW)
	f.set(f.refuse, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_PIDFD_GETFD,
		unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES, unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID,
		unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_CAPSET)
	f.set(equals(0, 0, allow, f.refuse), unix.SYS_PRLIMIT64)
	f.set(f.refuse, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_KCMP)
	if p.Trace {
		f.set(oneOf(0, ^uint32(0), lookRequests, allow, f.refuse), unix.SYS_PTRACE)
	}
	if p.Memory {
		f.set(allow, unix.SYS_PROCESS_VM_READV)
	}
	if !p.Run {
		f.set(f.refuse, unix.SYS_EXECVE, unix.SYS_EXECVEAT)
	}
	f.set(f.refuse, unix.SYS_PIDFD_SEND_SIGNAL)
	if p.Unix {
		f.set(allow, unix.SYS_CONNECT)
		f.set(oneOf(0, ^uint32(0), []uint32{unix.AF_UNIX}, allow, f.refuse), unix.SYS_SOCKET)
		f.set(oneOf(1, ^uint32(0), []uint32{uint32(unix.SIGQUIT), 0}, allow, f.refuse), unix.SYS_PIDFD_SEND_SIGNAL)
		f.set(allow, unix.SYS_OPENAT2, unix.SYS_UNLINKAT)
	} else {
		// Its flags lie in memory, where a filter cannot look; only the
		// handshake needs it. Everything else opens with openat.
		f.set(f.absent, unix.SYS_OPENAT2)
	}
}
