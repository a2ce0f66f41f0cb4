package stack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
)

// Roles of this test's own executable.
const (
	roleEnv    = "HANDRAIL_STACK_ROLE"
	roleHolder = "holder" // holds the process named by the next variable for ever
	roleClosed = "closed" // nobody may trace it
	holdEnv    = "HANDRAIL_STACK_HOLD"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleHolder:
		var pid int
		fmt.Sscan(os.Getenv(holdEnv), &pid)
		_, err := hold(pid, time.Hour, func(*held) error {
			fmt.Println("ready")
			for {
				_ = unix.Pause()
			}
		})
		fmt.Println(err)
		os.Exit(1)
	case roleClosed:
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		fmt.Println("ready")
		for { // the runtime would end a program whose goroutines all wait
			_ = unix.Pause()
		}
	}
	os.Exit(m.Run())
}

const patience = 60 * time.Second

// target starts a program and waits until it says that it is ready.
func target(t *testing.T, cmd *exec.Cmd) (pid int, rest *bufio.Reader) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%v did not begin: %v", cmd.Args, err)
		}
		if strings.TrimSpace(line) == "ready" {
			return cmd.Process.Pid, r
		}
	}
}

func request(pid int) Request {
	return Request{PID: pid, Inner: pid, Limit: 30 * time.Second, Still: func() error { return nil }}
}

// until asks again until the answer is the one that comes when everybody has
// gone where they wait.
func until(t *testing.T, read func() (Dump, error), there func(Dump) bool) Dump {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for {
		d, err := read()
		if errors.Is(err, unix.EPERM) {
			t.Skip("this kernel lets nobody trace")
		}
		if err != nil {
			t.Fatal(err)
		}
		if there(d) {
			return d
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("not there:\n%s", words(d))
		}
	}
}

func words(d Dump) string {
	var b strings.Builder
	fmt.Fprintln(&b, d.Method, d.Pause, d.Notes)
	for _, s := range d.Stacks {
		fmt.Fprintf(&b, "%d %s %s\n", int64(len(s.Threads))+s.More, s.Kind, s.State)
		for _, f := range s.Frames {
			fmt.Fprintf(&b, "    %s %s:%d %s %s\n", f.Function, f.File, f.Line, f.Module, f.Note)
		}
	}
	return b.String()
}

// has says whether some stack of n threads has these functions, in that order.
func has(d Dump, n int, functions ...string) bool {
	for _, s := range d.Stacks {
		if len(s.Threads) != n {
			continue
		}
		at := 0
		for _, f := range s.Frames {
			if at < len(functions) && f.Function == functions[at] {
				at++
			}
		}
		if at == len(functions) {
			return true
		}
	}
	return false
}

