package keeper

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// When a warden becomes a newer program, it stays the process that it is, and
// so its keepers' parent; what it has to pass on of each is in Passed.

// Passed is a keeper as one warden leaves it to the next.
type Passed struct {
	PID     int    `json:"pid"`
	Control int    `json:"control"`        // descriptor
	Part    []byte `json:"part,omitempty"` // of a report that had not arrived whole
}

// reports reads what a keeper says. Unlike wire.ReadBlock it can be interrupted
// and loses nothing.
type reports struct {
	c   *net.UnixConn
	buf []byte
}

func (r *reports) next() ([]byte, error) {
	for {
		if len(r.buf) >= 4 {
			n := int64(binary.BigEndian.Uint32(r.buf))
			if n > maxControl {
				return nil, fault.New(fault.Invalid, "cannot read a keeper's report: %d bytes are more than %d", n, maxControl)
			}
			if int64(len(r.buf)) >= 4+n {
				b := r.buf[4 : 4+n : 4+n]
				r.buf = r.buf[4+n:]
				return b, nil
			}
		}
		var part [4096]byte
		n, err := r.c.Read(part[:])
		r.buf = append(r.buf[:len(r.buf):len(r.buf)], part[:n]...) // what next returned stays as it is
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// hold stops the reading of reports between two of them.
type hold struct {
	mu     sync.Mutex
	parked chan struct{} // closed when the reader stands; nil: nobody asks
	goOn   chan struct{}
}

// park waits where the reader is asked to, and says whether it was.
func (h *hold) park() bool {
	h.mu.Lock()
	parked, goOn := h.parked, h.goOn
	h.mu.Unlock()
	if parked == nil {
		return false
	}
	close(parked)
	<-goOn
	return true
}

// Hold stops listening to the keeper until Release. It returns false if the
// keeper is gone.
func (h *Handle) Hold() bool {
	h.hold.mu.Lock()
	parked := make(chan struct{})
	h.hold.parked, h.hold.goOn = parked, make(chan struct{})
	h.hold.mu.Unlock()
	_ = h.ctl.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-parked:
		return true
	case <-h.done:
		return false
	}
}

// Release goes on listening.
func (h *Handle) Release() {
	h.hold.mu.Lock()
	defer h.hold.mu.Unlock()
	_ = h.ctl.SetReadDeadline(time.Time{})
	if h.hold.goOn != nil {
		close(h.hold.goOn)
	}
	h.hold.parked, h.hold.goOn = nil, nil
}

// Pass is what the next warden needs of a keeper that is on hold.
func (h *Handle) Pass() (Passed, error) {
	p := Passed{PID: h.process.Pid, Part: h.in.buf}
	conn, err := h.ctl.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { p.Control = int(fd) })
	}
	return p, err
}

// Adopt takes over a keeper that an earlier program of this process started.
func (s *Spawner) Adopt(session string, p Passed) (*Handle, error) {
	f := os.NewFile(uintptr(p.Control), "control")
	if f == nil || len(p.Part) > 4+maxControl || !ourChild(p.PID) {
		return nil, fault.New(fault.Invalid, "cannot take over session %s: no keeper", session)
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot take over session %s", session)
	}
	ctl, ok := conn.(*net.UnixConn)
	process, err := os.FindProcess(p.PID)
	if err != nil || !ok {
		conn.Close()
		return nil, fault.New(fault.Invalid, "cannot take over session %s: no keeper", session)
	}
	h := newHandle(session, process, ctl)
	h.in.buf = p.Part
	h.Answer = wire.SessionAnswer{OK: true}
	go h.listen(make(chan report, 1))
	return h, nil
}

// ourChild says whether a process is a child of this one that has not been
// waited for, so that its number is nobody else's.
func ourChild(pid int) bool {
	var info unix.Siginfo
	return pid > 1 && unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}

// Become replaces this process's program, on the thread that all keepers are
// children of: the kernel tells them that their parent died when another thread
// of it ends. The descriptors in keep stay open. It returns only if it failed.
func (s *Spawner) Become(ctx context.Context, path string, argv, env []string, keep []int) error {
	s.mu.Lock()
	s.closed = true // nothing is held ready for a program that ends
	s.mu.Unlock()
	s.refills.Wait()
	s.expire()
	defer func() {
		s.mu.Lock()
		s.closed = false
		s.mu.Unlock()
	}()
	done := make(chan error, 1)
	job := func() {
		syscall.ForkLock.Lock() // no child of another thread gets them
		defer syscall.ForkLock.Unlock()
		for _, fd := range keep {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				done <- err
				return
			}
		}
		err := syscall.Exec(path, argv, env)
		for _, fd := range keep {
			unix.CloseOnExec(fd)
		}
		done <- err
	}
	select {
	case s.jobs <- job:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	}
}
