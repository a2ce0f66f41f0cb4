package stack

import (
	"debug/buildinfo"
	"debug/dwarf"
	"debug/gosym"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Go programs are read without a signal (SIGQUIT would end them): goroutines
// are found in memory by the program's own debug data, and followed by frame
// pointers, which Go always keeps.

// goCode names the code of a Go program.
type goCode struct {
	table *gosym.Table
	bias  uint64
}

func (g *goCode) frame(pc uint64) (wire.InspectFrame, bool) {
	file, line, fn := g.table.PCToLine(pc - g.bias)
	if fn == nil {
		return wire.InspectFrame{}, false
	}
	return wire.InspectFrame{Function: fn.Name, File: file, Line: int64(line)}, true
}

// readGoCode reads the table that every Go program carries, stripped or not.
func (m *module) readGoCode() error {
	data, _ := m.section(".gopclntab")
	if data == nil {
		data, _ = m.section(".data.rel.ro.gopclntab")
	}
	text := m.elf.Section(".text")
	if data == nil || text == nil {
		return errNoTable
	}
	start := text.Addr
	if at := m.address("runtime.text"); at != 0 {
		start = at - m.bias
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, start))
	if err != nil {
		return err
	}
	m.code = &goCode{table: table, bias: m.bias}
	return nil
}

// goLayout is where things are in the runtime's structures, as the program's
// debug data says.
type goLayout struct {
	gSize                                         int64
	stackLo, stackHi, sp, pc, bp, status, goid, m int64
	waitReason, syscallSP, syscallPC, syscallBP   int64
	gopc, procid                                  int64
}

// readLayout looks into the debug data for runtime.g and runtime.m.
func (m *module) readLayout() (l goLayout, err error) {
	data, err := m.elf.DWARF()
	if err != nil {
		return l, err
	}
	l = goLayout{syscallBP: -1, waitReason: -1, gopc: -1}
	found := 0
	r := data.Reader()
	for n := 0; found < 2 && n < 4<<20; n++ {
		e, err := r.Next()
		if err != nil || e == nil {
			break
		}
		if e.Tag != dwarf.TagStructType {
			if e.Tag != dwarf.TagCompileUnit {
				r.SkipChildren()
			}
			continue
		}
		name, _ := e.Val(dwarf.AttrName).(string)
		if name != "runtime.g" && name != "runtime.m" {
			r.SkipChildren()
			continue
		}
		typ, err := data.Type(e.Offset)
		s, ok := typ.(*dwarf.StructType)
		if err != nil || !ok {
			return l, errNoTable
		}
		if name == "runtime.m" {
			err = l.ofM(s)
		} else {
			err = l.ofG(s)
		}
		if err != nil {
			return l, err
		}
		found++
		r.SkipChildren()
	}
	if found < 2 {
		return l, errNoTable
	}
	return l, nil
}

func field(s *dwarf.StructType, path ...string) (int64, bool) {
	off := int64(0)
	for i, name := range path {
		n := slices.IndexFunc(s.Field, func(f *dwarf.StructField) bool { return f.Name == name })
		if n < 0 {
			return 0, false
		}
		off += s.Field[n].ByteOffset
		if i == len(path)-1 {
			return off, true
		}
		t := s.Field[n].Type
		for range 4 {
			if td, ok := t.(*dwarf.TypedefType); ok {
				t = td.Type
			}
		}
		next, ok := t.(*dwarf.StructType)
		if !ok {
			return 0, false
		}
		s = next
	}
	return off, true
}

func (l *goLayout) ofM(s *dwarf.StructType) error {
	var ok bool
	if l.procid, ok = field(s, "procid"); !ok {
		return errNoTable
	}
	return nil
}

func (l *goLayout) ofG(s *dwarf.StructType) error {
	l.gSize = min(s.ByteSize, 4096)
	for _, f := range []struct {
		into *int64
		must bool
		path []string
	}{
		{&l.stackLo, true, []string{"stack", "lo"}}, {&l.stackHi, true, []string{"stack", "hi"}},
		{&l.sp, true, []string{"sched", "sp"}}, {&l.pc, true, []string{"sched", "pc"}}, {&l.bp, true, []string{"sched", "bp"}},
		{&l.status, true, []string{"atomicstatus"}}, {&l.goid, true, []string{"goid"}}, {&l.m, true, []string{"m"}},
		{&l.waitReason, false, []string{"waitreason"}}, {&l.syscallSP, true, []string{"syscallsp"}}, {&l.syscallPC, true, []string{"syscallpc"}},
		{&l.syscallBP, false, []string{"syscallbp"}}, {&l.gopc, false, []string{"gopc"}},
	} {
		off, ok := field(s, f.path...)
		if !ok {
			if f.must {
				return errNoTable
			}
			off = -1
		}
		if off+8 > l.gSize {
			return errNoTable
		}
		*f.into = off
	}
	return nil
}

