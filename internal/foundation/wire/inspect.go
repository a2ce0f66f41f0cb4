package wire

import (
	"encoding/json"
	"slices"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// KindInspect is the kind of an order for a brokered read: the node looks for
// the person, who gets no shell.
const KindInspect = "inspect.run"

// What a brokered read looks at.
const (
	InspectStacks  = "stacks"
	InspectTop     = "top"
	InspectJournal = "journal"
	InspectPorts   = "ports"
	InspectFiles   = "files"
	InspectEnv     = "env"
)

// InspectVerbs lists them, as the command line does.
var InspectVerbs = []string{InspectStacks, InspectTop, InspectJournal, InspectPorts, InspectFiles, InspectEnv}

// Bounds of a brokered read.
const (
	MaxInspectTime  = 60_000  // ms from the start to the end
	MaxInspectPause = 5_000   // ms that a process may be held at most, whoever asks
	MaxInspectLines = 5_000   // records of an answer
	MaxInspectBytes = 4 << 20 // of an answer
	maxInspectText  = 4096
)

// InspectSpec says exactly what to look at.
type InspectSpec struct {
	ID         string `json:"id"` // n-…
	Person     string `json:"person"`
	PersonName string `json:"person_name"`
	What       string `json:"what"`
	Target     string `json:"target,omitempty"`   // pid, unit, process name; files: also a path; "" is the host
	PauseMS    int64  `json:"pause_ms,omitempty"` // the longest pause; 0: 200
	TimeMS     int64  `json:"time_ms"`            // until it must have ended
	Lines      int64  `json:"lines,omitempty"`    // at most; 0: the verb's default

	Part     string `json:"part,omitempty"`     // files of a path: list, stat, head, tail
	Since    string `json:"since,omitempty"`    // journal: RFC 3339
	Until    string `json:"until,omitempty"`    // journal: RFC 3339
	Priority string `json:"priority,omitempty"` // journal: the least, by name
	Grep     string `json:"grep,omitempty"`     // journal, files: lines that contain it

	Secrets []string `json:"secrets,omitempty"` // paths that are not read
	Groups  []string `json:"groups,omitempty"`  // of whoever reads logs and files

	Core   *CoreSpec   `json:"core,omitempty"`
	Unmask *UnmaskSpec `json:"unmask,omitempty"`
}

// InspectParts are the ways to look at a path.
var InspectParts = []string{"", "list", "stat", "head", "tail"}

// JournalPriorities are those of syslog(3), the gravest first.
var JournalPriorities = []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}

func (s InspectSpec) check() error {
	bad := func(what string) error { return fault.New(fault.Invalid, "cannot read inspection %s: %s", s.ID, what) }
	text := s.Target + s.Since + s.Until + s.Grep
	switch {
	case !ValidID('n', s.ID):
		return fault.New(fault.Invalid, "cannot read inspection: bad id %q", s.ID)
	case !ValidID('p', s.Person):
		return bad("bad person id")
	case !slices.Contains(InspectVerbs, s.What) && s.What != InspectCore:
		return bad("what it looks at is not known here")
	case len(s.Target) > maxInspectText || len(s.Grep) > 256 || len(s.Since) > 64 || len(s.Until) > 64 || strings.ContainsAny(text, "\x00\n"):
		return bad("a text is too long, or has a zero byte or a line break")
	case s.Lines < 0 || s.Lines > MaxInspectLines:
		return bad("too many lines")
	case !slices.Contains(InspectParts, s.Part):
		return bad("bad part")
	case s.Priority != "" && !slices.Contains(JournalPriorities, s.Priority):
		return bad("bad priority")
	case len(s.Groups) > 32 || len(s.Secrets) > 1024:
		return bad("a list is too long")
	}
	return s.checkAgreed(bad)
}

// An answer is records, each one frame of JSON, masked on the host. Exactly one
// field of a record is set.
type InspectRecord struct {
	Target    *InspectTarget   `json:"target,omitempty"`    // what was looked at
	Candidate *InspectTarget   `json:"candidate,omitempty"` // what could have been meant
	Stack     *InspectStack    `json:"stack,omitempty"`
	Process   *InspectProcess  `json:"process,omitempty"`
	Group     *InspectGroup    `json:"group,omitempty"`
	Socket    *InspectSocket   `json:"socket,omitempty"`
	File      *InspectFile     `json:"file,omitempty"`
	Variable  *InspectVariable `json:"variable,omitempty"`
	Line      *InspectLine     `json:"line,omitempty"`
	Core      *InspectDump     `json:"core,omitempty"`
	Sealed    []byte           `json:"sealed,omitempty"` // a value that was unmasked, for whoever has the key
	Note      string           `json:"note,omitempty"`   // what the answer does not show, and why
	End       *InspectEnd      `json:"end,omitempty"`    // the last one
}

