package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Descriptors that stage 2 inherits beside 0, 1 and 2.
const (
	specFD   = 3
	statusFD = 4
)

// message is what stage 2 tells Start. The descriptors that go with a ready
// message are the pty's master and the notifier's, in that order, as far as
// they exist.
type message struct {
	Ready    *Ready     `json:"ready,omitempty"`
	PTY      bool       `json:"pty,omitempty"`      // a master comes with it
	Listener bool       `json:"listener,omitempty"` // a notifier comes with it
	Fault    *faultWire `json:"fault,omitempty"`
	Started  bool       `json:"started,omitempty"` // user namespace: the shell runs
	Exited   bool       `json:"exited,omitempty"`  // user namespace: the shell ended
	Status   uint32     `json:"status,omitempty"`
}

type faultWire struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// order is what Start hands over: the spec and what Start found out.
type order struct {
	Spec    Spec            `json:"spec"`
	Sockets bool            `json:"sockets,omitempty"` // the cgroup refuses internet sockets
	Unbound []string        `json:"unbound,omitempty"` // limits that the cgroup cannot keep, one sentence each
	DryRun  bool            `json:"dry_run,omitempty"` // report and exit
	Omit    map[string]bool `json:"omit,omitempty"`    // layers left out, see StartWithout
}

// stage is one start in progress, on one locked thread.
type stage struct {
	order
	view     view
	groups   []uint32
	self     int // this executable, held open, for Spec.Self
	pty      int // master, -1 = none
	listener int
	abi      int
	audit    int64
	parted   bool // a write session: no other one of its account can reach it

	// What becomes the session, set by environment.
	path      string
	argv      []string
	env       []string
	promptEnv []string
	dir       string
}

// Stage2 returns at once, unless this process was started by Start: then it
// becomes the session and never returns. It is the first call in main (and in
// TestMain of packages that start sessions).
func Stage2() {
	if len(os.Args) == 0 || os.Args[0] != Arg0 {
		return
	}
	runtime.LockOSThread()
	s := &stage{self: -1, pty: -1, listener: -1}
	err := s.run()
	f := fault.From(err)
	s.tell(message{Fault: &faultWire{f.Kind.String(), f.Text, f.Hint}}, nil)
	os.Exit(125)
}

// run returns only when something failed.
func (s *stage) run() error {
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(statusFD)
	unix.Umask(0o022)
	f := os.NewFile(specFD, "spec")
	b, err := io.ReadAll(f)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the session's spec")
	}
	f.Close()
	if err := json.Unmarshal(b, &s.order); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the session's spec")
	}
	s.view = view{spec: &s.Spec, trial: s.Spec.Mode == UserNamespaceMode, omit: s.Omit, missing: s.Unbound}
	if s.self, err = unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot find this executable")
	}
	s.audit = beginAudit(s.Spec.UID)
	// A session is what the kernel may end first for want of memory, not who
	// watches it.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	groupFile, _ := os.ReadFile("/etc/group")
	if s.groups, err = groupIDs(&s.Spec, groupFile); err != nil {
		return err
	}
	if s.Spec.Level == Read {
		err = s.confineRead()
	} else {
		err = s.confineWrite()
	}
	if err != nil {
		return s.asFault(err)
	}
	return s.launch()
}

// asFault keeps a fault and makes anything else one that says that a layer
// could not be built, which is a refusal.
func (s *stage) asFault(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	f = fault.Wrap(fault.Unavailable, err, "cannot build the sandbox")
	if s.view.trial {
		return f.WithHint("%s", userNamespaceAdvice)
	}
	return f.WithHint("%s", privilegeAdvice)
}

func (s *stage) confineRead() error {
	v := &s.view
	if err := v.buildRead(); err != nil {
		return err
	}
	if err := setLimits(v.trial); err != nil {
		return err
	}
	if v.trial && !CountsApart() {
		v.lack("This kernel counts an account's processes only all together (Linux 5.14): the session's number of them is not limited.")
	}
	if err := s.identify(); err != nil {
		return err
	}
	if err := s.openPTY(); err != nil {
		return err
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	v.stands("no_new_privs", "")
	if err := s.landlock(); err != nil {
		return err
	}
	s.environment() // looks at files: before the filter
	if v.omitted("seccomp") {
		v.lack("The system call filter was left out.")
		return nil
	}
	return s.filter()
}

// identify gives the session its own uid, or in a user namespace takes the
// caller's power away.
func (s *stage) identify() error {
	v := &s.view
	if v.trial {
		if err := emptyBounding(); err != nil {
			return err
		}
		if err := dropCapabilities(); err != nil {
			return err
		}
		v.lack("The session runs under this account's own uid and groups, so it can read what the account can read; only root can give it one of its own.")
	} else {
		if err := becomeUser(s.Spec.UID, s.Spec.GID, s.groups, false); err != nil {
			return err
		}
		v.stands("own uid", fmt.Sprintf("%d", s.Spec.UID))
	}
	v.stands("no capabilities", "empty bounding set")
	v.stands("own IPC namespace", "")
	if err := ownKeyring(); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("cannot make a keyring: %w", err)
	}
	// The credentials' change cleared it; without its keeper nobody would
	// watch the session.
	return prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
}

