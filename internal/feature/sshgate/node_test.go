package sshgate_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/wire"
)

// node stands in for a host's node: it runs the order's command as a process
// of this test, without a sandbox. It speaks real frames over a real socket.
type node struct {
	t    testing.TB
	home string

	mu    sync.Mutex
	procs map[string]*os.Process
	conns map[string]net.Conn
	specs []wire.SessionSpec
}

func newNode(t testing.TB) *node {
	return &node{t: t, home: t.TempDir(), procs: map[string]*os.Process{}, conns: map[string]net.Conn{}}
}

type stream struct {
	*wire.Reader
	*wire.Writer
	net.Conn
}

func (s stream) Write(t wire.FrameType, p []byte) error { return s.Writer.Write(t, p) }

// Start runs the order that the pass recorded.
func (n *node) Start(_ context.Context, pass doorway.Pass, host string, _ bool) (session.Stream, wire.SessionAnswer, error) {
	if !pass.Valid() {
		return nil, wire.SessionAnswer{}, errors.New("no pass")
	}
	for _, e := range pass.Receipt().Entries() {
		p, err := wire.ParseOrderPayload(e.Payload)
		if err != nil || p.Node != host {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, wire.SessionAnswer{}, err
		}
		defer ln.Close()
		far, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return nil, wire.SessionAnswer{}, err
		}
		near, err := ln.Accept()
		if err != nil {
			return nil, wire.SessionAnswer{}, err
		}
		n.mu.Lock()
		n.specs = append(n.specs, *p.Session)
		n.conns[p.Session.ID] = far
		n.mu.Unlock()
		begun := make(chan struct{})
		go n.keep(far, *p.Session, begun)
		<-begun
		return stream{wire.NewReader(near), wire.NewWriter(near), near},
			wire.SessionAnswer{OK: true, Floor: wire.FloorFull, Account: p.Session.Account}, nil
	}
	return nil, wire.SessionAnswer{}, errors.New("the pass recorded no order")
}

// Resume tells the session that it goes on.
func (n *node) Resume(_ context.Context, pass doorway.Pass, _ string) error {
	for _, e := range pass.Receipt().Entries() {
		if p, err := wire.ParseOrderPayload(e.Payload); err == nil && p.Kind == wire.KindSessionResume {
			n.signal(p.Session.ID, syscall.SIGCONT)
			return nil
		}
	}
	return errors.New("the pass recorded no order")
}

// Brake stops and pauses.
func (n *node) Brake(_ context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	switch b.Kind {
	case wire.BrakeStopSession:
		n.signal(b.Session, syscall.SIGKILL)
	case wire.BrakePauseSession:
		n.signal(b.Session, syscall.SIGSTOP)
	}
	return []wire.BrakeAnswer{{V: 1, ID: b.ID, Node: b.Node, Sessions: 1, Killed: 1}}, nil
}

func (n *node) signal(id string, sig syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.procs[id]; p != nil {
		_ = syscall.Kill(-p.Pid, sig)
	}
}

// vanish cuts a session's stream, as a host that loses power does.
func (n *node) vanish() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
}

// keep does what a keeper does for one session.
func (n *node) keep(c net.Conn, spec wire.SessionSpec, begun chan<- struct{}) {
	defer c.Close()
	out := wire.NewWriter(c)
	cmd := n.command(spec)
	if spec.PTY {
		n.terminal(c, out, cmd, spec, begun)
		return
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	stderr, _ := cmd.StderrPipe()
	err := cmd.Start()
	n.began(spec.ID, cmd.Process, begun)
	if err != nil {
		_ = out.Write(wire.FrameExit, wire.EncodeExit(wire.Exit{Status: 127, Why: err.Error()}))
		return
	}
	go n.feed(c, stdin, cmd.Process, nil)
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); forward(out, wire.FrameStdout, stdout) }()
	go func() { defer both.Done(); forward(out, wire.FrameStderr, stderr) }()
	both.Wait()
	n.exit(out, cmd)
}

func (n *node) command(spec wire.SessionSpec) *exec.Cmd {
	cmd := exec.Command("/bin/sh")
	switch spec.Kind {
	case wire.SessionExec:
		cmd = exec.Command("/bin/sh", "-c", spec.Command)
	case wire.SessionSFTP:
		cmd = exec.Command("/usr/lib/openssh/sftp-server")
	}
	cmd.Dir = n.home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.home, "TERM=" + spec.Term, "PS1=$ "}
	for k, v := range spec.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

func (n *node) terminal(c net.Conn, out *wire.Writer, cmd *exec.Cmd, spec wire.SessionSpec, begun chan<- struct{}) {
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: spec.Cols, Rows: spec.Rows})
	n.began(spec.ID, cmd.Process, begun)
	if err != nil {
		_ = out.Write(wire.FrameExit, wire.EncodeExit(wire.Exit{Status: 127, Why: err.Error()}))
		return
	}
	defer f.Close()
	go n.feed(c, f, cmd.Process, f)
	for _, line := range spec.Banner {
		_ = out.Write(wire.FrameStdout, []byte(line+"\r\n"))
	}
	forward(out, wire.FrameStdout, f)
	n.exit(out, cmd)
}

func (n *node) began(id string, p *os.Process, begun chan<- struct{}) {
	n.mu.Lock()
	n.procs[id] = p
	n.mu.Unlock()
	close(begun)
}

func (n *node) exit(out *wire.Writer, cmd *exec.Cmd) {
	_ = cmd.Wait()
	e := wire.Exit{Status: int32(cmd.ProcessState.ExitCode())}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Status, e.Signal = 128+int32(ws.Signal()), strings.TrimPrefix(signalNames[ws.Signal()], "SIG")
	}
	_ = out.Write(wire.FrameExit, wire.EncodeExit(e))
}

var signalNames = map[syscall.Signal]string{syscall.SIGKILL: "KILL", syscall.SIGTERM: "TERM", syscall.SIGINT: "INT", syscall.SIGHUP: "HUP"}

func forward(out *wire.Writer, t wire.FrameType, from io.Reader) {
	var block wire.Block
	for {
		n, err := from.Read(block.Payload())
		if n > 0 && out.WriteBlock(t, &block, n) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// feed hands on what comes from the server; when that ends, so does the session.
func (n *node) feed(c net.Conn, stdin io.WriteCloser, p *os.Process, tty *os.File) {
	in := wire.NewReader(c)
	for {
		t, b, err := in.Next()
		if err != nil {
			_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
			return
		}
		switch t {
		case wire.FrameStdin:
			_, _ = stdin.Write(b)
		case wire.FrameEOF:
			if tty == nil {
				_ = stdin.Close()
			}
		case wire.FrameResize:
			if cols, rows, err := wire.DecodeResize(b); err == nil && tty != nil {
				_ = pty.Setsize(tty, &pty.Winsize{Cols: cols, Rows: rows})
			}
		case wire.FrameSignal:
			if string(b) == "TERM" {
				_ = syscall.Kill(-p.Pid, syscall.SIGTERM)
			}
		}
	}
}
