package stack

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Node reads a Node.js process from outside. Its own ways are not used: the
// inspector (SIGUSR1) opens a port on which anybody there runs code, and a
// report writes a file. V8 keeps frame pointers, so its stacks are followed
// through JavaScript too; what those frames are called, its own postmortem data
// says, which Node carries for debuggers.
func Node(r Request) (Dump, error) {
	image := newImage(r.PID)
	m, err := image.main()
	if err != nil {
		return Dump{}, fault.Wrap(fault.Unavailable, err, "cannot read the program of process %d", r.PID)
	}
	v := &v8{constants: map[string]int64{}, functions: map[uint64]jsFunction{}, frames: map[uint64]jsFunction{}, image: image}
	for _, m := range append([]*module{m}, image.libraries("libnode.so")...) {
		m.v8Constants(r.PID, v.constants)
	}
	d := Dump{Method: "held with ptrace for a copy, followed by frame pointers through JavaScript, which V8's own postmortem data names. No inspector is opened, nothing is changed; lines of JavaScript are not known"}
	s, err := copyStacks(r, &d, func(h *held, mem *memory) error {
		v.mem = mem
		if v.ready() {
			for _, t := range h.threads {
				if h.over() {
					d.Partial = true
					break
				}
				v.look(t)
			}
		}
		return nil
	})
	if err != nil {
		return d, err
	}
	if !v.ready() {
		d.note("This Node.js carries no postmortem data: its JavaScript frames have no names.")
	}
	s.image = image
	u := &unwinder{mem: s.mem, image: image, script: v.frames}
	for _, t := range s.threads {
		d.Stacks = append(d.Stacks, u.stack(r.PID, t))
	}
	d.Stacks = fold(d.Stacks)
	return d, nil
}

