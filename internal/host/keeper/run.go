package keeper

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	killTimeout  = 5 * time.Second
	drainTimeout = 30 * time.Second // for the peer to take the last bytes of a session that was ended
	pipeSize     = 1 << 20
)

func lockThread() { runtime.LockOSThread() }

func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// keeper is the state of the one session that this process holds.
type keeper struct {
	spec  Spec
	ctl   *net.UnixConn
	conn  *net.UnixConn
	out   *wire.Writer
	copy  *spool
	log   *journal // of a session that no server records; else nil
	group *sandbox.Cgroup
	procs *sandbox.Processes // of sessions that can leave their cgroup; else nil
	audit int64              // the kernel's audit session, 0 where there is none
	child *sandbox.Child
	stdin *os.File // the child's input: pty or pipe

	ctlMu    sync.Mutex // reports are written whole
	acting   sync.Mutex // held while a command is carried out and answered
	deadline atomic.Int64
	shorter  chan struct{}
	budget   atomic.Int64
	waited   atomic.Bool
	pumped   chan struct{} // closed when the last byte of output is written
	ending   chan struct{} // closed when there is a reason to end

	mu     sync.Mutex
	why    string
	paused bool
	left   []string // who had left the cgroup
	told   sandbox.Bound
	met    *sandbox.Bound // limits met until the end, which is brought about by one
}

// run is a keeper process from birth to end.
func run() int {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ctl, err := fileConn(controlFD, "control")
	if err != nil {
		fmt.Fprintln(os.Stderr, "handrail-keeper: started without a warden:", err)
		return 2
	}
	conn, err := fileConn(sessionFD, "session")
	if err != nil {
		return 2
	}
	k := &keeper{ctl: ctl, conn: conn, out: wire.NewWriter(conn), shorter: make(chan struct{}, 1), pumped: make(chan struct{}), ending: make(chan struct{})}
	b, err := wire.ReadBlock(ctl, maxControl)
	if err != nil || json.Unmarshal(b, &k.spec) != nil {
		return 2
	}
	if err := k.start(); err != nil {
		a := wire.Refusal(err)
		k.log.end(wire.Exit{Status: 255, Why: WhyFailed})
		k.report(report{Event: eventStarted, Answer: &a})
		k.cleanUp()
		return 1
	}
	k.serve()
	return 0
}

func fileConn(fd uintptr, name string) (*net.UnixConn, error) {
	f := os.NewFile(fd, name)
	if f == nil {
		return nil, os.ErrInvalid
	}
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, os.ErrInvalid
	}
	return u, nil
}

