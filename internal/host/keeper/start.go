package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	startTimeout = 15 * time.Second
	maxControl   = 1 << 20
)

// Handle is the warden's hold on a running keeper.
type Handle struct {
	Session string             // its id
	Answer  wire.SessionAnswer // of the start

	process *os.Process
	ctl     *net.UnixConn
	in      reports
	hold    hold       // while another warden is made ready
	call    sync.Mutex // one command at a time
	acks    chan report
	done    chan struct{}
	end     Ended
	told    bool         // it said itself how the session ended
	seen    atomic.Int64 // when it last said something, see clock
}

// clock stands still while the machine sleeps, as keepers do.
func clock() time.Duration { return time.Since(born) }

var born = time.Now()

// Spawner starts keepers from one thread that stays, because the kernel sends
// the parent-death signal when the *thread* that forked is gone. While sessions
// come, it holds one keeper ready that does not yet know what it will hold, so
// that a person does not wait for a process to start.
type Spawner struct {
	jobs chan func()
	once sync.Once

	mu     sync.Mutex
	ready  *blank
	expiry *time.Timer
	making bool
	closed bool

	refills sync.WaitGroup
}

// readyFor is how long a keeper is held ready after the last start.
const readyFor = time.Minute

// blank is a keeper without a spec.
type blank struct {
	cmd     *exec.Cmd
	ctl     *net.UnixConn
	session *os.File
}

func (b *blank) discard() {
	_ = b.cmd.Process.Kill()
	b.ctl.Close()
	b.session.Close()
	_ = b.cmd.Wait()
}

// NewSpawner starts the thread. It lives until Close.
func NewSpawner() *Spawner {
	s := &Spawner{jobs: make(chan func())}
	s.expiry = time.AfterFunc(readyFor, s.expire)
	go func() {
		lockThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// Close ends the thread, and with it every keeper.
func (s *Spawner) Close() {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.refills.Wait() // the thread must be there for them
		s.expire()
		close(s.jobs)
	})
}

func (s *Spawner) expire() {
	s.mu.Lock()
	b := s.ready
	s.ready = nil
	s.mu.Unlock()
	if b != nil {
		b.discard()
	}
}

// take returns the keeper that is ready, or a new one.
func (s *Spawner) take() (*blank, error) {
	s.mu.Lock()
	b := s.ready
	s.ready = nil
	s.mu.Unlock()
	if b == nil {
		return s.fork()
	}
	return b, nil
}

func (s *Spawner) refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making || s.closed {
		return
	}
	s.making = true
	s.expiry.Reset(readyFor)
	s.refills.Add(1)
	go func() {
		defer s.refills.Done()
		b, err := s.fork()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.making = false
		if err == nil && s.ready == nil && !s.closed {
			s.ready = b
			return
		}
		if err == nil {
			b.discard()
		}
	}()
}

// fork starts a keeper that waits for its spec.
func (s *Spawner) fork() (*blank, error) {
	ctlMine, ctlTheirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ctlTheirs.Close()
	sessMine, sessTheirs, err := socketPair()
	if err != nil {
		ctlMine.Close()
		return nil, err
	}
	defer sessTheirs.Close()
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{Arg0},
		Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Dir:        "/",
		ExtraFiles: []*os.File{ctlTheirs, sessTheirs},
		Stderr:     os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:    true,
			Pdeathsig: syscall.SIGTERM, // beside the closing control socket
		},
	}
	conn, err := net.FileConn(ctlMine)
	ctlMine.Close()
	if err == nil {
		errs := make(chan error, 1)
		s.jobs <- func() { errs <- cmd.Start() }
		if err = <-errs; err != nil {
			conn.Close()
		}
	}
	if err != nil {
		sessMine.Close()
		return nil, err
	}
	return &blank{cmd: cmd, ctl: conn.(*net.UnixConn), session: sessMine}, nil
}

// Start runs a keeper for spec. It returns the warden's handle and the file to
// hand to the link: the far end of the session socket. An error means that
// nothing of the session is left.
func (s *Spawner) Start(ctx context.Context, spec Spec) (*Handle, *os.File, error) {
	order, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	defer s.refill() // afterwards: nobody waits for it
	var b *blank
	for range 2 {
		if b, err = s.take(); err != nil {
			break
		}
		// One that was ready may have been killed while it waited; then it
		// never saw the spec, and another may.
		if err = wire.WriteBlock(b.ctl, order); err == nil {
			break
		}
		b.discard()
	}
	if err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot start session %s", spec.Session.ID)
	}
	h := newHandle(spec.Session.ID, b.cmd.Process, b.ctl)
	if err := h.begin(ctx); err != nil {
		b.session.Close()
		h.Kill()
		return nil, nil, err
	}
	return h, b.session, nil
}

