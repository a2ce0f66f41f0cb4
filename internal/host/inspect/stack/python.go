package stack

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"handrail.dev/handrail/internal/foundation/wire"
)

// pythonLayout is where things are in the interpreter's structures. From 3.13
// on the interpreter says it itself; before, it is fixed for each version.
type pythonLayout struct {
	interpretersHead, interpreterNext, threadsHead     uint64
	threadNext, threadFrame, threadID                  uint64
	cframe                                             bool   // threadFrame leads to a structure that holds the frame
	cframeFrame                                        uint64 // where in it
	code, previous, instruction, owner                 uint64
	filename, qualname, lines, firstLine, instructions uint64
	ascii, compact                                     uint64
	native                                             byte // owner of a frame that is no Python code
}

func layoutOf(minor byte) (pythonLayout, bool) {
	common := pythonLayout{filename: 112, qualname: 128, lines: 136, threadNext: 8}
	l := common
	switch minor {
	case 11:
		l.interpretersHead, l.threadsHead, l.cframe, l.threadFrame, l.cframeFrame, l.threadID = 40, 16, true, 56, 8, 160
		l.code, l.previous, l.instruction, l.owner, l.firstLine, l.instructions, l.ascii, l.compact, l.native = 32, 48, 56, 69, 72, 184, 48, 72, 255
	case 12:
		l.interpretersHead, l.threadsHead, l.cframe, l.threadFrame, l.cframeFrame, l.threadID = 40, 72, true, 56, 0, 144
		l.code, l.previous, l.instruction, l.owner, l.firstLine, l.instructions, l.ascii, l.compact, l.native = 0, 8, 56, 70, 68, 192, 40, 56, 3
	default:
		return l, false
	}
	return l, true
}

// described reads what the interpreter of 3.13 says of itself.
func (l *pythonLayout) described(mem *memory, runtime uint64) bool {
	cookie := make([]byte, 8)
	if mem.read(cookie, runtime) != nil || string(cookie) != "xdebugpy" {
		return false
	}
	for _, f := range []struct {
		at   uint64
		into *uint64
	}{
		{40, &l.interpretersHead}, {64, &l.interpreterNext}, {72, &l.threadsHead}, {168, &l.threadNext}, {184, &l.threadFrame}, {200, &l.threadID},
		{232, &l.previous}, {240, &l.code}, {248, &l.instruction}, {264, &l.owner},
		{280, &l.filename}, {296, &l.qualname}, {304, &l.lines}, {312, &l.firstLine}, {344, &l.instructions},
	} {
		v, err := mem.word(runtime + f.at)
		if err != nil || v > 1<<20 {
			return false
		}
		*f.into = v
	}
	l.ascii, l.compact, l.native = 40, 56, 3
	return true
}

// pythonCode is what names one code object.
type pythonCode struct {
	name, file string
	first      int32
	lines      []byte
	begin      uint64
}

type pythonFrame struct {
	code *pythonCode
	at   int // instruction, in units of two bytes
}

type pythonThread struct {
	tid    int
	frames []pythonFrame
	cut    bool
}

// Python reads the Python frames of every thread from the interpreter's own
// structures.
func Python(r Request) (Dump, error) {
	image := newImage(r.PID)
	runtime, minor, name := image.python()
	if runtime == 0 {
		d, err := Native(r)
		d.note("This interpreter names neither itself nor its structures, so only its native stack is shown.")
		return d, err
	}
	mem := newMemory(r.PID)
	var l pythonLayout
	ok := false
	if minor == 13 {
		ok = l.described(mem, runtime)
	} else {
		l, ok = layoutOf(minor)
	}
	if !ok {
		d, err := Native(r)
		d.note("Frames of Python 3.%d cannot be read (3.11 to 3.13 can), so only its native stack is shown.", minor)
		return d, err
	}
	d := Dump{Method: fmt.Sprintf("Python frames read from the memory of %s (3.%d), held with ptrace meanwhile; native frames below them are not shown", name, minor)}
	var threads []pythonThread
	p := &python{l: l, codes: map[uint64]*pythonCode{}}
	pause, err := hold(r.PID, r.Limit, func(h *held) error {
		if err := r.Still(); err != nil {
			return err
		}
		p.mem, p.held = newMemory(r.PID), h
		threads = p.threads(runtime)
		return nil
	})
	d.Pause, d.Partial = pause, p.late
	if err != nil {
		return d, err
	}
	seen := map[int]bool{}
	for _, t := range threads {
		seen[t.tid] = true
		s := wire.InspectStack{Kind: "thread", Threads: []wire.InspectThread{threadInfo(r.PID, t.tid)}, Cut: t.cut}
		for _, f := range t.frames {
			s.Frames = append(s.Frames, wire.InspectFrame{Function: f.code.name, File: f.code.file, Line: int64(f.code.line(f.at))})
		}
		d.Stacks = append(d.Stacks, s)
	}
	if tids, err := threadIDs(r.PID); err == nil && len(tids) > len(seen) {
		d.note("%d more threads run no Python.", len(tids)-len(seen))
	}
	if p.late {
		d.note("The pause reached its limit of %s: the process was let go, and this is what was read until then.", r.Limit)
	}
	d.Stacks = fold(d.Stacks)
	return d, nil
}

// python finds the interpreter and its version.
func (i *image) python() (runtime uint64, minor byte, name string) {
	tried := map[string]bool{}
	for _, r := range i.regions {
		if !r.run || tried[r.path] || !strings.Contains(r.path, "python") {
			continue
		}
		tried[r.path] = true
		m, _, ok := i.module(r.from)
		if !ok {
			continue
		}
		at, version := m.address("_PyRuntime"), m.address("Py_Version")
		if at == 0 || version == 0 {
			continue
		}
		v, err := newMemory(i.pid).int32(version)
		if err == nil && v>>24 == 3 {
			return at, byte(v >> 16), m.name
		}
	}
	return 0, 0, ""
}

