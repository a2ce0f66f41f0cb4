package sandbox

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastCall is the newest system call that was judged when this was written.
// Newer ones do not exist for a read session: nobody has looked at them.
const lastCall = unix.SYS_FILE_SETATTR

// namespaces are the flags of clone and unshare that make one.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filterTable says for each system call what to do.
type filterTable struct {
	calls  []block
	refuse block // EPERM
	absent block // ENOSYS: programs have a second way
	note   block // tell the notifier, else let the kernel decide
	inet   block // internet sockets: tell the notifier, which refuses; else refuse
}

func (f *filterTable) set(b block, nrs ...int) {
	for _, nr := range nrs {
		f.calls[nr] = b
	}
}

// filterOptions choose the parts of the read filter that depend on the host.
type filterOptions struct {
	Notify bool // a notifier will answer
	// Sockets: internet sockets are told to the notifier too. Only where the
	// cgroup refuses them as well, since then nothing hangs on its answer.
	Sockets bool
}

// readFilter is the filter of a read session.
func readFilter(o filterOptions) []unix.SockFilter {
	f := &filterTable{
		calls:  make([]block, lastCall+1),
		refuse: ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
		absent: ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
		note:   ret(unix.SECCOMP_RET_ALLOW),
	}
	f.inet = f.refuse
	if o.Notify {
		f.note = ret(unix.SECCOMP_RET_USER_NOTIF)
		if o.Sockets {
			f.inet = f.note
		}
	}
	allow := ret(unix.SECCOMP_RET_ALLOW)
	for nr := range f.calls {
		f.calls[nr] = allow
	}
	f.writes()
	f.kernel()
	f.processes()
	f.sockets()
	f.locks()
	f.terminals()
	oldCalls(f)

	kill := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS}
	program := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, auditArch, 1, 0), kill,
		load(offNr), jump(unix.BPF_JSET, x32Bit, 0, 1), kill,
	}
	return append(program, search(spansOf(f.calls, f.absent))...)
}

// writes go to the notifier, for the hint. The mounts and Landlock refuse.
func (f *filterTable) writes() {
	flags := uint32(unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC)
	f.set(anyBit(2, flags, f.note, ret(unix.SECCOMP_RET_ALLOW)), unix.SYS_OPENAT)
	f.set(f.note, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_MKDIRAT, unix.SYS_LINKAT,
		unix.SYS_SYMLINKAT, unix.SYS_MKNODAT, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWNAT,
		unix.SYS_TRUNCATE, unix.SYS_KILL)
}

// kernel holds what reaches past files and processes, most of it also guarded
// by capabilities that a session does not have.
func (f *filterTable) kernel() {
	f.set(f.refuse,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT,
		unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT,
		unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_QUOTACTL,
		unix.SYS_QUOTACTL_FD, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT, unix.SYS_SETHOSTNAME,
		unix.SYS_SETDOMAINNAME, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
		unix.SYS_KEXEC_LOAD, unix.SYS_ACCT, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_VHANGUP,
		unix.SYS_NFSSERVCTL, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_FANOTIFY_INIT,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_SETNS,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL)
	// Asynchronous I/O slots are one budget for the whole host (aio-max-nr):
	// taking them all stops the next database from starting.
	f.set(f.absent, unix.SYS_IO_SETUP, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER)
	// The flags of clone3 lie in memory, where a filter cannot look; every
	// libc falls back on clone.
	f.set(f.absent, unix.SYS_CLONE3)
	allow := ret(unix.SECCOMP_RET_ALLOW)
	f.set(anyBit(0, namespaces, f.refuse, allow), unix.SYS_CLONE)
	f.set(anyBit(0, namespaces|unix.CLONE_NEWTIME, f.refuse, allow), unix.SYS_UNSHARE)
}

// processes keeps hands off those of others; limits and priorities may be set
// for oneself only.
func (f *filterTable) processes() {
	f.set(f.refuse, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
		unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES)
	f.set(f.absent, unix.SYS_PIDFD_SEND_SIGNAL) // kill is judged by uid and by Landlock
	allow := ret(unix.SECCOMP_RET_ALLOW)
	f.set(equals(0, 0, allow, f.refuse), unix.SYS_PRLIMIT64, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM,
		unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY)
	own := func(which uint32) block { return equals(0, which, equals(1, 0, allow, f.refuse), f.refuse) }
	f.set(own(unix.PRIO_PROCESS), unix.SYS_SETPRIORITY)
	f.set(own(1), unix.SYS_IOPRIO_SET) // IOPRIO_WHO_PROCESS
}

// sockets leaves netlink for ss and ip, and pairs of sockets. A datagram pair
// could send to any named socket, so pairs are streams.
func (f *filterTable) sockets() {
	allow := ret(unix.SECCOMP_RET_ALLOW)
	netlink := oneOf(2, ^uint32(0), []uint32{unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG}, allow, f.refuse)
	f.set(equals(0, unix.AF_NETLINK, netlink,
		oneOf(0, ^uint32(0), []uint32{unix.AF_INET, unix.AF_INET6}, f.inet, f.refuse)), unix.SYS_SOCKET)
	f.set(equals(0, unix.AF_UNIX, oneOf(1, 0xf, []uint32{unix.SOCK_STREAM, unix.SOCK_SEQPACKET}, allow, f.refuse),
		f.refuse), unix.SYS_SOCKETPAIR)
	f.set(f.refuse, unix.SYS_CONNECT, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4)
}

// locks can stop a batch job whose lock file is only readable. Which file is
// meant cannot be seen here, so none can be taken; unlocking is harmless.
func (f *filterTable) locks() {
	allow := ret(unix.SECCOMP_RET_ALLOW)
	f.set(equals(1, unix.LOCK_UN, allow, f.refuse), unix.SYS_FLOCK)
	f.set(oneOf(1, ^uint32(0), []uint32{
		unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL,
		unix.F_GETLK, unix.F_OFD_GETLK, unix.F_GETOWN, unix.F_GETOWN_EX, unix.F_GETSIG, unix.F_GETLEASE,
		unix.F_GETPIPE_SZ, unix.F_ADD_SEALS, unix.F_GET_SEALS, unix.F_GET_RW_HINT, unix.F_DUPFD_QUERY,
		unix.F_CREATED_QUERY,
	}, allow, f.refuse), unix.SYS_FCNTL)
}

// terminals keeps a session from typing into one, or from taking the signals
// of a descriptor.
func (f *filterTable) terminals() {
	const fiosetown, siocspgrp = 0x8901, 0x8902
	f.set(oneOf(1, ^uint32(0), []uint32{
		unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD, unix.TIOCCONS, unix.TIOCVHANGUP, fiosetown, siocspgrp,
	}, f.refuse, ret(unix.SECCOMP_RET_ALLOW)), unix.SYS_IOCTL)
}

// installFilter puts the filter on this thread; with listen it returns the
// notifier's descriptor. no_new_privs must be set.
func installFilter(filter []unix.SockFilter, listen bool) (listener int, err error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tries := []uintptr{0}
	if listen {
		// A signal must not make a waiting call start again for ever.
		tries = []uintptr{
			unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
			unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		}
	}
	for _, flags := range tries {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(filter)
		if errno == 0 {
			if flags == 0 {
				return -1, nil
			}
			return int(fd), nil
		}
		if err = errno; errno != unix.EINVAL {
			break
		}
	}
	return -1, err
}
