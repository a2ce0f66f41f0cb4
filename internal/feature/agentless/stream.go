package agentless

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Stream is one session on a host without a node, in the frames that a node's
// session speaks.
//
//	starting ─▶ running ⇄ held ─▶ exited or cut ─▶ closed
//
// Whoever reads it holds it up: what the host sends waits in its SSH window.
type Stream struct {
	r       *Reach
	host    target.Host
	spec    wire.SessionSpec
	account string
	conn    *conn
	ch      ssh.Channel

	frames chan frame
	lent   chan struct{}   // of the frame that the reader has now
	ctx    context.Context // ends when it is closed
	cancel context.CancelFunc

	ending chan struct{} // closed once it is to end

	mu       sync.Mutex
	going    chan struct{} // closed while it is not held
	launched bool
	exit     *wire.Exit // as the host said, or as we made it
	why      string     // why we end it
	swept    bool       // nothing of it is left, says the host
	released bool       // the connection is given up
	deadline *time.Timer
	closed   sync.Once
}

// frame is lent to the reader until the next call.
type frame struct {
	t    wire.FrameType
	p    []byte
	back chan struct{}
}

// block is how much output travels in one frame.
const block = 32 << 10

// open logs in and starts what the order says. With a buddy required nothing
// runs before resume.
func (r *Reach) open(ctx context.Context, h target.Host, spec wire.SessionSpec) (*Stream, error) {
	s := &Stream{r: r, host: h, spec: spec, account: h.SSHUser, frames: make(chan frame), going: make(chan struct{}), ending: make(chan struct{})}
	if spec.Level == wire.LevelWrite {
		s.account = spec.Account
	}
	var err error
	s.conn, err = r.connect(ctx, h, s.account, s.hop())
	if err != nil {
		return nil, err
	}
	cut := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer cut()
	var asked <-chan *ssh.Request
	if s.ch, asked, err = s.conn.OpenChannel("session", nil); err != nil {
		s.conn.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open a session on %s", h.Name)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if !spec.BuddyRequired {
		if err := s.launch(); err != nil {
			_ = s.Close()
			return nil, err
		}
		close(s.going)
	}
	s.deadline = time.AfterFunc(time.Duration(spec.RemainingMS)*time.Millisecond, func() { _, _ = s.stop(context.Background(), "deadline") })
	r.mu.Lock()
	r.live[spec.ID] = s
	r.mu.Unlock()
	go s.pump(asked)
	return s, nil
}

// hop is the certificate of this session: nothing but its forced command can be
// run with it.
func (s *Stream) hop() keyring.Hop {
	hop := keyring.Hop{Session: s.spec.ID, Person: s.spec.Person, PTY: s.spec.PTY, ForceCommand: wrapper(s.spec.ID, s.spec.Level),
		Principals: []string{s.account, s.host.Principal(s.spec.Level)}}
	if s.spec.Kind == wire.SessionSFTP {
		hop.ForceCommand = sftpServer
	}
	return hop
}

// sftpServer is sshd's own, inside of it: there is no program that could be
// another one.
const sftpServer = "internal-sftp"

type ptyRequest struct {
	Term          string
	Columns, Rows uint32
	Width, Height uint32
	Modes         string
}

type windowChange struct{ Columns, Rows, Width, Height uint32 }

type setEnv struct{ Name, Value string }

type word struct{ Text string }