// InspectTarget is a process, or what is left of the question without one.
type InspectTarget struct {
	PID     int64  `json:"pid,omitempty"`
	Name    string `json:"name,omitempty"`
	User    string `json:"user,omitempty"`
	Unit    string `json:"unit,omitempty"`
	Command string `json:"command,omitempty"`
	Runtime string `json:"runtime,omitempty"` // go, jvm, python, node, native, kernel
	State   string `json:"state,omitempty"`
	Threads int64  `json:"threads,omitempty"`
	Started int64  `json:"started,omitempty"` // µs, the host's clock
	Inside  string `json:"inside,omitempty"`  // "container" where its namespaces are its own
	Count   int64  `json:"count,omitempty"`   // processes, where it is a unit of several
	Ticks   int64  `json:"ticks,omitempty"`   // its start, since the host's boot: with the number, it is this process
}

// InspectDump is what a core dump is, or would be.
type InspectDump struct {
	Bytes    int64 `json:"bytes"`            // of the file
	Segments int64 `json:"segments"`         // parts of its memory
	Threads  int64 `json:"threads"`          // with registers
	Unread   int64 `json:"unread,omitempty"` // pages that could not be read, and are zero
	Sealed   int64 `json:"sealed,omitempty"` // bytes that were sent, packed and sealed
}

// InspectStack is one stack and everybody who stands there.
type InspectStack struct {
	Kind    string          `json:"kind"` // goroutine, thread, kernel
	Threads []InspectThread `json:"threads"`
	More    int64           `json:"more,omitempty"` // threads beyond those listed
	State   string          `json:"state,omitempty"`
	Frames  []InspectFrame  `json:"frames,omitempty"`
	Cut     bool            `json:"cut,omitempty"` // there are more frames
	Why     string          `json:"why,omitempty"` // of there being no more frames than these
}

// InspectThread is one thread or goroutine.
type InspectThread struct {
	ID    int64  `json:"id"`
	Name  string `json:"name,omitempty"`
	State string `json:"state,omitempty"`
	Wait  string `json:"wait,omitempty"` // kernel function, lock
}

// InspectFrame is one call.
type InspectFrame struct {
	Function string `json:"function"`
	File     string `json:"file,omitempty"`
	Line     int64  `json:"line,omitempty"`
	Module   string `json:"module,omitempty"`
	Note     string `json:"note,omitempty"` // a lock, a guess
}

// InspectProcess is one line of top.
type InspectProcess struct {
	PID      int64   `json:"pid"`
	Thread   int64   `json:"thread,omitempty"` // of the process
	Name     string  `json:"name"`
	User     string  `json:"user,omitempty"`
	Unit     string  `json:"unit,omitempty"`
	Command  string  `json:"command,omitempty"`
	State    string  `json:"state,omitempty"`
	CPU      float64 `json:"cpu"` // percent of one processor
	Resident int64   `json:"resident,omitempty"`
	PSS      int64   `json:"pss,omitempty"`
	Swap     int64   `json:"swap,omitempty"`
	Threads  int64   `json:"threads,omitempty"`
	Files    int64   `json:"files,omitempty"`
	FilesMax int64   `json:"files_max,omitempty"`
	Read     int64   `json:"read,omitempty"`    // bytes a second from disks
	Written  int64   `json:"written,omitempty"` // bytes a second
	Started  int64   `json:"started,omitempty"`
}

// InspectGroup is a control group with its limits.
type InspectGroup struct {
	Path        string  `json:"path"`
	CPUQuota    float64 `json:"cpu_quota,omitempty"` // processors; 0: no limit
	Throttled   int64   `json:"throttled,omitempty"` // periods in which it was held back
	ThrottledUS int64   `json:"throttled_us,omitempty"`
	Memory      int64   `json:"memory,omitempty"`
	MemoryMax   int64   `json:"memory_max,omitempty"` // 0: no limit
	MemoryHigh  int64   `json:"memory_high,omitempty"`
	OOMKills    int64   `json:"oom_kills,omitempty"`
	PIDs        int64   `json:"pids,omitempty"`
	PIDsMax     int64   `json:"pids_max,omitempty"`
}

