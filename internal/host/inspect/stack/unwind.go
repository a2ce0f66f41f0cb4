package stack

// unwinder goes from a frame to its caller, by the file's unwind tables, else
// by frame pointers.
type unwinder struct {
	mem    *memory
	image  *image
	script map[uint64]jsFunction // of frames by their frame pointer; nil but in Node.js
}

// cursor is one frame: its registers, as far as they are known.
type cursor struct {
	regs  registers
	known [maxRegs]bool
	pc    uint64
	// exact: pc is the instruction that runs, not the one after a call.
	exact bool
}

func cursorOf(r registers) cursor {
	c := cursor{regs: r, pc: r.pc(), exact: true}
	for i := range c.known {
		c.known[i] = true
	}
	return c
}

// rule says where a register of the caller is.
type rule struct {
	kind   byte
	offset int64
	reg    uint64
	expr   []byte
}

const (
	ruleSame      = iota
	ruleUndefined // the stack ends, or the register is lost
	ruleOffset    // saved at CFA+offset
	ruleValue     // is CFA+offset
	ruleRegister
	ruleExpr      // saved where the expression says
	ruleValueExpr // is what the expression says
)

type row struct {
	cfa  rule // ruleRegister with offset, or ruleValueExpr
	regs [maxRegs]rule
}

// next is the caller's frame.
func (u *unwinder) next(c cursor) (cursor, bool) {
	at := c.pc
	if !c.exact {
		at-- // the call itself: the next instruction may be of another function
	}
	if m, _, ok := u.image.module(at); ok && m.frames != nil {
		if f, ok := m.frames.find(at - m.bias); ok {
			return u.byTable(c, f, at-m.bias)
		}
	}
	return u.byPointer(c)
}

// byPointer follows the chain of frame pointers: what a compiler leaves behind
// that was told to, and what Go and V8 always leave.
func (u *unwinder) byPointer(c cursor) (cursor, bool) {
	fp := c.regs[regFP]
	if !c.known[regFP] || fp == 0 || fp&7 != 0 || fp < c.regs[regSP] {
		return cursor{}, false
	}
	next, err1 := u.mem.word(fp)
	ra, err2 := u.mem.word(fp + 8)
	if err1 != nil || err2 != nil || ra == 0 || next != 0 && next <= fp {
		return cursor{}, false
	}
	if r, ok := u.image.at(ra); !ok || !r.run {
		return cursor{}, false
	}
	n := cursor{pc: ra}
	n.regs[regFP], n.regs[regSP], n.known[regFP], n.known[regSP] = next, fp+16, true, true
	return n, true
}

// byTable applies the rules of the tables.
func (u *unwinder) byTable(c cursor, f fde, at uint64) (cursor, bool) {
	var r row
	r.cfa.kind = ruleUndefined
	if !r.run(f.cie.program, f, f.from+1<<40, nil) { // the common part holds everywhere
		return cursor{}, false
	}
	first := r
	if !r.run(f.program, f, at, &first) {
		return cursor{}, false
	}
	cfa, ok := u.cfa(c, r.cfa)
	if !ok || cfa < c.regs[regSP] && !f.cie.signal {
		return cursor{}, false
	}
	var n cursor
	for i := range r.regs {
		n.regs[i], n.known[i] = u.value(c, r.regs[i], i, cfa)
	}
	if r.regs[regSP].kind == ruleSame {
		n.regs[regSP], n.known[regSP] = cfa, true
	}
	ra := f.cie.ra
	if ra >= maxRegs || !n.known[ra] || n.regs[ra] == 0 || r.regs[ra].kind == ruleUndefined {
		return cursor{}, false
	}
	n.pc = n.regs[ra]
	n.exact = f.cie.signal
	if n.regs[regSP] == c.regs[regSP] && n.pc == c.pc {
		return cursor{}, false
	}
	return n, true
}

func (u *unwinder) cfa(c cursor, r rule) (uint64, bool) {
	switch r.kind {
	case ruleRegister:
		if r.reg >= maxRegs || !c.known[r.reg] {
			return 0, false
		}
		return c.regs[r.reg] + uint64(r.offset), true
	case ruleValueExpr:
		return u.evaluate(c, r.expr, nil)
	}
	return 0, false
}

