package sandbox

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// refuseSockets has the kernel refuse every internet socket in the version 2
// group, by a two-instruction program. With it, a first attempt to connect can
// be told to the person: the notifier may then answer what it will, since the
// socket is refused once more below it. Without it, the filter refuses alone
// and the person sees the program's own error.
func (c *Cgroup) refuseSockets() error {
	if c.fd == nil {
		return fault.New(fault.Unavailable, "cannot refuse sockets: no version 2 cgroup")
	}
	const (
		progLoad, progAttach = 5, 8
		cgroupSock           = 9 // BPF_PROG_TYPE_CGROUP_SOCK
		inetSockCreate       = 2 // BPF_CGROUP_INET_SOCK_CREATE
		allowMulti           = 2
	)
	program := [2]uint64{0xb7, 0x95} // r0 = 0; exit: refuse
	licence := [4]byte{'G', 'P', 'L'}
	load := struct {
		kind, count       uint32
		program, licence  uint64
		logLevel, logSize uint32
		log               uint64
		version, flags    uint32
		name              [16]byte
		device, attach    uint32
	}{
		kind: cgroupSock, count: uint32(len(program)), attach: inetSockCreate,
		program: uint64(uintptr(unsafe.Pointer(&program))), licence: uint64(uintptr(unsafe.Pointer(&licence))),
	}
	fd, err := bpf(progLoad, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&licence)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot refuse sockets")
	}
	defer unix.Close(fd) // the group holds it from here on
	attach := struct{ target, program, kind, flags uint32 }{uint32(c.fd.Fd()), uint32(fd), inetSockCreate, allowMulti}
	if _, err := bpf(progAttach, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot refuse sockets")
	}
	return nil
}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