// libraries are the files of that name which are mapped to run.
func (i *image) libraries(prefix string) (out []*module) {
	for _, r := range i.regions {
		if name := r.path[strings.LastIndexByte(r.path, '/')+1:]; r.run && strings.HasPrefix(name, prefix) {
			if m, _, ok := i.module(r.from); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

// v8Constants reads the numbers by which V8 says where its fields are.
func (m *module) v8Constants(pid int, into map[string]int64) {
	mem := newMemory(pid)
	for _, pair := range [][2]string{{".dynsym", ".dynstr"}, {".symtab", ".strtab"}} {
		table, _ := m.section(pair[0])
		names, _ := m.section(pair[1])
		const entry = 24
		for off := 0; off+entry <= len(table); off += entry {
			b := table[off : off+entry]
			at := binary.LittleEndian.Uint32(b)
			if uint64(at)+8 > uint64(len(names)) || string(names[at:at+6]) != "v8dbg_" {
				continue
			}
			if v, err := mem.int32(binary.LittleEndian.Uint64(b[8:]) + m.bias); err == nil && len(into) < 4096 {
				into[strings.TrimPrefix(cString(names, at), "v8dbg_")] = int64(v)
			}
		}
		if len(into) > 0 {
			return
		}
	}
}

// jsFunction is what names a JavaScript frame.
type jsFunction struct{ name, file string }

// v8 reads the heap of V8 while the process is held.
type v8 struct {
	constants map[string]int64
	mem       *memory
	image     *image
	functions map[uint64]jsFunction // by the function object
	frames    map[uint64]jsFunction // by frame pointer
}

var v8Needs = []string{"class_JSFunction__shared__SharedFunctionInfo", "class_SharedFunctionInfo__name_or_scope_info__Object",
	"class_HeapObject__map__Map", "class_Map__instance_type__uint16_t", "class_String__length__int32_t", "class_SeqOneByteString__chars__char", "off_fp_function", "off_fp_context"}

func (v *v8) ready() bool {
	for _, n := range v8Needs {
		if _, ok := v.constants[n]; !ok {
			return false
		}
	}
	return true
}

// maxScript bounds how many functions are named in one thread's stack.
const maxScript = 4096

// look names what could be a JavaScript frame on the stack: a place that holds
// a frame pointer above it and an address of code. Whether it is one is known
// only when the stack is followed; then names are there.
func (v *v8) look(t *thread) {
	sp := t.regs[regSP]
	region, ok := v.image.at(sp)
	if !ok {
		return
	}
	top := min(region.to, sp+maxStack) - 16
	n := 0
	for fp := sp &^ 7; fp < top && n < maxScript; fp += 8 {
		above, err1 := v.mem.word(fp)
		ra, err2 := v.mem.word(fp + 8)
		if err1 != nil || err2 != nil {
			return
		}
		if above <= fp || above >= region.to || above&7 != 0 {
			continue
		}
		if r, ok := v.image.at(ra); !ok || !r.run {
			continue
		}
		kind, err := v.mem.word(fp + uint64(v.constants["off_fp_context"]))
		object, err2 := v.mem.word(fp + uint64(v.constants["off_fp_function"]))
		if err != nil || err2 != nil || kind&1 == 0 || object&3 != 1 {
			continue
		}
		n++
		f, known := v.functions[object]
		if !known {
			f = v.function(object)
			v.functions[object] = f
		}
		if f.name != "" {
			v.frames[fp] = f
		}
	}
}

// field reads a tagged field of an object.
func (v *v8) field(object uint64, name string) (uint64, bool) {
	off, ok := v.constants[name]
	if !ok || off <= 0 || off > 1<<16 {
		return 0, false
	}
	w, err := v.mem.word(object - 1 + uint64(off))
	return w, err == nil
}

func (v *v8) function(object uint64) (f jsFunction) {
	shared, ok := v.field(object, "class_JSFunction__shared__SharedFunctionInfo")
	if !ok || shared&3 != 1 {
		return f
	}
	name, ok := v.field(shared, "class_SharedFunctionInfo__name_or_scope_info__Object")
	if !ok {
		return f
	}
	var said bool
	if f.name, said = v.text(name); !said && name&3 == 1 {
		f.name = v.scopeName(name)
	}
	if script, ok := v.field(shared, "class_SharedFunctionInfo__script_or_debug_info__HeapObject"); ok && script&3 == 1 {
		if file, ok := v.field(script, "class_Script__name__Object"); ok {
			f.file, _ = v.text(file)
		}
	}
	if f.name == "" && f.file != "" {
		f.name = "(anonymous)"
	}
	return f
}

// scopeName finds the name of a function in its scope: after flags, numbers of
// parameters and locals come the locals' names, then a word for each, then what
// the scope has of its own, the function's name among it.
func (v *v8) scopeName(scope uint64) string {
	slot := func(n uint64) uint64 {
		w, _ := v.mem.word(scope - 1 + 8 + 8*n)
		return w
	}
	locals := slot(2) >> 32
	if slot(2)&0xffffffff != 0 || locals > 75 {
		return ""
	}
	for n := range uint64(6) {
		if s, ok := v.text(slot(3 + 2*locals + n)); ok {
			return s
		}
	}
	return ""
}

const maxScriptName = 512

// text reads a string; one that is made of two, or stands for another, is
// followed for a few steps.
func (v *v8) text(object uint64) (string, bool) { return v.part(object, 4) }

func (v *v8) part(object uint64, steps int) (string, bool) {
	if object&3 != 1 || steps == 0 {
		return "", false
	}
	m, ok := v.field2(object, v.constants["class_HeapObject__map__Map"])
	if !ok || m&3 != 1 {
		return "", false
	}
	kind, ok := v.field2(m, v.constants["class_Map__instance_type__uint16_t"])
	kind &= 0xffff
	if first := uint64(v.constants["FirstNonstringType"]); !ok || first == 0 || kind >= first {
		return "", false
	}
	size, err := v.mem.int32(object - 1 + uint64(v.constants["class_String__length__int32_t"]))
	if err != nil || size < 0 {
		return "", false
	}
	switch shape := kind & uint64(v.constants["StringRepresentationMask"]); shape {
	case 0: // flat
	case uint64(v.constants["ConsStringTag"]):
		first, ok1 := v.field(object, "class_ConsString__first__String")
		second, ok2 := v.field(object, "class_ConsString__second__String")
		a, ok3 := v.part(first, steps-1)
		b, ok4 := v.part(second, steps-1)
		return a + b, ok1 && ok2 && ok3 && (ok4 || size == int32(len(a)))
	case uint64(v.constants["ThinStringTag"]):
		actual, ok := v.field(object, "class_ThinString__actual__String")
		if !ok {
			return "", false
		}
		return v.part(actual, steps-1)
	default:
		return "", false
	}
	size = min(size, maxScriptName)
	if kind&uint64(v.constants["StringEncodingMask"]) == uint64(v.constants["OneByteStringTag"]) {
		b := make([]byte, size)
		if v.mem.read(b, object-1+uint64(v.constants["class_SeqOneByteString__chars__char"])) != nil {
			return "", false
		}
		r := make([]rune, size)
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r), true
	}
	b := make([]byte, 2*size)
	if v.mem.read(b, object-1+uint64(v.constants["class_SeqTwoByteString__chars__char"])) != nil {
		return "", false
	}
	u := make([]uint16, size)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u)), true
}

func (v *v8) field2(object uint64, off int64) (uint64, bool) {
	w, err := v.mem.word(object - 1 + uint64(off))
	return w, err == nil
}

func (f jsFunction) frame() wire.InspectFrame {
	return wire.InspectFrame{Function: f.name, File: f.file, Module: "JavaScript"}
}
