package dump

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	roleEnv  = "HANDRAIL_DUMP_ROLE"
	patience = time.Minute
	marked   = "the one secret of this process"
)

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		victim()
	}
	os.Exit(m.Run())
}

// victim is a process with memory of every odd kind. It says where, and waits.
func victim() {
	anon := func(size int, prot, flags int) []byte {
		b, err := unix.Mmap(-1, 0, size, prot, unix.MAP_ANON|flags)
		if err != nil {
			panic(err)
		}
		return b
	}
	rw := unix.PROT_READ | unix.PROT_WRITE
	plain := anon(8*pageSize, rw, unix.MAP_PRIVATE)
	copy(plain, marked)
	huge := anon(1<<40, rw, unix.MAP_PRIVATE|unix.MAP_NORESERVE) // a tebibyte with two pages in it
	copy(huge[3*pageSize:], "near")
	copy(huge[len(huge)-pageSize:], "far")
	closed := anon(pageSize, rw, unix.MAP_PRIVATE)
	copy(closed, "closed to itself")
	must(unix.Mprotect(closed, unix.PROT_NONE))
	kept := anon(pageSize, rw, unix.MAP_PRIVATE)
	copy(kept, "asked not to be dumped")
	must(unix.Madvise(kept, unix.MADV_DONTDUMP))
	fd, err := unix.MemfdCreate("x\n00400000-7fffffffffff rw-p 00000000 00:00 0 [heap]\nVmFlags: dd", 0)
	must(err)
	must(unix.Ftruncate(fd, 2*pageSize))
	lying, err := unix.Mmap(fd, 0, 2*pageSize, rw, unix.MAP_SHARED)
	must(err)
	copy(lying, "of a name that lies")
	if n, _ := strconv.Atoi(os.Getenv(roleEnv)); n > 1 {
		big := anon(n, rw, unix.MAP_PRIVATE)
		for i := 0; i < n; i += pageSize {
			big[i] = 1
		}
	}
	at := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	fmt.Println(at(plain), at(huge)+3*pageSize, at(huge)+uintptr(len(huge))-pageSize, at(closed), at(kept), at(lying))
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

type prey struct {
	cmd *exec.Cmd
	at  []uint64 // plain, near, far, closed, kept, lying
}

func start(t *testing.T, role string) prey {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleEnv+"="+role)
	in, err := c.StdinPipe()
	fatal(t, err)
	out, err := c.StdoutPipe()
	fatal(t, err)
	fatal(t, c.Start())
	t.Cleanup(func() { in.Close(); _ = c.Process.Kill(); _ = c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	fatal(t, err)
	p := prey{cmd: c}
	for _, w := range strings.Fields(line) {
		n, err := strconv.ParseUint(w, 10, 64)
		fatal(t, err)
		p.at = append(p.at, n)
	}
	return p
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p prey) request() Request {
	return Request{PID: p.cmd.Process.Pid, Limit: patience, Most: 1 << 30, Still: func() error { return nil }}
}

// free says that nothing traces the process and that it goes on.
func (p prey) free(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	fatal(t, err)
	if !strings.Contains(string(b), "TracerPid:\t0\n") {
		t.Errorf("it is still held:\n%s", b)
	}
}

// memory reads an address out of a core file; nil: it is not in there.
func memory(f *elf.File, at uint64, n int) []byte {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && at >= p.Vaddr && at+uint64(n) <= p.Vaddr+p.Filesz {
			b := make([]byte, n)
			if _, err := p.ReadAt(b, int64(at-p.Vaddr)); err != nil {
				return nil
			}
			return b
		}
	}
	return nil
}

func TestADumpHoldsTheMemoryThatIsThereAndNoMore(t *testing.T) {
	p := start(t, "1")
	want, err := Size(p.cmd.Process.Pid, time.Now().Add(patience))
	fatal(t, err)
	var out bytes.Buffer
	d, err := Write(&out, p.request())
	fatal(t, err)
	p.free(t)
	f, err := elf.NewFile(bytes.NewReader(out.Bytes()))
	fatal(t, err)
	for i, text := range []string{marked, "near", "far", "closed to itself", "", "of a name that lies"} {
		got := memory(f, p.at[i], max(len(text), 1))
		if text == "" && got != nil {
			t.Errorf("what the program asked to keep out is in the dump: %q", got)
		}
		if text != "" && string(got) != text {
			t.Errorf("%q is %q in the dump", text, got)
		}
	}
	if int64(out.Len()) != d.Bytes || d.Pause <= 0 || d.Threads < 2 || d.Missed != 0 || d.Unread != 0 {
		t.Errorf("%d bytes, said %+v", out.Len(), d)
	}
	if d.Bytes > 256<<20 || want.Bytes <= 0 {
		t.Errorf("a sparse tebibyte makes %d bytes; it was said to be %d", d.Bytes, want.Bytes)
	}
}

func TestTheOldWayOfFindingPagesFindsTheSame(t *testing.T) {
	p := start(t, "1")
	all, _, err := look(p.cmd.Process.Pid, time.Now().Add(patience))
	fatal(t, err)
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", p.cmd.Process.Pid))
	fatal(t, err)
	defer f.Close()
	until := time.Now().Add(patience)
	for _, m := range all {
		if m.skip || m.to-m.from > 1<<32 {
			continue
		}
		now, err := scan(f, m, until)
		if err == errNoScan {
			t.Skip("this kernel has no PAGEMAP_SCAN")
		}
		fatal(t, err)
		before, err := read(f, m, until)
		fatal(t, err)
		if fmt.Sprint(now) != fmt.Sprint(before) && !m.write {
			t.Errorf("%+v: %v, in the old way %v", m, now, before)
		}
	}
}

func TestGdbReadsADump(t *testing.T) {
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		t.Skip("gdb is not installed")
	}
	p := start(t, "1")
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	fatal(t, err)
	d, err := Write(f, p.request())
	fatal(t, err)
	fatal(t, f.Close())
	exe, err := os.Executable()
	fatal(t, err)
	out, err := exec.Command(gdb, "-nx", "-batch", "-ex", "info threads", "-ex", "bt", "-ex", fmt.Sprintf("x/s %d", p.at[0]), "-ex", "info auxv", "-ex", "info proc mappings", exe, path).CombinedOutput()
	text := string(out)
	if err != nil || !strings.Contains(text, marked) || !strings.Contains(text, "AT_ENTRY") || !strings.Contains(text, filepath.Base(exe)) {
		t.Fatalf("%v\n%s", err, text)
	}
	if n := strings.Count(text, "LWP "); n < d.Threads {
		t.Errorf("gdb sees %d threads of %d:\n%s", n, d.Threads, text)
	}
}