// launch asks the host to run it.
func (s *Stream) launch() error {
	ask := func(name string, payload []byte) (bool, error) {
		ok, err := s.ch.SendRequest(name, true, payload)
		if err != nil {
			err = fault.Wrap(fault.Unavailable, err, "cannot start session %s on %s", s.spec.ID, s.host.Name)
		}
		return ok, err
	}
	for name, value := range s.spec.Env { // most hosts take LANG and LC_*; the others keep their own
		if _, err := s.ch.SendRequest("env", false, ssh.Marshal(setEnv{name, value})); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot start session %s on %s", s.spec.ID, s.host.Name)
		}
	}
	if s.spec.PTY {
		ok, err := ask("pty-req", ssh.Marshal(ptyRequest{Term: s.spec.Term, Columns: uint32(s.spec.Cols), Rows: uint32(s.spec.Rows), Modes: "\x00"}))
		if err == nil && !ok {
			err = fault.New(fault.Denied, "cannot start session %s on %s: the host gives it no terminal", s.spec.ID, s.host.Name).
				WithHint("handrail host trust %s", s.host.Name)
		}
		if err != nil {
			return err
		}
	}
	name, payload := "shell", []byte(nil)
	switch s.spec.Kind {
	case wire.SessionExec:
		name, payload = "exec", ssh.Marshal(word{s.spec.Command})
	case wire.SessionSFTP:
		name, payload = "subsystem", ssh.Marshal(word{"sftp"})
	}
	ok, err := ask(name, payload)
	if err == nil && !ok {
		err = fault.New(fault.Denied, "cannot start session %s on %s: the host refused to run it", s.spec.ID, s.host.Name)
	}
	if err == nil {
		s.mu.Lock()
		s.launched = true
		s.mu.Unlock()
	}
	return err
}

// pump hands on what the host sends until it ends, then its exit.
func (s *Stream) pump(asked <-chan *ssh.Request) {
	if s.spec.PTY {
		for _, line := range s.spec.Banner {
			s.hand(wire.FrameNotice, []byte(line))
		}
	}
	var readers sync.WaitGroup
	readers.Go(func() { s.read(s.ch, wire.FrameStdout) })
	readers.Go(func() { s.read(s.ch.Stderr(), wire.FrameStderr) })
	s.hear(asked)
	readers.Wait()
	s.mu.Lock()
	exit := s.exit
	if exit != nil && s.why != "" {
		exit.Why = s.why
	}
	s.mu.Unlock()
	s.release()
	if exit != nil {
		s.hand(wire.FrameExit, wire.EncodeExit(*exit))
	}
	_ = s.Close()
}

// read moves one of the host's streams, frame by frame.
func (s *Stream) read(from io.Reader, t wire.FrameType) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !s.hand(t, buf[:n]) {
			return
		}
		if err != nil {
			return
		}
		if n == len(buf) && n < block {
			buf = make([]byte, block) // more than somebody typing
		}
	}
}

