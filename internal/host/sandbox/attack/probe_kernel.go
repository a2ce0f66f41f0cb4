package attack

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func kernelProbes() []probe {
	return []probe{
		{name: "io-uring", what: "Set up an io_uring, whose calls no filter sees.", run: func(*scene) error { return ringSetup() }},
		{name: "bpf-program", what: "Load a BPF program.", run: func(*scene) error {
			program := [2]uint64{0xb7, 0x95} // r0 = 0; exit
			licence := []byte("GPL\x00")
			attr := [16]uint64{0: 1 | 2<<32, 1: uint64(uintptr(unsafe.Pointer(&program))), 2: uint64(uintptr(unsafe.Pointer(&licence[0])))}
			const load = 5
			return failed(sys(unix.SYS_BPF, load, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
		}},
		{name: "bpf-map", what: "Make a BPF map.", run: func(*scene) error {
			attr := [4]uint32{2, 4, 4, 1} // array, key 4, value 4, one entry
			return failed(sys(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
		}},
		{name: "perf-event", what: "Count or sample by perf.", run: func(*scene) error {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv}
			attr.Size = uint32(unsafe.Sizeof(attr))
			fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0)
			if err == nil {
				unix.Close(fd)
			}
			return orCannot(err, unix.ENOENT)
		}},
		{name: "userfaultfd", what: "Handle page faults, a help in exploits.", run: func(*scene) error {
			const userModeOnly = 1
			return failed(sys(unix.SYS_USERFAULTFD, userModeOnly))
		}},
		{name: "foreign-calls", what: "Use the 32-bit calls of int 0x80, which have other numbers.", run: func(*scene) error { return foreignCall() }},
		{name: "x32-calls", what: "Use the calls of the x32 ABI.", run: func(*scene) error {
			_, err := sys(unix.SYS_GETPID | 0x40000000)
			return orCannot(err, unix.ENOSYS)
		}},
		{name: "unknown-call", what: "Use a call that is newer than the filter.", run: func(*scene) error {
			_, err := sys(unix.SYS_FILE_SETATTR + 1)
			return orCannot(err, unix.ENOSYS)
		}},
		{name: "fanotify", what: "Watch file events of the whole host.", run: func(*scene) error {
			const reportFID = 0x200
			return failed(sys(unix.SYS_FANOTIFY_INIT, reportFID, 0))
		}},
		{name: "aio-slots", what: "Take the host's asynchronous I/O slots.", run: func(*scene) error {
			var ctx uint64
			return failed(sys(unix.SYS_IO_SETUP, 128, uintptr(unsafe.Pointer(&ctx))))
		}},
		{name: "quota", what: "Ask for disk quotas.", run: func(*scene) error {
			const sync = 0x800001
			return failed(sys(unix.SYS_QUOTACTL, sync<<8, 0, 0, 0))
		}},
		{name: "module", what: "Load a kernel module.", run: func(*scene) error {
			return failed(sys(unix.SYS_INIT_MODULE, 0, 0, 0))
		}},
		{name: "swap", what: "Switch swap.", run: func(*scene) error {
			path := []byte("/nowhere\x00")
			return failed(sys(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(&path[0]))))
		}},
		{name: "hostname", what: "Rename the host.", run: func(*scene) error {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			return unix.Sethostname([]byte(name))
		}},
		{name: "accounting", what: "Switch process accounting.", run: func(*scene) error { return unix.Acct("") }},
		{name: "ports", what: "Reach the machine's I/O ports.", run: func(*scene) error { return ioPorts() }},
		{name: "segment-table", what: "Change the segment table, a help in exploits.", run: func(*scene) error { return segmentTable() }},
		{name: "vhangup", what: "Hang the terminal up.", run: func(*scene) error { return failed(sys(unix.SYS_VHANGUP)) }},
	}
}

func shareProbes() []probe {
	return []probe{
		{name: "fork-bomb", what: "Start more processes than the session's share.", run: func(*scene) error { return forkBomb(3 * attackPids) }},
		{name: "leave-cgroup", what: "Move out of the session's cgroup.", run: func(*scene) error {
			b, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				return err
			}
			for _, dir := range mountedCgroups(string(b)) {
				if openWriteText(dir+"/cgroup.procs", strconv.Itoa(os.Getpid())) == nil {
					return nil
				}
			}
			return errKept
		}},
		{name: "fill-tmp", what: "Fill the memory behind /tmp.", run: func(*scene) error {
			f, err := os.CreateTemp("/tmp", "fill")
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			defer f.Close()
			block := make([]byte, 1<<20)
			for range 300 {
				if _, err := f.Write(block); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "terminals", what: "Take the host's terminals.", run: func(*scene) error {
			for range 100 {
				if _, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "lock-memory", what: "Pin memory past a small bound.", run: func(*scene) error {
			var l unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
				return err
			}
			return expect(l.Max > 1<<20, "the limit is %d", l.Max)
		}},
		{name: "real-time", what: "Take a processor by the real-time policy.", run: func(*scene) error {
			return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 1, Priority: 10}, 0)
		}},
		{name: "negative-nice", what: "Take more than its share by nice.", run: func(*scene) error {
			return unix.Setpriority(unix.PRIO_PROCESS, 0, -10)
		}},
	}
}

// forkBomb starts n sleeping processes and succeeds where all of them live at
// once.
func forkBomb(n int) error {
	var pids []int
	defer func() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	deadline := time.Now().Add(4 * time.Second)
	for range n {
		if time.Now().After(deadline) {
			return cannotRun{"this machine is too slow to tell"}
		}
		pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{})
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return cannotRun{err.Error()}
			}
			return err
		}
		pids = append(pids, pid)
	}
	return nil
}
