package stack

import (
	"debug/elf"
	"encoding/binary"
	"sort"
)

// frameTable is a file's unwind tables (.eh_frame): for each place in the code,
// where the caller's registers are. It is hostile like everything else.
type frameTable struct {
	data   []byte // .eh_frame
	base   uint64 // its address in the file
	header []byte // .eh_frame_hdr, sorted by place
	hbase  uint64
	linear []fde // without a header: all of them, sorted
}

// fde is the entry of one function.
type fde struct {
	from, to uint64
	cie      *cie
	program  []byte
}

type cie struct {
	code     uint64
	data     int64
	ra       uint64
	encoding byte
	augment  bool
	signal   bool
	program  []byte
}

const maxFDEs = 1 << 20

func (m *module) readFrames() *frameTable {
	if m.elf.Machine != elf.EM_X86_64 && m.elf.Machine != elf.EM_AARCH64 {
		return nil
	}
	t := &frameTable{}
	t.data, t.base = m.section(".eh_frame")
	if len(t.data) == 0 {
		return nil
	}
	t.header, t.hbase = m.section(".eh_frame_hdr")
	// version 1, pointer and count of 4 bytes, a table of pairs relative to it
	if len(t.header) < 12 || t.header[0] != 1 || t.header[1]&0xf != 0xb || t.header[2] != 3 || t.header[3] != 0x3b {
		t.header = nil
		t.scan()
	}
	return t
}

// scan reads all entries, where there is no table to search in.
func (t *frameTable) scan() {
	for off := uint64(0); off+4 < uint64(len(t.data)) && len(t.linear) < maxFDEs; {
		size := uint64(binary.LittleEndian.Uint32(t.data[off:]))
		if size == 0 || size >= 0xfffffff0 || off+4+size > uint64(len(t.data)) {
			return
		}
		if f, ok := t.entry(off); ok {
			t.linear = append(t.linear, f)
		}
		off += 4 + size
	}
	sort.Slice(t.linear, func(i, j int) bool { return t.linear[i].from < t.linear[j].from })
}

// find is the entry for an address of the file.
func (t *frameTable) find(at uint64) (fde, bool) {
	if t.header == nil {
		n := sort.Search(len(t.linear), func(n int) bool { return t.linear[n].to > at })
		if n < len(t.linear) && t.linear[n].from <= at {
			return t.linear[n], true
		}
		return fde{}, false
	}
	count := uint64(binary.LittleEndian.Uint32(t.header[8:]))
	count = min(count, uint64(len(t.header)-12)/8)
	place := func(n int) uint64 {
		return t.hbase + uint64(int64(int32(binary.LittleEndian.Uint32(t.header[12+8*n:]))))
	}
	n := sort.Search(int(count), func(n int) bool { return place(n) > at }) - 1
	if n < 0 {
		return fde{}, false
	}
	where := t.hbase + uint64(int64(int32(binary.LittleEndian.Uint32(t.header[12+8*n+4:]))))
	if where < t.base {
		return fde{}, false
	}
	f, ok := t.entry(where - t.base)
	return f, ok && at >= f.from && at < f.to
}

// entry reads the entry of a function at an offset.
func (t *frameTable) entry(off uint64) (f fde, ok bool) {
	r := reader{b: t.data, at: off}
	size := uint64(r.u32())
	end := off + 4 + size
	if r.bad || size == 0 || size >= 0xfffffff0 || end > uint64(len(t.data)) {
		return f, false
	}
	here := r.at
	back := uint64(r.u32())
	if back == 0 || back > here { // 0: this is a common part itself
		return f, false
	}
	if f.cie, ok = t.common(here - back); !ok {
		return f, false
	}
	f.from = r.pointer(f.cie.encoding, t.base+r.at)
	f.to = f.from + r.pointer(f.cie.encoding&0x0f, 0)
	if f.cie.augment {
		r.skip(r.uleb())
	}
	if r.bad || r.at > end {
		return f, false
	}
	f.program = t.data[r.at:end]
	return f, true
}

// common reads what several entries share.
func (t *frameTable) common(off uint64) (*cie, bool) {
	r := reader{b: t.data, at: off}
	size := uint64(r.u32())
	end := off + 4 + size
	if r.bad || size == 0 || end > uint64(len(t.data)) || r.u32() != 0 {
		return nil, false
	}
	version := r.u8()
	augment := r.cstring()
	c := &cie{code: r.uleb(), data: r.sleb()}
	if version == 1 {
		c.ra = uint64(r.u8())
	} else {
		c.ra = r.uleb()
	}
	for _, ch := range augment {
		switch ch {
		case 'z':
			r.uleb()
			c.augment = true
		case 'R':
			c.encoding = r.u8()
		case 'L':
			r.u8()
		case 'P':
			r.pointer(r.u8()&0x7f, t.base+r.at)
		case 'S':
			c.signal = true
		case 'B': // arm64: pointer authentication
		default:
			return nil, false
		}
	}
	if r.bad || r.at > end {
		return nil, false
	}
	c.program = t.data[r.at:end]
	return c, true
}

// reader takes numbers from bytes; once bad, it stays bad and gives zeros.
type reader struct {
	b   []byte
	at  uint64
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) || r.at > uint64(len(r.b))-n {
		r.bad = true
		return nil
	}
	p := r.b[r.at : r.at+n]
	r.at += n
	return p
}

func (r *reader) skip(n uint64) { r.take(n) }

func (r *reader) u8() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) uleb() (v uint64) {
	for shift := uint(0); shift < 70; shift += 7 {
		b := r.u8()
		if shift < 64 {
			v |= uint64(b&0x7f) << shift
		}
		if b&0x80 == 0 {
			return v
		}
	}
	r.bad = true
	return 0
}

func (r *reader) sleb() (v int64) {
	for shift := uint(0); shift < 70; shift += 7 {
		b := r.u8()
		if shift < 64 {
			v |= int64(b&0x7f) << shift
		}
		if b&0x80 == 0 {
			if b&0x40 != 0 && shift+7 < 64 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	r.bad = true
	return 0
}

func (r *reader) cstring() string {
	from := r.at
	for range 64 {
		if r.u8() == 0 {
			if r.bad {
				return ""
			}
			return string(r.b[from : r.at-1])
		}
	}
	r.bad = true
	return ""
}

// pointer reads an encoded pointer; here is the address at which it stands.
func (r *reader) pointer(encoding byte, here uint64) uint64 {
	var v uint64
	switch encoding & 0x0f {
	case 0x00, 0x04, 0x0c:
		v = r.u64()
	case 0x01:
		v = r.uleb()
	case 0x02:
		v = uint64(r.u16())
	case 0x03:
		v = uint64(r.u32())
	case 0x09:
		v = uint64(r.sleb())
	case 0x0a:
		v = uint64(int64(int16(r.u16())))
	case 0x0b:
		v = uint64(int64(int32(r.u32())))
	default:
		r.bad = true
	}
	if encoding&0x70 == 0x10 {
		v += here
	}
	return v
}