func newHandle(session string, p *os.Process, ctl *net.UnixConn) *Handle {
	h := &Handle{Session: session, process: p, ctl: ctl, in: reports{c: ctl}, acks: make(chan report, 1), done: make(chan struct{})}
	h.seen.Store(int64(clock()))
	return h
}

// begin waits until the session runs.
func (h *Handle) begin(ctx context.Context) error {
	started := make(chan report, 1)
	go h.listen(started)
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case r := <-started:
		h.Answer = *r.Answer
		return r.Answer.Err()
	case <-h.done:
		return fault.New(fault.Unavailable, "cannot start session %s: its keeper died", h.Session)
	case <-timer.C:
		return fault.New(fault.Unavailable, "cannot start session %s: not within %s", h.Session, startTimeout)
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, ctx.Err(), "cannot start session %s", h.Session)
	}
}

// listen reads reports until the keeper is gone.
func (h *Handle) listen(started chan<- report) {
	defer close(h.done)
	defer func() { _, _ = h.process.Wait() }()
	h.end = Ended{Exit: wire.Exit{Why: WhyLost}, Status: 255}
	for {
		b, err := h.in.next()
		if errors.Is(err, os.ErrDeadlineExceeded) && h.hold.park() {
			continue
		}
		if err != nil {
			return
		}
		var r report
		if json.Unmarshal(b, &r) != nil {
			return
		}
		h.seen.Store(int64(clock()))
		switch {
		case r.Event == eventStarted && r.Answer != nil:
			select {
			case started <- r:
			default:
			}
		case r.Event == eventDone:
			select {
			case h.acks <- r:
			default: // nobody waits any more
			}
		case r.Event == eventEnded && r.Ended != nil:
			h.end, h.told = *r.Ended, true
		}
	}
}

// Done is closed when the keeper process is gone.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Ended says how, once Done is closed; told is false, and why WhyLost, if the
// keeper could not say.
func (h *Handle) Ended() (e Ended, told bool) { return h.end, h.told }

// Silent is for how long the keeper has said nothing; it speaks every beat.
func (h *Handle) Silent() time.Duration { return clock() - time.Duration(h.seen.Load()) }

// Stop kills everything in the session; it returns when it is dead.
func (h *Handle) Stop(ctx context.Context, why string) (killed int, err error) {
	return h.send(ctx, command{Op: opStop, Why: why})
}

// Pause freezes the session.
func (h *Handle) Pause(ctx context.Context, why string) error {
	_, err := h.send(ctx, command{Op: opPause, Why: why})
	return err
}

// Resume lets a paused session go on.
func (h *Handle) Resume(ctx context.Context) error {
	_, err := h.send(ctx, command{Op: opResume})
	return err
}

// Kill ends the keeper itself. The caller kills the cgroup. One that does not
// end, because somebody with root has frozen it, is not waited for.
func (h *Handle) Kill() {
	_ = h.process.Kill()
	h.ctl.Close()
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
	}
}

func (h *Handle) send(ctx context.Context, c command) (int, error) {
	h.call.Lock()
	defer h.call.Unlock()
	select {
	case <-h.acks: // of a command that gave up waiting
	default:
	}
	b, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	if err := wire.WriteBlock(h.ctl, b); err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot %s session %s", c.Op, h.Session)
	}
	var r report
	select {
	case r = <-h.acks:
	case <-h.done: // every report was read before
		select {
		case r = <-h.acks:
		default:
		}
	case <-ctx.Done():
		return 0, fault.Wrap(fault.Unavailable, ctx.Err(), "cannot %s session %s", c.Op, h.Session)
	}
	if r.Error != "" {
		return r.Killed, fault.New(fault.Unavailable, "cannot %s session %s: %s", c.Op, h.Session, r.Error)
	}
	return r.Killed, nil
}

func socketPair() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range fds {
		// Room for four full frames each way: bulk needs fewer switches.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*wire.MaxFrame)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}
