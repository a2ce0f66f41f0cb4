package sandbox

import "golang.org/x/sys/unix"

// This file is a small assembler for seccomp's classic BPF. A filter is a
// binary search over system call numbers whose leaves are blocks; a block ends
// every path with a return, so blocks can be laid one after the other.

// block is a piece of filter that returns on every path.
type block []unix.SockFilter

// Offsets in struct seccomp_data; the low word of an argument comes first on
// every architecture that this package is built for.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: jt, Jf: jf}
}

func ret(action uint32) block { return block{stmt(unix.BPF_RET|unix.BPF_K, action)} }

func load(offset uint32) unix.SockFilter {
	return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

// low loads the low word of argument n. The kernel's int and unsigned int
// parameters are those 32 bits alone, whatever the upper half holds.
func low(n int) unix.SockFilter { return load(offArgs + 8*uint32(n)) }

// oneOf chooses yes where argument n, masked, is one of the values.
func oneOf(n int, mask uint32, values []uint32, yes, no block) block {
	b := block{low(n)}
	if mask != ^uint32(0) {
		b = append(b, stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask))
	}
	for i, v := range values {
		b = append(b, jump(unix.BPF_JEQ, v, uint8(len(values)-1-i+1), 0))
	}
	// The unconditional jump keeps the offsets of the tests within a byte.
	b = append(b, stmt(unix.BPF_JMP|unix.BPF_JA, uint32(len(yes))))
	b = append(b, yes...)
	return append(b, no...)
}

// equals chooses yes where argument n is v.
func equals(n int, v uint32, yes, no block) block {
	return oneOf(n, ^uint32(0), []uint32{v}, yes, no)
}

// anyBit chooses yes where argument n has one of the bits of mask.
func anyBit(n int, mask uint32, yes, no block) block {
	b := block{low(n), jump(unix.BPF_JSET, mask, 1, 0), stmt(unix.BPF_JMP|unix.BPF_JA, uint32(len(yes)))}
	b = append(b, yes...)
	return append(b, no...)
}

// span is a run of system call numbers from first on with the same block.
type span struct {
	first uint32
	do    block
}

// search lays out a binary search over spans, which are sorted by first and
// start at 0. The number is in the accumulator.
func search(spans []span) block {
	if len(spans) == 1 {
		return spans[0].do
	}
	mid := len(spans) / 2
	left, right := search(spans[:mid]), search(spans[mid:])
	b := block{jump(unix.BPF_JGE, spans[mid].first, 0, 1), stmt(unix.BPF_JMP|unix.BPF_JA, uint32(len(left)))}
	b = append(b, left...)
	return append(b, right...)
}

// simple reports whether b is one unconditional return, and which.
func (b block) simple() (uint32, bool) {
	if len(b) == 1 && b[0].Code == unix.BPF_RET|unix.BPF_K {
		return b[0].K, true
	}
	return 0, false
}

// spansOf folds a table of blocks, one per number, into spans.
func spansOf(table []block, beyond block) []span {
	spans := make([]span, 0, len(table)/2)
	for nr, b := range table {
		if n := len(spans); n > 0 {
			was, ok1 := spans[n-1].do.simple()
			is, ok2 := b.simple()
			if ok1 && ok2 && was == is {
				continue
			}
		}
		spans = append(spans, span{uint32(nr), b})
	}
	return append(spans, span{uint32(len(table)), beyond})
}
