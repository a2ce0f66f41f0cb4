// Package dump writes the memory of a process as an ELF core file, as a kernel
// would, while the process stands still and then goes on.
//
//	held ── mappings, pages that are there, registers ── memory ──▶ chunks ──▶ writer
//	                                                  let go ──┘ (the writer may take longer)
//
// House rules of this package:
//
//   - the process is the enemy: its mappings may be of any size, with any names,
//     and gone in the next moment. What is read of it is bounded by pages that
//     are really there, and by what was agreed;
//   - it is held for no longer than was agreed, however slow the writer is;
//   - what its program asked not to be dumped (MADV_DONTDUMP), devices and other
//     processes' files are left out;
//   - nothing of it is written to a disk here.
package dump

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/inspect/stack"
)

// Request says what to dump, and on which terms.
type Request struct {
	PID   int
	Limit time.Duration // the longest that it is held
	Most  int64         // bytes of the file; more is refused
	// Still says whether the process is the one that was meant.
	Still func() error
}

// Dump is what was written.
type Dump struct {
	Bytes    int64 // of the file
	Segments int
	Threads  int
	Missed   int   // threads that did not stop in time: without registers
	Unread   int64 // pages
	Pause    time.Duration
}

const (
	chunk = 1 << 20
	// ahead is how many chunks may be copied before they are written: a process
	// that has no more memory than that is held only while it is copied.
	ahead = 192

	maxThreads = 10_000
	maxSmaps   = 256 << 20
)

// Size says how large a dump would be now, without holding the process.
func Size(pid int, until time.Time) (Dump, error) {
	all, of, err := look(pid, until)
	if err != nil {
		return Dump{}, err
	}
	tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return Dump{}, ended(pid)
	}
	l := lay(all, of, nil)
	return Dump{Bytes: l.size, Segments: len(of), Threads: len(tids)}, nil
}

func ended(pid int) error {
	return fault.New(fault.NotFound, "cannot dump process %d: it has ended", pid)
}

func look(pid int, until time.Time) ([]mapping, []run, error) {
	if os.Getpagesize() != pageSize {
		return nil, nil, fault.New(fault.Unavailable, "cannot dump a process on a host with pages of %d bytes", os.Getpagesize())
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, nil, ended(pid)
	}
	defer f.Close()
	all, err := parseMaps(io.LimitReader(f, maxSmaps))
	if err != nil {
		return nil, nil, err
	}
	if len(all) == 0 {
		return nil, nil, fault.New(fault.Invalid, "cannot dump process %d: it has no memory of its own", pid)
	}
	of, err := runs(pid, all, until)
	return all, of, err
}

// Write dumps the process to w. When it fails, what was written is no core file.
func Write(w io.Writer, r Request) (d Dump, err error) {
	p := newPipe(w)
	d.Pause, err = stack.Hold(r.PID, r.Limit, func(h stack.Held) error { return d.copy(p, r, h) })
	if werr := p.finish(err == nil); err == nil {
		err = werr
	}
	return d, err
}

// copy is what is done while the process is held.
func (d *Dump) copy(p *pipe, r Request, h stack.Held) error {
	if err := r.Still(); err != nil {
		return err
	}
	all, of, err := look(r.PID, h.Until)
	if err != nil {
		return err
	}
	who, err := about(r.PID, h)
	if err != nil {
		return err
	}
	l := lay(all, of, notes(who, all))
	d.Bytes, d.Segments, d.Threads, d.Missed = l.size, len(of), len(who.threads), h.Missed+len(h.Threads)-len(who.threads)
	if l.size > r.Most {
		return fault.New(fault.Exhausted, "cannot dump process %d: it would be %d bytes, and %d were agreed", r.PID, l.size, r.Most).
			WithHint("ask again, with --most")
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", r.PID))
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot read the memory of process %d", r.PID)
	}
	defer mem.Close()
	c := copier{pid: r.PID, mem: mem}
	defer func() { d.Unread = c.unread }()
	for b := l.head; len(b) > 0; {
		n := min(len(b), chunk)
		if err := p.put(bytes.Clone(b[:n]), h.Until); err != nil {
			return err
		}
		b = b[n:]
	}
	for _, x := range of {
		for at := x.from; at < x.to; {
			b := p.buffer(int(min(chunk, x.to-at)))
			if err := c.fill(b, at); err != nil {
				return err
			}
			if err := p.put(b, h.Until); err != nil {
				return err
			}
			at += uint64(len(b))
		}
	}
	return r.Still()
}

// about reads what the notes say.
func about(pid int, h stack.Held) (process, error) {
	p := process{pid: int32(pid)}
	for _, tid := range h.Threads[:min(len(h.Threads), maxThreads)] {
		t, err := registers(tid)
		if err == errNarrow {
			return p, err
		}
		if err == nil {
			p.threads = append(p.threads, t)
		}
	}
	if len(p.threads) == 0 {
		return p, ended(pid)
	}
	auxv, err := some(pid, "auxv", 64<<10)
	if err != nil {
		return p, ended(pid)
	}
	p.auxv = auxv
	if b, err := some(pid, "stat", 4096); err == nil {
		p.stat(string(b))
	}
	if b, err := some(pid, "cmdline", 256); err == nil {
		p.args = strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
	}
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil {
		p.uid, p.gid = st.Uid, st.Gid
	}
	return p, nil
}

// stat reads the line whose second field is a name in brackets, which may hold
// brackets itself.
func (p *process) stat(line string) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return
	}
	p.name = line[open+1 : end]
	f := strings.Fields(line[end+1:])
	if len(f) < 4 {
		return
	}
	p.state = f[0][0]
	for i, into := range []*int32{&p.parent, &p.group, &p.session} {
		n, _ := strconv.ParseInt(f[i+1], 10, 32)
		*into = int32(n)
	}
}

func some(pid int, name string, most int64) ([]byte, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
