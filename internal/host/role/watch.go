// Package role starts the roles of handrail on this machine (server, link,
// warden) and watches them: each a process, where root starts them under an
// account of its own, with its place prepared; a role that dies is started
// again, and all end in the reverse order. The roles speak the same wire as on
// separate machines; the supervisor never stands between them.
//
//	supervisor (root)                      role
//	  Prepare: folders and their owners
//	  Start ── exec ─▶ Main: gives up root, becomes its account ── exec ─▶ serves
//	        ◀───────────────────────────────────────────── SayReady, one line
//	  Stop ── SIGTERM, at last SIGKILL ──▶ ends
package role

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Role is one process of this program.
type Role struct {
	Name    string
	Program string // file to run; "": this program
	Args    []string
	Account int        // who it becomes, where it is not who starts it
	Env     []string   // beside the few that every role gets
	Files   []*os.File // handed on, from descriptor 3
}

const (
	// readyLine is what a role prints on stdout once it serves.
	readyLine = "handrail: ready"
	// upTime bounds the wait for it: a probe of the kernel comes first.
	upTime = 30 * time.Second
	// stopTime is how long a role may take to end after SIGTERM.
	stopTime = 8 * time.Second
	// drainTime is how long what a dead role left behind may hold its stderr.
	drainTime = time.Second
	// restartFirst and restartMost bound the pause before a role is started
	// again after it died.
	restartFirst = 100 * time.Millisecond
	restartMost  = 10 * time.Second
	settled      = time.Minute // a role that lived so long starts the pause anew
)

// SayReady tells the supervisor that this role serves.
func SayReady() {
	fmt.Println(readyLine)
	settleSoon()
}

// Watch starts roles and keeps them alive.
type Watch struct {
	place     Place
	out, errs io.Writer
	log       *slog.Logger
	muted     atomic.Bool
	stops     []func()
	all       []*process
	node      *running // the node, where one was started
}

// NewWatch returns a Watch over the roles of a place. What they say goes to
// out and errs, with whatever could command a terminal escaped.
func NewWatch(p Place, out, errs io.Writer, log *slog.Logger) *Watch {
	return &Watch{place: p, out: out, errs: errs, log: log}
}

// Mute drops what the roles say on stderr from now on: while everything stops,
// a link that loses its server is no news.
func (w *Watch) Mute() { w.muted.Store(true) }

// Start runs a role and waits until it serves; one that ends before is not tried
// again, since what keeps it from starting (a port, a database, a broken disk)
// is for a person to mend. From then on, and also if it does not come up in
// time, only Stop ends it: a role stops when its turn comes, not when ctx ends.
func (w *Watch) Start(ctx context.Context, r Role) error {
	p := &process{w: w, r: r, ready: make(chan struct{})}
	w.all = append(w.all, p)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.keep(life)
	}()
	w.stops = append(w.stops, func() { end(); <-done })
	late := time.NewTimer(upTime)
	defer late.Stop()
	select {
	case <-p.ready:
		settleSoon()
		return nil
	case <-done:
		return fault.New(fault.Unavailable, "cannot start: the %s ended before it served", r.Name).
			WithHint("the lines above say why; handrail doctor")
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fault.New(fault.Unavailable, "cannot start: the %s did not come up in %v", r.Name, upTime).
			WithHint("the lines above say why; handrail doctor")
	}
}

// Stop ends all roles, the last started first.
func (w *Watch) Stop() {
	for i := len(w.stops) - 1; i >= 0; i-- {
		w.stops[i]()
	}
	w.stops = nil
}

// process is a role that is watched.
type process struct {
	w     *Watch
	mu    sync.Mutex
	r     Role // how it is started the next time
	ready chan struct{}
	once  sync.Once
}

func (p *process) served() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// keep runs the role until ctx ends. One that served and dies is started again
// with a growing pause, so that a broken disk does not become a busy loop.
func (p *process) keep(ctx context.Context) {
	runtime.LockOSThread() // PDEATHSIG follows the thread that forked, so that thread must stay
	pause := restartFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := p.live(ctx)
		if ctx.Err() != nil || !p.served() {
			return
		}
		if time.Since(began) > settled {
			pause = restartFirst
		}
		p.w.log.Error("a role ended and is started again", "role", p.r.Name, "after", time.Since(began).Round(time.Millisecond), "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMost)
	}
}

// live starts the role and waits for its end.
func (p *process) live(ctx context.Context) error {
	cmd := p.command()
	out, errs := &lines{line: p.said}, &lines{line: p.complained}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		return err
	}
	died := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		out.flush()
		errs.flush()
		died <- err
	}()
	select {
	case err := <-died:
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case err := <-died:
		return err
	case <-late.C:
		p.w.log.Warn("a role did not end in time and is killed", "role", p.r.Name)
		_ = cmd.Process.Kill()
		return <-died
	}
}

func (p *process) command() *exec.Cmd {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := p.w.place.Command(p.r)
	cmd.WaitDelay = drainTime
	return cmd
}

// Command is this program again, or the one that the role names: under its
// account, which sees the data folder at Seen, and with nothing of our
// surroundings.
func (p Place) Command(r Role) *exec.Cmd {
	program := r.Program
	if program == "" {
		program = Program
	}
	cmd := exec.Command(program)
	cmd.Args = append([]string{"handrail"}, r.Args...)
	home := os.Getenv("HOME")
	if p.Root && r.Account != os.Geteuid() {
		cmd.Args, home = enterWords(r.Account, p.bindFor(r.Account), r.Args), "/nonexistent"
	}
	cmd.Env = append(environment(home), r.Env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = r.Files
	// A role must not outlive its supervisor: it would hold ports and locks.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	return cmd
}

// environment is all that a role gets of its surroundings: whoever starts
// handrail may have secrets in theirs.
func environment(home string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	if home != "" {
		env = append(env, "HOME="+home)
	}
	for _, name := range []string{"TZ", "GOCOVERDIR", logFormatEnv, logLevelEnv} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// said takes a line of the role's stdout.
func (p *process) said(line []byte) {
	if string(line) == readyLine {
		p.once.Do(func() { close(p.ready) })
		return
	}
	_, _ = p.w.out.Write(printable(line))
}

// complained takes a line of its stderr.
func (p *process) complained(line []byte) {
	if !p.w.muted.Load() {
		_, _ = p.w.errs.Write(printable(line))
	}
}
