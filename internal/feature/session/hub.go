package session

import (
	"errors"
	"io"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// pump moves frames from the node until the session is over. It is the one
// goroutine that delivers output, so what the owner sees is in order.
func (l *Live) pump() {
	if !l.awaitOwner() {
		return
	}
	for {
		t, p, err := l.stream.Next()
		if err != nil {
			l.lost(err)
			return
		}
		over, err := l.frame(t, p)
		if err != nil {
			l.cut()
			return
		}
		if over {
			return
		}
	}
}

// awaitOwner waits until somebody takes the output. Frames that come before
// wait in the node's stream.
func (l *Live) awaitOwner() bool {
	t := time.NewTimer(l.s.b.AttachWithin)
	defer t.Stop()
	select {
	case <-l.owned:
		return true
	case <-t.C:
		l.end(WhyHangup, "nobody attached")
		return false
	case <-l.ctx.Done():
		return false
	}
}

// lost is called when the node's stream ends without an exit frame.
func (l *Live) lost(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == "" {
		l.why = WhyLost
		l.failure = fault.Wrap(fault.Unavailable, cleanEOF(err), "cannot go on with session %s: its node went away", l.fixed.ID).
			WithHint("handrail host show %s", l.fixed.HostName)
	}
}

func cleanEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the stream closed")
	}
	return err
}

// cut is called when a frame cannot be handed on: the owner is gone, or the
// recorder refuses. The node's exit frame is still worth waiting for: it says
// that the session is dead.
func (l *Live) cut() {
	l.end(WhyHangup, "") // unless a stop or the recorder has said why already
	for {
		t, p, err := l.stream.Next()
		if err != nil {
			return
		}
		if t == wire.FrameExit {
			l.ended(p)
			return
		}
	}
}

// frame handles one frame from the node: the recorder first, then everybody.
func (l *Live) frame(t wire.FrameType, p []byte) (over bool, err error) {
	switch t {
	case wire.FrameStdout:
		return false, l.output(recording.Output, Event{Kind: Output, Data: p})
	case wire.FrameStderr:
		return false, l.output(recording.Error, Event{Kind: ErrorOutput, Data: p})
	case wire.FrameExit:
		e := l.ended(p)
		l.awaitSpoken()
		_ = l.owner.Deliver(e)
		return true, nil
	case wire.FrameNotice, wire.FrameRefusal:
		return false, l.notice(t, string(p))
	case wire.FramePaused:
		l.pausedByNode(string(p))
	case wire.FrameResumed:
		l.setRunning()
	case wire.FrameChapter:
		return false, l.record(recording.Chapter, "", p)
	case wire.FramePing:
		return false, l.stream.Write(wire.FramePong, nil)
	}
	return false, nil
}

func (l *Live) output(kind recording.Kind, e Event) error {
	if err := l.record(kind, "", e.Data); err != nil {
		return err
	}
	if l.tty && kind == recording.Output {
		for _, command := range l.label.scan(e.Data) {
			if err := l.record(recording.Chapter, "", []byte(command)); err != nil {
				return err
			}
		}
	}
	l.mu.Lock()
	l.remember(e.Data)
	for a := range l.watchers {
		a.q.offer(e)
	}
	l.mu.Unlock()
	return l.owner.Deliver(e)
}

func (l *Live) notice(t wire.FrameType, text string) error {
	if err := l.record(recording.Notice, "", []byte(text)); err != nil {
		return err
	}
	e := Event{Kind: Notice, Notice: NoticeBanner, Text: text}
	if t == wire.FrameRefusal {
		e.Notice = NoticeRefusal
	}
	l.offer(e)
	return l.owner.Deliver(e)
}

// ended takes the node's exit frame. Why it ended is our own word before the
// node's.
func (l *Live) ended(p []byte) Event {
	exit, err := wire.DecodeExit(p)
	if err != nil {
		exit = wire.Exit{Status: 255, Why: "the node's last frame is malformed"}
	}
	l.mu.Lock()
	l.exit = &exit
	if l.why == "" {
		l.why = map[string]string{"deadline": WhyExpired, "stopped": WhyStopped, "lease": WhyLost,
			"gateway": WhyHangup, "budget": WhyBudget, "lost": WhyLost}[exit.Why]
	}
	if l.why == "" {
		l.why = WhyExit
	}
	e := Event{Kind: Exit, Status: exit.Status, Signal: exit.Signal, Text: l.why}
	l.mu.Unlock()
	_ = l.rec.Write(recording.Exit, recording.ExitData(exit.Status, e.Text))
	l.offer(e)
	return e
}

// remember keeps the last output, so that who comes later sees where it is.
// The caller holds l.mu.
func (l *Live) remember(p []byte) {
	if len(p) >= tailSize {
		l.tail = append(l.tail[:0], p[len(p)-tailSize:]...)
		return
	}
	if over := len(l.tail) + len(p) - tailSize; over > 0 {
		l.tail = l.tail[:copy(l.tail, l.tail[over:])]
	}
	l.tail = append(l.tail, p...)
}

// offer hands an event to the watchers; it never blocks.
func (l *Live) offer(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range l.watchers {
		a.q.offer(e)
	}
}

// staleFrame is how long a frame that says "paused" may have been on its way
// when the session went on: pause and resume are written by different
// goroutines over there.
const staleFrame = 2 * time.Second

func (l *Live) pausedByNode(why string) {
	l.mu.Lock()
	stale := time.Since(l.resumed) < staleFrame
	l.mu.Unlock()
	if !stale {
		l.setPaused(why)
	}
}

func (l *Live) setPaused(why string) {
	l.mu.Lock()
	if why != "" || l.info.PausedWhy == "" {
		l.info.PausedWhy = why
	}
	was := l.info.State
	if was != StateEnded {
		l.info.State = StatePaused
	}
	select {
	case <-l.running:
		l.running = make(chan struct{})
	default:
	}
	text := "This session is paused" + colon(l.info.PausedWhy)
	l.mu.Unlock()
	if was == StateLive || was == StateStarting {
		_ = l.rec.Write(recording.Pause, []byte(why))
		l.tell(NoticePaused, text)
		l.changed()
	}
}

func (l *Live) setRunning() {
	l.mu.Lock()
	was := l.info.State
	if was == StatePaused {
		l.info.State, l.info.PausedWhy, l.resumed = StateLive, "", time.Now()
	}
	select {
	case <-l.running:
	default:
		close(l.running)
	}
	l.mu.Unlock()
	if was == StatePaused {
		_ = l.rec.Write(recording.Resume, nil)
		l.tell(NoticeResumed, "This session goes on.")
		l.changed()
	}
}