func (u *unwinder) value(c cursor, r rule, i int, cfa uint64) (uint64, bool) {
	switch r.kind {
	case ruleSame:
		return c.regs[i], c.known[i]
	case ruleOffset:
		v, err := u.mem.word(cfa + uint64(r.offset))
		return v, err == nil
	case ruleValue:
		return cfa + uint64(r.offset), true
	case ruleRegister:
		if r.reg < maxRegs {
			return c.regs[r.reg], c.known[r.reg]
		}
	case ruleExpr:
		if at, ok := u.evaluate(c, r.expr, &cfa); ok {
			v, err := u.mem.word(at)
			return v, err == nil
		}
	case ruleValueExpr:
		return u.evaluate(c, r.expr, &cfa)
	}
	return 0, false
}

// run carries out the instructions up to the place at; first is the row to
// which registers are restored.
func (w *row) run(program []byte, f fde, at uint64, first *row) bool {
	r := reader{b: program}
	place := f.from
	var kept []row
	set := func(reg uint64, to rule) {
		if reg < maxRegs {
			w.regs[reg] = to
		}
	}
	for int(r.at) < len(program) && !r.bad {
		op := r.u8()
		low := uint64(op & 0x3f)
		switch op >> 6 {
		case 1: // advance
			if place += low * f.cie.code; place > at {
				return true
			}
			continue
		case 2: // offset
			set(low, rule{kind: ruleOffset, offset: int64(r.uleb()) * f.cie.data})
			continue
		case 3: // restore
			if first != nil && low < maxRegs {
				w.regs[low] = first.regs[low]
			}
			continue
		}
		switch op {
		case 0x00: // nothing
		case 0x01:
			place = r.pointer(f.cie.encoding, 0)
		case 0x02:
			place += uint64(r.u8()) * f.cie.code
		case 0x03:
			place += uint64(r.u16()) * f.cie.code
		case 0x04:
			place += uint64(r.u32()) * f.cie.code
		case 0x05:
			set(r.uleb(), rule{kind: ruleOffset, offset: int64(r.uleb()) * f.cie.data})
		case 0x06:
			if reg := r.uleb(); first != nil && reg < maxRegs {
				w.regs[reg] = first.regs[reg]
			}
		case 0x07:
			set(r.uleb(), rule{kind: ruleUndefined})
		case 0x08:
			set(r.uleb(), rule{kind: ruleSame})
		case 0x09:
			set(r.uleb(), rule{kind: ruleRegister, reg: r.uleb()})
		case 0x0a:
			if len(kept) >= 64 {
				return false
			}
			kept = append(kept, *w)
		case 0x0b:
			if len(kept) == 0 {
				return false
			}
			*w = kept[len(kept)-1]
			kept = kept[:len(kept)-1]
		case 0x0c:
			w.cfa = rule{kind: ruleRegister, reg: r.uleb(), offset: int64(r.uleb())}
		case 0x0d:
			w.cfa.kind, w.cfa.reg = ruleRegister, r.uleb()
		case 0x0e:
			w.cfa.offset = int64(r.uleb())
		case 0x0f:
			w.cfa = rule{kind: ruleValueExpr, expr: r.take(r.uleb())}
		case 0x10:
			set(r.uleb(), rule{kind: ruleExpr, expr: r.take(r.uleb())})
		case 0x11:
			set(r.uleb(), rule{kind: ruleOffset, offset: r.sleb() * f.cie.data})
		case 0x12:
			w.cfa = rule{kind: ruleRegister, reg: r.uleb(), offset: r.sleb() * f.cie.data}
		case 0x13:
			w.cfa.offset = r.sleb() * f.cie.data
		case 0x14:
			set(r.uleb(), rule{kind: ruleValue, offset: int64(r.uleb()) * f.cie.data})
		case 0x15:
			set(r.uleb(), rule{kind: ruleValue, offset: r.sleb() * f.cie.data})
		case 0x16:
			set(r.uleb(), rule{kind: ruleValueExpr, expr: r.take(r.uleb())})
		case 0x2d, 0x2e: // arm64: signed return addresses; size of arguments
			if op == 0x2e {
				r.uleb()
			}
		default:
			return false
		}
		if op >= 0x01 && op <= 0x04 && place > at {
			return true
		}
	}
	return !r.bad
}

