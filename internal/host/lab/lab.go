// Package lab makes hosts out of namespaces: each with a root of its own (an
// overlay over this machine's), a name, process ids and, where wanted, an
// sshd. They run a real node, so that tests and the demo have more than one
// host on one machine. It needs root; it is never part of a production host.
//
//	caller                         lab host (pid 1 of its namespaces)
//	  Start ── clone(ns) ─────────▶ hostname, overlay root, /proc
//	                                starts Config.Run in it, reaps, waits
//	  Stop  ── SIGTERM ───────────▶ everything inside dies with pid 1
package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Arg0 is argv[0] of a lab host's first process.
const Arg0 = "handrail-lab"

// ProgramPath is where a lab host finds Config.Program.
const ProgramPath = "/usr/local/bin/handrail"

// Config says what host to make.
type Config struct {
	Name string   `json:"name"` // its hostname
	Dir  string   `json:"dir"`  // an empty folder for its own files, as a tmpfs
	Run  []string `json:"run"`  // the program that the host runs; ends with it
	// Files are written into the host's root before it starts.
	Files map[string]string `json:"files,omitempty"`
	// Program is shown in the host as ProgramPath, wherever it lies here.
	Program string `json:"program,omitempty"`
	// Hide are folders that the host does not have, such as the server's data.
	Hide []string `json:"hide,omitempty"`

	// Net is the file of the network namespace that the host is in; "" is ours.
	Net string `json:"-"`

	Stdout, Stderr io.Writer `json:"-"`
}

// Host is a running lab host.
type Host struct {
	Name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

const (
	// upperBytes bounds what a lab host may write.
	upperBytes = "size=256m"
	stopTime   = 10 * time.Second
)

// Start makes the host and runs its program.
func Start(ctx context.Context, c Config) (*Host, error) {
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Unavailable, "cannot make a lab host: that needs root")
	}
	spec, err := json.Marshal(c)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make a lab host")
	}
	in, out, err := os.Pipe()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make a lab host")
	}
	defer in.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{Arg0}
	cmd.ExtraFiles = []*os.File{in}
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Setsid:     true, Pdeathsig: syscall.SIGKILL,
	}
	h := &Host{Name: c.Name, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(h.done)
		runtime.LockOSThread() // PDEATHSIG follows the thread that forked
		err := enterNet(c.Net)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			h.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		out.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make lab host %s", c.Name)
	}
	_, err = out.Write(spec)
	out.Close()
	if err != nil {
		h.Kill()
		return nil, fault.Wrap(fault.Internal, err, "cannot tell lab host %s what it is", c.Name)
	}
	context.AfterFunc(ctx, func() { h.Stop() })
	return h, nil
}

// enterNet puts this thread into a network namespace, so that what it forks is
// in it.
func enterNet(path string) error {
	if path == "" {
		return nil
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}

// Done is closed when the host has ended.
func (h *Host) Done() <-chan struct{} { return h.done }

// PID is the host's first process as this machine sees it.
func (h *Host) PID() int { return h.cmd.Process.Pid }

// Stop ends the host's program, then the host.
func (h *Host) Stop() {
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.done:
	case <-time.After(stopTime):
		h.Kill()
	}
}

// Kill ends the host as a power cut would: the kernel kills every process in
// its pid namespace.
func (h *Host) Kill() {
	_ = h.cmd.Process.Kill()
	<-h.done
}

// Main returns at once unless this process was started as a lab host; then it
// becomes the host and never returns.
func Main() {
	if len(os.Args) == 0 || os.Args[0] != Arg0 {
		return
	}
	runtime.LockOSThread()
	code, err := become()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab host:", err)
	}
	os.Exit(code)
}

func become() (int, error) {
	var c Config
	in := os.NewFile(3, "spec")
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return 1, err
	}
	in.Close()
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return 1, fmt.Errorf("cannot set the name: %w", err)
	}
	if err := newRoot(c); err != nil {
		return 1, err
	}
	return initLoop(c.Run)
}

// newRoot makes the overlay and moves into it.
func newRoot(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := unix.Mount("lab", c.Dir, "tmpfs", 0, upperBytes+",mode=0755"); err != nil {
		return fmt.Errorf("cannot mount %s: %w", c.Dir, err)
	}
	upper, work, root := filepath.Join(c.Dir, "upper"), filepath.Join(c.Dir, "work"), filepath.Join(c.Dir, "root")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("cannot overlay the root: %w", err)
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"proc", "proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"/sys", "sys", "", unix.MS_BIND | unix.MS_REC},
		{"/dev", "dev", "", unix.MS_BIND | unix.MS_REC},
		{"tmp", "tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
		{"run", "run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, filepath.Join(root, m.target), m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("cannot mount /%s: %w", m.target, err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	if err := fill(root, c); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2), "pivot_root(".", ".")"
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// fill writes the host's own files and covers what it must not have.
func fill(root string, c Config) error {
	files := map[string]string{"/etc/hostname": c.Name + "\n"}
	for name, text := range c.Files {
		files[name] = text
	}
	for name, text := range files {
		path := filepath.Join(root, filepath.Clean("/"+name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("cannot write %s: %w", name, err)
		}
	}
	if c.Program != "" {
		if err := show(c.Program, filepath.Join(root, ProgramPath)); err != nil {
			return err
		}
	}
	for _, dir := range c.Hide {
		path := filepath.Join(root, filepath.Clean("/"+dir))
		if _, err := os.Stat(path); err != nil {
			continue // nothing there to hide
		}
		if err := unix.Mount("hidden", path, "tmpfs", unix.MS_RDONLY, "size=4k,mode=0000"); err != nil {
			return fmt.Errorf("cannot hide %s: %w", dir, err)
		}
	}
	return nil
}

// show binds a program into the host.
func show(program, at string) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(program, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot show %s: %w", program, err)
	}
	return nil
}

// initLoop is pid 1: it runs the program, reaps whoever is left behind, and
// ends with the program. When it exits the kernel kills the rest.
func initLoop(run []string) (int, error) {
	if len(run) == 0 {
		return 1, fmt.Errorf("nothing to run")
	}
	pid, err := syscall.ForkExec(run[0], run, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1, fmt.Errorf("cannot run %s: %w", run[0], err)
	}
	stop := make(chan os.Signal, 1)
	notify(stop)
	go func() {
		<-stop
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}()
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1, err
		}
		if got == pid {
			return status.ExitStatus() & 0xff, nil
		}
	}
}
