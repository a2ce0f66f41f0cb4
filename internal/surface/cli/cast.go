package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// caster writes a recording as asciicast v3: a line of JSON that says what it
// is, then one line an event, each with the time since the one before. What was
// typed is left out, since it may be a password that nobody saw; the file says
// so itself.
type caster struct {
	w     *bufio.Writer
	last  time.Duration
	tail  []byte // the begin of a letter whose end has not come yet
	gaps  int
	lines int
	err   error
}

type castHeader struct {
	Version   int      `json:"version"`
	Term      castTerm `json:"term"`
	Timestamp int64    `json:"timestamp,omitempty"`
	Command   string   `json:"command,omitempty"`
	Title     string   `json:"title,omitempty"`
	Tags      []string `json:"tags,omitempty"`
}

type castTerm struct {
	Cols uint32 `json:"cols"`
	Rows uint32 `json:"rows"`
	Type string `json:"type,omitempty"`
}

// leavesOut is what an export does not hold, in its own words.
const leavesOut = "It leaves out what was typed, who watched, and pauses by others. It proves nothing by itself: handrail ledger verify does."

func newCaster(w io.Writer, s *v1.Session, columns, rows uint32) *caster {
	c := &caster{w: bufio.NewWriter(w)}
	h := castHeader{
		Version: 3, Term: castTerm{Cols: orSize(columns, 80), Rows: orSize(rows, 24), Type: "xterm-256color"},
		Command: s.GetCommand(), Title: fmt.Sprintf("%s on %s (%s)", s.GetPersonName(), s.GetHostName(), s.GetId()),
		Tags: []string{"handrail", s.GetLevel(), s.GetKind()},
	}
	if s.GetStarted() != nil {
		h.Timestamp = s.Started.AsTime().Unix()
	}
	c.line(h)
	c.comment("Session " + s.GetId() + ", exported by handrail. " + leavesOut)
	return c
}

func orSize(n, other uint32) uint32 {
	if n == 0 {
		return other
	}
	return n
}

func (c *caster) line(v any) {
	b, err := json.Marshal(v)
	if c.err == nil {
		c.err = err
	}
	c.raw(string(b) + "\n")
}

func (c *caster) comment(text string) { c.raw("# " + strings.Join(strings.Fields(text), " ") + "\n") }

func (c *caster) raw(s string) {
	if c.err == nil {
		_, c.err = c.w.WriteString(s)
	}
}

func (c *caster) event(at time.Duration, code, data string) {
	wait := max(at-c.last, 0)
	c.last += wait
	c.lines++
	c.line([]any{math.Round(wait.Seconds()*1e6) / 1e6, code, data})
}

// take writes one event of a recording.
func (c *caster) take(e *v1.ReplaySessionResponse) error {
	at := offsetOf(e)
	switch e.Kind {
	case "output", "error":
		if text := c.whole(e.Data); text != "" {
			c.event(at, "o", text)
		}
	case "resize":
		if e.Columns > 0 && e.Rows > 0 {
			c.event(at, "r", fmt.Sprintf("%dx%d", e.Columns, e.Rows))
		}
	case "chapter":
		c.event(at, "m", strings.TrimSpace(e.Text))
	case "gap":
		c.gaps++
		c.event(at, "m", "gap: "+e.Text)
		c.comment("Here the recording itself has a gap: " + e.Text)
	}
	return c.err
}

// whole is the text so far, up to the last whole letter: an event may end in
// the middle of one.
func (c *caster) whole(data []byte) string {
	b := append(c.tail, data...)
	n := len(b)
	for back := 1; back <= utf8.UTFMax-1 && back <= len(b); back++ {
		if r := b[len(b)-back]; utf8.RuneStart(r) {
			if !utf8.FullRune(b[len(b)-back:]) {
				n = len(b) - back
			}
			break
		}
	}
	text := strings.ToValidUTF8(string(b[:n]), "\uFFFD")
	c.tail = append([]byte(nil), b[n:]...)
	return text
}

func (c *caster) close(s *v1.Session) error {
	if len(c.tail) > 0 {
		c.event(c.last, "o", "\uFFFD")
	}
	if s.GetState() == "ended" {
		c.event(c.last, "x", fmt.Sprint(s.GetExitStatus()))
	} else {
		c.comment("The session had not ended when this was exported.")
	}
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}

// exportCast writes a recording into a new file; - is stdout.
func (t *tool) exportCast(r *tape, name string) error {
	out := t.out()
	if name != "-" {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot export the recording of %s", r.session.Id).WithHint("name a file that is not there yet")
		}
		defer f.Close()
		out = f
	}
	c := newCaster(out, r.session, r.columns, r.rows)
	err := r.each(c.take)
	if cerr := c.close(r.session); err == nil && cerr != nil {
		err = fault.Wrap(fault.Exhausted, cerr, "cannot export the recording of %s", r.session.Id)
	}
	if err != nil {
		if name != "-" {
			_ = os.Remove(name) // half an export would look like all of it
		}
		return err
	}
	gaps := ""
	if c.gaps > 0 {
		gaps = fmt.Sprintf(" The recording has %s, marked in the file.", count(c.gaps, "gap"))
	}
	t.say("Wrote %s of %s as asciicast v3.%s %s", count(c.lines, "event"), r.session.Id, gaps, leavesOut)
	return nil
}
