package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stage 2 changes credentials with raw calls on its locked thread: exec from
// that thread makes them the process's, and the others end.

// rlimits bound a read session beside its cgroup, which is what counts.
var rlimits = [...]struct {
	what     int
	cur, max uint64
}{
	{unix.RLIMIT_CORE, 0, 0},
	{unix.RLIMIT_NOFILE, 1024, 4096},
	{unix.RLIMIT_NPROC, 512, 512},
	{unix.RLIMIT_MEMLOCK, 1 << 16, 1 << 16},
	{unix.RLIMIT_MSGQUEUE, 1 << 16, 1 << 16},
	{unix.RLIMIT_SIGPENDING, 512, 512},
	{unix.RLIMIT_NICE, 0, 0},
	{unix.RLIMIT_RTPRIO, 0, 0},
}

// CountsApart says whether the processes in a user namespace are counted for it
// alone. Before Linux 5.14 the account's processes outside count too, so that a
// limit could leave a session none.
func CountsApart() bool { return kernelAtLeast(5, 14) }

func setLimits(trial bool) error {
	for _, l := range rlimits {
		if trial && l.what == unix.RLIMIT_NPROC && !CountsApart() {
			continue
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(l.what, &now); err != nil {
			return fmt.Errorf("cannot read a limit: %w", err)
		}
		now.Max = min(now.Max, l.max)
		now.Cur = min(l.cur, now.Max)
		if err := unix.Setrlimit(l.what, &now); err != nil {
			return fmt.Errorf("cannot set limit %d: %w", l.what, err)
		}
	}
	return nil
}

func kernelAtLeast(major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(kernelRelease(), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

func raw(trap, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(trap, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

func prctl(op int, arg uintptr) error { return unix.Prctl(op, arg, 0, 0, 0) }

// becomeUser takes on uid, gid and groups and keeps no capability, unless the
// session is to be root. Even root cannot take on another audit session: by it
// those are found that left the session's cgroup.
func becomeUser(uid, gid uint32, groups []uint32, powerful bool) error {
	if powerful {
		if err := prctl(unix.PR_CAPBSET_DROP, unix.CAP_AUDIT_CONTROL); err != nil {
			return fmt.Errorf("cannot drop the audit capability: %w", err)
		}
	} else if err := emptyBounding(); err != nil {
		return err
	}
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return fmt.Errorf("cannot set the groups: %w", errno)
	}
	if err := raw(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); err != nil {
		return fmt.Errorf("cannot become gid %d: %w", gid, err)
	}
	if err := raw(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); err != nil {
		return fmt.Errorf("cannot become uid %d: %w", uid, err)
	}
	if uid != 0 {
		return dropCapabilities()
	}
	return nil
}

// dropCapabilities empties every set of this thread.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	return nil
}

// emptyBounding makes sure that no file can give a capability back.
func emptyBounding() error {
	for c := 0; c <= 63; c++ {
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c)); err != nil {
			if err == unix.EINVAL {
				return nil
			}
			return fmt.Errorf("cannot drop capability %d: %w", c, err)
		}
	}
	return nil
}

// ownKeyring gives the session a keyring that nobody else holds.
func ownKeyring() error {
	return raw(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
}

// freshSignals gives the session the signals of a fresh login. Who started
// handrail may have ignored some (nohup, a job in the background), and ignored
// signals survive exec: without this, Ctrl-C would do nothing.
func freshSignals() {
	const ignored = 1
	for sig := uintptr(1); sig <= 64; sig++ {
		var action, plain [4]uint64
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&action)), 8, 0, 0)
		if errno == 0 && action[0] == ignored {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&plain)), 0, 8, 0, 0)
		}
	}
	var none uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
}