// hand gives a frame to the reader and waits until it is done with it. While
// the session is held nothing of it is handed on; its end is.
func (s *Stream) hand(t wire.FrameType, p []byte) bool {
	if t == wire.FrameStdout || t == wire.FrameStderr {
		s.mu.Lock()
		going := s.going
		s.mu.Unlock()
		select {
		case <-going:
		case <-s.ending: // it is stopped while it is held: what it said since is not shown
			select {
			case <-going:
			default:
				return false
			}
		case <-s.ctx.Done():
			return false
		}
	}
	f := frame{t: t, p: p, back: make(chan struct{})}
	select {
	case s.frames <- f:
	case <-s.ctx.Done():
		return false
	}
	select {
	case <-f.back:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// Next returns the next frame; its payload is valid until the next call.
func (s *Stream) Next() (wire.FrameType, []byte, error) {
	if s.lent != nil {
		close(s.lent)
		s.lent = nil
	}
	select {
	case f := <-s.frames:
		s.lent = f.back
		return f.t, f.p, nil
	case <-s.ctx.Done():
		return 0, nil, io.EOF
	}
}

type exitStatus struct{ Status uint32 }

type exitSignal struct {
	Signal     string
	Core       bool
	Text, Lang string
}

// hear takes what the host says of the session until it closes it. The first
// word about its end counts; it is the host's word.
func (s *Stream) hear(asked <-chan *ssh.Request) {
	for n := 0; ; n++ {
		q, ok := <-asked
		if !ok {
			return
		}
		if n == maxAsked {
			s.conn.Close()
		}
		var end *wire.Exit
		switch q.Type {
		case "exit-status":
			var e exitStatus
			if ssh.Unmarshal(q.Payload, &e) == nil {
				end = &wire.Exit{Status: int32(min(e.Status, 255))}
			}
		case "exit-signal":
			var e exitSignal
			if ssh.Unmarshal(q.Payload, &e) == nil {
				end = &wire.Exit{Status: 255, Signal: wire.Plain(e.Signal, 32)}
			}
		}
		s.mu.Lock()
		if end != nil && s.exit == nil && s.launched {
			s.exit = end
		}
		s.mu.Unlock()
		if q.WantReply {
			_ = q.Reply(false, nil)
		}
	}
}

// Write takes what the gateway sends to the session.
func (s *Stream) Write(t wire.FrameType, p []byte) error {
	switch t {
	case wire.FrameStdin:
		_, err := s.ch.Write(p)
		return err
	case wire.FrameEOF:
		return s.ch.CloseWrite()
	case wire.FrameResize:
		cols, rows, err := wire.DecodeResize(p)
		if err != nil {
			return err
		}
		_, err = s.ch.SendRequest("window-change", false, ssh.Marshal(windowChange{Columns: uint32(cols), Rows: uint32(rows)}))
		return err
	case wire.FrameSignal:
		_, err := s.ch.SendRequest("signal", false, ssh.Marshal(word{string(p)}))
		return err
	case wire.FrameDeadline:
		left, err := wire.DecodeDeadline(p)
		if err == nil {
			s.deadline.Reset(time.Duration(max(left, 0)) * time.Millisecond)
		}
		return err
	}
	return nil // what only a keeper would hear
}

// Close ends the session. What it left behind is sought once.
func (s *Stream) Close() error {
	s.closed.Do(func() {
		if s.deadline != nil {
			s.deadline.Stop()
		}
		s.r.mu.Lock()
		delete(s.r.live, s.spec.ID)
		s.r.mu.Unlock()
		s.cancel()
		go func() { _ = s.ch.Close() }() // it may wait for a host that does not read
		s.release()
	})
	return nil
}

// stop kills what the session runs and hands on its end, if the host says that
// nothing is left. Otherwise the connection is cut, and nobody knows.
func (s *Stream) stop(ctx context.Context, why string) (killed int, err error) {
	s.mu.Lock()
	if s.why == "" {
		s.why = why
		close(s.ending)
	}
	launched := s.launched
	s.mu.Unlock()
	if launched && s.spec.Kind != wire.SessionSFTP {
		var left int
		killed, left, err = s.sweep(ctx, "KILL")
		if err == nil && left > 0 {
			err = fault.New(fault.Unavailable, "cannot end session %s on %s: %d of its processes still run", s.spec.ID, s.host.Name, left)
		}
	}
	s.mu.Lock()
	if err == nil {
		s.swept = true
		if s.exit == nil {
			s.exit = &wire.Exit{Status: 137, Signal: "KILL"}
		}
	}
	s.mu.Unlock()
	go func() { _ = s.ch.Close() }()
	if err != nil {
		s.conn.Close()
	}
	time.AfterFunc(time.Second, func() { s.conn.Close() }) // a host that does not answer the close
	return killed, err
}

// pause holds the session: its processes are stopped, its output waits, and the
// gateway sends no input.
func (s *Stream) pause(ctx context.Context) error {
	s.mu.Lock()
	launched := s.launched
	select {
	case <-s.going:
		s.going = make(chan struct{})
	default:
	}
	s.mu.Unlock()
	if !launched || s.spec.Kind == wire.SessionSFTP {
		return nil // it gets no input, and acts on nothing else
	}
	_, _, err := s.sweep(ctx, "STOP")
	return err
}

// resume lets it go on, or starts what waited for a buddy.
func (s *Stream) resume(ctx context.Context) error {
	s.mu.Lock()
	launched := s.launched
	s.mu.Unlock()
	var err error
	switch {
	case !launched:
		err = s.launch()
	case s.spec.Kind != wire.SessionSFTP:
		_, _, err = s.sweep(ctx, "CONT")
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.going:
	default:
		close(s.going)
	}
	return nil
}
