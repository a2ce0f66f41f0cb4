package dump

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"runtime"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/inspect/stack"
)

// The notes of a core file, as gdb and readelf know them.
const (
	ntPrStatus = 1
	ntFpRegs   = 2
	ntPrPsInfo = 3
	ntAuxv     = 6
	ntXState   = 0x202
	ntSiginfo  = 0x53494749
	ntFile     = 0x46494c45
)

const (
	ehdrSize = 64
	phdrSize = 56
)

// process is what the notes say of the process as a whole.
type process struct {
	pid, parent, group, session int32
	uid, gid                    uint32
	state                       byte
	name, args                  string
	auxv                        []byte
	threads                     []thread
}

// thread is one thread's registers, as the kernel has them.
type thread struct {
	tid                 int32
	general, fp, xstate []byte
}

// errNarrow is a program of 32 bits, whose core file is of another form.
var errNarrow = fault.New(fault.Unavailable, "cannot dump the process: it is a program of 32 bits")

// registers reads those of one held thread.
func registers(tid int) (thread, error) {
	t := thread{tid: int32(tid)}
	for _, set := range []struct {
		note uint32
		most int
		into *[]byte
	}{{ntPrStatus, 1024, &t.general}, {ntFpRegs, 1024, &t.fp}, {ntXState, 32 << 10, &t.xstate}} {
		b := make([]byte, set.most)
		n, err := stack.Registers(tid, set.note, b)
		if err != nil && set.note == ntPrStatus {
			return t, err
		}
		if err == nil {
			*set.into = b[:n]
		}
	}
	if want := map[string]int{"amd64": 216, "arm64": 272}[runtime.GOARCH]; len(t.general) != want {
		return t, errNarrow
	}
	return t, nil
}

// notes is the PT_NOTE segment.
func notes(p process, all []mapping) []byte {
	var out bytes.Buffer
	for i, t := range p.threads {
		note(&out, "CORE", ntPrStatus, prStatus(p, t))
		if i == 0 {
			note(&out, "CORE", ntPrPsInfo, prPsInfo(p))
			note(&out, "CORE", ntSiginfo, make([]byte, 128)) // no signal: it was only looked at
			note(&out, "CORE", ntAuxv, p.auxv)
			note(&out, "CORE", ntFile, fileTable(all))
		}
		note(&out, "CORE", ntFpRegs, t.fp)
		note(&out, "LINUX", ntXState, t.xstate)
	}
	return out.Bytes()
}

func note(out *bytes.Buffer, name string, kind uint32, desc []byte) {
	if len(desc) == 0 {
		return
	}
	var head [12]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(name)+1))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(desc)))
	binary.LittleEndian.PutUint32(head[8:], kind)
	out.Write(head[:])
	pad(out, append([]byte(name), 0))
	pad(out, desc)
}

func pad(out *bytes.Buffer, b []byte) {
	out.Write(b)
	out.Write(make([]byte, -len(b)&3))
}

// prStatus is struct elf_prstatus.
func prStatus(p process, t thread) []byte {
	b := make([]byte, 32, 112+len(t.general)+8)
	for _, n := range []int32{t.tid, p.parent, p.group, p.session} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = append(b, make([]byte, 64)...) // times that nobody needs
	b = append(b, t.general...)
	fp := uint32(0)
	if len(t.fp) > 0 {
		fp = 1
	}
	b = binary.LittleEndian.AppendUint32(b, fp)
	return append(b, 0, 0, 0, 0)
}

// prPsInfo is struct elf_prpsinfo.
func prPsInfo(p process) []byte {
	b := make([]byte, 136)
	b[1] = p.state
	binary.LittleEndian.PutUint32(b[16:], p.uid)
	binary.LittleEndian.PutUint32(b[20:], p.gid)
	for i, n := range []int32{p.pid, p.parent, p.group, p.session} {
		binary.LittleEndian.PutUint32(b[24+4*i:], uint32(n))
	}
	copy(b[40:55], p.name)
	copy(b[56:135], p.args)
	return b
}

// fileTable is which files were mapped where, by which a debugger finds them.
func fileTable(all []mapping) []byte {
	var table, names []byte
	n := uint64(0)
	for _, m := range all {
		if !m.file() {
			continue
		}
		n++
		for _, v := range []uint64{m.from, m.to, m.offset / pageSize} {
			table = binary.LittleEndian.AppendUint64(table, v)
		}
		names = append(append(names, m.path...), 0)
	}
	head := binary.LittleEndian.AppendUint64(nil, n)
	head = binary.LittleEndian.AppendUint64(head, pageSize)
	return append(append(head, table...), names...)
}

// layout is where everything lies in the file.
type layout struct {
	head []byte // ELF header, program headers, notes, up to the first page
	size int64  // of the whole file
}

func lay(all []mapping, of []run, notes []byte) layout {
	count := 1 + len(of)
	at := uint64(ehdrSize + phdrSize*count)
	data := (at + uint64(len(notes)) + pageSize - 1) &^ (pageSize - 1)
	var out bytes.Buffer
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // a buffer takes everything
	put(elf.Header64{Ident: ident, Type: uint16(elf.ET_CORE), Machine: uint16(machine()), Version: uint32(elf.EV_CURRENT),
		Phoff: ehdrSize, Ehsize: ehdrSize, Phentsize: phdrSize, Phnum: uint16(count)})
	put(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: at, Filesz: uint64(len(notes)), Align: 4})
	size := data
	for _, r := range of {
		put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: all[r.of].flags(), Off: size, Vaddr: r.from, Filesz: r.to - r.from, Memsz: r.to - r.from, Align: pageSize})
		size += r.to - r.from
	}
	out.Write(notes)
	out.Write(make([]byte, data-uint64(out.Len())))
	return layout{out.Bytes(), int64(size)}
}

func (m mapping) flags() (f uint32) {
	for flag, on := range map[elf.ProgFlag]bool{elf.PF_R: m.read, elf.PF_W: m.write, elf.PF_X: m.run} {
		if on {
			f |= uint32(flag)
		}
	}
	return f
}

func machine() elf.Machine {
	if runtime.GOARCH == "arm64" {
		return elf.EM_AARCH64
	}
	return elf.EM_X86_64
}

// copier reads a held process's memory.
type copier struct {
	pid    int
	mem    io.ReaderAt // /proc/PID/mem, which also sees what the process itself may not read
	unread int64
}

// fill copies memory into b. Pages that cannot be read are zero, and counted;
// an error says that there is no process any more.
func (c *copier) fill(b []byte, at uint64) error {
	for len(b) > 0 {
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		n, err := unix.ProcessVMReadv(c.pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
		if err == unix.ESRCH {
			return fault.New(fault.NotFound, "cannot dump process %d: it ended in the middle", c.pid)
		}
		if n = max(n, 0) &^ (pageSize - 1); n == 0 {
			n = min(pageSize, len(b))
			if k, err := c.mem.ReadAt(b[:n], int64(at)); k != n {
				if k == 0 && err == io.EOF { // its memory is gone
					return fault.New(fault.NotFound, "cannot dump process %d: it ended in the middle", c.pid)
				}
				clear(b[:n])
				c.unread++
			}
		}
		b, at = b[n:], at+uint64(n)
	}
	return nil
}