// start builds the session up to the running shell.
func (k *keeper) start() error {
	s := k.spec.Session
	k.deadline.Store(int64(k.spec.Deadline))
	if bootTime() >= k.spec.Deadline {
		return fault.New(fault.Denied, "cannot start session %s: its time is over", s.ID)
	}
	if s.Sudo || s.Root {
		p, err := sandbox.HoldProcesses()
		if err != nil {
			return err
		}
		k.procs = p
	}
	if k.spec.Cgroup != "" {
		g, err := sandbox.NewCgroup(k.spec.Cgroup, limits(s.Limits))
		if err != nil {
			return err
		}
		k.group = g
	}
	if err := k.makeHome(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start session %s", s.ID)
	}
	k.copy = newSpool(k.spec.Spool, !s.PTY)
	if err := k.openJournal(); err != nil {
		return err // no recorder, no session
	}
	k.budget.Store(-1)
	if s.Limits.BytesOut > 0 {
		k.budget.Store(s.Limits.BytesOut)
	}
	opts := sandbox.Options{Cgroup: k.group, Refused: k.refused}
	mine, theirs, err := pipes(s.PTY)
	if err != nil {
		return fault.Wrap(fault.Exhausted, err, "cannot start session %s", s.ID)
	}
	opts.Stdin, opts.Stdout, opts.Stderr = theirs[0], theirs[1], theirs[2]
	if s.PTY && s.Kind == wire.SessionShell {
		k.say(bannerOf(k.spec, k.remaining()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	child, err := sandbox.Start(ctx, k.spec.Sandbox, opts)
	closeAll(theirs)
	if err != nil {
		closeAll(mine)
		return err
	}
	k.child, k.audit = child, child.Ready.AuditSession
	if s.PTY {
		mine = [3]*os.File{child.PTY, child.PTY, nil}
	}
	k.stdin = mine[0]
	a := wire.SessionAnswer{
		OK: true, Floor: string(child.Ready.Floor), Missing: child.Ready.Missing,
		BootID: bootID(), AuditSession: k.audit, Account: k.spec.Sandbox.User, UID: int64(k.spec.Sandbox.UID),
	}
	k.report(report{Event: eventStarted, Answer: &a})
	go k.pumpAll(mine[1], mine[2])
	return nil
}

// makeHome makes the folder that is the session's home.
func (k *keeper) makeHome() error {
	b := k.spec.Sandbox
	switch {
	case k.spec.Home == "":
		return nil
	case b.Root:
		return sandbox.MakeHome(k.spec.Home, 0, 0)
	}
	return sandbox.MakeHome(k.spec.Home, b.UID, b.GID)
}

func limits(l wire.Limits) sandbox.Limits {
	return sandbox.Limits{Pids: l.PIDs, MemoryBytes: l.MemoryBytes, CPUPercent: int(l.CPUPercent)}
}

// serve holds the running session until its first process has ended and the
// last byte has left.
func (k *keeper) serve() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	warden := os.Getppid()
	go func() {
		for range term {
			// The kernel tells of the end of the warden's thread that started us,
			// too, as when the warden becomes a newer program for the second time.
			// While it lives, it is heard on the control socket.
			if os.Getppid() != warden {
				k.end(WhyLost)
			}
		}
	}()
	go k.obey()
	go k.watchDeadline()
	go k.takeFrames()
	status, err := k.child.Wait()
	k.waited.Store(true)
	if err != nil {
		status = syscall.WaitStatus(255 << 8)
	}
	k.hearWhy()
	// What the first process left behind ends with it; then the pipes run dry.
	k.kill()
	k.allow(max(drainTimeout, k.remaining()))
	<-k.pumped
	k.tellBound()
	ended := k.exit(status)
	k.log.end(ended.Exit)
	_ = k.out.Write(wire.FrameExit, wire.EncodeExit(ended.Exit))
	_ = k.conn.CloseWrite()
	k.acting.Lock() // and never unlocked: no command is half done when we exit
	k.report(report{Event: eventEnded, Ended: &ended})
	k.cleanUp()
}

// hearWhy waits for the reason of a session that the warden had killed before
// it told us, so that all of them are dead before the first of us has to run.
func (k *keeper) hearWhy() {
	if k.group == nil || !k.group.Condemned() {
		return
	}
	select {
	case <-k.ending:
	case <-time.After(killTimeout): // somebody with root played warden
	}
}

func (k *keeper) exit(status syscall.WaitStatus) Ended {
	k.mu.Lock()
	e := wire.Exit{Status: int32(status.ExitStatus()), Why: k.why}
	left := k.left
	k.mu.Unlock()
	if status.Signaled() {
		e.Status, e.Signal = 128+int32(status.Signal()), signalName(status.Signal())
	}
	bytes, tail := k.copy.sum()
	return Ended{Exit: e, Status: e.Status, Bytes: bytes, Tail: tail, Left: left}
}

// end kills the session for a reason; the first reason stands. Who gives none has
// lost it.
func (k *keeper) end(why string) (killed int) {
	k.mu.Lock()
	if k.why == "" {
		k.why = cmp.Or(why, WhyLost)
		close(k.ending)
	}
	k.mu.Unlock()
	n := k.kill()
	k.allow(drainTimeout)
	return n
}

// allow gives the peer that long to take what is still to be written.
func (k *keeper) allow(d time.Duration) { _ = k.conn.SetWriteDeadline(time.Now().Add(d)) }

// kill ends every process of the session and returns when none is left.
func (k *keeper) kill() int {
	if k.group == nil {
		if k.child == nil || k.waited.Load() {
			return 0 // reaped: its number may be another's by now
		}
		// User-namespace mode: the child is the first process of its own pid
		// namespace, so that its death is the death of all.
		if unix.Kill(k.child.PID, unix.SIGKILL) != nil {
			return 0
		}
		return 1
	}
	k.mu.Lock()
	if k.met == nil {
		met := k.group.Bound()
		k.met = &met
	}
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	n, _ := k.group.Kill(ctx)
	return n + k.killWhoLeft(ctx)
}

// killWhoLeft kills what root in the session moved out of its cgroup.
func (k *keeper) killWhoLeft(ctx context.Context) int {
	if k.procs == nil {
		return 0
	}
	names := k.procs.KillAudited(ctx, k.audit)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left = append(k.left, names...)
	return len(names)
}

func (k *keeper) cleanUp() {
	k.kill()
	if k.group != nil {
		_ = k.group.Remove()
	}
	if k.spec.Home != "" {
		_ = sandbox.RemoveHome(k.spec.Home)
	}
	k.copy.close()
}

// obey carries out the warden's commands. When the warden is gone, so is the
// session.
func (k *keeper) obey() {
	for {
		b, err := wire.ReadBlock(k.ctl, maxControl)
		if err != nil {
			k.end(WhyLost)
			return
		}
		var c command
		if json.Unmarshal(b, &c) != nil {
			continue
		}
		k.act(c)
	}
}

// act carries out one command and answers it, which the end of the session
// waits for: whoever stopped it wants to hear that it is dead.
func (k *keeper) act(c command) {
	k.acting.Lock()
	defer k.acting.Unlock()
	r := report{Event: eventDone}
	var err error
	switch c.Op {
	case opStop:
		r.Killed = k.end(c.Why)
	case opPause:
		err = k.pause(true)
	case opResume:
		err = k.pause(false)
	}
	if err != nil {
		r.Error = err.Error()
	}
	k.report(r)
}

func (k *keeper) pause(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.paused == on {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	frame := wire.FramePaused
	if !on {
		frame = wire.FrameResumed
	}
	var err error
	switch {
	case k.group == nil:
		err = still(ctx, k.child.PID, on)
	case on:
		err = k.group.Freeze(ctx)
	default:
		err = k.group.Thaw(ctx)
	}
	if err != nil {
		return err
	}
	k.paused = on
	go func() { _ = k.out.Write(frame, nil) }() // the peer may be slow; the freeze is done
	return nil
}

// tellBound tells the person, once each, that the session met a limit. Without
// it a program is gone, or does not start, and nobody says why.
func (k *keeper) tellBound() {
	if k.group == nil {
		return
	}
	now := k.group.Bound()
	k.mu.Lock()
	if k.met != nil {
		now = *k.met
	}
	was := k.told
	k.told = now
	k.mu.Unlock()
	for _, text := range boundTexts(was, now, k.spec.Session.Limits) {
		_ = k.out.Write(wire.FrameNotice, []byte(text))
	}
}

func (k *keeper) remaining() time.Duration { return time.Duration(k.deadline.Load()) - bootTime() }

// shorten moves the deadline closer, never away.
func (k *keeper) shorten(remaining time.Duration) {
	at := int64(bootTime() + remaining)
	for {
		old := k.deadline.Load()
		if at >= old || k.deadline.CompareAndSwap(old, at) {
			break
		}
	}
	select {
	case k.shorter <- struct{}{}:
	default:
	}
}

// beat is how often a keeper says that it is there, and looks at its clock.
const beat = 2 * time.Second

// watchDeadline ends the session when its time is up. Go's timers stand still
// while the machine sleeps, boot time does not: look again every few seconds,
// and tell the warden, which ends a session whose keeper was stopped.
func (k *keeper) watchDeadline() {
	for {
		left := k.remaining()
		if left <= 0 {
			k.end(WhyDeadline)
			return
		}
		select {
		case <-time.After(min(left, beat)):
			k.report(report{Event: eventAlive})
			go k.tellBound() // the peer may be slow
		case <-k.shorter:
		}
	}
}

func (k *keeper) report(r report) {
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	k.ctlMu.Lock()
	defer k.ctlMu.Unlock()
	_ = k.ctl.SetWriteDeadline(time.Now().Add(killTimeout))
	if wire.WriteBlock(k.ctl, b) != nil {
		go k.end(WhyLost) // the warden is gone, or somebody with root has stopped it
	}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// pipes makes three pipes for a session without a pty. Our ends are polled,
// theirs block, as programs expect.
func pipes(pty bool) (mine, theirs [3]*os.File, err error) {
	if pty {
		return mine, theirs, nil
	}
	for i := range mine {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			closeAll(mine)
			closeAll(theirs)
			return [3]*os.File{}, [3]*os.File{}, err
		}
		m, t := fds[0], fds[1]
		if i == 0 {
			m, t = t, m
		}
		_, _ = unix.FcntlInt(uintptr(m), unix.F_SETPIPE_SZ, pipeSize) // fewer switches; may be refused
		_ = unix.SetNonblock(m, true)
		mine[i], theirs[i] = os.NewFile(uintptr(m), "pipe"), os.NewFile(uintptr(t), "pipe")
	}
	return mine, theirs, nil
}

func closeAll(fs [3]*os.File) {
	for _, f := range fs {
		if f != nil {
			f.Close()
		}
	}
}
