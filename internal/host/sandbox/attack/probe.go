package attack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// probe is one attack. Those of group sessionGroup run in a write session, all
// others in a read session.
type probe struct {
	group, name, what string
	run               func(*scene) error
}

const sessionGroup = "another's write session"

// probes lists all attacks in the order in which they run.
func probes() []probe {
	var all []probe
	for _, g := range []struct {
		name string
		list []probe
	}{
		{"files", fileProbes()}, {"secrets", secretProbes()}, {"devices", deviceProbes()}, {"mounts", mountProbes()},
		{"processes", processProbes()}, {"sockets", socketProbes()}, {"ipc", ipcProbes()}, {"locks", lockProbes()},
		{"kernel", kernelProbes()}, {"share", shareProbes()}, {sessionGroup, sessionProbes()},
	} {
		for _, p := range g.list {
			p.group = g.name
			all = append(all, p)
		}
	}
	return all
}

// sys makes a raw system call.
func sys(trap uintptr, args ...uintptr) (uintptr, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// failed keeps only the error of a call.
func failed(_ uintptr, err error) error { return err }

// orCannot turns "this kernel does not have it" into cannot-run. A filter may
// answer the same, so it is for calls that the filter refuses otherwise.
func orCannot(err error, absent ...error) error {
	for _, a := range absent {
		if errors.Is(err, a) {
			return cannotRun{err.Error()}
		}
	}
	return err
}

// errNothing is the answer of a probe that got through and found no harm done.
var errNothing = errors.New("no effect")

func expect(ok bool, format string, a ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("no effect: "+format, a...)
}