// goroutine is one of them, as it was while the process was held.
type goroutine struct {
	raw         []byte
	lo, hi      uint64
	sp, pc, bp  uint64
	status      uint32
	tid         int
	id          int64
	reason      uint8
	gopc        uint64
	stackCopied bool
}

func (g *goroutine) word(off int64) uint64 { return binary.LittleEndian.Uint64(g.raw[off:]) }

// Go reads the goroutines of a Go program.
func Go(r Request) (Dump, error) {
	image := newImage(r.PID)
	m, err := image.main()
	if err != nil {
		return Dump{}, fault.Wrap(fault.Unavailable, err, "cannot read the program of process %d", r.PID)
	}
	if err := m.readGoCode(); err != nil {
		return Native(r) // built by Go, yet without its table: packed, or changed
	}
	layout, err := m.readLayout()
	allgs := m.address("runtime.allgs")
	if err != nil || allgs == 0 {
		d, err := goThreads(r, image)
		d.note("This program was built without symbols (-s -w), so goroutines that wait cannot be found: only what runs on threads is shown. Build it without -ldflags \"-s -w\" to see all.")
		return d, err
	}
	version := ""
	if info, err := buildinfo.Read(m.readerAt()); err == nil {
		version = info.GoVersion + ", "
	}
	d := Dump{Method: "goroutines read from memory (" + version + "no signal), held with ptrace for a copy; followed by frame pointers. Calls that were inlined stand in their caller's line"}
	reasons := readReasons(r.PID, m)
	var all []*goroutine
	s, err := copyStacks(r, &d, func(h *held, mem *memory) error {
		var err error
		all, err = copyGoroutines(h, mem, layout, allgs, &d)
		return err
	})
	if err != nil {
		return d, err
	}
	s.image = image
	byTID := map[int]*thread{}
	for _, t := range s.threads {
		byTID[t.tid] = t
	}
	u := &unwinder{mem: s.mem, image: image}
	for _, g := range all {
		d.Stacks = append(d.Stacks, u.goroutine(g, m, byTID, reasons))
	}
	d.Stacks = fold(d.Stacks)
	if d.Partial && d.Pause >= r.Limit {
		d.note("The pause reached its limit of %s, and the process was let go: some goroutines are missing.", r.Limit)
	}
	return d, nil
}

// main is the module of the program itself.
func (i *image) main() (*module, error) {
	for _, r := range i.regions {
		if !r.run || r.path == "" {
			continue
		}
		if m, _, ok := i.module(r.from); ok {
			return m, nil // the lowest code is the program's own, or the only one that can be read
		}
	}
	return nil, errNoTable
}

// readReasons are the runtime's own words for why a goroutine waits.
func readReasons(pid int, m *module) []string {
	at := m.address("runtime.waitReasonStrings")
	if at == 0 {
		return nil
	}
	mem := newMemory(pid)
	var out []string
	for i := range uint64(64) {
		p, err1 := mem.word(at + 16*i)
		n, err2 := mem.word(at + 16*i + 8)
		if err1 != nil || err2 != nil || n > 64 || n == 0 && i > 0 {
			break
		}
		b := make([]byte, n)
		if n > 0 && mem.read(b, p) != nil {
			break
		}
		out = append(out, string(b))
	}
	return out
}

// copyGoroutines copies every goroutine and the part of its stack that is in
// use, in a few calls for many of them.
func copyGoroutines(h *held, mem *memory, l goLayout, allgs uint64, d *Dump) ([]*goroutine, error) {
	base, err1 := mem.word(allgs)
	count, err2 := mem.word(allgs + 8)
	if err1 != nil || err2 != nil {
		return nil, errMemory
	}
	if count > maxGoroutines {
		d.note("There are %d goroutines; the first %d are shown.", count, maxGoroutines)
		count = maxGoroutines
		d.Partial = true
	}
	list := make([]byte, count*8)
	if len(list) > 0 {
		if n, err := readAt(h.pid, list, base); err != nil || n != len(list) {
			return nil, errMemory
		}
	}
	size := int(l.gSize)
	all := make([]*goroutine, 0, count)
	buffer := make([]byte, int(count)*size)
	places := make([]place, 0, count)
	for i := range int(count) {
		places = append(places, place{binary.LittleEndian.Uint64(list[8*i:]), buffer[i*size : (i+1)*size]})
	}
	if done := readMany(h, places); done < len(places) {
		places, d.Partial = places[:done], true
	}
	for _, p := range places {
		g := &goroutine{raw: p.into}
		g.status = binary.LittleEndian.Uint32(g.raw[l.status:]) &^ 0x1000
		if g.status == 0 || g.status == 6 || g.status > 9 {
			continue // not begun, or over
		}
		g.id, g.lo, g.hi = int64(g.word(l.goid)), g.word(l.stackLo), g.word(l.stackHi)
		g.sp, g.pc, g.bp = g.word(l.sp), g.word(l.pc), g.word(l.bp)
		if g.status == 3 {
			g.sp, g.pc, g.bp = g.word(l.syscallSP), g.word(l.syscallPC), 0
			if l.syscallBP >= 0 {
				g.bp = g.word(l.syscallBP)
			}
		}
		if l.waitReason >= 0 {
			g.reason = g.raw[l.waitReason]
		}
		if l.gopc >= 0 {
			g.gopc = g.word(l.gopc)
		}
		if at := g.word(l.m); at != 0 {
			if tid, err := mem.word(at + uint64(l.procid)); err == nil && tid < 1<<32 {
				g.tid = int(tid)
			}
		}
		all = append(all, g)
	}
	copyGoStacks(h, mem, all, d)
	return all, nil
}

