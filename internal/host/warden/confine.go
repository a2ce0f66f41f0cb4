package warden

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Capabilities are all that a confined warden keeps for itself: to kill what a
// dead keeper left, whoever it runs as. Everything else that it touches is
// root's own. A keeper is root again when it is exec'ed, because building a
// sandbox needs that; it lives for one session and has no listening socket.
var Capabilities = []uintptr{unix.CAP_KILL}

// confine gives up every other capability, on all threads. It comes after the
// socket is made and the sandbox was tried out, which both need more.
func confine() error {
	var set uint64
	for _, c := range Capabilities {
		set |= 1 << c
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		half := uint32(set >> (32 * i))
		data[i] = unix.CapUserData{Effective: half, Permitted: half}
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0)
	switch {
	case errors.Is(errno, syscall.ENOTSUP):
		return fault.New(fault.Unavailable, "cannot give up capabilities: this binary was built with cgo").WithHint("build with CGO_ENABLED=0")
	case errno != 0:
		return fault.Wrap(fault.Unavailable, errno, "cannot give up capabilities")
	}
	return nil
}
