package inspect

import (
	"encoding/json"
	"io"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/mask"
)

// answer writes records, each masked and bounded. Nothing leaves but through
// put, note and close.
type answer struct {
	w     *wire.Writer
	file  io.Closer
	lines mask.Lines
	most  int64
	end   wire.InspectEnd
	began time.Time
}

func newAnswer(f interface {
	io.Writer
	io.Closer
}, s wire.InspectSpec) *answer {
	a := &answer{w: wire.NewWriter(f), file: f, most: s.Lines, began: time.Now()}
	if a.most <= 0 || a.most > wire.MaxInspectLines {
		a.most = wire.MaxInspectLines
	}
	return a
}

// note says what the answer does not show.
func (a *answer) note(text string) { a.send(wire.InspectRecord{Note: text}) }

// put sends a record; false says that there is no more room for another.
func (a *answer) put(r wire.InspectRecord) bool {
	if a.end.Records >= a.most || a.end.Bytes >= wire.MaxInspectBytes {
		a.end.Cut = true
		return false
	}
	a.end.Records++
	return a.send(r)
}

func (a *answer) send(r wire.InspectRecord) bool {
	a.mask(&r)
	b, err := json.Marshal(r)
	if err != nil {
		return true
	}
	if len(b) > wire.MaxFrame {
		if b = shorter(r); b == nil {
			a.end.Cut = true
			return true
		}
	}
	a.end.Bytes += int64(len(b))
	return a.w.Write(wire.FrameStdout, b) == nil
}

// shorter is the record without what makes it too long.
func shorter(r wire.InspectRecord) []byte {
	if s := r.Stack; s != nil {
		s.Frames, s.Cut = s.Frames[:min(len(s.Frames), 40)], true
		s.More += int64(len(s.Threads) - min(len(s.Threads), 40))
		s.Threads = s.Threads[:min(len(s.Threads), 40)]
		for i := range s.Frames {
			cut(&s.Frames[i].Function, 400)
			cut(&s.Frames[i].File, 200)
			cut(&s.Frames[i].Note, 200)
		}
	}
	if r.Line != nil {
		cut(&r.Line.Text, 16<<10)
	}
	if r.Variable != nil {
		cut(&r.Variable.Value, 4<<10)
	}
	if b, err := json.Marshal(r); err == nil && len(b) <= wire.MaxFrame {
		return b
	}
	return nil
}

func cut(s *string, most int) {
	if len(*s) > most {
		*s = (*s)[:most] + "…"
	}
}

// late says that time is up, while somebody else may be writing: what was sent
// until then stands.
func (a *answer) late() {
	b, err := json.Marshal(wire.InspectRecord{End: &wire.InspectEnd{Kind: fault.Exhausted.String(), Cut: true,
		Error: "cannot go on: the look took longer than it may", Hint: "ask for less: a process instead of the host, fewer lines"}})
	if err != nil {
		return
	}
	sent := make(chan struct{})
	go func() { // who does not read may not hold this up
		_ = a.w.Write(wire.FrameStdout, b)
		close(sent)
	}()
	select {
	case <-sent:
	case <-time.After(time.Second):
	}
}

// close sends the last record.
func (a *answer) close() {
	end := a.end
	a.send(wire.InspectRecord{End: &end})
	a.file.Close()
}

func (a *answer) text(words ...*string) {
	for _, w := range words {
		var n int
		*w, n = mask.Text(*w)
		a.end.Masked += int64(n)
	}
}

// code masks what names code: there a colon is no sign of a value.
func (a *answer) code(words ...*string) {
	for _, w := range words {
		var n int
		*w, n = mask.Code(*w)
		a.end.Masked += int64(n)
	}
}

func (a *answer) mask(r *wire.InspectRecord) {
	for _, t := range []*wire.InspectTarget{r.Target, r.Candidate} {
		if t != nil {
			a.text(&t.Name, &t.Command) // the command was masked word by word before
			a.code(&t.Unit)
		}
	}
	if s := r.Stack; s != nil {
		for i := range s.Threads {
			a.text(&s.Threads[i].Name, &s.Threads[i].Wait)
		}
		for i := range s.Frames {
			f := &s.Frames[i]
			a.code(&f.Function, &f.File, &f.Module, &f.Note)
		}
		a.text(&s.Why)
	}
	if p := r.Process; p != nil {
		a.text(&p.Name, &p.Command)
		a.code(&p.Unit)
	}
	if g := r.Group; g != nil {
		a.code(&g.Path)
	}
	if s := r.Socket; s != nil {
		a.text(&s.Name)
		a.code(&s.Local, &s.Unit)
	}
	if f := r.File; f != nil {
		a.code(&f.Path, &f.LinkedTo)
	}
	if l := r.Line; l != nil {
		var n int
		l.Text, n = a.lines.Line(l.Text)
		a.end.Masked += int64(n)
	}
	if v := r.Variable; v != nil && v.Masked != "" {
		a.end.Masked++
	}
	if e := r.End; e != nil {
		a.code(&e.Error)
	}
	a.text(&r.Note)
}