func (s *stage) landlock() error {
	v := &s.view
	s.abi = v.landlockABI()
	if s.abi == 0 {
		v.lack("This kernel offers no Landlock (Linux 5.13, security module \"landlock\" switched on): named pipes whose mode allows it can be written.")
		return nil
	}
	open, whole := openings(v.masked, namesIn)
	if len(whole) > 0 {
		v.lack("So much lies beside the secrets of %s that one which is replaced while the session runs can be read.", strings.Join(whole, ", "))
	}
	program := -1
	if s.Spec.Self {
		program = s.self
	}
	if err := restrictByLandlock(s.abi, open, program, private[:]); err != nil {
		return fmt.Errorf("cannot restrict by Landlock: %w", err)
	}
	v.stands("Landlock", fmt.Sprintf("ABI %d", s.abi))
	return nil
}

func (s *stage) filter() error {
	v := &s.view
	if s.Spec.Hints {
		fd, err := installFilter(readFilter(filterOptions{Notify: true, Sockets: s.Sockets}), true)
		if err == nil {
			s.listener = fd
			v.stands("seccomp", "with notifier")
			return nil
		}
		v.lack("This kernel has no seccomp notifier (Linux 5.0): the first refusal is not explained.")
	}
	if _, err := installFilter(readFilter(filterOptions{}), false); err != nil {
		return fmt.Errorf("cannot install the system call filter: %w", err)
	}
	v.stands("seccomp", "")
	return nil
}

func (s *stage) confineWrite() error {
	v := &s.view
	spec := &s.Spec
	if err := v.buildWrite(); err != nil {
		return err
	}
	uid := spec.UID
	if spec.Root {
		uid = 0
	}
	if v.trial {
		if err := emptyBounding(); err != nil {
			return err
		}
		if err := dropCapabilities(); err != nil {
			return err
		}
		if spec.Sudo || spec.Root {
			return fault.New(fault.Unavailable, "cannot give sudo or root: handrail itself runs as an ordinary account here").
				WithHint("run handrail as root for sessions with more power")
		}
		v.lack("A write session here is this account itself, without setuid programs.")
	} else {
		if err := becomeUser(uid, spec.GID, s.groups, spec.Sudo || spec.Root); err != nil {
			return err
		}
		if err := ownKeyring(); err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("cannot make a keyring: %w", err)
		}
	}
	if err := s.openPTY(); err != nil {
		return err
	}
	if !spec.Sudo && !spec.Root {
		if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
			return fmt.Errorf("cannot set no_new_privs: %w", err)
		}
		v.stands("no_new_privs", "")
		if err := s.part(); err != nil {
			return err
		}
	}
	s.environment()
	return prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
}

// floor says how much of the sandbox stands. A write session has all of its own
// where others of an account kept for it cannot reach it.
func (s *stage) floor() Floor {
	if s.Spec.Level == Write && s.Spec.Alone && !s.Spec.Sudo && !s.Spec.Root && !s.parted && !s.view.trial {
		return Reduced
	}
	if s.Spec.Level == Read && (s.abi == 0 || !s.view.newAPI || s.view.trial || len(s.Omit)+len(s.Unbound) > 0) {
		return Reduced
	}
	return Full
}

