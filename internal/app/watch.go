package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// role is one process that the supervisor starts and watches: server, link or
// warden. They speak the same wire as on separate machines; the supervisor
// only starts them and never stands between them.
type role struct {
	name  string
	args  []string
	env   []string
	files []*os.File // handed on, from descriptor 3

	mu    sync.Mutex
	cmd   *exec.Cmd
	ready chan struct{} // closed when the role printed its ready line, once
	once  sync.Once
	muted atomic.Bool
}

// mute drops what the role says on stderr from now on: while everything
// stops, a link that loses its server is no news.
func (r *role) mute() { r.muted.Store(true) }

// voice is the role's stderr.
type voice struct{ r *role }

func (v voice) Write(p []byte) (int, error) {
	if v.r.muted.Load() {
		return len(p), nil
	}
	return os.Stderr.Write(p)
}

const (
	// readyLine is what a role prints on stdout once it serves.
	readyLine = "handrail: ready"
	// stopTime is how long a role may take to end after SIGTERM.
	stopTime = 8 * time.Second
	// restartFirst and restartMost bound the pause before a role is started
	// again after it died.
	restartFirst = 100 * time.Millisecond
	restartMost  = 10 * time.Second
)

func newRole(name string, args ...string) *role {
	return &role{name: name, args: args, env: os.Environ(), ready: make(chan struct{})}
}

// run keeps the role alive until ctx ends. A role that dies is started again
// with a growing pause, so that a broken disk does not become a busy loop.
func (r *role) run(ctx context.Context, log *slog.Logger) {
	pause := restartFirst
	for ctx.Err() == nil {
		started := time.Now()
		err := r.once1(ctx, log)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > time.Minute {
			pause = restartFirst
		}
		log.Error("a role ended and is started again", "role", r.name, "after", time.Since(started).Round(time.Millisecond), "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMost)
	}
}

// once1 starts the role and waits for its end.
func (r *role) once1(ctx context.Context, log *slog.Logger) error {
	cmd := exec.Command(ownProgram, r.args...)
	cmd.Env = r.env
	cmd.ExtraFiles = r.files
	cmd.Stderr = voice{r}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	// A role must not outlive its supervisor: it would hold ports and locks.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	died := make(chan error, 1)
	// PDEATHSIG follows the thread that forked, so that thread must stay.
	go func() {
		lockThread()
		if err := cmd.Start(); err != nil {
			died <- err
			return
		}
		r.mu.Lock()
		r.cmd = cmd
		r.mu.Unlock()
		r.relay(out)
		died <- cmd.Wait()
	}()
	select {
	case err := <-died:
		return err
	case <-ctx.Done():
	}
	r.signal(syscall.SIGTERM)
	select {
	case err = <-died:
	case <-time.After(stopTime):
		log.Warn("a role did not end in time and is killed", "role", r.name)
		r.signal(syscall.SIGKILL)
		err = <-died
	}
	return err
}

// relay copies the role's stdout and notes its ready line.
func (r *role) relay(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == readyLine {
			r.once.Do(func() { close(r.ready) })
			continue
		}
		fmt.Println(lines.Text())
	}
}

func (r *role) signal(sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd != nil && r.cmd.Process != nil {
		_ = r.cmd.Process.Signal(sig)
	}
}

// waitReady waits until the role serves, or says why it does not.
func (r *role) waitReady(ctx context.Context, most time.Duration) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(most):
		return errors.New("the " + r.name + " did not come up in " + most.String())
	}
}
