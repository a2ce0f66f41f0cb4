package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Arg0 is argv[0] of a stage 2 process.
const Arg0 = "handrail-sandbox"

// startBound ends a start that hangs, for instance on a dead network mount.
const startBound = 20 * time.Second

// Options are the handles that a session needs beside its Spec.
type Options struct {
	Cgroup *Cgroup // the child is born in it; nil only where Probe says that there is none

	// Without a pty: the child's ends. Nil is /dev/null. Start does not close them.
	Stdin, Stdout, Stderr *os.File

	// Refused is called at most once, with the first thing that was refused.
	// It runs on the notifier's goroutine and must return quickly.
	Refused func(Refusal)

	permit bool // for a test of the notifier
}

// Child is a started session.
type Child struct {
	PID   int
	PTY   *os.File // the master; nil without Spec.PTY
	Ready Ready

	process *os.Process
	status  *os.File // our end of the status socket
	inner   bool     // user namespace: an init of ours stands between
	pty     bool

	wait   sync.Once
	result syscall.WaitStatus
	err    error
	ended  chan struct{} // closed when Wait has the result: the starting thread may end
}

// Start builds the sandbox and returns when the shell runs in it. An error
// means that nothing of the session is left.
func Start(ctx context.Context, spec Spec, o Options) (*Child, error) {
	return start(ctx, order{Spec: spec}, o)
}

// StartWithout is Start with layers left out ("landlock", "mounts", "seccomp";
// "mount_setattr" and OlderLandlock for what older kernels have in their
// place), so that the attack suite can show what each one stops. The floor of a
// read session is then never Full, and nothing but the suite calls it.
func StartWithout(ctx context.Context, spec Spec, o Options, layers ...string) (*Child, error) {
	omit := map[string]bool{}
	for _, l := range layers {
		omit[l] = true
	}
	return start(ctx, order{Spec: spec, Omit: omit}, o)
}

func start(ctx context.Context, what order, o Options) (*Child, error) {
	if err := what.Spec.check(); err != nil {
		return nil, err
	}
	what.Spec.User = accountName(what.Spec.User)
	if what.Spec.Mode == UserNamespaceMode {
		what.Spec.UID, what.Spec.GID = uint32(os.Getuid()), uint32(os.Getgid())
	}
	// Best effort, for a hint only: without it the filter refuses sockets.
	what.Sockets = what.Spec.Level == Read && what.Spec.Hints && o.Cgroup != nil && o.Cgroup.refuseSockets() == nil
	if o.Cgroup != nil {
		what.Unbound = o.Cgroup.lacks()
	}
	ctx, cancel := context.WithTimeout(ctx, startBound)
	defer cancel()

	ours, theirs, err := statusPair()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start a session")
	}
	c := &Child{status: ours, inner: what.Spec.Mode == UserNamespaceMode, pty: what.Spec.PTY, ended: make(chan struct{})}
	err = c.spawn(what, o, theirs)
	theirs.Close()
	if err == nil {
		err = c.handshake(ctx, o, what.DryRun)
	}
	if err != nil {
		c.abandon()
		return nil, err
	}
	return c, nil
}

// check refuses a spec that could not mean what its caller thinks.
func (s *Spec) check() error {
	bad := func(format string, a ...any) error {
		return fault.New(fault.Invalid, "cannot start a session: "+format, a...)
	}
	switch {
	case s.Level != Read && s.Level != Write:
		return bad("level %q is not read or write", s.Level)
	case s.Mode != RootMode && s.Mode != UserNamespaceMode:
		return bad("mode %q is not root or user-namespace", s.Mode)
	case s.Level == Read && (s.Sudo || s.Root):
		return bad("a read session has neither sudo nor root")
	case s.Level == Read && s.Mode == RootMode && (s.UID == 0 || s.GID == 0):
		return bad("a read session has a uid and gid of its own, never 0")
	case s.Level == Write && s.Mode == RootMode && s.UID == 0 && !s.Root:
		return bad("uid 0 needs root in the grant")
	case s.Self && len(s.Command) == 0:
		return bad("no command for this executable")
	}
	for _, p := range append(append([]string(nil), s.Secrets...), s.Hide...) {
		if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
			return bad("%q is not an absolute path", p)
		}
		if _, err := filepath.Match(p, ""); err != nil {
			return bad("%q is not a path or pattern", p)
		}
	}
	for _, a := range append(append([]string(nil), s.Command...), s.Env...) {
		if strings.ContainsRune(a, 0) {
			return bad("a command or variable has a zero byte")
		}
	}
	return nil
}

