package stack

import (
	"cmp"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var errMemory = errors.New("cannot read the memory of the process")

// memory is another process's. While it is held, pages are copied; after that
// only the copies are read.
type memory struct {
	pid    int
	pages  map[uint64][]byte
	spans  []place // copies of another length, of stacks that lie apart
	sorted bool
	bytes  int
	closed bool // it goes on: nothing is read any more
}

const pageSize = 4096

func newMemory(pid int) *memory { return &memory{pid: pid, pages: map[uint64][]byte{}} }

// page returns the copy of one page.
func (m *memory) page(at uint64) ([]byte, error) {
	at &^= pageSize - 1
	if p, ok := m.pages[at]; ok {
		if p == nil {
			return nil, errMemory
		}
		return p, nil
	}
	if m.closed || m.bytes >= maxCopied {
		return nil, errMemory
	}
	p := make([]byte, pageSize)
	n, err := readAt(m.pid, p, at)
	if err != nil || n != pageSize {
		m.pages[at] = nil
		return nil, errMemory
	}
	m.pages[at] = p
	m.bytes += pageSize
	return p, nil
}

func readAt(pid int, into []byte, at uint64) (int, error) {
	if len(into) == 0 || at > 1<<62 {
		return 0, errMemory
	}
	local := []unix.Iovec{{Base: &into[0]}}
	local[0].SetLen(len(into))
	return unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(into)}}, 0)
}

// copyRange copies pages in one go; what cannot be read is left out.
func (m *memory) copyRange(from, to uint64) {
	from &^= pageSize - 1
	if to <= from || m.closed || m.bytes >= maxCopied {
		return
	}
	size := min(to-from+pageSize-1, maxStack+pageSize) &^ (pageSize - 1)
	all := make([]byte, size)
	n, _ := readAt(m.pid, all, from)
	for off := 0; off+pageSize <= n; off += pageSize {
		m.pages[from+uint64(off)] = all[off : off+pageSize]
	}
	m.bytes += max(n, 0)
}

// span finds a copy that holds all of what is asked for.
func (m *memory) span(at uint64, n int) []byte {
	if !m.sorted {
		slices.SortFunc(m.spans, func(a, b place) int { return cmp.Compare(a.at, b.at) })
		m.sorted = true
	}
	i := sort.Search(len(m.spans), func(i int) bool { return m.spans[i].at > at }) - 1
	if i < 0 || at-m.spans[i].at+uint64(n) > uint64(len(m.spans[i].into)) {
		return nil
	}
	return m.spans[i].into[at-m.spans[i].at:]
}

// read fills b from the place.
func (m *memory) read(b []byte, at uint64) error {
	if m.closed && len(m.spans) > 0 {
		if s := m.span(at, len(b)); s != nil {
			copy(b, s)
			return nil
		}
	}
	for len(b) > 0 {
		p, err := m.page(at)
		if err != nil {
			return err
		}
		n := copy(b, p[at&(pageSize-1):])
		b, at = b[n:], at+uint64(n)
	}
	return nil
}

func (m *memory) word(at uint64) (uint64, error) {
	var b [8]byte
	if err := m.read(b[:], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

func (m *memory) int32(at uint64) (int32, error) {
	var b [4]byte
	if err := m.read(b[:], at); err != nil {
		return 0, err
	}
	return int32(binary.LittleEndian.Uint32(b[:])), nil
}

func (m *memory) byteAt(at uint64) (byte, error) {
	var b [1]byte
	err := m.read(b[:], at)
	return b[0], err
}

// region is one line of /proc/PID/maps.
type region struct {
	from, to, offset uint64
	inode            uint64
	run              bool
	path             string
	deleted          bool
}

const maxRegions = 65_536

func regions(pid int) []region {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return nil
	}
	var out []region
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 6)
		if len(f) < 5 || len(out) >= maxRegions {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		var r region
		var e1, e2, e3 error
		r.from, e1 = strconv.ParseUint(from, 16, 64)
		r.to, e2 = strconv.ParseUint(to, 16, 64)
		r.offset, e3 = strconv.ParseUint(f[2], 16, 64)
		r.inode, _ = strconv.ParseUint(f[4], 10, 64)
		if !ok || e1 != nil || e2 != nil || e3 != nil {
			continue
		}
		r.run = len(f[1]) > 2 && f[1][2] == 'x'
		if len(f) == 6 {
			r.path, r.deleted = strings.CutSuffix(strings.TrimLeft(f[5], " "), " (deleted)")
		}
		out = append(out, r)
	}
	return out
}
