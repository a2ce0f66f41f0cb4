package cli

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	maxFrame    = 1 << 20          // a frame of the server; it sends at most 64 KiB of output
	inputChunk  = 32 << 10         // what we send at once
	acknowledge = 64 << 10         // how much output goes by before we say so; the window is 1 MiB
	heartbeat   = 15 * time.Second // a silent link is asked this often
)

// attachment is a WebSocket to a live session and the person's terminal.
//
// The terminal is raw only while run is on the stack; every way out of run
// restores it. What is printed to a raw terminal needs \r\n.
type attachment struct {
	*tool
	client  *client
	session *v1.Session
	ticket  string
	input   bool // keys go to the session (ssh, join); else the person only watches
	pty     bool
	quiet   bool
	guest   bool // somebody else's session: its output must not act on this terminal

	ws     *websocket.Conn
	mu     sync.Mutex // guards raw, and stderr: words come from several places
	raw    bool
	exited bool   // it ended by itself
	why    string // the last word of the server on how it ends
	unsaid uint32 // bytes of output that were not yet acknowledged
	screen screen // of a guest
}

// errLeft is the person's own wish to go.
var errLeft = errors.New("left")

// run is attached until the session ends, and returns its exit status.
func (a *attachment) run(ctx context.Context) (int, error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.dial(ctx); err != nil {
		return 0, err
	}
	defer a.ws.CloseNow()
	restore, err := a.makeRaw()
	if err != nil {
		return 0, err
	}
	defer restore()
	if a.input {
		go a.sendInput(ctx, cancel)
	} else if a.isRaw() {
		go a.watchKeys(ctx, cancel)
	}
	if a.pty && a.input && !a.guest { // the window that counts is the owner's
		changed := make(chan os.Signal, 1)
		signal.Notify(changed, syscall.SIGWINCH)
		defer signal.Stop(changed)
		go a.sendSizes(ctx, changed)
	}
	go a.beat(ctx, cancel)
	status, err := a.receive(ctx)
	if err == nil {
		_ = a.ws.Close(websocket.StatusNormalClosure, "")
		return status, nil
	}
	return 0, a.reason(ctx, err)
}

func (a *attachment) dial(ctx context.Context) error {
	u := url.URL{
		Scheme: "wss", Host: a.client.login.Address, Path: "/v1/sessions/" + a.session.GetId() + "/attach",
		RawQuery: url.Values{"ticket": {a.ticket}}.Encode(),
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ws, answer, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPClient: a.client.http})
	if err != nil {
		var f *fault.Error
		if errors.As(err, &f) {
			return f
		}
		if answer != nil && answer.Body != nil {
			text, _ := io.ReadAll(io.LimitReader(answer.Body, 1024))
			if answer.StatusCode != 0 && len(text) > 0 {
				return fault.New(fault.Unavailable, "cannot attach to session %s: %s", a.session.GetId(), strings.TrimSpace(string(text)))
			}
		}
		return fault.Wrap(fault.Unavailable, err, "cannot attach to session %s", a.session.GetId()).WithHint("handrail status")
	}
	ws.SetReadLimit(maxFrame)
	a.ws = ws
	return nil
}

// makeRaw hands the person's terminal to the session.
func (a *attachment) makeRaw() (restore func(), err error) {
	fd, tty := terminal(a.Stdin)
	if !tty || (a.input && !a.pty) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot prepare the terminal").WithHint("handrail ssh -T …")
	}
	a.setRaw(true)
	return func() {
		a.setRaw(false)
		_ = term.Restore(fd, old)
		if _, shown := terminal(a.Stdout); shown && !a.exited {
			_, _ = io.WriteString(a.Stdout, calmScreen)
		}
	}, nil
}

func (a *attachment) setRaw(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.raw = on
}

func (a *attachment) isRaw() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.raw
}

func (a *attachment) send(ctx context.Context, f *v1.AttachFrame) error {
	raw, err := proto.Marshal(f)
	if err != nil {
		return err
	}
	return a.ws.Write(ctx, websocket.MessageBinary, raw)
}