// statusPair makes the socket on which stage 2 reports. It keeps messages
// apart, and its other end closes when the session is exec'ed.
func statusPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "sandbox status"), os.NewFile(uintptr(fds[1]), "sandbox status"), nil
}

// specFile holds the order in memory, where neither argv nor the environment
// nor a file shows it.
func specFile(what order) (*os.File, error) {
	b, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("handrail-spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "spec")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// spawn starts stage 2. The thread that forks stays until the session ends,
// since the kernel sends the parent-death signal when that thread goes.
func (c *Child) spawn(what order, o Options, theirs *os.File) error {
	spec, err := specFile(what)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start a session")
	}
	defer spec.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start a session")
	}
	defer null.Close()
	files := []*os.File{null, null, null, spec, theirs}
	for i, f := range []*os.File{o.Stdin, o.Stdout, o.Stderr} {
		if f != nil && !what.Spec.PTY {
			files[i] = f
		}
	}
	attr := &os.ProcAttr{Dir: "/", Env: stageEnv(), Files: files, Sys: c.sysProcAttr(what.Spec, o.Cgroup)}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p, err := os.StartProcess("/proc/self/exe", []string{Arg0}, attr)
		c.process = p
		started <- err
		if err == nil {
			<-c.ended
		}
	}()
	if err := <-started; err != nil {
		return spawnFault(what.Spec.Mode, err)
	}
	c.PID = c.process.Pid
	return nil
}

func spawnFault(mode Mode, err error) error {
	f := fault.Wrap(fault.Unavailable, err, "cannot start a session")
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EACCES) {
		return f
	}
	if mode == UserNamespaceMode {
		f.Text = "cannot start a session: user namespaces are refused here: " + err.Error()
		return f.WithHint("%s", userNamespaceAdvice)
	}
	f.Text = "cannot start a session: mount namespaces are refused here: " + err.Error()
	return f.WithHint("%s", privilegeAdvice)
}

// privilegeAdvice is what to do where root lacks what root has.
const privilegeAdvice = "run handrail as root of the host itself, or of a container started with --privileged"

// userNamespaceAdvice is what to do where they are refused.
const userNamespaceAdvice = "run handrail as root, or allow user namespaces: sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 (in a container: --privileged, or --security-opt seccomp=unconfined)"

// sysProcAttr chooses the namespaces that the child is born in.
func (c *Child) sysProcAttr(spec Spec, cg *Cgroup) *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if spec.Level == Read {
		sys.Cloneflags |= unix.CLONE_NEWIPC
	}
	if cg != nil && cg.fd != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(cg.fd.Fd())
	}
	if spec.Mode == UserNamespaceMode {
		uid, gid := os.Getuid(), os.Getgid()
		sys.Cloneflags |= unix.CLONE_NEWUSER | unix.CLONE_NEWPID
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		// The uid is not 0 inside, so exec would take the namespace's
		// capabilities away; stage 2 needs these and drops them.
		sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
	}
	return sys
}