func TestGdbUnwindsADumpOfANativeProgram(t *testing.T) {
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		t.Skip("gdb is not installed")
	}
	c := exec.Command("sleep", "10000")
	fatal(t, c.Start())
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for deadline, tick := time.Now().Add(patience), time.NewTicker(10*time.Millisecond); ; <-tick.C { // until it sleeps, with its libraries
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", c.Process.Pid)); err == nil && strings.Contains(string(b), "nanosleep") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never slept")
		}
	}
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	fatal(t, err)
	_, err = Write(f, prey{cmd: c}.request())
	fatal(t, err)
	fatal(t, f.Close())
	out, err := exec.Command(gdb, "-nx", "-batch", "-ex", "bt", c.Path, path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "nanosleep") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestWhatIsLargerThanAgreedIsRefused(t *testing.T) {
	p := start(t, "1")
	r := p.request()
	r.Most = 64 << 10
	var out bytes.Buffer
	_, err := Write(&out, r)
	if fault.KindOf(err) != fault.Exhausted || !strings.Contains(err.Error(), "65536 were agreed") || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
	p.free(t)
}

// stuck takes one chunk and then nothing more.
type stuck struct{ free chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.free; return len(p), nil }

func TestASlowReaderDoesNotHoldTheProcess(t *testing.T) {
	p := start(t, strconv.Itoa((ahead+32)*chunk)) // more than may be copied ahead
	r := p.request()
	r.Limit = time.Second
	held := make(chan struct{})
	r.Still = func() error { close(held); return nil } // it is asked while the process is held
	s := stuck{make(chan struct{})}
	var err error
	over := make(chan struct{})
	go func() { _, err = Write(s, r); close(over) }()
	<-held
	for deadline, tick := time.Now().Add(patience), time.NewTicker(2*time.Millisecond); ; <-tick.C {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID))
		if strings.Contains(string(b), "TracerPid:\t0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is held for as long as its reader likes")
		}
	}
	close(s.free)
	<-over
	if !errors.Is(err, errLate) {
		t.Errorf("%v", err)
	}
}

func TestAProcessThatEndsInTheMiddleIsNoDump(t *testing.T) {
	p := start(t, strconv.Itoa(64<<20))
	r := p.request()
	w := &killer{p: p}
	_, err := Write(w, r)
	if err == nil {
		t.Fatal("it is taken for a whole dump")
	}
}

// killer kills the process when the first of it comes.
type killer struct {
	p    prey
	once bool
}

func (k *killer) Write(b []byte) (int, error) {
	if !k.once {
		k.once = true
		_ = k.p.cmd.Process.Kill()
		_, _ = k.p.cmd.Process.Wait()
	}
	return len(b), nil
}

func TestAnotherProcessOfTheNumberIsNotDumped(t *testing.T) {
	p := start(t, "1")
	r := p.request()
	r.Still = func() error { return fault.New(fault.NotFound, "another one") }
	var out bytes.Buffer
	if _, err := Write(&out, r); fault.KindOf(err) != fault.NotFound || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
	p.free(t)
}

func FuzzParseMaps(f *testing.F) {
	own, err := os.ReadFile("/proc/self/smaps")
	fatal(f, err)
	f.Add(own[:min(len(own), 4096)])
	f.Add([]byte("7f00000000-7f00001000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr\n"))
	f.Add([]byte("400000-1000 rw-p 0 0 0\n400000-401000 rw-s 00000000 00:01 5 /memfd:x\\01200400000 (deleted)\n"))
	f.Add([]byte("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseMaps(bytes.NewReader(b))
		if err != nil {
			return
		}
		last := uint64(0)
		for _, m := range all {
			if m.from < last || m.to <= m.from || m.from%pageSize != 0 || len(m.path) > maxPath || m.to > top && !m.skip {
				t.Fatalf("%+v after %x", m, last)
			}
			last = m.to
		}
		notes(process{threads: []thread{{}}}, all)
	})
}
