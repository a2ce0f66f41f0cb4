package dump

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// mapping is one entry of /proc/PID/smaps.
type mapping struct {
	from, to, offset uint64
	read, write, run bool
	shared           bool
	inode            uint64
	path             string
	resident         bool // something of it is in memory or in swap
	skip             bool // a device, or its program asked that it not be dumped
}

const (
	maxMappings = 1 << 18
	maxPath     = 4096
	// top is where user memory ends; beyond it lies what the kernel lends to all.
	top = 1 << 57
)

// file says whether the mapping is of a file that is there by a path.
func (m mapping) file() bool {
	return m.inode != 0 && strings.HasPrefix(m.path, "/") && !m.ownMemory()
}

// ownMemory says whether a shared mapping is memory and not a file. The name is
// what the program chose; a wrong one changes what is dumped of that program's
// own memory, no more.
func (m mapping) ownMemory() bool {
	for _, p := range []string{"/memfd:", "/SYSV", "/dev/zero", "/dev/shm/", "[anon"} {
		if strings.HasPrefix(m.path, p) {
			return true
		}
	}
	return m.inode == 0
}

// parseMaps reads /proc/PID/smaps: lines of mappings, each with what the
// kernel says of it. The kernel breaks no line within a name (it writes \012),
// so a line is a line; but a name may look like anything.
func parseMaps(r io.Reader) ([]mapping, error) {
	var all []mapping
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return nil, fault.New(fault.Invalid, "cannot read what is mapped: a line is longer than the kernel's")
		}
		if len(line) > 0 {
			if m, ok := parseMapping(line); ok {
				if len(all) >= maxMappings {
					return nil, fault.New(fault.Exhausted, "cannot dump a process of more than %d mappings", maxMappings)
				}
				if n := len(all); n > 0 && m.from < all[n-1].to {
					return nil, fault.New(fault.Invalid, "cannot read what is mapped: mappings lie over each other")
				}
				all = append(all, m)
			} else if len(all) > 0 {
				all[len(all)-1].detail(line)
			}
		}
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// parseMapping reads "7f00-7f01 r-xp 00000000 08:01 123   /lib/x.so".
func parseMapping(line []byte) (m mapping, ok bool) {
	f := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 6)
	if len(f) < 5 || len(f[1]) != 4 {
		return m, false
	}
	from, to, ok := bytes.Cut(f[0], []byte("-"))
	if !ok {
		return m, false
	}
	var e [4]error
	m.from, e[0] = strconv.ParseUint(string(from), 16, 64)
	m.to, e[1] = strconv.ParseUint(string(to), 16, 64)
	m.offset, e[2] = strconv.ParseUint(string(f[2]), 16, 64)
	m.inode, e[3] = strconv.ParseUint(string(f[4]), 10, 64)
	for _, err := range e {
		if err != nil {
			return m, false
		}
	}
	if m.to <= m.from || m.from%pageSize != 0 || m.to%pageSize != 0 {
		return m, false
	}
	m.read, m.write, m.run, m.shared = f[1][0] == 'r', f[1][1] == 'w', f[1][2] == 'x', f[1][3] == 's'
	if len(f) == 6 {
		m.path = strings.TrimLeft(string(f[5]), " ")
		m.path = m.path[:min(len(m.path), maxPath)]
	}
	m.skip = m.to > top
	return m, true
}

// detail takes a line that says more of the mapping before it.
func (m *mapping) detail(line []byte) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return
	}
	words := bytes.Fields(value)
	switch string(name) {
	case "Rss", "Swap", "Shared_Hugetlb", "Private_Hugetlb":
		if len(words) > 0 && string(words[0]) != "0" {
			m.resident = true
		}
	case "VmFlags":
		for _, w := range words {
			switch string(w) {
			case "io", "pf", "dd": // a device, memory without pages, not to be dumped
				m.skip = true
			}
		}
	}
}
