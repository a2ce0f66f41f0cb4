package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// lookView is a brokered read as a person sees it: tables, and stacks with the
// threads that stand in the same place folded into one.
type lookView struct {
	t      *tool
	q      *v1.InspectRequest
	answer *v1.InspectAnswer
}

func (v *lookView) names() []string {
	var out []string
	for _, r := range v.answer.Records {
		switch x := r.Record.(type) {
		case *v1.InspectResponse_Candidate:
			out = append(out, strconv.FormatInt(x.Candidate.Pid, 10))
		case *v1.InspectResponse_Process:
			out = append(out, strconv.FormatInt(x.Process.Pid, 10))
		case *v1.InspectResponse_Variable:
			out = append(out, x.Variable.Name)
		case *v1.InspectResponse_File:
			out = append(out, x.File.Path)
		case *v1.InspectResponse_Socket:
			out = append(out, x.Socket.Local)
		}
	}
	return out
}

// words says what the answer lacks and how it was come by.
func (v *lookView) words() {
	id := ""
	for _, r := range v.answer.Records {
		switch x := r.Record.(type) {
		case *v1.InspectResponse_Began:
			id = x.Began.Id
			if x.Began.Visited {
				v.t.say("handrail: %s has no node: one came for this look (floor: %s)", clean(x.Began.HostName), clean(x.Began.Floor))
			}
		case *v1.InspectResponse_Note:
			v.t.say("handrail: %s", clean(x.Note))
		case *v1.InspectResponse_End:
			if x.End.Method != "" {
				v.t.say("handrail: how: %s", clean(x.End.Method))
			}
			v.t.say("handrail: %s; recorded as %s", clean(howLong(x.End)), clean(id))
		}
	}
}

// howLong is the pause, what was masked and whether there is more.
func howLong(e *v1.InspectEnd) string {
	parts := []string{"nobody was held"}
	if d := e.Pause.AsDuration(); d > 0 {
		parts[0] = "paused " + brief(d)
		if e.Bound {
			parts[0] = "paused at most " + brief(d)
		}
	}
	if e.Masked > 0 {
		parts = append(parts, fmt.Sprintf("%d masked", e.Masked))
	}
	if e.Cut {
		parts = append(parts, "there is more than this")
	}
	return strings.Join(parts, ", ")
}