// python walks the interpreter's structures while it is held.
type python struct {
	l     pythonLayout
	mem   *memory
	held  *held
	codes map[uint64]*pythonCode
	late  bool
}

const maxInterpreters = 64

func (p *python) threads(runtime uint64) (out []pythonThread) {
	interpreter, err := p.mem.word(runtime + p.l.interpretersHead)
	for n := 0; err == nil && interpreter != 0 && n < maxInterpreters; n++ {
		var thread uint64
		thread, err = p.mem.word(interpreter + p.l.threadsHead)
		for ; err == nil && thread != 0 && len(out) < maxThreads; thread, err = p.mem.word(thread + p.l.threadNext) {
			if p.held.over() {
				p.late = true
				return out
			}
			if t, ok := p.thread(thread); ok {
				out = append(out, t)
			}
		}
		interpreter, err = p.mem.word(interpreter + p.l.interpreterNext)
	}
	return out
}

func (p *python) thread(at uint64) (t pythonThread, ok bool) {
	tid, err := p.mem.word(at + p.l.threadID)
	if err != nil {
		return t, false
	}
	t.tid = int(tid & 0xffffffff)
	frame, err := p.mem.word(at + p.l.threadFrame)
	if err == nil && p.l.cframe && frame != 0 {
		frame, err = p.mem.word(frame + p.l.cframeFrame)
	}
	for n := 0; err == nil && frame != 0; n++ {
		if n >= 4*maxFrames || len(t.frames) >= maxFrames {
			t.cut = true
			break
		}
		owner, oerr := p.mem.byteAt(frame + p.l.owner)
		if oerr != nil {
			break
		}
		if owner != p.l.native {
			if f, ok := p.frame(frame); ok {
				t.frames = append(t.frames, f)
			}
		}
		frame, err = p.mem.word(frame + p.l.previous)
	}
	return t, true
}

func (p *python) frame(at uint64) (f pythonFrame, ok bool) {
	address, err := p.mem.word(at + p.l.code)
	if err != nil || address == 0 {
		return f, false
	}
	if f.code, ok = p.codes[address]; !ok {
		f.code = p.code(address)
		p.codes[address] = f.code
	}
	if f.code == nil {
		return f, false
	}
	instruction, err := p.mem.word(at + p.l.instruction)
	if err == nil && instruction >= f.code.begin {
		f.at = int((instruction - f.code.begin) / 2)
	}
	return f, true
}

const (
	maxPythonName  = 512
	maxPythonLines = 128 << 10
)

func (p *python) code(at uint64) *pythonCode {
	c := &pythonCode{begin: at + p.l.instructions}
	name, err1 := p.mem.word(at + p.l.qualname)
	file, err2 := p.mem.word(at + p.l.filename)
	lines, err3 := p.mem.word(at + p.l.lines)
	if err1 != nil || err2 != nil || err3 != nil {
		return nil
	}
	var ok bool
	if c.name, ok = p.text(name); !ok {
		return nil
	}
	c.file, _ = p.text(file)
	c.first, _ = p.mem.int32(at + p.l.firstLine)
	if size, err := p.mem.word(lines + 16); err == nil && size <= maxPythonLines {
		b := make([]byte, size)
		if p.mem.read(b, lines+32) == nil {
			c.lines = b
		}
	}
	return c
}

// text reads a str object.
func (p *python) text(at uint64) (string, bool) {
	size, err := p.mem.word(at + 16)
	state, err2 := p.mem.int32(at + 32)
	if err != nil || err2 != nil || size > 1<<20 {
		return "", false
	}
	size = min(size, maxPythonName)
	kind, compact, ascii := state>>2&7, state>>5&1, state>>6&1
	if compact != 1 {
		return "", false
	}
	from, width := at+p.l.ascii, uint64(1)
	if ascii == 0 {
		from, width = at+p.l.compact, uint64(kind)
	}
	if width != 1 && width != 2 && width != 4 {
		return "", false
	}
	b := make([]byte, size*width)
	if p.mem.read(b, from) != nil {
		return "", false
	}
	switch width {
	case 1:
		if ascii == 1 {
			return string(b), true
		}
		r := make([]rune, size)
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r), true
	case 2:
		u := make([]uint16, size)
		for i := range u {
			u[i] = binary.LittleEndian.Uint16(b[2*i:])
		}
		return string(utf16.Decode(u)), true
	}
	r := make([]rune, size)
	for i := range r {
		r[i] = rune(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return string(r), true
}

// line finds the line of an instruction in the table of locations.
func (c *pythonCode) line(at int) int32 {
	line, place := c.first, 0
	r := reader{b: c.lines}
	varint := func() (v uint64) {
		for shift := uint(0); shift < 36; shift += 6 {
			b := r.u8()
			v |= uint64(b&0x3f) << shift
			if b&0x40 == 0 {
				return v
			}
		}
		r.bad = true
		return 0
	}
	signed := func() int32 {
		v := varint()
		if v&1 == 1 {
			return -int32(v >> 1)
		}
		return int32(v >> 1)
	}
	for int(r.at) < len(c.lines) && !r.bad {
		head := r.u8()
		length := int(head&7) + 1
		none := false
		switch kind := head >> 3 & 15; {
		case kind == 15:
			none = true
		case kind == 14:
			line += signed()
			varint()
			varint()
			varint()
		case kind == 13:
			line += signed()
		case kind >= 10:
			line += int32(kind - 10)
			r.skip(2)
		default:
			r.skip(1)
		}
		if place += length; at < place {
			if none {
				return 0
			}
			return line
		}
	}
	return 0
}
