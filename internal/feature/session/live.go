package session

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Live is one live session.
type Live struct {
	s     *Sessions
	by    identity.Principal
	fixed Info // id, person, host, level and kind; never changes
	tty   bool
	ctx   context.Context // ends when the session is over
	over  context.CancelFunc
	done  chan struct{} // closed when the closing entry is written

	rec    *recording.Recorder
	stream Stream
	input  sync.Mutex // the order in which input is recorded is the order in which it is sent
	label  labels

	mu        sync.Mutex
	info      Info
	spec      wire.SessionSpec
	owner     Owner
	owned     chan struct{}
	running   chan struct{} // closed while the session is not paused
	watchers  map[*Attachment]struct{}
	tail      []byte // the last output, for who comes later
	why       string // why it ends; set once
	whyText   string
	exit      *wire.Exit
	failure   error // what the person is told, if it ended by a failure of ours
	timers    []*time.Timer
	away      *time.Timer // until a session that waits for its buddy ends
	resumed   time.Time   // when it last went on
	noticesIn int         // notices on their way to the owner
	spoken    *sync.Cond  // on mu: one of them arrived
	changing  sync.Mutex  // pause and resume, one at a time
}

const (
	tailSize   = 32 << 10
	maxNotices = 16
)

func newLive(s *Sessions, by identity.Principal, info Info, tty bool) *Live {
	ctx, over := context.WithCancel(context.Background())
	l := &Live{s: s, by: by, fixed: info, info: info, tty: tty, ctx: ctx, over: over,
		done: make(chan struct{}), owned: make(chan struct{}), running: make(chan struct{}), watchers: map[*Attachment]struct{}{}}
	l.spoken = sync.NewCond(&l.mu)
	close(l.running)
	if tty && info.Kind == wire.SessionShell && info.PersonName != "" {
		l.label.prompt = []byte(info.PersonName + "@" + info.HostName + ":")
	}
	return l
}

// ID is the session's id.
func (l *Live) ID() string { return l.fixed.ID }

// Info is the session as it is now.
func (l *Live) Info() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snapshot()
}

func (l *Live) snapshot() Info {
	info := l.info
	if l.exit != nil {
		info.State, info.EndedWhy = StateEnded, l.why
	}
	if l.rec != nil {
		info.RecordingBytes = l.rec.Size()
	}
	for a := range l.watchers {
		info.Watchers = append(info.Watchers, Watching{Person: a.by.ID, Name: a.by.Name, Joined: a.mode == ModeJoin, Since: a.since})
	}
	return info
}

// Spec is the order's description of the session: banner, prompt, deadline.
func (l *Live) Spec() wire.SessionSpec {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spec
}

// peek is the session without what costs to know.
func (l *Live) peek() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.info
}

// Done is closed when the session has ended and its closing entry is written.
func (l *Live) Done() <-chan struct{} { return l.done }

// Result is how it ended: the exit status, why, and the failure that a person
// is told, if it was handrail that failed. It is valid once Done is closed.
func (l *Live) Result() (exit wire.Exit, why string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exit != nil {
		exit = *l.exit
	} else {
		exit.Status = 255
	}
	return exit, l.why, l.failure
}

// Own gives the session its owner; output flows from now on. A session has one.
func (l *Live) Own(o Owner) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owner != nil {
		return fault.New(fault.Conflict, "cannot attach to session %s: its owner is attached", l.fixed.ID)
	}
	l.owner = o
	close(l.owned)
	return nil
}

// Hangup ends the session because its person went away.
func (l *Live) Hangup() { l.end(WhyHangup, "") }

// Send takes input, resize, EOF and signals from the session's owner.
func (l *Live) Send(e Event) error { return l.send(e, "") }

// send records, then forwards. typist is who typed, if not the owner. It
// blocks while the session is paused: nothing typed is lost, and nothing typed
// acts.
func (l *Live) send(e Event, typist string) error {
	if err := l.awaitRunning(); err != nil {
		return err
	}
	l.input.Lock()
	defer l.input.Unlock()
	if l.ctx.Err() != nil {
		return io.ErrClosedPipe
	}
	switch e.Kind {
	case Input:
		kind := recording.Input
		if typist != "" {
			kind = recording.Typed
		}
		if err := l.record(kind, typist, e.Data); err != nil {
			return err
		}
		return l.stream.Write(wire.FrameStdin, e.Data)
	case Resize:
		if err := l.record(recording.Resize, "", recording.ResizeData(e.Cols, e.Rows)); err != nil {
			return err
		}
		l.offer(e)
		l.mu.Lock()
		l.spec.Cols, l.spec.Rows = e.Cols, e.Rows
		l.mu.Unlock()
		return l.stream.Write(wire.FrameResize, wire.EncodeResize(e.Cols, e.Rows))
	case EOF:
		return l.stream.Write(wire.FrameEOF, nil)
	case Signal:
		name := strings.TrimPrefix(e.Text, "SIG")
		if !signals[name] {
			return fault.New(fault.Invalid, "cannot send signal %q", e.Text)
		}
		if err := l.record(recording.Notice, "", []byte("signal "+name)); err != nil {
			return err
		}
		return l.stream.Write(wire.FrameSignal, []byte(name))
	default:
		return fault.New(fault.Invalid, "cannot send this to a session")
	}
}