const maxSteps = 256

// evaluate runs an expression of the tables; it can read memory, nothing else.
func (u *unwinder) evaluate(c cursor, expr []byte, start *uint64) (uint64, bool) {
	r := reader{b: expr}
	var st []uint64
	if start != nil {
		st = append(st, *start)
	}
	pop := func() uint64 {
		if len(st) == 0 {
			r.bad = true
			return 0
		}
		v := st[len(st)-1]
		st = st[:len(st)-1]
		return v
	}
	push := func(v uint64) {
		if len(st) > 64 {
			r.bad = true
			return
		}
		st = append(st, v)
	}
	register := func(n uint64, off int64) {
		if n >= maxRegs || !c.known[n] {
			r.bad = true
			return
		}
		push(c.regs[n] + uint64(off))
	}
	for steps := 0; int(r.at) < len(expr) && !r.bad; steps++ {
		if steps > maxSteps {
			return 0, false
		}
		op := r.u8()
		switch {
		case op >= 0x30 && op <= 0x4f:
			push(uint64(op - 0x30))
		case op >= 0x70 && op <= 0x8f:
			register(uint64(op-0x70), r.sleb())
		case op == 0x92:
			register(r.uleb(), r.sleb())
		case !u.simple(op, &r, pop, push):
			return 0, false
		}
	}
	v := pop()
	return v, !r.bad
}

// simple carries out one operation on the stack of values.
func (u *unwinder) simple(op byte, r *reader, pop func() uint64, push func(uint64)) bool {
	two := func(f func(a, b uint64) uint64) {
		b := pop()
		push(f(pop(), b))
	}
	truth := func(b bool) uint64 {
		if b {
			return 1
		}
		return 0
	}
	switch op {
	case 0x03:
		push(r.u64())
	case 0x06:
		v, err := u.mem.word(pop())
		if err != nil {
			return false
		}
		push(v)
	case 0x08:
		push(uint64(r.u8()))
	case 0x09:
		push(uint64(int64(int8(r.u8()))))
	case 0x0a:
		push(uint64(r.u16()))
	case 0x0b:
		push(uint64(int64(int16(r.u16()))))
	case 0x0c:
		push(uint64(r.u32()))
	case 0x0d:
		push(uint64(int64(int32(r.u32()))))
	case 0x10:
		push(r.uleb())
	case 0x11:
		push(uint64(r.sleb()))
	case 0x12:
		v := pop()
		push(v)
		push(v)
	case 0x13:
		pop()
	case 0x16:
		a, b := pop(), pop()
		push(a)
		push(b)
	case 0x1a:
		two(func(a, b uint64) uint64 { return a & b })
	case 0x1c:
		two(func(a, b uint64) uint64 { return a - b })
	case 0x1e:
		two(func(a, b uint64) uint64 { return a * b })
	case 0x21:
		two(func(a, b uint64) uint64 { return a | b })
	case 0x22:
		two(func(a, b uint64) uint64 { return a + b })
	case 0x23:
		push(pop() + r.uleb())
	case 0x24:
		two(func(a, b uint64) uint64 { return a << (b & 63) })
	case 0x25:
		two(func(a, b uint64) uint64 { return a >> (b & 63) })
	case 0x29:
		two(func(a, b uint64) uint64 { return truth(a == b) })
	case 0x2a:
		two(func(a, b uint64) uint64 { return truth(int64(a) >= int64(b)) })
	case 0x2b:
		two(func(a, b uint64) uint64 { return truth(int64(a) > int64(b)) })
	case 0x2c:
		two(func(a, b uint64) uint64 { return truth(int64(a) <= int64(b)) })
	case 0x2d:
		two(func(a, b uint64) uint64 { return truth(int64(a) < int64(b)) })
	case 0x2e:
		two(func(a, b uint64) uint64 { return truth(a != b) })
	default:
		return false
	}
	return true
}
