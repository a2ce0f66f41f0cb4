package app

import (
	"net"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// peerUID is the account at the other end of a unix socket, as the kernel
// says (SO_PEERCRED, unix(7)).
func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fault.New(fault.Internal, "cannot read the peer's account: not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fault.Wrap(fault.Internal, err, "cannot read the peer's account")
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fault.Wrap(fault.Internal, err, "cannot read the peer's account")
	}
	if credErr != nil {
		return 0, fault.Wrap(fault.Internal, credErr, "cannot read the peer's account")
	}
	return int(cred.Uid), nil
}
