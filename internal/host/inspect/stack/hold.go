package stack

import (
	"errors"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// thread is one thread while it is held.
type thread struct {
	tid    int
	held   bool
	signal int // that it was about to be given; it gets it when it is let go
	regs   registers
}

// held is a process whose threads stand still.
type held struct {
	pid     int
	threads []*thread
	until   time.Time // by then it is let go
	missed  int       // threads that did not stop in time
}

func (h *held) over() bool { return time.Now().After(h.until) }

// errLate says that the pause would have been too long.
var errLate = errors.New("the pause would have been longer than its limit")

// hold stops every thread of a process, calls within, and lets all go on. It
// returns how long they stood, from the first stop to the last let go. It works
// on a thread of its own: were this process killed in the middle, the kernel
// lets the target go on (PTRACE_SEIZE, without PTRACE_O_EXITKILL).
func hold(pid int, limit time.Duration, within func(*held) error) (pause time.Duration, err error) {
	onThreadThatEnds(func() { pause, err = holdHere(pid, limit, within) })
	return pause, err
}

// onThreadThatEnds runs f on a thread that ends with it, and with the thread every
// hold: threads that did not stop in time are let go, and what died meanwhile can
// be reaped by its parent. The first thread of a program never ends.
func onThreadThatEnds(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so that the runtime ends the thread
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		onThreadThatEnds(f) // while this one keeps the first thread to itself
		runtime.UnlockOSThread()
	}()
	<-done
}

func holdHere(pid int, limit time.Duration, within func(*held) error) (pause time.Duration, err error) {
	began := time.Now()
	h := &held{pid: pid, until: began.Add(limit)}
	defer func() {
		if r := recover(); r != nil {
			err = fault.New(fault.Internal, "cannot read the stacks: what process %d holds cannot be made sense of", pid)
		}
		h.letGo()
		pause = time.Since(began)
	}()
	if err := h.seize(); err != nil {
		return 0, err
	}
	h.await()
	stopped := h.threads[:0]
	for _, t := range h.threads {
		if t.held && t.read() == nil {
			stopped = append(stopped, t)
			continue
		}
		h.missed++
		t.letGo()
	}
	h.threads = stopped
	if len(stopped) == 0 {
		return 0, errLate
	}
	return 0, within(h)
}

// seize asks every thread to stop, until no new one appears.
func (h *held) seize() error {
	known := map[int]bool{}
	for range 4 {
		tids, err := threadIDs(h.pid)
		if err != nil {
			return fault.New(fault.NotFound, "cannot look at process %d: it has ended", h.pid)
		}
		fresh := 0
		for _, tid := range tids {
			if known[tid] || h.over() {
				continue
			}
			known[tid] = true
			if err := ptrace(unix.PTRACE_SEIZE, tid, 0, 0); err != nil {
				if err == unix.ESRCH {
					continue
				}
				if len(h.threads) == 0 {
					return fault.Wrap(fault.Denied, err, "cannot hold process %d (another tracer may have it)", h.pid)
				}
				continue
			}
			t := &thread{tid: tid}
			h.threads = append(h.threads, t)
			_ = ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
			fresh++
		}
		if fresh == 0 {
			return nil
		}
	}
	return nil
}

// await waits until all have stopped, or time is up: one that waits for a
// device does not stop.
func (h *held) await() {
	for wait := 5 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		missing := 0
		for _, t := range h.threads {
			if t.held {
				continue
			}
			var st unix.WaitStatus
			tid, err := unix.Wait4(t.tid, &st, unix.WNOHANG|unix.WALL, nil)
			switch {
			case err != nil || tid == t.tid && (st.Exited() || st.Signaled()):
				// gone; nothing is left to hold
			case tid == t.tid && st.Stopped():
				t.held = true
				if st>>16 == 0 { // it was about to be given a signal
					t.signal = int(st.StopSignal())
				}
			default:
				missing++
			}
		}
		if missing == 0 || h.over() {
			return
		}
		nap(wait)
	}
}

func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

func (h *held) letGo() {
	for _, t := range h.threads {
		t.letGo()
	}
}

func (t *thread) letGo() {
	if t.held {
		_ = ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(t.signal))
		t.held = false
	}
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// read reads the registers.
func (t *thread) read() error {
	var raw [64]uint64
	vec := unix.Iovec{Base: (*byte)(unsafe.Pointer(&raw[0]))}
	vec.SetLen(len(raw) * 8)
	const prstatus = 1
	if err := ptrace(unix.PTRACE_GETREGSET, t.tid, prstatus, uintptr(unsafe.Pointer(&vec))); err != nil {
		return err
	}
	runtime.KeepAlive(&raw)
	t.regs = fromRaw(&raw)
	return nil
}

// Held is a process while every thread of it stands still.
type Held struct {
	Threads []int // that do
	Missed  int   // that did not stop in time
	Until   time.Time
}

// Hold stops a process, calls within, and lets it go on, whatever becomes of
// within or of us. within may use ptrace on its threads, from where it is called.
func Hold(pid int, limit time.Duration, within func(Held) error) (pause time.Duration, err error) {
	return hold(pid, limit, func(h *held) error {
		out := Held{Missed: h.missed, Until: h.until}
		for _, t := range h.threads {
			out.Threads = append(out.Threads, t.tid)
		}
		return within(out)
	})
}

// Registers reads one set of registers (NT_PRSTATUS, NT_FPREGSET, …) of a held
// thread, as the kernel has them. It is for within of Hold.
func Registers(tid int, set uint32, into []byte) (n int, err error) {
	vec := unix.Iovec{Base: &into[0]}
	vec.SetLen(len(into))
	err = ptrace(unix.PTRACE_GETREGSET, tid, uintptr(set), uintptr(unsafe.Pointer(&vec)))
	runtime.KeepAlive(into)
	return int(vec.Len), err
}