var signals = map[string]bool{"INT": true, "TERM": true, "HUP": true, "QUIT": true, "KILL": true, "USR1": true,
	"USR2": true, "ALRM": true, "ABRT": true, "PIPE": true}

func (l *Live) awaitRunning() error {
	l.mu.Lock()
	running := l.running
	l.mu.Unlock()
	select {
	case <-running:
		return nil
	default:
	}
	select {
	case <-running:
		return nil
	case <-l.ctx.Done():
		return io.ErrClosedPipe
	}
}

// record writes to the recording; a recorder that cannot write ends the session.
func (l *Live) record(kind recording.Kind, by string, data []byte) error {
	err := l.rec.WriteBy(kind, by, data)
	if err != nil {
		l.mu.Lock()
		if l.failure == nil && l.exit == nil {
			l.failure = err
		}
		l.mu.Unlock()
		l.end(WhyRecorder, fault.From(err).Text)
	}
	return err
}

// end makes the session end, once. The brake comes first; what the node then
// says, or its silence, decides how it is recorded. It says whether this call
// was the one.
func (l *Live) end(why, text string) bool {
	return l.endBy(why, text, func() { l.brake(wire.BrakeStopSession, why) })
}

// endBy is end, with what ends it on its node.
func (l *Live) endBy(why, text string, brake func()) bool {
	l.mu.Lock()
	if l.why != "" || l.exit != nil {
		l.mu.Unlock()
		return false
	}
	l.why, l.whyText = why, text
	stream, owner := l.stream, l.owner
	words := endingText(why, text)
	if words != "" && stream != nil {
		l.noticesIn++ // counted before the brake: the person reads why before the end
	}
	l.mu.Unlock()
	if stream == nil {
		l.over() // still starting: Nodes.Start is cancelled
		return true
	}
	if why == WhyHangup && owner != nil {
		owner.Abort()
	}
	go brake()
	l.later(l.s.b.EndGrace, func() {
		_ = stream.Close()
		if owner != nil {
			owner.Abort()
		}
		l.over()
	})
	if words != "" {
		l.speak(NoticeEnding, words)
	}
	return true
}

func endingText(why, text string) string {
	switch why {
	case WhyStopped:
		if text == "" {
			return "This session was stopped."
		}
		return "This session was stopped by " + text
	case WhyExpired:
		return "Time is up: this session ends."
	case WhyRevoked:
		return "The grant was ended" + colon(text)
	case WhyLocked:
		return "This session was ended: you are locked" + colon(text)
	case WhyPauseTimeout:
		return "Nobody came to watch: this session ends."
	case WhyShutdown:
		if text != "" {
			return "This session ends: " + text
		}
	case WhyRecorder:
		return "This session can no longer be recorded, so it ends" + colon(text)
	}
	return ""
}

func colon(text string) string {
	if text == "" {
		return "."
	}
	return ": " + text
}

// brake stops or pauses on the node. The signature of the order key is enough.
func (l *Live) brake(kind, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := l.s.d.Nodes.Brake(ctx, wire.Brake{V: 1, ID: brakeID(), Kind: kind, Node: l.fixed.Host,
		Session: l.fixed.ID, Person: l.fixed.Person, Reason: reason, Issued: time.Now().UnixMicro()})
	if err != nil {
		// The node is away; its stream is cut after the grace, and its lease ends it.
		l.s.d.Log.Warn("cannot brake a session on its node", "session", l.fixed.ID, "kind", kind, "error", err)
	}
}

// later runs f after d unless the session is over by then.
func (l *Live) later(d time.Duration, f func()) *time.Timer {
	t := time.AfterFunc(d, f)
	l.mu.Lock()
	l.timers = append(l.timers, t)
	l.mu.Unlock()
	return t
}

// tell records a notice and shows it to the owner and to all watchers, without
// waiting for any of them.
func (l *Live) tell(kind NoticeKind, text string) {
	l.mu.Lock()
	if l.rec == nil || l.noticesIn >= maxNotices {
		l.mu.Unlock()
		return // still starting, or a person who does not read
	}
	l.noticesIn++
	l.mu.Unlock()
	l.speak(kind, text)
}

// speak is tell after the notice was counted.
func (l *Live) speak(kind NoticeKind, text string) {
	_ = l.rec.Write(recording.Notice, []byte(text))
	e := Event{Kind: Notice, Notice: kind, Text: text}
	l.offer(e)
	l.mu.Lock()
	owner := l.owner
	l.mu.Unlock()
	go func() {
		if owner != nil {
			_ = owner.Deliver(e)
		}
		l.mu.Lock()
		l.noticesIn--
		l.spoken.Broadcast()
		l.mu.Unlock()
	}()
}

// awaitSpoken waits until the owner has all notices; the end comes after them.
func (l *Live) awaitSpoken() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.noticesIn > 0 {
		l.spoken.Wait()
	}
}

// Tell shows a line in the session, as break-glass does.
func (l *Live) Tell(text string) { l.tell(NoticeBanner, text) }

// changed tells the rest of the server and all watchers that the state changed.
func (l *Live) changed() {
	info := l.Info()
	l.offer(Event{Kind: State, Session: &info})
	l.s.d.Changed(info)
}