const maxGoStack = 16 << 10

func copyGoStacks(h *held, mem *memory, all []*goroutine, d *Dump) {
	places := make([]place, 0, len(all))
	var slab []byte // one of many stacks: each allocation costs time while the process is held
	total := 0
	for _, g := range all {
		if g.sp < g.lo || g.sp >= g.hi || g.hi-g.lo > 1<<30 {
			continue
		}
		n := int(min(g.hi-g.sp, maxGoStack))
		if total += n; total > maxCopied {
			d.Partial = true
			break
		}
		if len(slab) < n {
			slab = make([]byte, 1<<20)
		}
		places = append(places, place{g.sp, slab[:n:n]})
		slab = slab[n:]
	}
	done := readMany(h, places)
	d.Partial = d.Partial || done < len(places)
	for _, p := range places[:done] {
		mem.spans = append(mem.spans, p)
	}
}

// place is a piece of memory to copy.
type place struct {
	at   uint64
	into []byte
}

// readMany copies pieces, many with one call, until time is up. It returns how
// many are done; a piece that cannot be read stays zero.
func readMany(h *held, places []place) int {
	const batch = 512
	for from := 0; from < len(places); from += batch {
		if h.over() {
			return from
		}
		part := places[from:min(from+batch, len(places))]
		for len(part) > 0 {
			local, remote := make([]unix.Iovec, 0, len(part)), make([]unix.RemoteIovec, 0, len(part))
			for _, p := range part {
				v := unix.Iovec{Base: &p.into[0]}
				v.SetLen(len(p.into))
				local = append(local, v)
				remote = append(remote, unix.RemoteIovec{Base: uintptr(p.at), Len: len(p.into)})
			}
			n, _ := unix.ProcessVMReadv(h.pid, local, remote, 0)
			i := 0
			for ; i < len(part) && n >= len(part[i].into); i++ {
				n -= len(part[i].into)
			}
			if i == len(part) {
				break
			}
			part = part[i+1:] // the one in between cannot be read
		}
	}
	return len(places)
}

var goStatus = map[uint32]string{1: "runnable", 2: "running", 3: "in a system call", 4: "waiting", 8: "its stack is moved", 9: "preempted"}

// goroutine follows one.
func (u *unwinder) goroutine(g *goroutine, m *module, threads map[int]*thread, reasons []string) wire.InspectStack {
	t := wire.InspectThread{ID: g.id}
	out := wire.InspectStack{Kind: "goroutine", State: goStatus[g.status]}
	if g.status == 4 && int(g.reason) < len(reasons) && reasons[g.reason] != "" {
		out.State = reasons[g.reason]
	}
	c := cursor{pc: g.pc}
	c.regs[regSP], c.regs[regFP] = g.sp, g.bp
	c.known[regSP], c.known[regFP] = true, g.bp != 0
	if th := threads[g.tid]; th != nil && (g.status == 2 || g.status == 3) {
		t.Wait = fmt.Sprintf("thread %d", g.tid)
		if sp := th.regs[regSP]; sp >= g.lo && sp < g.hi {
			c = cursorOf(th.regs)
		}
	}
	out.Threads = []wire.InspectThread{t}
	for n := 0; ; n++ {
		if n >= maxFrames {
			out.Cut = true
			break
		}
		f := u.frame(c)
		out.Frames = append(out.Frames, f)
		if f.Function == "runtime.goexit" {
			out.Frames = out.Frames[:len(out.Frames)-1]
			break
		}
		next, ok := u.byPointer(c)
		if !ok {
			break
		}
		c = next
	}
	if g.gopc != 0 {
		if f, ok := m.code.frame(g.gopc - 1); ok {
			f.Note = "began it"
			out.Frames = append(out.Frames, f)
		}
	}
	return out
}

// goThreads shows what the threads of a stripped program run.
func goThreads(r Request, i *image) (Dump, error) {
	d := Dump{Method: "threads held with ptrace and followed by frame pointers; named by the table that Go programs carry"}
	s, err := copyStacks(r, &d, nil)
	if err != nil {
		return d, err
	}
	u := &unwinder{mem: s.mem, image: i}
	for _, t := range s.threads {
		d.Stacks = append(d.Stacks, u.stack(r.PID, t))
	}
	d.Stacks = fold(d.Stacks)
	return d, nil
}
