package spine_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// process is a command that runs while the test goes on.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{}
}

func pipe() (*os.File, *os.File, error) { return os.Pipe() }

func (p person) start(args ...string) *process {
	p.i.t.Helper()
	return p.startWith(nil, args...)
}

func (p person) startWith(stdin *os.File, args ...string) *process {
	p.i.t.Helper()
	r := &process{t: p.i.t, out: &lockedBuffer{}, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	r.cmd = exec.CommandContext(ctx, binary, args...)
	r.cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+p.home)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	r.cmd.SysProcAttr = p.i.as
	if stdin != nil {
		r.cmd.Stdin = stdin
	}
	if err := r.cmd.Start(); err != nil {
		p.i.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		defer cancel()
		_ = r.cmd.Wait()
	}()
	p.i.t.Cleanup(r.kill)
	return r
}

// waitFor waits until the process has printed text.
func (r *process) waitFor(text string) {
	r.t.Helper()
	i := installation{t: r.t}
	i.until("«"+text+"» from "+strings.Join(r.cmd.Args[1:], " "), func() bool {
		if strings.Contains(r.out.String(), text) {
			return true
		}
		select {
		case <-r.done:
			r.t.Fatalf("%s ended without «%s»:\n%s", strings.Join(r.cmd.Args[1:], " "), text, r.out)
		default:
		}
		return false
	})
}

// wait waits until the process has ended by itself.
func (r *process) wait() {
	r.t.Helper()
	i := installation{t: r.t}
	i.until("the end of "+strings.Join(r.cmd.Args[1:], " "), func() bool {
		select {
		case <-r.done:
			return true
		default:
			return false
		}
	})
}

func (r *process) kill() {
	_ = r.cmd.Process.Kill()
	<-r.done
}
