package dump

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

const pageSize = 4096

// run is pages that lie beside each other and are dumped.
type run struct {
	from, to uint64
	of       int // index of the mapping
}

// maxRuns bounds the segments of a dump; ELF counts them in 16 bits.
const maxRuns = 60_000

var errLate = fault.New(fault.Exhausted, "cannot dump the process: it would be held for longer than was agreed").WithHint("ask again, with a longer --pause")

// runs finds what of the mappings is dumped: the memory that is the process's
// own and there. A mapping may be of any size with nothing in it.
func runs(pid int, all []mapping, until time.Time) ([]run, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot see which pages of process %d are there", pid)
	}
	defer f.Close()
	walk, out := scan, []run(nil)
	for i, m := range all {
		if m.skip || !m.resident {
			continue
		}
		if m.file() && m.shared {
			continue // it is the file's, not the process's
		}
		found, err := walk(f, m, until)
		if err == errNoScan {
			walk = read
			found, err = walk(f, m, until)
		}
		if err != nil {
			return nil, err
		}
		if m.file() && m.offset == 0 { // its first page says which build it is
			found = withFirst(found, m)
		}
		for _, r := range found {
			r.of = i
			out = append(out, r)
		}
		if len(out) > 16*maxRuns {
			out = closer(out, all)
		}
	}
	if len(out) > maxRuns {
		out = closer(out, all)
	}
	if len(out) > maxRuns {
		return nil, fault.New(fault.Exhausted, "cannot dump process %d: its memory lies in %d pieces, at most %d", pid, len(out), maxRuns)
	}
	return out, nil
}

// withFirst adds the first page, whatever is there beside it.
func withFirst(found []run, m mapping) []run {
	if len(found) > 0 && found[0].from == m.from {
		return found
	}
	first := run{from: m.from, to: m.from + pageSize}
	if len(found) > 0 && found[0].from == first.to {
		found[0].from = first.from
		return found
	}
	return append([]run{first}, found...)
}

// closer joins runs of one mapping over ever larger gaps. Only where a page that
// is not there reads as zero: in memory that is of no file.
func closer(in []run, all []mapping) []run {
	for gap := uint64(2 * pageSize); len(in) > maxRuns/2 && gap <= 64<<20; gap *= 2 {
		out := in[:0]
		for _, r := range in {
			if n := len(out); n > 0 && out[n-1].of == r.of && !all[r.of].file() && r.from-out[n-1].to <= gap {
				out[n-1].to = r.to
				continue
			}
			out = append(out, r)
		}
		in = out
	}
	return in
}

// errNoScan is a kernel before 6.7.
var errNoScan = fmt.Errorf("no PAGEMAP_SCAN")

// What PAGEMAP_SCAN tells of pages, as linux/fs.h has it.
const (
	pagemapScan   = 0xc0606610
	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsZero    = 1 << 5
)

type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, returned                         uint64
}

type scanned struct{ start, end, categories uint64 }

// scan asks the kernel for the runs, which passes over what is empty.
func scan(f *os.File, m mapping, until time.Time) (out []run, err error) {
	found := make([]scanned, 512)
	var pin runtime.Pinner // the kernel writes there by a number, which no collector sees
	pin.Pin(&found[0])
	defer pin.Unpin()
	for at := m.from; at < m.to; {
		if time.Now().After(until) {
			return nil, errLate
		}
		a := scanArg{size: uint64(unsafe.Sizeof(scanArg{})), start: at, end: m.to, vec: uint64(uintptr(unsafe.Pointer(&found[0]))), vecLen: uint64(len(found)),
			anyOf: pageIsPresent | pageIsSwapped, returned: pageIsFile | pageIsZero}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&a)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, errNoScan
		}
		for _, s := range found[:min(int(n), len(found))] {
			if s.categories&pageIsFile == 0 || m.shared {
				out = add(out, s.start, s.end)
			}
		}
		if a.walkEnd <= at {
			break
		}
		at = a.walkEnd
	}
	return out, nil
}

func add(out []run, from, to uint64) []run {
	if n := len(out); n > 0 && out[n-1].to == from {
		out[n-1].to = to
		return out
	}
	return append(out, run{from: from, to: to})
}

// read walks the older file, of eight bytes for each page.
func read(f *os.File, m mapping, until time.Time) (out []run, err error) {
	b := make([]byte, 1<<20)
	for at := m.from; at < m.to; {
		if time.Now().After(until) {
			return nil, errLate
		}
		want := min(uint64(len(b)), (m.to-at)/pageSize*8)
		n, err := f.ReadAt(b[:want], int64(at/pageSize*8))
		if n < 8 {
			if err == nil || err == io.EOF {
				return out, nil
			}
			return nil, fault.Wrap(fault.Unavailable, err, "cannot see which pages are there")
		}
		for i := 0; i+8 <= n; i += 8 {
			e := binary.LittleEndian.Uint64(b[i:])
			if e>>62 != 0 && (e>>61&1 == 0 || m.shared) { // present or swapped; of a file or shared
				out = add(out, at, at+pageSize)
			}
			at += pageSize
		}
	}
	return out, nil
}
