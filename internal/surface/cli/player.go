package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/term"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	minSpeed  = 0.125
	maxSpeed  = 64.0
	seekStep  = 5 * time.Second
	maxRedraw = time.Hour // a timer is never longer; what is due is looked at again
)

// player is a position on the clock of a recording. It does no I/O: what is
// due, and where a key leads, is a function of its fields.
type player struct {
	pos    time.Duration // on the recording's clock
	next   int           // the first event that was not shown
	speed  float64
	idle   time.Duration // pauses are shortened to this; 0 keeps them
	paused bool
}

// pass lets time go by.
func (p *player) pass(d time.Duration) {
	if !p.paused {
		p.pos += time.Duration(float64(d) * p.speed)
	}
}

// due returns the events to show now, and how long it is until the next one.
// Without a next one the wait is negative.
func (p *player) due(events []*v1.ReplaySessionResponse) (show []*v1.ReplaySessionResponse, wait time.Duration) {
	if p.next < len(events) && p.idle > 0 && !p.paused {
		if gap := offsetOf(events[p.next]) - p.pos; gap > p.idle {
			p.pos += gap - p.idle
		}
	}
	from := p.next
	for p.next < len(events) && offsetOf(events[p.next]) <= p.pos {
		p.next++
	}
	if p.next == len(events) || p.paused {
		return events[from:p.next], -1
	}
	gap := offsetOf(events[p.next]) - p.pos
	if p.idle > 0 {
		gap = min(gap, p.idle)
	}
	return events[from:p.next], min(time.Duration(float64(gap)/p.speed)+time.Millisecond, maxRedraw)
}

// seek moves to a position; what was shown before it has to be shown again.
func (p *player) seek(to time.Duration, events []*v1.ReplaySessionResponse) (again []*v1.ReplaySessionResponse) {
	end := time.Duration(0)
	if len(events) > 0 {
		end = offsetOf(events[len(events)-1])
	}
	p.pos, p.next = max(0, min(to, end)), 0
	for p.next < len(events) && offsetOf(events[p.next]) <= p.pos {
		p.next++
	}
	return events[:p.next]
}

// faster changes the speed by a factor, within bounds.
func (p *player) faster(factor float64) { p.speed = max(minSpeed, min(p.speed*factor, maxSpeed)) }

// beside is the chapter before or after the position. A step back shortly
// behind the start of a chapter goes to the one before it.
func (p *player) beside(list []chapter, forward bool) (time.Duration, bool) {
	if forward {
		for _, c := range list {
			if c.at > p.pos {
				return c.at, true
			}
		}
		return 0, false
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].at < p.pos-time.Second {
			return list[i].at, true
		}
	}
	return 0, true
}

// show is a player at a terminal.
type show struct {
	*tool
	*player
	tape   *tape
	screen screen
	menu   bool   // the list of chapters is open
	typed  string // the number typed in it
	ended  bool
}

// play shows a recording until the person leaves or ctx ends.
func (t *tool) play(ctx context.Context, fd int, r *tape, p *player) error {
	go r.load()
	old, err := term.MakeRaw(fd)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot prepare the terminal").WithHint("handrail replay %s | less -R", r.session.Id)
	}
	defer term.Restore(fd, old)
	s := &show{tool: t, player: p, tape: r}
	defer fmt.Fprint(t.out(), calmScreen, "\r\n")
	keys := make(chan []byte)
	go t.readKeys(ctx, keys)
	start := p.pos
	last := t.Now()
	for {
		events, done, more := r.look()
		if start > 0 && (done || (len(events) > 0 && offsetOf(events[len(events)-1]) >= start)) {
			s.draw(p.seek(start, events))
			start = 0
		}
		wait := time.Duration(-1)
		if start == 0 && !s.menu {
			var now []*v1.ReplaySessionResponse
			now, wait = p.due(events)
			s.print(now)
			s.atEnd(done && p.next == len(events))
		}
		timer := time.NewTimer(maxRedraw)
		if wait >= 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		case <-timer.C:
		case key, open := <-keys:
			if !open || s.key(string(key)) {
				return r.trouble()
			}
		}
		timer.Stop()
		now := t.Now()
		if !s.menu && !s.ended && start == 0 {
			p.pass(now.Sub(last))
		}
		last = now
	}
}

// readKeys passes keys on; an arrow comes as one read of three bytes.
func (t *tool) readKeys(ctx context.Context, keys chan<- []byte) {
	defer close(keys)
	buf := make([]byte, 64)
	for {
		n, err := t.Stdin.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) > 0; {
			size := 1
			if bytes.HasPrefix(rest, []byte("\x1b[")) && len(rest) >= 3 {
				size = 3
			}
			select {
			case keys <- append([]byte(nil), rest[:size]...):
			case <-ctx.Done():
				return
			}
			rest = rest[size:]
		}
	}
}

