package attack

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unshareAlone makes a namespace in a child, since a process with threads
// cannot.
func unshareAlone(flags uintptr) error {
	runtime.LockOSThread()
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		_, _, e := unix.RawSyscall(unix.SYS_UNSHARE, flags, 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
	return childError(int(pid))
}

func childError(pid int) error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if status.Signaled() {
		return fmt.Errorf("killed: %v", status.Signal())
	}
	if code := status.ExitStatus(); code != 0 {
		return unix.Errno(code)
	}
	return nil
}

func cloneInto(flags uintptr) error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|flags, 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return childError(int(pid))
}

func clone3Into(flags uint64) error {
	args := [8]uint64{0: flags, 4: uint64(unix.SIGCHLD)}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return childError(int(pid))
}

func processProbes() []probe {
	return []probe{
		{name: "kill", what: "Signal a process with the same uid.", run: func(s *scene) error { return unix.Kill(s.PID, unix.SIGWINCH) }},
		{name: "tgkill", what: "The same to its thread.", run: func(s *scene) error { return unix.Tgkill(s.PID, s.PID, unix.SIGWINCH) }},
		{name: "sigqueue", what: "The same with a value.", run: func(s *scene) error {
			info := [16]uint64{0: uint64(unix.SIGWINCH), 1: uint64(0xffffffff)} // si_code SI_QUEUE
			return failed(sys(unix.SYS_RT_SIGQUEUEINFO, uintptr(s.PID), uintptr(unix.SIGWINCH), uintptr(unsafe.Pointer(&info))))
		}},
		{name: "pidfd-signal", what: "The same through a pidfd.", run: func(s *scene) error {
			fd, err := unix.PidfdOpen(s.PID, 0)
			if err != nil {
				return err
			}
			return unix.PidfdSendSignal(fd, unix.SIGWINCH, nil, 0)
		}},
		{name: "sigio", what: "The same by making it the owner of a descriptor.", run: func(s *scene) error {
			var p [2]int
			if err := unix.Pipe(p[:]); err != nil {
				return err
			}
			_, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETOWN, s.PID)
			return err
		}},
		{name: "kill-suite", what: "Signal the process that runs the attack.", run: func(s *scene) error { return unix.Kill(s.Suite, 0) }},
		{name: "ptrace", what: "Trace a process.", run: func(s *scene) error {
			const seize = 0x4206
			runtime.LockOSThread()
			return failed(sys(unix.SYS_PTRACE, seize, uintptr(s.PID), 0, 0))
		}},
		{name: "process-vm-read", what: "Read a process's memory.", run: func(s *scene) error {
			b := make([]byte, len(secretText))
			iov := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
			if _, err := unix.ProcessVMReadv(s.PID, iov, []unix.RemoteIovec{{Base: s.Address, Len: len(b)}}, 0); err != nil {
				return err
			}
			return expect(holds(b), "other bytes")
		}},
		{name: "process-vm-write", what: "Change a process's memory.", run: func(s *scene) error {
			b := []byte("t")
			iov := []unix.Iovec{{Base: &b[0], Len: 1}}
			_, err := unix.ProcessVMWritev(s.PID, iov, []unix.RemoteIovec{{Base: s.Address, Len: 1}}, 0)
			return err
		}},
		{name: "pidfd-getfd", what: "Take a descriptor out of a process.", run: func(s *scene) error {
			fd, err := unix.PidfdOpen(s.PID, 0)
			if err != nil {
				return err
			}
			_, err = unix.PidfdGetfd(fd, s.Secret, 0)
			return err
		}},
		{name: "process-madvise", what: "Throw a process's memory out.", run: func(s *scene) error {
			fd, err := unix.PidfdOpen(s.PID, 0)
			if err != nil {
				return err
			}
			page := s.Address &^ 4095
			iov := unix.Iovec{Base: (*byte)(nil), Len: 4096}
			*(*uintptr)(unsafe.Pointer(&iov)) = page
			const pageOut = 21
			return failed(sys(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, pageOut, 0))
		}},
		{name: "kcmp", what: "Compare a process's kernel objects.", run: func(s *scene) error {
			return failed(sys(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(s.PID), 1, 0, 0))
		}},
		{name: "prlimit", what: "Change another's limits.", run: func(s *scene) error {
			return unix.Prlimit(s.PID, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
		}},
		{name: "setpriority", what: "Slow another down.", run: func(s *scene) error { return unix.Setpriority(unix.PRIO_PROCESS, s.PID, 5) }},
		{name: "sched-affinity", what: "Pin another to one processor.", run: func(s *scene) error {
			var set unix.CPUSet
			set.Set(0)
			return unix.SchedSetaffinity(s.PID, &set)
		}},
		{name: "sched-policy", what: "Give another the idle policy.", run: func(s *scene) error {
			return unix.SchedSetAttr(s.PID, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 3, Nice: 6}, 0)
		}},
		{name: "ioprio", what: "Change another's I/O priority.", run: func(s *scene) error {
			const bestEffort = 2 << 13
			return failed(sys(unix.SYS_IOPRIO_SET, 1, uintptr(s.PID), bestEffort|7))
		}},
		{name: "migrate-pages", what: "Move another's memory.", run: func(s *scene) error {
			node := uint64(1)
			return failed(sys(unix.SYS_MIGRATE_PAGES, uintptr(s.PID), 2, uintptr(unsafe.Pointer(&node)), uintptr(unsafe.Pointer(&node))))
		}},
		{name: "setuid", what: "Become root by asking.", run: func(*scene) error { return failed(sys(unix.SYS_SETRESUID, 0, 0, 0)) }},
		{name: "setuid-program", what: "Become root by a setuid program.", run: func(s *scene) error {
			if s.Setuid == "" {
				return cannotRun{"there is none without root"}
			}
			cmd := exec.Command(s.Setuid, "euid")
			cmd.Args[0] = Arg0
			out, err := cmd.Output()
			if string(out) == "root\n" {
				return nil
			}
			if err == nil {
				err = errNothing
			}
			return err
		}},
		{name: "raise-limit", what: "Raise an own limit past the bound.", run: func(*scene) error {
			return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30})
		}},
		{name: "core-dump", what: "Have the kernel write or pipe a core dump.", run: func(*scene) error {
			var l unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
				return err
			}
			return expect(l.Max > 0, "the limit is 0")
		}},
	}
}
