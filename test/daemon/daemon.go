// Package daemon runs another program's server for a test: it dies with the
// test's process, however that ends.
package daemon

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Daemon is a server that runs.
type Daemon struct {
	process *os.Process
	ended   chan struct{}
}

// Start starts a server, and waits until it answers on the TCP address.
func Start(t testing.TB, cmd *exec.Cmd, address string) *Daemon {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, d := make(chan error), &Daemon{ended: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // the server dies with the thread that started it; this one stays
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(d.ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	d.process = cmd.Process
	late := time.After(time.Minute)
	for {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
			return d
		}
		select {
		case <-d.ended:
			t.Fatalf("%s ended as it started", cmd.Path)
		case <-late:
			d.Stop()
			t.Fatalf("%s does not answer: %v", cmd.Path, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop kills the server and waits for its end; again, it does nothing.
func (d *Daemon) Stop() {
	if d == nil {
		return
	}
	_ = d.process.Kill()
	<-d.ended
}
