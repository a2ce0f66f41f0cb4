package attack

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ipprotoMPTCP = 262
	ipprotoSCTP  = 132
)

func loopback(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

// reach opens a socket and connects it.
func reach(family, kind, protocol int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err != nil {
		return orCannot(err, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, to)
}

// send opens a socket and sends one datagram, or the first bytes with the
// connection.
func send(family, kind, flags int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("attacked"), flags, to)
}

func opens(name, what string, family, kind, protocol int) probe {
	return probe{name: name, what: what, run: func(*scene) error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return orCannot(err, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT)
	}}
}

func socketProbes() []probe {
	const stream, dgram = unix.SOCK_STREAM, unix.SOCK_DGRAM
	return []probe{
		{name: "tcp", what: "Connect to a TCP port.", run: func(s *scene) error { return reach(unix.AF_INET, stream, 0, loopback(s.TCP)) }},
		{name: "tcp6", what: "Connect over IPv6.", run: func(s *scene) error {
			if s.TCP6 == 0 {
				return cannotRun{"this host has no IPv6"}
			}
			return reach(unix.AF_INET6, stream, 0, &unix.SockaddrInet6{Port: s.TCP6, Addr: [16]byte{15: 1}})
		}},
		{name: "tcp-fast-open", what: "Send with the first packet, without connect.", run: func(s *scene) error {
			return send(unix.AF_INET, stream, unix.MSG_FASTOPEN, loopback(s.TCP))
		}},
		{name: "mptcp", what: "Connect by multipath TCP.", run: func(s *scene) error { return reach(unix.AF_INET, stream, ipprotoMPTCP, loopback(s.TCP)) }},
		{name: "sctp", what: "Connect by SCTP.", run: func(s *scene) error { return reach(unix.AF_INET, stream, ipprotoSCTP, loopback(s.TCP)) }},
		{name: "udp", what: "Send a UDP packet.", run: func(s *scene) error { return send(unix.AF_INET, dgram, 0, loopback(s.UDP)) }},
		{name: "listen", what: "Offer a service on a port.", run: func(*scene) error {
			fd, err := unix.Socket(unix.AF_INET, stream, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, loopback(0)); err != nil {
				return err
			}
			return unix.Listen(fd, 1)
		}},
		opens("icmp", "Open a ping socket.", unix.AF_INET, dgram, unix.IPPROTO_ICMP),
		opens("raw-ip", "Open a raw IP socket.", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW),
		opens("packet", "Open a packet socket.", unix.AF_PACKET, unix.SOCK_RAW, 0),
		opens("vsock", "Open a socket to the hypervisor.", unix.AF_VSOCK, stream, 0),
		opens("af-alg", "Open the kernel's cipher interface.", unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
		opens("netlink-generic", "Open generic netlink.", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC),
		opens("netlink-audit", "Open the audit netlink.", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
		opens("netlink-uevent", "Open the device event netlink.", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT),
		opens("netlink-netfilter", "Open the firewall's netlink.", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
		opens("xdp", "Open an XDP socket.", unix.AF_XDP, unix.SOCK_RAW, 0),
		opens("kcm", "Open a kernel connection multiplexer.", unix.AF_KCM, dgram, 0),
		opens("can", "Open a CAN socket.", unix.AF_CAN, unix.SOCK_RAW, 1),
		opens("bluetooth", "Open a Bluetooth socket.", unix.AF_BLUETOOTH, unix.SOCK_RAW, 1),
		opens("tipc", "Open a TIPC socket.", unix.AF_TIPC, stream, 0),
		opens("rds", "Open an RDS socket.", unix.AF_RDS, unix.SOCK_SEQPACKET, 0),
		{name: "unix-path", what: "Connect to a named socket, as to a database or docker.", run: func(s *scene) error {
			return reach(unix.AF_UNIX, stream, 0, &unix.SockaddrUnix{Name: s.Unix})
		}},
		{name: "unix-abstract", what: "Connect to an abstract socket.", run: func(s *scene) error {
			return reach(unix.AF_UNIX, stream, 0, &unix.SockaddrUnix{Name: s.Named})
		}},
		{name: "unix-datagram", what: "Send to a named datagram socket, as to the log.", run: func(s *scene) error {
			return send(unix.AF_UNIX, dgram, 0, &unix.SockaddrUnix{Name: s.Dgram})
		}},
		{name: "unix-pair-send", what: "The same from one end of a socket pair, which needs no socket call.", run: func(s *scene) error {
			return pairSend(dgram, s.Dgram, false)
		}},
		{name: "unix-pair-raw", what: "The same from a pair that asks for a raw socket.", run: func(s *scene) error {
			return pairSend(unix.SOCK_RAW, s.Dgram, false)
		}},
		{name: "unix-pair-connect", what: "Connect one end of a datagram pair elsewhere.", run: func(s *scene) error {
			return pairSend(dgram, s.Dgram, true)
		}},
		{name: "unix-pair-stream", what: "Send elsewhere from a stream pair.", run: func(s *scene) error {
			return errors.Join(pairSend(stream, s.Dgram, false), pairSend(stream, s.Unix, true))
		}},
		{name: "io-uring-socket", what: "Open a socket through io_uring, past the filter.", run: func(*scene) error { return ringSetup() }},
		{name: "system-bus", what: "Talk to the system bus.", run: func(*scene) error {
			err := reach(unix.AF_UNIX, stream, 0, &unix.SockaddrUnix{Name: "/run/dbus/system_bus_socket"})
			return orCannot(err, unix.ENOENT)
		}},
	}
}

func pairSend(kind int, to string, connect bool) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err != nil {
		return err
	}
	if connect {
		return unix.Connect(pair[0], &unix.SockaddrUnix{Name: to})
	}
	return unix.Sendto(pair[0], []byte("attacked"), 0, &unix.SockaddrUnix{Name: to})
}

func ringSetup() error {
	var params [120]byte
	fd, err := sys(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)))
	if err == nil {
		unix.Close(int(fd))
	}
	return err
}

