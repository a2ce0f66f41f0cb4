package attack

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// sessionProbes run in a write session against another one of the same
// account, which another person has open.
func sessionProbes() []probe {
	file := func(format string, flags int) func(*scene) error {
		return func(s *scene) error {
			fd, err := unix.Open(fmt.Sprintf(format, s.Peer.PID), flags|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	return []probe{
		{name: "session-kill", what: "Signal another's write session.", run: func(s *scene) error { return unix.Kill(s.Peer.PID, unix.SIGWINCH) }},
		{name: "session-tgkill", what: "The same to its thread.", run: func(s *scene) error { return unix.Tgkill(s.Peer.PID, s.Peer.PID, unix.SIGWINCH) }},
		{name: "session-pidfd-signal", what: "The same through a pidfd.", run: func(s *scene) error {
			fd, err := unix.PidfdOpen(s.Peer.PID, 0)
			if err != nil {
				return err
			}
			return unix.PidfdSendSignal(fd, unix.SIGWINCH, nil, 0)
		}},
		{name: "session-ptrace", what: "Trace it.", run: func(s *scene) error {
			const seize = 0x4206
			runtime.LockOSThread()
			return failed(sys(unix.SYS_PTRACE, seize, uintptr(s.Peer.PID), 0, 0))
		}},
		{name: "session-vm-read", what: "Read its memory.", run: func(s *scene) error {
			b := make([]byte, len(secretText))
			iov := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
			if _, err := unix.ProcessVMReadv(s.Peer.PID, iov, []unix.RemoteIovec{{Base: s.Peer.Address, Len: len(b)}}, 0); err != nil {
				return err
			}
			return expect(holds(b), "other bytes")
		}},
		{name: "session-vm-write", what: "Change its memory.", run: func(s *scene) error {
			b := []byte("t")
			iov := []unix.Iovec{{Base: &b[0], Len: 1}}
			_, err := unix.ProcessVMWritev(s.Peer.PID, iov, []unix.RemoteIovec{{Base: s.Peer.Address, Len: 1}}, 0)
			return err
		}},
		{name: "session-proc-mem", what: "Change its memory through /proc.", run: func(s *scene) error {
			f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.Peer.PID), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("t"), int64(s.Peer.Address))
			return err
		}},
		{name: "session-environ", what: "Read its environment.", run: func(s *scene) error {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Peer.PID))
			if err != nil {
				return err
			}
			return expect(len(b) > 0, "it is empty")
		}},
		{name: "session-fd", what: "Read its open file through /proc.", run: func(s *scene) error {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/%d", s.Peer.PID, s.Peer.Secret))
			if err != nil {
				return err
			}
			return expect(holds(b), "other bytes")
		}},
		{name: "session-getfd", what: "Take a descriptor out of it.", run: func(s *scene) error {
			fd, err := unix.PidfdOpen(s.Peer.PID, 0)
			if err != nil {
				return err
			}
			_, err = unix.PidfdGetfd(fd, s.Peer.Secret, 0)
			return err
		}},
		{name: "session-stdin", what: "Open its terminal through /proc.", run: file("/proc/%d/fd/0", unix.O_RDWR)},
		{name: "session-root", what: "Look at the files as it sees them.", run: file("/proc/%d/root/", unix.O_RDONLY)},
		{name: "session-terminal", what: "Open its terminal by name, to read what is typed.", run: func(s *scene) error {
			fd, err := unix.Open(s.Peer.TTY, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{name: "session-socket", what: "Connect to a socket that it named without a file.", run: func(s *scene) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return unix.Connect(fd, &unix.SockaddrUnix{Name: s.Peer.Named})
		}},
		{name: "session-uncover", what: "Uncover the host's terminals or the folder under the home.", run: func(s *scene) error {
			cmd := exec.Command("unshare", "-Urm", "sh", "-c", "umount -l "+s.Peer.Home+" || umount -l /dev/pts")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %.80s", err, out)
			}
			return nil
		}},
		{name: "session-home", what: "Find what it left in the home of the account.", run: func(s *scene) error {
			b, err := os.ReadFile(s.Peer.Home + "/" + plantedName)
			if err != nil {
				return err
			}
			return expect(strings.Contains(string(b), secretText), "other bytes")
		}},
	}
}