func (s *show) print(events []*v1.ReplaySessionResponse) {
	var b bytes.Buffer
	for _, e := range events {
		switch e.Kind {
		case "output", "error":
			b.Write(s.screen.filter(e.Data))
		case "gap":
			fmt.Fprintf(&b, "\r\n\x1b[7m[gap: %s]\x1b[0m\r\n", clean(e.Text))
		}
	}
	_, _ = s.out().Write(b.Bytes())
}

// draw shows everything again from the start, on a terminal made new.
func (s *show) draw(events []*v1.ReplaySessionResponse) {
	s.screen, s.ended = screen{}, false
	fmt.Fprint(s.out(), "\x1bc")
	s.print(events)
}

// atEnd says once that the recording has ended, and waits for a key.
func (s *show) atEnd(end bool) {
	if end && !s.ended {
		s.bar("the end")
	}
	s.ended = end
}

// bar is one line over the last row of the window.
func (s *show) bar(what string) {
	columns, rows := s.windowSize()
	events, done, _ := s.tape.look()
	total := "…"
	if done && len(events) > 0 {
		total = stamp(offsetOf(events[len(events)-1]))
	}
	text := fmt.Sprintf(" %s  %s of %s  speed %g   space ←/→ [/] +/- c q", what, stamp(s.pos), total, s.speed)
	if r := []rune(text); len(r) > int(columns) {
		text = string(r[:columns])
	}
	fmt.Fprintf(s.out(), "\x1b7\x1b[%d;1H\x1b[0;7m%s\x1b[K\x1b[0m\x1b8", rows, text)
}

// key acts on a key; true leaves.
func (s *show) key(key string) bool {
	events, _, _ := s.tape.look()
	if s.menu {
		return s.menuKey(key, events)
	}
	switch key {
	case "q", "Q", "\x03", "\x04":
		return true
	case " ":
		s.paused = !s.paused
		if s.paused {
			s.bar("paused")
		} else {
			s.draw(s.seek(s.pos, events))
		}
	case "\x1b[C":
		s.jump(s.pos+seekStep, events)
	case "\x1b[D":
		s.jump(s.pos-seekStep, events)
	case "]", "[":
		if to, ok := s.beside(chaptersOf(events), key == "]"); ok {
			s.jump(to, events)
		}
	case "+", "=":
		s.faster(2)
		s.bar("playing")
	case "-", "_":
		s.faster(0.5)
		s.bar("playing")
	case "c", "C":
		s.menu, s.typed = true, ""
		s.chapters(chaptersOf(events))
	}
	return false
}

func (s *show) jump(to time.Duration, events []*v1.ReplaySessionResponse) {
	s.draw(s.seek(to, events))
	if s.paused {
		s.bar("paused")
	}
}

// chapters lists the commands, those around the position if they are many.
func (s *show) chapters(list []chapter) {
	_, rows := s.windowSize()
	room := max(int(rows)-4, 1)
	current := 0
	for i, c := range list {
		if c.at <= s.pos {
			current = i
		}
	}
	from := max(0, min(current-room/2, len(list)-room))
	var b strings.Builder
	b.WriteString("\x1b[0m\x1b[2J\x1b[H")
	for i := from; i < len(list) && i < from+room; i++ {
		mark := " "
		if i == current {
			mark = ">"
		}
		fmt.Fprintf(&b, "%s %3d  %8s  %s\r\n", mark, i+1, stamp(list[i].at), clean(list[i].text))
	}
	if len(list) == 0 {
		b.WriteString("This recording has no commands.\r\n")
	}
	fmt.Fprintf(&b, "\r\nNumber and Enter jumps, any other key goes back: %s", s.typed)
	fmt.Fprint(s.out(), b.String())
}

func (s *show) menuKey(key string, events []*v1.ReplaySessionResponse) bool {
	list := chaptersOf(events)
	switch {
	case key == "\x03":
		return true
	case len(key) == 1 && key[0] >= '0' && key[0] <= '9' && len(s.typed) < 6:
		s.typed += key
		s.chapters(list)
		return false
	}
	s.menu = false
	n := 0
	if key == "\r" || key == "\n" {
		_, _ = fmt.Sscan(s.typed, &n)
	}
	if n >= 1 && n <= len(list) {
		s.jump(list[n-1].at, events)
	} else {
		s.jump(s.pos, events)
	}
	return false
}