func ipcProbes() []probe {
	return []probe{
		{name: "sysv-shm", what: "Write to System V shared memory that everybody may use.", run: func(s *scene) error {
			if s.ShmID < 0 {
				return cannotRun{"this kernel has none"}
			}
			at, err := sys(unix.SYS_SHMAT, uintptr(s.ShmID), 0, 0)
			if err != nil {
				return err
			}
			return failed(sys(unix.SYS_SHMDT, at))
		}},
		{name: "sysv-message", what: "Put a message in a System V queue.", run: func(s *scene) error {
			if s.MsgID < 0 {
				return cannotRun{"this kernel has none"}
			}
			m := struct {
				kind int64
				text [8]byte
			}{kind: 1}
			const noWait = 0o4000
			return failed(sys(unix.SYS_MSGSND, uintptr(s.MsgID), uintptr(unsafe.Pointer(&m)), 8, noWait))
		}},
		{name: "sysv-semaphore", what: "Raise a System V semaphore.", run: func(s *scene) error {
			if s.SemID < 0 {
				return cannotRun{"this kernel has none"}
			}
			op := [3]uint16{0, 1, 0o4000}
			return failed(sys(unix.SYS_SEMOP, uintptr(s.SemID), uintptr(unsafe.Pointer(&op)), 1))
		}},
		{name: "posix-queue", what: "Put a message in a POSIX queue.", run: func(s *scene) error {
			if s.Queue == "" {
				return cannotRun{"this kernel has none"}
			}
			fd, err := openQueue(s.Queue, unix.O_WRONLY|unix.O_NONBLOCK)
			if err != nil {
				return err
			}
			text := []byte("attacked")
			return failed(sys(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)), 0, 0))
		}},
		{name: "keyring-user", what: "Put a key in the keyring that all of the uid share.", run: func(*scene) error { return addKey(-4) }},
		{name: "keyring-session", what: "Put a key in the session keyring that was inherited.", run: func(*scene) error { return addKey(-3) }},
		{name: "keyring-read", what: "Read the user keyring.", run: func(*scene) error {
			const read, user = 11, -4
			ring := user
			return failed(sys(unix.SYS_KEYCTL, read, uintptr(ring), 0, 0))
		}},
		{name: "request-key", what: "Have the kernel look a key up.", run: func(*scene) error {
			kind, name := []byte("user\x00"), []byte("handrail-attack\x00")
			_, err := sys(unix.SYS_REQUEST_KEY, uintptr(unsafe.Pointer(&kind[0])), uintptr(unsafe.Pointer(&name[0])), 0, 0)
			if errors.Is(err, unix.ENOKEY) {
				return nil // it looked
			}
			return err
		}},
	}
}

func addKey(ring int) error {
	kind, name, text := []byte("user\x00"), []byte("handrail-attack\x00"), []byte("x")
	return failed(sys(unix.SYS_ADD_KEY, uintptr(unsafe.Pointer(&kind[0])), uintptr(unsafe.Pointer(&name[0])),
		uintptr(unsafe.Pointer(&text[0])), 1, uintptr(ring)))
}

func lockProbes() []probe {
	with := func(name string, do func(fd int) error) func(*scene) error {
		return func(s *scene) error {
			fd, err := unix.Open(s.Dir+"/"+name, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return do(fd)
		}
	}
	posix := func(cmd int) func(*scene) error {
		return with("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: unix.F_RDLCK}) })
	}
	return []probe{
		{name: "flock-exclusive", what: "Hold a batch job's lock file.", run: with("lock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })},
		{name: "flock-shared", what: "Hold it shared, which stops the job too.", run: with("lock", func(fd int) error { return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) })},
		{name: "posix-lock", what: "Hold a read lock on a database.", run: posix(unix.F_SETLK)},
		{name: "posix-lock-wait", what: "The same, waiting.", run: posix(unix.F_SETLKW)},
		{name: "ofd-lock", what: "The same by descriptor.", run: posix(unix.F_OFD_SETLK)},
		{name: "lease", what: "Take a lease, so that writers wait.", run: with("lease", func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
			return err
		})},
		{name: "dnotify", what: "Have signals sent on changes of a folder.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			const modify = 2
			_, err = unix.FcntlInt(uintptr(fd), unix.F_NOTIFY, modify)
			return orCannot(err, unix.EINVAL)
		}},
		{name: "pipe-size", what: "Grow another's named pipe.", run: func(s *scene) error {
			fd, err := unix.Open(s.Dir+"/fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<18)
			return err
		}},
	}
}

// mountedCgroups lists where the host's process groups lie.
func mountedCgroups(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], "cgroup") {
			out = append(out, f[1])
		}
	}
	return out
}

var errKept = fmt.Errorf("every way was refused")