// brief is a short length of time: 1.8 ms.
func brief(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func (v *lookView) text(w io.Writer, wide, colour bool) {
	l := &lookTables{t: v.t, w: w, wide: wide, colour: colour}
	for _, r := range v.answer.Records {
		switch x := r.Record.(type) {
		case *v1.InspectResponse_Target:
			l.target(x.Target)
		case *v1.InspectResponse_Candidate:
			l.candidate(x.Candidate)
		case *v1.InspectResponse_Stack:
			l.stack(x.Stack)
		case *v1.InspectResponse_Process:
			l.process(x.Process)
		case *v1.InspectResponse_Group:
			l.group(x.Group)
		case *v1.InspectResponse_Socket:
			l.socket(x.Socket)
		case *v1.InspectResponse_File:
			l.file(x.File)
		case *v1.InspectResponse_Variable:
			l.variable(x.Variable)
		case *v1.InspectResponse_Line:
			l.line(x.Line)
		}
	}
	l.flush()
}

// lookTables gathers rows of one kind and prints them when another begins.
type lookTables struct {
	t            *tool
	w            io.Writer
	wide, colour bool
	kind         string
	now          *table
	printed      bool
}

// of is the table of that kind; the one before is printed.
func (l *lookTables) of(kind string, wide int, head ...string) *table {
	if l.kind != kind {
		l.flush()
		l.kind, l.now = kind, &table{head: head, wide: wide}
	}
	return l.now
}

func (l *lookTables) flush() {
	if l.now != nil {
		l.gap()
		l.now.text(l.w, l.wide, l.colour)
	}
	l.kind, l.now = "", nil
}

func (l *lookTables) gap() {
	if l.printed {
		fmt.Fprintln(l.w)
	}
	l.printed = true
}

func (l *lookTables) dim(s string) string {
	if l.colour {
		return dim.wrap(s)
	}
	return s
}

func (l *lookTables) target(p *v1.InspectTarget) {
	l.flush()
	l.gap()
	parts := []string{fmt.Sprintf("%s, process %d", p.Name, p.Pid), p.Runtime}
	if p.Threads > 0 {
		parts = append(parts, count(p.Threads, "thread"))
	}
	parts = append(parts, p.State)
	if p.User != "" {
		parts = append(parts, "user "+p.User)
	}
	parts = append(parts, p.Unit, p.Inside)
	if p.Started != nil {
		parts = append(parts, "started "+l.t.at(p.Started))
	}
	var said []string
	for _, s := range parts {
		if s != "" {
			said = append(said, clean(s))
		}
	}
	fmt.Fprintln(l.w, strings.Join(said, " · "))
	if p.Command != "" {
		fmt.Fprintln(l.w, l.dim(clean(p.Command)))
	}
}

func (l *lookTables) candidate(p *v1.InspectTarget) {
	tb := l.of("candidate", 0, "PID", "NAME", "USER", "UNIT", "STARTED", "COMMAND")
	tb.add(fmt.Sprint(p.Pid), cells(fmt.Sprint(p.Pid), p.Name, p.User, p.Unit, l.t.at(p.Started), shorten(p.Command, 80)))
}

// maxNamed is how many threads of a folded stack are named.
const maxNamed = 6

func (l *lookTables) stack(s *v1.InspectStack) {
	l.flush()
	l.gap()
	n := int64(len(s.Threads)) + s.More
	noun := map[string]string{"goroutine": "goroutine", "kernel": "thread"}[s.Kind]
	if noun == "" {
		noun = "thread"
	}
	head := count(n, noun)
	if n > 1 {
		head += " like this"
	}
	if s.State != "" {
		head += " · " + s.State
	}
	if l.colour {
		head = "\x1b[1m" + clean(head) + "\x1b[0m"
	} else {
		head = clean(head)
	}
	fmt.Fprintf(l.w, "%s  %s\n", head, l.dim(clean(threadNames(s, l.wide))))
	width := 0
	for _, f := range s.Frames {
		width = max(width, min(utf8.RuneCountInString(clean(f.Function)), 64))
	}
	for _, f := range s.Frames {
		name := clean(f.Function)
		where := clean(placeOf(f))
		if where == "" {
			fmt.Fprintf(l.w, "    %s\n", name)
			continue
		}
		fmt.Fprintf(l.w, "    %s%s  %s\n", name, strings.Repeat(" ", max(width-utf8.RuneCountInString(name), 0)), l.dim(where))
	}
	if s.Cut {
		fmt.Fprintln(l.w, "    …")
	}
	if s.Why != "" {
		fmt.Fprintf(l.w, "    %s\n", l.dim("("+clean(s.Why)+")"))
	}
}

// threadNames are the numbers, and the names that the threads have themselves.
func threadNames(s *v1.InspectStack, all bool) string {
	var out []string
	for i, th := range s.Threads {
		if i >= maxNamed && !all {
			out = append(out, fmt.Sprintf("and %d more", int64(len(s.Threads)-i)+s.More))
			break
		}
		one := fmt.Sprint(th.Id)
		if th.Name != "" {
			one += " " + th.Name
		}
		if th.Wait != "" {
			one += " (" + th.Wait + ")"
		}
		out = append(out, one)
	}
	return strings.Join(out, ", ")
}

// placeOf is where a frame is, as short as it stays clear.
func placeOf(f *v1.InspectFrame) string {
	var parts []string
	if f.File != "" {
		at := f.File
		if f.Line > 0 {
			at += ":" + strconv.FormatInt(f.Line, 10)
		}
		parts = append(parts, at)
	} else if f.Module != "" && f.Module != "kernel" {
		parts = append(parts, f.Module)
	}
	if f.Note != "" {
		parts = append(parts, f.Note)
	}
	return strings.Join(parts, " ")
}

func (l *lookTables) process(p *v1.InspectProcess) {
	if p.Thread != 0 {
		tb := l.of("thread", 0, "THREAD", "CPU", "STATE", "READ/S", "WRITTEN/S", "NAME")
		tb.add(fmt.Sprint(p.Thread), cells(fmt.Sprint(p.Thread), percent(p.Cpu), p.State, amount(p.Read), amount(p.Written), p.Name))
		return
	}
	tb := l.of("process", 9, "PID", "CPU", "MEMORY", "THREADS", "FILES", "READ/S", "WRITTEN/S", "USER", "NAME", "UNIT", "STATE", "PSS", "SWAP", "STARTED", "COMMAND")
	files := amountOf(p.Files)
	if p.FilesMax > 0 && p.Files*10 > p.FilesMax*8 {
		files += fmt.Sprintf(" of %d", p.FilesMax)
	}
	row := cells(fmt.Sprint(p.Pid), percent(p.Cpu), amount(p.Resident), amountOf(p.Threads), files, amount(p.Read), amount(p.Written), p.User, p.Name,
		p.Unit, p.State, amount(p.Pss), amount(p.Swap), l.t.at(p.Started), shorten(p.Command, 120))
	if p.Cpu >= 90 {
		row[1].tone = warn
	}
	tb.add(fmt.Sprint(p.Pid), row)
}

func (l *lookTables) group(g *v1.InspectGroup) {
	l.flush()
	l.gap()
	s := &sheet{}
	s.put("cgroup", g.Path)
	if g.CpuQuota > 0 {
		s.put("processors", fmt.Sprintf("at most %g", g.CpuQuota))
	}
	if g.Throttled > 0 {
		s.toned("held back", fmt.Sprintf("%d times, %s in all", g.Throttled, lasting(g.ThrottledTime)), warn)
	}
	memory := amount(g.Memory)
	if g.MemoryMax > 0 {
		memory += " of " + amount(g.MemoryMax)
	}
	s.put("memory", memory)
	if g.OomKills > 0 {
		s.toned("killed for memory", fmt.Sprintf("%d times", g.OomKills), bad)
	}
	pids := amountOf(g.Pids)
	if g.PidsMax > 0 {
		pids += fmt.Sprintf(" of %d", g.PidsMax)
	}
	s.put("processes", pids)
	s.text(l.w, l.wide, l.colour)
}

func (l *lookTables) socket(x *v1.InspectSocket) {
	who := x.Name
	if x.Others > 0 {
		who += fmt.Sprintf(" +%d", x.Others)
	}
	pid := ""
	if x.Pid > 0 {
		pid = fmt.Sprint(x.Pid)
	}
	if x.State == "listening" || x.State == "open" {
		tb := l.of("listener", 0, "LISTENS", "PROTOCOL", "PID", "NAME", "USER", "UNIT", "WAITING")
		tb.add(x.Local, cells(x.Local, x.Protocol, pid, who, x.User, x.Unit, amountOf(x.Queued)))
		return
	}
	tb := l.of("connection", 0, "CONNECTIONS", "STATE", "LOCAL", "REMOTE", "PID", "NAME", "UNIT", "UNREAD", "UNSENT")
	tb.add(x.Local, cells(fmt.Sprint(max(x.Count, 1)), x.State, x.Local, x.Remote, pid, who, x.Unit, amount(x.Queued), amount(x.Unsent)))
}

func (l *lookTables) file(f *v1.InspectFile) {
	if f.Fd < 0 {
		tb := l.of("listing", 0, "MODE", "OWNER", "SIZE", "CHANGED", "PATH")
		path := f.Path
		if f.LinkedTo != "" {
			path += " → " + f.LinkedTo
		}
		tb.add(f.Path, cells(f.Mode, f.User, amount(f.Size), l.t.at(f.Changed), path))
		return
	}
	tb := l.of("open", 0, "FD", "MODE", "KIND", "SIZE", "AT", "PATH")
	size := ""
	if f.Kind == "file" || f.Kind == "memory" {
		size = amount(f.Size)
	}
	row := cells(fmt.Sprint(f.Fd), f.Mode, f.Kind, size, amountOf(f.Offset), f.Path)
	if f.Deleted {
		row[5] = cell{f.Path + "  (deleted, still open)", warn}
	}
	tb.add(f.Path, row)
}

func (l *lookTables) variable(x *v1.InspectVariable) {
	tb := l.of("variable", 0, "NAME", "VALUE")
	row := cells(x.Name, x.Value)
	if x.Masked != "" {
		row[1].tone = dim
	}
	tb.add(x.Name, row)
}

func (l *lookTables) line(x *v1.InspectLine) {
	l.flush()
	l.printed = true
	head := ""
	if x.At != nil {
		head = x.At.AsTime().Local().Format("01-02 15:04:05.000") + " "
	}
	if x.Unit != "" {
		head += clean(x.Unit)
		if x.Pid > 0 {
			head += fmt.Sprintf("[%d]", x.Pid)
		}
		head += " "
	}
	text := clean(x.Text)
	if l.colour {
		switch x.Priority {
		case "emerg", "alert", "crit", "err":
			text = bad.wrap(text)
		case "warning":
			text = warn.wrap(text)
		}
	}
	fmt.Fprintf(l.w, "%s%s\n", l.dim(head), text)
}

func percent(f float64) string { return fmt.Sprintf("%.1f%%", f) }

// amount is a number of bytes, nothing for none.
func amount(n int64) string {
	if n <= 0 {
		return ""
	}
	return size(uint64(n))
}

func amountOf(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}
