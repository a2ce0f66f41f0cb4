// Package port keeps ports for tests that must name one before it is opened,
// or open the same one again after a restart.
package port

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reserve keeps a free port of loopback until release is called. The port is
// bound and not listened on: the kernel then gives it to nobody who asks for
// any port, neither a listener nor an outgoing connection, and a program that
// asks for this very one may listen there as often as it likes, since both
// sides set SO_REUSEADDR as every server does (socket(7)).
func Reserve() (address string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("cannot reserve a port: %w", os.NewSyscallError("socket", err))
	}
	release = func() { unix.Close(fd) }
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		release()
		return "", nil, fmt.Errorf("cannot reserve a port: %w", os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		return "", nil, fmt.Errorf("cannot reserve a port: %w", os.NewSyscallError("bind", err))
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		release()
		return "", nil, fmt.Errorf("cannot reserve a port: %w", os.NewSyscallError("getsockname", err))
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port)), release, nil
}
