package stack

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/wire"
)

// Native reads the stacks of all threads: registers and stacks are copied while
// the process is held, and followed afterwards by the unwind tables of the
// files that it runs.
func Native(r Request) (Dump, error) {
	d := Dump{Method: "held with ptrace, registers and stacks copied; followed afterwards by the unwind tables of its files"}
	s, err := copyStacks(r, &d, nil)
	if err != nil {
		return d, err
	}
	u := &unwinder{mem: s.mem, image: s.image}
	for _, t := range s.threads {
		d.Stacks = append(d.Stacks, u.stack(r.PID, t))
	}
	d.Stacks = fold(d.Stacks)
	d.unread(s.image)
	return d, nil
}

// unread says which files could not be read.
func (d *Dump) unread(i *image) {
	var names []string
	for path, why := range i.failed {
		names = append(names, path+" ("+why+")")
	}
	slices.Sort(names)
	for _, n := range names[:min(len(names), 4)] {
		d.note("Code of %s is not named.", n)
	}
}

// copied is what is left after a process goes on.
type copied struct {
	mem     *memory
	image   *image
	threads []*thread
}

// copyStacks holds the process while registers and stacks are copied, and what
// more is asked for.
func copyStacks(r Request, d *Dump, more func(*held, *memory) error) (*copied, error) {
	s := &copied{mem: newMemory(r.PID), image: newImage(r.PID)}
	pause, err := hold(r.PID, r.Limit, func(h *held) error {
		if err := r.Still(); err != nil {
			return err
		}
		for _, t := range h.threads {
			if h.over() {
				d.Partial = true
				break
			}
			s.copyStack(t)
		}
		if h.missed > 0 {
			d.note("%d threads did not stop in time; where they wait the kernel says: state D ends when a device answers.", h.missed)
			d.Partial = true
		}
		s.threads = slices.Clone(h.threads)
		if more != nil {
			return more(h, s.mem)
		}
		return nil
	})
	s.mem.closed = true
	d.Pause = pause
	if errors.Is(err, errLate) {
		d.note("The process did not stop within %s and was let go.", r.Limit)
	}
	if d.Partial && pause >= r.Limit {
		d.note("The pause reached its limit of %s: the process was let go, and this is what was read until then.", r.Limit)
	}
	return s, err
}

func (s *copied) copyStack(t *thread) {
	sp := t.regs[regSP]
	if region, ok := s.image.at(sp); ok {
		s.mem.copyRange(sp-128, min(region.to, sp+maxStack))
		return
	}
	s.mem.copyRange(sp-128, sp+2*pageSize) // mapped since
}

// stack follows one thread.
func (u *unwinder) stack(pid int, t *thread) wire.InspectStack {
	out := wire.InspectStack{Kind: "thread", Threads: []wire.InspectThread{threadInfo(pid, t.tid)}}
	c := cursorOf(t.regs)
	for n := 0; ; n++ {
		if n >= maxFrames {
			out.Cut = true
			break
		}
		out.Frames = append(out.Frames, u.frame(c))
		next, ok := u.next(c)
		if !ok {
			break
		}
		c = next
	}
	return out
}

// frame names one frame.
func (u *unwinder) frame(c cursor) wire.InspectFrame {
	at := c.pc
	if !c.exact {
		at--
	}
	m, r, ok := u.image.module(at)
	if js, known := u.script[c.regs[regFP]]; known && c.known[regFP] && !c.exact && (!ok || strings.HasPrefix(m.functionName(at), "Builtins_")) {
		return js.frame()
	}
	if !ok {
		f := wire.InspectFrame{Function: "0x" + strconv.FormatUint(c.pc, 16), Module: r.path}
		if r.path == "" && r.run {
			f.Note = "made at run time"
		}
		return f
	}
	if m.code != nil {
		if f, ok := m.code.frame(at); ok {
			return f
		}
	}
	if name := m.functionName(at); name != "" {
		return wire.InspectFrame{Function: name, Module: m.name}
	}
	return wire.InspectFrame{Function: "0x" + strconv.FormatUint(at-m.bias, 16), Module: m.name}
}
