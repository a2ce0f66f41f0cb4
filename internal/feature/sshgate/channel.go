package sshgate

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
)

// channel is one SSH channel: at most one session of ours.
type channel struct {
	c    *conn
	ch   ssh.Channel
	bare bool // a forwarded port: the bytes of its other end and nothing of ours

	mu         sync.Mutex
	req        session.OpenRequest
	started    bool
	live       *session.Live
	cols, rows uint16 // as last said by the client
	gone       bool   // the client closed the channel
	aborted    bool
	delivering int
}

func newChannel(c *conn, ch ssh.Channel) *channel {
	return &channel{c: c, ch: ch, req: session.OpenRequest{Host: c.host, Level: c.level, Client: "ssh", Source: c.by.Source, Env: map[string]string{}}}
}

// serve answers the channel's requests until the client closes it; then the
// session ends, too.
func (x *channel) serve(requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(x.c.ctx)
	defer cancel()
	for r := range requests {
		ok := x.request(ctx, r)
		if r.WantReply && !starts(r.Type) {
			_ = r.Reply(ok, nil)
		}
	}
	cancel()
	x.mu.Lock()
	x.gone = true
	live := x.live
	x.mu.Unlock()
	if live != nil {
		live.Hangup()
	}
}

func starts(kind string) bool { return kind == "shell" || kind == "exec" || kind == "subsystem" }

func (x *channel) request(ctx context.Context, r *ssh.Request) bool {
	switch r.Type {
	case "pty-req":
		return x.pty(r.Payload)
	case "env":
		e, err := parse[setEnv](r.Payload)
		return err == nil && x.env(e)
	case "window-change":
		w, err := parse[windowChange](r.Payload)
		if err == nil {
			x.resize(size(w.Columns), size(w.Rows))
		}
		return err == nil
	case "signal":
		s, err := parse[signal](r.Payload)
		return err == nil && x.signal(s.Name)
	case "shell", "exec", "subsystem":
		return x.start(ctx, r)
	}
	// auth-agent-req@openssh.com, x11-req, break and what we do not know.
	return false
}

func (x *channel) pty(b []byte) bool {
	p, err := parse[ptyRequest](b)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil || x.started {
		return false
	}
	x.req.PTY, x.req.Term, x.req.Cols, x.req.Rows = true, session.Term(p.Term), size(p.Columns), size(p.Rows)
	x.cols, x.rows = x.req.Cols, x.req.Rows
	return true
}

func (x *channel) env(e setEnv) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.started || !session.AcceptEnv(e.Name, e.Value) || len(x.req.Env) >= 32 {
		return false
	}
	x.req.Env[e.Name] = e.Value
	return true
}

func (x *channel) resize(cols, rows uint16) {
	x.mu.Lock()
	x.cols, x.rows = cols, rows
	live, pty := x.live, x.req.PTY
	x.mu.Unlock()
	if live != nil && pty {
		_ = live.Send(session.Event{Kind: session.Resize, Cols: cols, Rows: rows})
	}
}

func (x *channel) signal(name string) bool {
	x.mu.Lock()
	live := x.live
	x.mu.Unlock()
	return live != nil && live.Send(session.Event{Kind: session.Signal, Text: name}) == nil
}

// start answers first, then opens: what goes wrong is then shown to the person
// on standard error, which a refused request could not do.
func (x *channel) start(ctx context.Context, r *ssh.Request) bool {
	c, err := command{}, error(nil)
	if r.Type != "shell" {
		c, err = parse[command](r.Payload)
	}
	x.mu.Lock()
	bad := err != nil || x.started
	if !bad {
		x.started = true
		switch r.Type {
		case "exec":
			x.req.Command = c.Line
		case "subsystem":
			x.req.Subsystem = c.Line
		}
	}
	x.mu.Unlock()
	if bad || r.Type == "subsystem" && c.Line != "sftp" {
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
		return false
	}
	if r.WantReply {
		_ = r.Reply(true, nil)
	}
	go x.run(ctx)
	return true
}

// openTime bounds opening one session: decision, proof and the node's start.
const openTime = 45 * time.Second

func (x *channel) run(ctx context.Context) {
	if x.c.userErr != nil {
		x.refuse(x.c.userErr)
		return
	}
	x.mu.Lock()
	req := x.req
	x.mu.Unlock()
	opening, cancel := context.WithTimeout(ctx, openTime)
	live, err := x.c.g.d.Sessions.Open(opening, x.c.by, req)
	cancel()
	if err != nil {
		x.refuse(err)
		return
	}
	x.mu.Lock()
	x.live = live
	gone, resized := x.gone, req.PTY && (x.cols != req.Cols || x.rows != req.Rows)
	cols, rows := x.cols, x.rows
	x.mu.Unlock()
	if gone {
		live.Hangup()
		return
	}
	if resized {
		_ = live.Send(session.Event{Kind: session.Resize, Cols: cols, Rows: rows})
	}
	if err := live.Own(x); err != nil {
		x.refuse(err)
		return
	}
	x.input(live, req.PTY)
}