// launch reports, waits for Start to agree, and becomes the session.
func (s *stage) launch() error {
	floor := s.floor()
	if s.Spec.Level == Read && !floor.AtLeast(s.Spec.LeastFloor) {
		return fault.New(fault.Denied, "cannot give a shell: policy wants the floor %q, this host reaches %q: %s",
			s.Spec.LeastFloor.orFull(), floor, strings.Join(s.view.missing, " ")).
			WithHint("on that host: handrail doctor")
	}
	ready := &Ready{Floor: floor, Missing: s.view.missing, Landlock: s.abi, Notifier: s.listener >= 0, Layers: s.view.layers, AuditSession: s.audit}
	var fds []int
	for _, fd := range [...]int{s.pty, s.listener} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	s.tell(message{Ready: ready, PTY: s.pty >= 0, Listener: s.listener >= 0}, fds)
	for _, fd := range fds {
		unix.Close(fd)
	}
	var go1 [1]byte
	if n, _, err := unix.Recvfrom(statusFD, go1[:], 0); err != nil || n != 1 {
		os.Exit(125) // Start has given up, and says why
	}
	if s.DryRun {
		os.Exit(0)
	}
	freshSignals()
	if s.view.trial {
		return s.serveAsInit()
	}
	err := s.exec()
	return fault.Wrap(fault.Invalid, err, "cannot run %q", s.argv[0]).WithHint("check that the program exists on the host")
}

// tell sends one message; there is nobody to tell when that fails.
func (s *stage) tell(m message, fds []int) {
	b, err := json.Marshal(m)
	if err != nil {
		return
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_ = unix.Sendmsg(statusFD, b, rights, nil, unix.MSG_NOSIGNAL)
}

// openPTY makes the session's terminal in its own /dev/pts, so that programs
// find it by name, and makes it the controlling one.
func (s *stage) openPTY() error {
	if !s.Spec.PTY {
		return nil
	}
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("cannot unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("cannot name the terminal: %w", err)
	}
	slave, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the terminal's other end: %w", err)
	}
	size := unix.Winsize{Col: max(s.Spec.Cols, 1), Row: max(s.Spec.Rows, 1)}
	if s.Spec.Cols == 0 || s.Spec.Rows == 0 {
		size = unix.Winsize{Col: 80, Row: 24}
	}
	if err := unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("cannot size the terminal: %w", err)
	}
	if t, err := unix.IoctlGetTermios(slave, unix.TCGETS); err == nil {
		t.Iflag |= unix.IUTF8
		_ = unix.IoctlSetTermios(slave, unix.TCSETS, t)
	}
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("cannot take the terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return fmt.Errorf("cannot use the terminal: %w", err)
		}
	}
	unix.Close(slave)
	s.pty = master
	return nil
}

// home is where the session starts and keeps its files.
func (v *view) home() string {
	if v.spec.Level == Read {
		return "/tmp/" + v.spec.User
	}
	if v.spec.Home == "" {
		return "/"
	}
	return v.spec.Home
}

// shell is the session's shell.
func (v *view) shell() string {
	if v.spec.Shell != "" {
		return v.spec.Shell
	}
	for _, sh := range [...]string{"/bin/bash", "/usr/bin/bash"} {
		if unix.Access(sh, unix.X_OK) == nil {
			return sh
		}
	}
	return "/bin/sh"
}

// buildHome makes the read session's home with the prompt.
func (v *view) buildHome() error {
	home := v.home()
	if err := unix.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("%s: %w", home, err)
	}
	if v.trial {
		return nil
	}
	return unix.Chown(home, int(v.spec.UID), int(v.spec.GID))
}

// serveAsInit is the first process of the pid namespace: it starts the shell,
// buries the orphans and reports the shell's end. It is confined like the
// shell. When it dies, the kernel kills whatever is left of the session.
func (s *stage) serveAsInit() error {
	_ = prctl(unix.PR_SET_DUMPABLE, 0)
	attr := &syscall.ProcAttr{Env: s.env, Files: []uintptr{0, 1, 2}, Dir: s.dir,
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: s.Spec.PTY, Ctty: 0}}
	path := s.path
	if s.Spec.Self {
		path = fmt.Sprintf("/proc/self/fd/%d", s.self)
	}
	pid, err := syscall.ForkExec(path, s.argv, attr)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot run %q", s.argv[0]).WithHint("check that the program exists on the host")
	}
	s.tell(message{Started: true}, nil)
	for fd := range 3 {
		unix.Close(fd) // the session's pipes end with the session, not with us
	}
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == pid {
			s.tell(message{Exited: err == nil, Status: uint32(status)}, nil)
			os.Exit(0)
		}
	}
}

// exec becomes the session.
func (s *stage) exec() error {
	if err := unix.Chdir(s.dir); err != nil {
		if err := unix.Chdir("/"); err != nil {
			return err
		}
	}
	if s.Spec.Self {
		return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", s.self), s.argv, s.env)
	}
	return syscall.Exec(s.path, s.argv, s.env)
}

// lookPath finds the program in the session's own PATH and view.
func lookPath(name, path string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if unix.Access(p, unix.X_OK) == nil && !isRealDir(p) {
			return p
		}
	}
	return name
}