// handshake hears what stage 2 has built, puts it under the limits, lets it go
// and waits until the session runs.
func (c *Child) handshake(ctx context.Context, o Options, dry bool) error {
	stop := context.AfterFunc(ctx, func() { _ = c.status.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// Old hierarchies are entered while stage 2 builds; the first entry after
	// a pause waits for the kernel.
	if o.Cgroup != nil {
		if err := o.Cgroup.enter(c.PID); err != nil {
			return err
		}
	}
	m, fds, err := c.receive()
	if err != nil {
		return c.startFault(ctx, err)
	}
	if m.Ready == nil {
		return fault.New(fault.Internal, "cannot start a session: it did not say what is in force")
	}
	c.Ready = *m.Ready
	if m.PTY && len(fds) > 0 {
		if err := unix.SetNonblock(fds[0], true); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot use the session's terminal")
		}
		c.PTY = os.NewFile(uintptr(fds[0]), "/dev/ptmx")
		fds = fds[1:]
	}
	if m.Listener && len(fds) > 0 {
		n := &notifier{fd: fds[0], refused: o.Refused, permit: o.permit}
		go n.serve()
	}
	if _, err := c.status.Write([]byte{1}); err != nil {
		return c.startFault(ctx, err)
	}
	// The socket closes with exec; in a user namespace our init says so.
	m, _, err = c.receive()
	if err == nil && m.Started || errors.Is(err, errClosed) && (!c.inner || dry) {
		return nil
	}
	if err == nil {
		err = errors.New("an unexpected report")
	}
	return c.startFault(ctx, err)
}

var errClosed = errors.New("stage 2 has closed its end")

func (c *Child) startFault(ctx context.Context, err error) error {
	if f := new(fault.Error); errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil {
		return fault.Wrap(fault.Unavailable, ctx.Err(), "cannot start a session: building the sandbox took too long")
	}
	return fault.Wrap(fault.Unavailable, err, "cannot start a session: stage 2 ended early")
}

// receive reads one report and the descriptors that come with it. A fault in
// the report is returned as the error.
func (c *Child) receive() (message, []int, error) {
	conn, err := c.status.SyscallConn()
	if err != nil {
		return message{}, nil, err
	}
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(2*4))
	var n, oobn int
	var got error
	if err := conn.Read(func(fd uintptr) bool {
		n, oobn, _, _, got = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(got, unix.EAGAIN)
	}); err != nil {
		return message{}, nil, err
	}
	if got != nil {
		return message{}, nil, got
	}
	if n == 0 {
		return message{}, nil, errClosed
	}
	var m message
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return message{}, nil, fmt.Errorf("a report that cannot be read: %w", err)
	}
	if m.Fault != nil {
		return m, nil, &fault.Error{Kind: fault.ParseKind(m.Fault.Kind), Text: m.Fault.Text, Hint: m.Fault.Hint}
	}
	var fds []int
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return m, nil, err
		}
		for _, cm := range msgs {
			if f, err := unix.ParseUnixRights(&cm); err == nil {
				fds = append(fds, f...)
			}
		}
	}
	return m, fds, nil
}

// abandon leaves nothing of a start that failed.
func (c *Child) abandon() {
	if c.process != nil {
		_ = c.process.Kill()
		_, _ = c.process.Wait()
	}
	close(c.ended)
	c.status.Close()
	if c.PTY != nil {
		c.PTY.Close()
	}
}

// Wait returns the exit status of the session's first process. Others may
// still live in the cgroup; Cgroup.Kill ends them.
func (c *Child) Wait() (syscall.WaitStatus, error) {
	c.wait.Do(func() {
		defer close(c.ended)
		defer c.status.Close()
		var told *message
		if c.inner {
			if m, _, err := c.receive(); err == nil && m.Exited {
				told = &m
			}
		}
		state, err := c.process.Wait()
		if err != nil {
			c.err = fault.Wrap(fault.Internal, err, "cannot wait for the session")
			return
		}
		c.result = state.Sys().(syscall.WaitStatus)
		if told != nil {
			c.result = syscall.WaitStatus(told.Status)
		}
	})
	return c.result, c.err
}

// Signal sends sig to the foreground process group of the pty, or to the
// session's own group without one.
func (c *Child) Signal(sig syscall.Signal) error {
	group := c.PID
	if c.PTY != nil {
		conn, err := c.PTY.SyscallConn()
		if err == nil {
			_ = conn.Control(func(fd uintptr) {
				if g, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && g > 0 {
					group = g
				}
			})
		}
	} else if c.inner {
		// Our init ignores nothing it did not ask for; its end is the
		// session's end, which is what every fatal signal asks for.
		return c.process.Signal(syscall.SIGKILL)
	}
	if err := syscall.Kill(-group, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fault.Wrap(fault.Internal, err, "cannot signal the session")
	}
	return nil
}

// Resize sets the size of the pty's window.
func (c *Child) Resize(cols, rows uint16) error {
	if c.PTY == nil {
		return nil
	}
	conn, err := c.PTY.SyscallConn()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot resize the session")
	}
	var set error
	size := unix.Winsize{Col: cols, Row: rows}
	if err := conn.Control(func(fd uintptr) { set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) }); err != nil {
		set = err
	}
	if set != nil {
		return fault.Wrap(fault.Internal, set, "cannot resize the session")
	}
	return nil
}