func compiled(t *testing.T, flags ...string) string {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler here")
	}
	bin := filepath.Join(t.TempDir(), "deep")
	if out, err := exec.Command(cc, append(flags, "-O2", "-fno-optimize-sibling-calls", "-o", bin, "testdata/deep.c", "-lpthread")...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestNativeStacksAreFollowedThroughCodeWithoutFramePointers(t *testing.T) {
	pid, _ := target(t, exec.Command(compiled(t, "-fomit-frame-pointer")))
	d := until(t, func() (Dump, error) { return Native(request(pid)) }, func(d Dump) bool {
		return has(d, 1, "leaf", "middle", "middle", "middle", "middle", "main") && has(d, 4, "worker")
	})
	if d.Pause <= 0 || d.AtMost || d.Partial {
		t.Errorf("pause %s, at most %v, partial %v", d.Pause, d.AtMost, d.Partial)
	}
}

func goProgram(t *testing.T, flags string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("testdata/routines.go.txt")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "routines")
	build := exec.Command("go", "build", "-ldflags", flags, "-o", bin, filepath.Join(dir, "main.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestGoroutinesAreReadWithoutASignal(t *testing.T) {
	pid, _ := target(t, exec.Command(goProgram(t, "")))
	d := until(t, func() (Dump, error) { return Go(request(pid)) }, func(d Dump) bool {
		return has(d, 7, "main.worker", "main.main") && has(d, 1, "main.locked") && has(d, 1, "main.spin") && has(d, 1, "net.(*TCPListener).Accept", "main.main")
	})
	for _, s := range d.Stacks {
		if len(s.Threads) == 7 && s.State != "chan receive" {
			t.Errorf("who waits for a channel is %q", s.State)
		}
	}
	if d.Pause <= 0 {
		t.Error("no pause was measured")
	}
}

func TestAGoProgramWithoutSymbolsSaysWhatIsMissing(t *testing.T) {
	pid, _ := target(t, exec.Command(goProgram(t, "-s -w")))
	d := until(t, func() (Dump, error) { return Go(request(pid)) }, func(d Dump) bool { return has(d, 1, "main.spin") })
	if !strings.Contains(strings.Join(d.Notes, " "), "-s -w") {
		t.Errorf("it does not say why goroutines are missing: %s", words(d))
	}
}

func TestPythonFramesAreRead(t *testing.T) {
	tried := 0
	for _, name := range []string{"/usr/bin/python3", "python3", "python3.11", "python3.12", "python3.13"} {
		path, err := exec.LookPath(name)
		if err != nil || exec.Command(path, "-c", "import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))").Run() != nil {
			continue
		}
		tried++
		t.Run(name, func(t *testing.T) {
			pid, _ := target(t, exec.Command(path, "testdata/deep.py"))
			d := until(t, func() (Dump, error) { return Python(request(pid)) }, func(d Dump) bool {
				return has(d, 1, "inner", "inner", "inner", "Café.run", "<module>") && has(d, 3, "Event.wait", "worker")
			})
			for _, s := range d.Stacks {
				for _, f := range s.Frames {
					if f.Function == "Café.run" && (f.Line != 18 || !strings.HasSuffix(f.File, "deep.py")) {
						t.Errorf("Café.run stands at %s:%d", f.File, f.Line)
					}
				}
			}
		})
	}
	if tried == 0 {
		t.Skip("no Python from 3.11 to 3.13 here")
	}
}

func TestJavaScriptFramesAreNamed(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no Node.js here")
	}
	pid, _ := target(t, exec.Command(node, "testdata/deep.js"))
	d := until(t, func() (Dump, error) { return Node(request(pid)) }, func(d Dump) bool {
		return len(d.Notes) > 0 || has(d, 1, "descend", "descend", "descend", "checkout", "handler")
	})
	if len(d.Notes) > 0 {
		t.Skip(d.Notes[0])
	}
}

func TestAJVMIsAskedByItsOwnProtocol(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil {
		t.Skip("no Java here")
	}
	pid, _ := target(t, exec.Command(java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "testdata/Deep.java"))
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("this kernel has no pidfd")
	}
	defer unix.Close(pidfd)
	d := until(t, func() (Dump, error) {
		return JVM(JVMRequest{Request: request(pid), Root: root, Pidfd: pidfd, EUID: os.Geteuid(), Catches: true})
	}, func(d Dump) bool {
		return has(d, 1, "java.lang.Thread.sleep", "Deep.hold", "Deep.main") && strings.Contains(words(d), "waiting to lock")
	})
	if !d.AtMost || d.Pause <= 0 {
		t.Errorf("pause %s, at most %v", d.Pause, d.AtMost)
	}
	if _, err := os.Stat(fmt.Sprintf("/tmp/.attach_pid%d", pid)); err == nil {
		t.Error("the file of the handshake was left")
	}
	t.Run("and not where the signal would end it", func(t *testing.T) {
		pid, _ := target(t, exec.Command("sh", "-c", "echo ready; exec sleep 10000"))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := JVM(JVMRequest{Request: request(pid), Root: root, Pidfd: fd, EUID: os.Geteuid()}); err == nil {
			t.Error("what is no JVM answered like one")
		}
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("it was ended: %v", err)
		}
	})
}

// state is the letter that the kernel gives a process.
func state(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "State:"); ok {
			return strings.Fields(s)[0]
		}
	}
	return ""
}

