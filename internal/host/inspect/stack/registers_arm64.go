package stack

// Numbers of registers in unwind tables.
const (
	regFP   = 29
	regRA   = 30
	regSP   = 31
	regPC   = 32
	maxRegs = 33
)

// registers are those that unwind tables speak of; the last is the place in
// the code.
type registers [maxRegs]uint64

// fromRaw takes user_pt_regs, which is in that order already.
func fromRaw(raw *[64]uint64) registers {
	var r registers
	copy(r[:], raw[:maxRegs])
	return r
}

func (r *registers) pc() uint64 { return r[regPC] }
