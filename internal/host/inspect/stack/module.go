package stack

import (
	"debug/elf"
	"io"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// module is one file that a process runs code from.
type module struct {
	name    string
	file    *os.File
	elf     *elf.File
	bias    uint64 // what is added to the file's addresses
	symbols []symbol
	names   []byte
	frames  *frameTable // unwind tables; nil without
	code    *goCode     // of a Go program; nil else
	from    uint64      // of its first region that runs
	to      uint64
}

type symbol struct {
	at, size uint64
	name     uint32
}

// image is everything that a process has mapped to run.
type image struct {
	pid     int
	regions []region
	modules map[string]*module
	failed  map[string]string // path → why it is not read
}

const (
	maxModules = 512
	maxSection = 256 << 20
	maxSymbols = 4 << 20
)

func newImage(pid int) *image {
	return &image{pid: pid, regions: regions(pid), modules: map[string]*module{}, failed: map[string]string{}}
}

// at is the region that an address lies in.
func (i *image) at(pc uint64) (region, bool) {
	n := sort.Search(len(i.regions), func(n int) bool { return i.regions[n].to > pc })
	if n < len(i.regions) && i.regions[n].from <= pc {
		return i.regions[n], true
	}
	return region{}, false
}

// module is the file behind an address of code, read when it is first needed.
func (i *image) module(pc uint64) (*module, region, bool) {
	r, ok := i.at(pc)
	if !ok || !r.run {
		return nil, r, false
	}
	if m, ok := i.modules[r.path]; ok {
		return m, r, m != nil
	}
	if len(i.modules) >= maxModules || !strings.HasPrefix(r.path, "/") {
		return nil, r, false
	}
	m, err := i.open(r)
	if err != nil {
		i.failed[r.path] = err.Error()
		m = nil
	}
	i.modules[r.path] = m
	return m, r, m != nil
}

// open reads the file of a region: the very one that is mapped, or none.
func (i *image) open(r region) (*module, error) {
	f, err := openMapped(i.pid, r)
	if err != nil {
		return nil, err
	}
	e, err := elf.NewFile(f)
	if err != nil || e.Class != elf.ELFCLASS64 || e.ByteOrder.String() != "LittleEndian" {
		f.Close()
		return nil, errNoTable
	}
	m := &module{name: r.path[strings.LastIndexByte(r.path, '/')+1:], file: f, elf: e, from: r.from, to: r.to}
	found := false
	for _, p := range e.Progs {
		if p.Type != elf.PT_LOAD || p.Flags&elf.PF_X == 0 {
			continue
		}
		if start := p.Off &^ (pageSize - 1); r.offset >= start && r.offset < p.Off+p.Filesz {
			m.bias = r.from - (p.Vaddr - p.Off + r.offset)
			found = true
		}
	}
	if !found {
		f.Close()
		return nil, errNoTable
	}
	m.readSymbols()
	m.frames = m.readFrames()
	return m, nil
}

// openMapped opens the file that is mapped: the program by the kernel's own
// link, others by their name in the process's own tree, if it is still that
// file. A name may lead elsewhere meanwhile; what is read is used only to name
// code.
func openMapped(pid int, r region) (*os.File, error) {
	base := "/proc/" + strconv.Itoa(pid)
	path := base + "/root" + r.path
	if exe, err := os.Readlink(base + "/exe"); err == nil && strings.TrimSuffix(exe, " (deleted)") == r.path {
		path = base + "/exe"
	} else if r.deleted {
		return nil, errReplaced
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || r.inode != 0 && st.Ino != r.inode && path != base+"/exe" {
		f.Close()
		return nil, errReplaced
	}
	return f, nil
}

type moduleError string

func (e moduleError) Error() string { return string(e) }

const (
	errNoTable  = moduleError("it is no program of this machine")
	errReplaced = moduleError("its file was replaced since")
)

// section reads one section's bytes, within bounds.
func (m *module) section(name string) (data []byte, at uint64) {
	s := m.elf.Section(name)
	if s == nil || s.Type == elf.SHT_NOBITS || s.Size > maxSection || s.FileSize > maxSection {
		return nil, 0
	}
	data, err := s.Data()
	if err != nil {
		return nil, 0
	}
	return data, s.Addr
}

// readSymbols reads the names of functions, the full table or the one that the
// loader needs.
func (m *module) readSymbols() {
	for _, pair := range [][2]string{{".symtab", ".strtab"}, {".dynsym", ".dynstr"}} {
		table, _ := m.section(pair[0])
		names, _ := m.section(pair[1])
		const entry = 24
		for off := 0; off+entry <= len(table) && len(m.symbols) < maxSymbols; off += entry {
			b := table[off : off+entry]
			kind := elf.ST_TYPE(b[4])
			s := symbol{at: m.elf.ByteOrder.Uint64(b[8:]), size: m.elf.ByteOrder.Uint64(b[16:]), name: m.elf.ByteOrder.Uint32(b)}
			if s.at != 0 && (kind == elf.STT_FUNC || kind == elf.STT_GNU_IFUNC || kind == elf.STT_NOTYPE && s.size > 0) && uint64(s.name) < uint64(len(names)) {
				m.symbols = append(m.symbols, s)
			}
		}
		if len(m.symbols) > 0 {
			m.names = names
			break
		}
	}
	slices.SortFunc(m.symbols, func(a, b symbol) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return int(a.size>>1) - int(b.size>>1)
	})
}

// functionName names the code at an address of the process; "" where nothing does.
func (m *module) functionName(pc uint64) string {
	at := pc - m.bias
	n := sort.Search(len(m.symbols), func(n int) bool { return m.symbols[n].at > at }) - 1
	if n < 0 {
		return ""
	}
	s := m.symbols[n]
	if s.size != 0 && at >= s.at+s.size || at-s.at > 16<<20 {
		return ""
	}
	return demangle(cString(m.names, s.name))
}

// address is where a symbol lies in the process; 0 where it is not named.
func (m *module) address(name string) uint64 {
	for _, pair := range [][2]string{{".symtab", ".strtab"}, {".dynsym", ".dynstr"}} {
		table, _ := m.section(pair[0])
		names, _ := m.section(pair[1])
		const entry = 24
		for off := 0; off+entry <= len(table); off += entry {
			b := table[off : off+entry]
			if at := m.elf.ByteOrder.Uint32(b); cString(names, at) == name {
				if v := m.elf.ByteOrder.Uint64(b[8:]); v != 0 {
					return v + m.bias
				}
			}
		}
	}
	return 0
}

const maxName = 1024

func cString(b []byte, at uint32) string {
	if uint64(at) >= uint64(len(b)) {
		return ""
	}
	b = b[at:]
	b = b[:min(len(b), maxName)]
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// demangle makes the names of nested functions of C++ and Rust readable; what
// it does not know stays as it is.
func demangle(s string) string {
	rest, ok := strings.CutPrefix(s, "_ZN")
	if !ok {
		return s
	}
	rest = strings.TrimLeft(rest, "KVrRO")
	var parts []string
	for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		n, err := strconv.Atoi(rest[:i])
		if err != nil || n <= 0 || i+n > len(rest) {
			return s
		}
		part := rest[i : i+n]
		rest = rest[i+n:]
		if len(part) == 17 && part[0] == 'h' && strings.Trim(part[1:], "0123456789abcdef") == "" && strings.HasPrefix(rest, "E") {
			break // Rust's hash
		}
		parts = append(parts, rustWord.Replace(part))
	}
	if len(parts) == 0 {
		return s
	}
	switch {
	case strings.HasPrefix(rest, "C"):
		parts = append(parts, parts[len(parts)-1])
	case strings.HasPrefix(rest, "D"):
		parts = append(parts, "~"+parts[len(parts)-1])
	case !strings.HasPrefix(rest, "E"):
		return s
	}
	return strings.Join(parts, "::")
}

var rustWord = strings.NewReplacer("$LT$", "<", "$GT$", ">", "$RF$", "&", "$BP$", "*", "$C$", ",", "$u20$", " ", "$u7b$", "{", "$u7d$", "}", "$u5b$", "[", "$u5d$", "]", "..", "::")

// readerAt gives the file to those who parse it.
func (m *module) readerAt() io.ReaderAt { return m.file }