// input moves what the client sends to the session. An end of input is not an
// end of the session: `ssh host cmd </dev/null` still wants its output.
func (x *channel) input(live *session.Live, pty bool) {
	buf := make([]byte, 1<<10)
	for {
		n, err := x.ch.Read(buf)
		if n > 0 {
			if live.Send(session.Event{Kind: session.Input, Data: buf[:n]}) != nil {
				return
			}
			if n == len(buf) && len(buf) < 32<<10 {
				buf = make([]byte, 32<<10) // a copy, not somebody typing
			}
		}
		if err != nil {
			_ = live.Send(session.Event{Kind: session.EOF})
			return
		}
	}
}

// refuse tells the person why there is no session, and ends the channel.
func (x *channel) refuse(err error) {
	x.say("handrail: " + refusal(fault.From(err)))
	x.finish(session.Event{Kind: session.Exit, Status: 255})
}

// refusal is what a person reads: why, by which rule, and what to do.
func refusal(f *fault.Error) string {
	text := f.Text
	if f.Rule != "" {
		text += " (rule " + f.Rule + ")"
	}
	if f.Entry != "" {
		text += " (entry " + f.Entry + ")"
	}
	if f.Hint != "" {
		text += "\ntry: " + f.Hint
	}
	return text
}

// say writes a line of ours to standard error. Without a terminal the client
// prints it as it is, with one its terminal is raw.
func (x *channel) say(text string) {
	text = strings.ReplaceAll(clean(text), "\n", "\r\n") + "\r\n"
	if x.req.PTY {
		text = "\r\n" + text
	} else {
		text = strings.ReplaceAll(text, "\r\n", "\n")
	}
	_, _ = io.WriteString(x.ch.Stderr(), text)
}

// clean keeps control characters of others out of the person's terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// Deliver writes the session's events to the client. It blocks while the
// client's window is shut.
func (x *channel) Deliver(e session.Event) error {
	x.mu.Lock()
	if x.aborted {
		x.mu.Unlock()
		return io.ErrClosedPipe
	}
	x.delivering++
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		x.delivering--
		x.mu.Unlock()
	}()
	switch e.Kind {
	case session.Output:
		_, err := x.ch.Write(e.Data)
		return err
	case session.ErrorOutput:
		if x.bare {
			return nil
		}
		_, err := x.ch.Stderr().Write(e.Data)
		return err
	case session.Notice:
		if x.bare {
			return nil
		}
		x.notice(e)
	case session.Exit:
		x.finish(e)
	}
	return nil
}

// notice shows a line of ours. A file transfer shows only what ends it.
func (x *channel) notice(e session.Event) {
	if x.req.Subsystem != "" && e.Notice != session.NoticeEnding && e.Notice != session.NoticeEnded && e.Notice != session.NoticeRefusal {
		return
	}
	if !x.req.PTY {
		x.say("handrail: " + e.Text)
		return
	}
	_, _ = io.WriteString(x.ch, "\r\n\x1b[1;33m── "+strings.ReplaceAll(clean(e.Text), "\n", "\r\n")+" ──\x1b[0m\r\n")
}

// finish sends the end in the order that clients need: all output has been
// written, then exit-status, then close.
func (x *channel) finish(e session.Event) {
	_ = x.ch.CloseWrite()
	if x.bare {
		_ = x.ch.Close()
		return
	}
	if e.Signal != "" {
		_, _ = x.ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Signal: e.Signal}))
	} else {
		_, _ = x.ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{Status: uint32(e.Status)}))
	}
	_ = x.ch.Close()
}

// abortTime is how long a client may take to notice that its channel closed.
const abortTime = 2 * time.Second

// Abort closes the channel under a Deliver that may be blocked. A client that
// does not even answer the close loses its connection.
func (x *channel) Abort() {
	x.mu.Lock()
	x.aborted = true
	x.mu.Unlock()
	_ = x.ch.Close()
	time.AfterFunc(abortTime, func() {
		x.mu.Lock()
		stuck := x.delivering > 0
		x.mu.Unlock()
		if stuck {
			_ = x.c.raw.Close()
		}
	})
}