func waitState(t *testing.T, pid int, want string) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for state(t, pid) != want {
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("process %d is %s, not %s", pid, state(t, pid), want)
		}
	}
}

func self(role string, env ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe")
	c.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	return c
}

func TestWhoIsHeldGoesOnWhenTheReaderIsKilled(t *testing.T) {
	busy := exec.Command("sh", "-c", "echo ready; while :; do echo on; done")
	pid, lines := target(t, busy)
	reader := self(roleHolder, fmt.Sprintf("%s=%d", holdEnv, pid))
	target(t, reader)
	waitState(t, pid, "t")
	if err := reader.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = reader.Wait()
	late := time.AfterFunc(patience, func() { _ = busy.Process.Kill() })
	defer late.Stop()
	// What was in the pipe before is at most 64 KiB and what the reader buffers.
	if n, err := io.CopyN(io.Discard, lines, 1<<20); err != nil {
		t.Fatalf("it does not go on: %d bytes, %v", n, err)
	}
}

func TestAStoppedProcessIsReadAndStaysStopped(t *testing.T) {
	pid, _ := target(t, exec.Command(compiled(t)))
	until(t, func() (Dump, error) { return Native(request(pid)) }, func(d Dump) bool { return has(d, 1, "leaf") })
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitState(t, pid, "T")
	d, err := Native(request(pid))
	if err != nil || !has(d, 1, "leaf", "main") {
		t.Errorf("%v\n%s", err, words(d))
	}
	waitState(t, pid, "T")
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitState(t, pid, "S")
}

func TestAnotherAccountsClosedProcessIsRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := self(roleClosed)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	pid, _ := target(t, c)
	d, err := Go(request(pid))
	if err != nil || len(d.Stacks) == 0 {
		t.Errorf("%v\n%s", err, words(d))
	}
}

func TestOneInItsOwnNamespacesIsRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := exec.Command(compiled(t))
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	pid, _ := target(t, c)
	until(t, func() (Dump, error) { return Native(request(pid)) }, func(d Dump) bool { return has(d, 1, "leaf", "middle", "main") })
}

func TestOneThatDiesInTheMiddleHoldsNothingUp(t *testing.T) {
	pid, _ := target(t, exec.Command(compiled(t)))
	_, err := hold(pid, patience, func(h *held) error {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		mem := newMemory(pid)
		for range 100 {
			_, _ = mem.word(h.threads[0].regs[regSP])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := Native(request(pid)); err == nil {
		t.Error("a dead process was read")
	}
}

func TestTheLimitOfThePauseIsKept(t *testing.T) {
	pid, _ := target(t, exec.Command(compiled(t)))
	r := request(pid)
	r.Limit = time.Nanosecond
	d, err := Native(r)
	if err == nil && !d.Partial {
		t.Errorf("all was read within a nanosecond: %s", words(d))
	}
	waitState(t, pid, "S")
}

func TestASignalThatComesMeanwhileIsNotLost(t *testing.T) {
	pid, lines := target(t, exec.Command("sh", "-c", `trap 'echo caught' USR1; echo ready; while :; do sleep 0.01; done`))
	for range 20 {
		if _, err := hold(pid, patience, func(*held) error { return syscall.Kill(pid, syscall.SIGUSR1) }); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); err != nil || line != "caught\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
}

func TestStacksThatAreTheSameAreFolded(t *testing.T) {
	one := wire.InspectStack{Frames: []wire.InspectFrame{{Function: "a"}}, Threads: []wire.InspectThread{{ID: 1}}}
	two := wire.InspectStack{Frames: []wire.InspectFrame{{Function: "b"}}, Threads: []wire.InspectThread{{ID: 2}}}
	three := two
	three.Threads = []wire.InspectThread{{ID: 3}}
	got := fold([]wire.InspectStack{one, two, three})
	if len(got) != 2 || len(got[0].Threads) != 2 || got[0].Frames[0].Function != "b" {
		t.Errorf("%+v", got)
	}
}
