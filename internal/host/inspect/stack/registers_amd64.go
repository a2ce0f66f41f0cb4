package stack

// Numbers of registers in unwind tables.
const (
	regFP   = 6
	regSP   = 7
	regRA   = 16
	maxRegs = 17
)

// registers are those that unwind tables speak of; the last is the place in
// the code.
type registers [maxRegs]uint64

// fromRaw puts user_regs_struct into the order of unwind tables.
func fromRaw(raw *[64]uint64) registers {
	const r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, ip, sp = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 19
	var r registers
	for to, from := range [...]int{ax, dx, cx, bx, si, di, bp, sp, r8, r9, r10, r11, r12, r13, r14, r15, ip} {
		r[to] = raw[from]
	}
	return r
}

func (r *registers) pc() uint64 { return r[regRA] }