// receive prints what the session sends. Output is acknowledged once it is
// written: a slow terminal slows the session, and nothing is dropped.
func (a *attachment) receive(ctx context.Context) (int, error) {
	for {
		kind, raw, err := a.ws.Read(ctx)
		if a.guest && websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			a.farewell()
			return 0, nil // the session is over, and its status is not ours
		}
		if err != nil {
			return 0, err
		}
		var f v1.AttachFrame
		if kind != websocket.MessageBinary || proto.Unmarshal(raw, &f) != nil {
			return 0, fault.New(fault.Internal, "cannot read what the server sent on session %s", a.session.GetId()).WithHint("handrail version, and compare with handrail status")
		}
		switch v := f.Frame.(type) {
		case *v1.AttachFrame_Output:
			err = a.print(ctx, a.Stdout, v.Output)
		case *v1.AttachFrame_ErrorOutput:
			err = a.print(ctx, a.Stderr, v.ErrorOutput)
		case *v1.AttachFrame_Notice:
			a.notice(v.Notice)
		case *v1.AttachFrame_Session:
			a.session = v.Session
			if !a.input && v.Session.GetState() == "ended" {
				a.farewell()
				return 0, nil
			}
		case *v1.AttachFrame_ExitStatus:
			a.exited = a.why == "" || a.why == "exit"
			a.farewell()
			return exitCode(v.ExitStatus), nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// exitCode fits a remote status into what a process may exit with.
func exitCode(status int32) int {
	if status < 0 || status > 255 {
		return ownFailure
	}
	return int(status)
}

func (a *attachment) print(ctx context.Context, w io.Writer, p []byte) error {
	shown := p
	if a.guest {
		shown = a.screen.filter(p)
	}
	if _, err := w.Write(shown); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot print the output of session %s", a.session.GetId())
	}
	a.unsaid += uint32(len(p))
	if a.unsaid < acknowledge {
		return nil
	}
	said := a.unsaid
	a.unsaid = 0
	return a.send(ctx, &v1.AttachFrame{Frame: &v1.AttachFrame_Acknowledged{Acknowledged: said}})
}

// notice prints what handrail says beside the session. The last word, on how it
// ended, is kept: that a shell simply exited is no news.
func (a *attachment) notice(n *v1.AttachNotice) {
	if n.Kind == "ended" {
		a.why = n.Text
		return
	}
	if n.Text == "" || (n.Kind == "banner" && a.quiet) {
		return
	}
	a.word(n.Text)
}

// farewell says why a session ended that did not end by itself.
func (a *attachment) farewell() {
	if a.why != "" && a.why != "exit" {
		a.word("This session has ended: " + strings.TrimPrefix(a.why, "This session has ended: "))
	}
}

func (a *attachment) word(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text = strings.TrimRight(cleanText(text), "\n")
	end := "\n"
	if a.raw {
		end = "\r\n"
	}
	for _, line := range strings.Split(text, "\n") {
		_, _ = io.WriteString(a.Stderr, line+end)
	}
}

// sendInput passes stdin on. Its end is told to the session, whose output may
// go on for long: "handrail ssh web-1 sort < file" half-closes.
func (a *attachment) sendInput(ctx context.Context, cancel context.CancelCauseFunc) {
	escape := &escapes{word: a.word}
	buf := make([]byte, inputChunk)
	for {
		n, err := a.Stdin.Read(buf)
		if n > 0 {
			p, leave := buf[:n], false
			if a.isRaw() {
				p, leave = escape.filter(p)
			}
			if len(p) > 0 {
				if err := a.send(ctx, &v1.AttachFrame{Frame: &v1.AttachFrame_Input{Input: p}}); err != nil {
					return // receive learns of it too
				}
			}
			if leave {
				cancel(errLeft)
				return
			}
		}
		if err != nil {
			a.inputEnded(ctx, cancel)
			return
		}
	}
}

// linger is how long a guest whose input has ended still sees what it did.
const linger = time.Second

// inputEnded half-closes one's own session. A guest must not: the session is
// somebody else's, so the guest leaves.
func (a *attachment) inputEnded(ctx context.Context, cancel context.CancelCauseFunc) {
	if !a.guest {
		_ = a.send(ctx, &v1.AttachFrame{Frame: &v1.AttachFrame_Eof{Eof: true}})
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(linger):
		cancel(errLeft)
	}
}

// watchKeys lets somebody who only watches leave.
func (a *attachment) watchKeys(ctx context.Context, cancel context.CancelCauseFunc) {
	buf := make([]byte, 64)
	for {
		n, err := a.Stdin.Read(buf)
		if err != nil || strings.ContainsAny(string(buf[:n]), "qQ\x03\x04") {
			cancel(errLeft)
			return
		}
	}
}

// sendSizes follows the size of the person's window, from what it is by now:
// it may have changed since the session was opened.
func (a *attachment) sendSizes(ctx context.Context, changed <-chan os.Signal) {
	for {
		columns, rows := a.windowSize()
		if a.send(ctx, &v1.AttachFrame{Frame: &v1.AttachFrame_Resize{Resize: &v1.Resize{Columns: columns, Rows: rows}}}) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// beat finds out that the link is dead, which TCP alone takes minutes to say.
func (a *attachment) beat(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			ping, done := context.WithTimeout(ctx, heartbeat)
			err := a.ws.Ping(ping)
			done()
			if err != nil && ctx.Err() == nil {
				cancel(fault.New(fault.Unavailable, "cannot hear the server any more"))
				return
			}
		}
	}
}

// reason says why the attachment ended without an exit status.
func (a *attachment) reason(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	var f *fault.Error
	switch {
	case errors.Is(cause, errLeft) && !a.guest:
		return fault.New(fault.Unavailable, "left session %s on %s", a.session.GetId(), target(a.session))
	case errors.Is(cause, errLeft):
		return nil
	case errors.As(cause, &f), errors.As(err, &f):
		return f
	case ctx.Err() != nil:
		return fault.New(fault.Unavailable, "left session %s on %s: interrupted", a.session.GetId(), target(a.session))
	case a.why != "":
		return fault.New(fault.Unavailable, "cannot go on with session %s on %s: %s", a.session.GetId(), target(a.session), a.why).
			WithHint("handrail session show %s", a.session.GetId())
	}
	return fault.New(fault.Unavailable, "lost session %s on %s: the connection broke", a.session.GetId(), target(a.session)).
		WithHint("handrail session show %s", a.session.GetId())
}
