package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Refusal is the first write, connect or signal that the kernel refused. It is
// a label for the person; nothing was decided by it.
type Refusal struct {
	Syscall string // "openat", "socket", …
	Path    string // what it was aimed at, as the person would name it; may be empty
	Command string // the program that tried
}

// notification and verdict are struct seccomp_notif and seccomp_notif_resp.
type notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

type verdict struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// notifSetFlags is SECCOMP_IOCTL_NOTIF_SET_FLAGS (Linux 6.6).
const notifSetFlags = 0x40082104

// notifier answers the calls that the filter shows it. The answer is always
// the same: let the kernel decide; and for internet sockets the refusal that
// the cgroup would give anyway. What it looks up can be wrong, since the
// session may change it meanwhile: it is a label.
type notifier struct {
	fd      int
	refused func(Refusal)
	permit  bool // answer "go on" to everything: a test shows that this permits nothing
	told    bool
}

// serve runs until no process of the session is left.
func (n *notifier) serve() {
	runtime.LockOSThread() // the kernel hands over to one waiting thread
	defer runtime.UnlockOSThread()
	defer unix.Close(n.fd)
	// Hand the processor over at once; older kernels refuse this, which costs
	// only time.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), notifSetFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	poll := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
				return
			}
			continue
		}
		var req notification
		if errno := notifIoctl(n.fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&req)); errno != 0 {
			continue // the caller has gone
		}
		resp := verdict{ID: req.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if int(req.Nr) == unix.SYS_SOCKET && !n.permit {
			resp.Flags, resp.Error = 0, -int32(unix.EPERM)
		}
		var r *Refusal
		if !n.told && n.refused != nil {
			r = describe(&req)
		}
		_ = notifIoctl(n.fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&resp))
		if r != nil {
			n.told = true
			n.refused(*r)
		}
	}
}

func notifIoctl(fd int, op uintptr, p unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(p))
	return errno
}

// pathCall says where a call keeps the paths that it would change.
type pathCall struct {
	name    string
	dir     int // argument with the folder's descriptor, -1 = the working folder
	path    int
	flags   int // argument with open's flags, -1 = none
	creates bool
}

// describe labels the call, or returns nil where it is not one that the
// sandbox refuses: a write to the session's own places, or to nothing.
func describe(req *notification) *Refusal {
	pid, nr := int(req.PID), int(req.Nr)
	switch nr {
	case unix.SYS_SOCKET:
		return &Refusal{Syscall: "socket", Path: "the network", Command: commandOf(pid)}
	case unix.SYS_KILL:
		target, sig := int(int32(req.Args[0])), int(req.Args[1])
		if target <= 0 || sig == 0 || sameUser(pid, target) {
			return nil
		}
		return &Refusal{Syscall: "kill", Path: "process " + strconv.Itoa(target), Command: commandOf(pid)}
	}
	call, ok := pathCalls()[nr]
	if !ok {
		return nil
	}
	path, err := readString(pid, uintptr(req.Args[call.path]))
	if err != nil || path == "" {
		return nil
	}
	if !strings.HasPrefix(path, "/") {
		base := fmt.Sprintf("/proc/%d/cwd", pid)
		if call.dir >= 0 && int32(req.Args[call.dir]) != unix.AT_FDCWD {
			base = fmt.Sprintf("/proc/%d/fd/%d", pid, int32(req.Args[call.dir]))
		}
		folder, err := os.Readlink(base)
		if err != nil {
			return nil
		}
		path = folder + "/" + path
	}
	path = filepath.Clean(path)
	if own(path) {
		return nil
	}
	creates := call.creates || call.flags >= 0 && req.Args[call.flags]&unix.O_CREAT != 0
	if !creates {
		// Nothing there: the answer is "no such file", not a refusal.
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", pid, path)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	return &Refusal{Syscall: call.name, Path: path, Command: commandOf(pid)}
}

// own reports whether the session may write there.
func own(path string) bool {
	for _, dir := range [...]string{"/tmp", "/var/tmp", "/dev", "/proc/self/fd"} {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return strings.HasPrefix(path, "/proc/") && strings.Contains(path, "/fd/")
}

// pathCalls is the table of the calls that the filter shows, but for socket
// and kill.
func pathCalls() map[int]pathCall {
	m := map[int]pathCall{
		unix.SYS_OPENAT:    {"openat", 0, 1, 2, false},
		unix.SYS_UNLINKAT:  {"unlinkat", 0, 1, -1, false},
		unix.SYS_RENAMEAT:  {"renameat", 0, 1, -1, false},
		unix.SYS_RENAMEAT2: {"renameat2", 0, 1, -1, false},
		unix.SYS_MKDIRAT:   {"mkdirat", 0, 1, -1, true},
		unix.SYS_LINKAT:    {"linkat", 2, 3, -1, true},
		unix.SYS_SYMLINKAT: {"symlinkat", 1, 2, -1, true},
		unix.SYS_MKNODAT:   {"mknodat", 0, 1, -1, true},
		unix.SYS_FCHMODAT:  {"fchmodat", 0, 1, -1, false},
		unix.SYS_FCHMODAT2: {"fchmodat2", 0, 1, -1, false},
		unix.SYS_FCHOWNAT:  {"fchownat", 0, 1, -1, false},
		unix.SYS_TRUNCATE:  {"truncate", -1, 0, -1, false},
	}
	addOldPathCalls(m)
	return m
}

// readString reads a path from a process's memory, not past a page's end
// without need.
func readString(pid int, at uintptr) (string, error) {
	var out []byte
	page := uintptr(os.Getpagesize())
	for len(out) < unix.PathMax {
		buf := make([]byte, page-at%page)
		local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
		got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: at, Len: len(buf)}}, 0)
		if err != nil {
			return "", err
		}
		if i := bytes.IndexByte(buf[:got], 0); i >= 0 {
			return string(append(out, buf[:i]...)), nil
		}
		out = append(out, buf[:got]...)
		at += uintptr(got)
	}
	return "", unix.ENAMETOOLONG
}

func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// sameUser reports whether both are the session's; a target that is not there
// counts as its own, since then nothing is refused.
func sameUser(pid, target int) bool {
	var a, b unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", pid), &a) != nil || unix.Stat(fmt.Sprintf("/proc/%d", target), &b) != nil {
		return true
	}
	return a.Uid == b.Uid
}