// InspectSocket is a listener or a connection.
type InspectSocket struct {
	Protocol string `json:"protocol"` // tcp, tcp6, udp, udp6, unix
	State    string `json:"state"`
	Local    string `json:"local"`
	Remote   string `json:"remote,omitempty"`
	PID      int64  `json:"pid,omitempty"`
	Name     string `json:"name,omitempty"`
	User     string `json:"user,omitempty"`
	Unit     string `json:"unit,omitempty"`
	Queued   int64  `json:"queued,omitempty"`  // bytes or connections that wait to be read
	Unsent   int64  `json:"unsent,omitempty"`  // bytes that wait to be sent
	Others   int64  `json:"others,omitempty"`  // more processes that hold it
	Count    int64  `json:"count,omitempty"`   // connections folded into this line
	Foreign  bool   `json:"foreign,omitempty"` // of another network namespace
}

// InspectFile is an open file of a process, or one in a folder.
type InspectFile struct {
	FD       int64  `json:"fd"` // -1: not open, but there
	Path     string `json:"path"`
	Kind     string `json:"kind,omitempty"` // file, folder, socket, pipe, device, memory, link
	Mode     string `json:"mode,omitempty"` // r, w, rw; of a listing: permissions
	Size     int64  `json:"size,omitempty"`
	Offset   int64  `json:"offset,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
	User     string `json:"user,omitempty"`
	Changed  int64  `json:"changed,omitempty"` // µs
	Locked   bool   `json:"locked,omitempty"`
	LinkedTo string `json:"linked_to,omitempty"`
}

// InspectVariable is one of an environment.
type InspectVariable struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Masked string `json:"masked,omitempty"` // why it is, or a part of it
}

// InspectLine is one record of a log or a file.
type InspectLine struct {
	At       int64  `json:"at,omitempty"` // µs
	Unit     string `json:"unit,omitempty"`
	PID      int64  `json:"pid,omitempty"`
	Priority string `json:"priority,omitempty"`
	Text     string `json:"text"`
}

// InspectEnd says how it was done.
type InspectEnd struct {
	Method  string `json:"method"`             // in words: how it was read
	PauseNS int64  `json:"pause_ns,omitempty"` // how long the target was held; 0: not at all
	Bound   bool   `json:"bound,omitempty"`    // PauseNS is an upper bound, not a measurement
	Masked  int64  `json:"masked,omitempty"`
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
	Cut     bool   `json:"cut,omitempty"`  // there was more than may be told
	Kind    string `json:"kind,omitempty"` // fault kind: it failed
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// ParseInspectRecord reads one record of a node and makes it fit to be shown:
// it commands no terminal, whatever the node or its target says.
func ParseInspectRecord(b []byte) (r InspectRecord, err error) {
	if len(b) > MaxFrame {
		return r, fault.New(fault.Invalid, "cannot read record: %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fault.Wrap(fault.Invalid, err, "cannot read record")
	}
	r.plain()
	return r, nil
}

func plainWords(words ...*string) {
	for _, w := range words {
		*w = Plain(*w, maxInspectText)
	}
}

func (t *InspectTarget) plain() {
	plainWords(&t.Name, &t.User, &t.Unit, &t.Command, &t.Runtime, &t.State, &t.Inside)
}

func (r *InspectRecord) plain() {
	if r.Target != nil {
		r.Target.plain()
	}
	if r.Candidate != nil {
		r.Candidate.plain()
	}
	if s := r.Stack; s != nil {
		plainWords(&s.Kind, &s.State, &s.Why)
		for i := range s.Threads {
			plainWords(&s.Threads[i].Name, &s.Threads[i].State, &s.Threads[i].Wait)
		}
		for i := range s.Frames {
			f := &s.Frames[i]
			plainWords(&f.Function, &f.File, &f.Module, &f.Note)
		}
	}
	if p := r.Process; p != nil {
		plainWords(&p.Name, &p.User, &p.Unit, &p.Command, &p.State)
	}
	if g := r.Group; g != nil {
		plainWords(&g.Path)
	}
	if s := r.Socket; s != nil {
		plainWords(&s.Protocol, &s.State, &s.Local, &s.Remote, &s.Name, &s.User, &s.Unit)
	}
	if f := r.File; f != nil {
		plainWords(&f.Path, &f.Kind, &f.Mode, &f.User, &f.LinkedTo)
	}
	if v := r.Variable; v != nil {
		plainWords(&v.Name, &v.Value, &v.Masked)
	}
	if l := r.Line; l != nil {
		plainWords(&l.Unit, &l.Priority)
		l.Text = Plain(l.Text, MaxFrame)
	}
	if e := r.End; e != nil {
		plainWords(&e.Method, &e.Kind, &e.Error, &e.Hint)
	}
	plainWords(&r.Note)
}
