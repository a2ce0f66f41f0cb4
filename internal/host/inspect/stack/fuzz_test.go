package stack

import (
	"debug/elf"
	"os"
	"testing"
)

// FuzzFrames gives unwind tables of a liar to the reader and the unwinder.
func FuzzFrames(f *testing.F) {
	if file, err := elf.Open("/proc/self/exe"); err == nil {
		if s := file.Section(".eh_frame"); s != nil {
			if b, err := s.Data(); err == nil {
				f.Add(b[:min(len(b), 4096)], uint64(0x401000))
			}
		}
	}
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x1b, 12, 7, 8, 0x90, 1, 0, 0}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, at uint64) {
		table := &frameTable{data: b, base: 0x1000}
		table.scan()
		u := &unwinder{mem: newMemory(os.Getpid()), image: &image{}}
		u.mem.closed = true
		for _, e := range table.linear[:min(len(table.linear), 64)] {
			c := cursorOf(registers{regSP: 0x7000, regFP: 0x7100})
			_, _ = u.byTable(c, e, e.from)
			_, _ = u.byTable(c, e, at)
		}
		table.header, table.hbase = b, 0x2000
		if len(b) >= 12 {
			_, _ = table.find(at)
		}
	})
}

// FuzzThreadDump reads what a JVM that lies answers.
func FuzzThreadDump(f *testing.F) {
	f.Add("\"main\" #1 prio=5 nid=0x1 runnable\n   java.lang.Thread.State: RUNNABLE\n\tat a.B.c(B.java:1)\n\t- locked <0x1> (a X)\n\n")
	f.Add("\"\n\"")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range parseThreadDump(text) {
			if len(s.Frames) > maxFrames {
				t.Fatal("more frames than the bound")
			}
		}
	})
}

// FuzzLines reads a table of lines that is none.
func FuzzLines(f *testing.F) {
	f.Add([]byte{0x80, 0x00, 0xd8, 0x01, 0xf8}, 3)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		(&pythonCode{lines: b, first: 1}).line(at)
	})
}

// FuzzDemangle reads names of whoever wrote the program.
func FuzzDemangle(f *testing.F) {
	f.Add("_ZN3foo3bar17h0123456789abcdefE")
	f.Add("_ZN99999999999999999999a")
	f.Fuzz(func(t *testing.T, s string) { demangle(s) })
}
