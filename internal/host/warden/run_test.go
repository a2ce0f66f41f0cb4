package warden

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

func TestAReadOnlyShellRunsEndToEnd(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(shellSpec)
	if !a.OK || a.Floor != wire.FloorFull || a.UID < defaultUIDFirst || len(a.BootID) != 36 {
		t.Fatalf("the answer is %+v", a)
	}
	s.sees("PRODUCTION")
	s.sees("read-only")
	s.enter("whoami; tty; stty size; id -u\n")
	s.sees("ada\r\n")
	s.sees("/dev/pts/")
	s.sees("30 100")
	s.sees(strconv.FormatInt(a.UID, 10))
	if err := s.w.Write(wire.FrameResize, wire.EncodeResize(77, 22)); err != nil {
		t.Fatal(err)
	}
	s.enter("stty size\n")
	s.sees("22 77")
	s.enter("touch /etc/handrail-was-here\n")
	s.until("the refusal is told", func() bool { return strings.Contains(s.refusal, "handrail elevate web-1 --reason") })
	s.enter("exit 7\n")
	if e := s.ends(); e.Status != 7 || e.Why != "" {
		t.Fatalf("it ended with %+v", e)
	}
	if _, err := os.Stat("/etc/handrail-was-here"); err == nil {
		os.Remove("/etc/handrail-was-here")
		t.Fatal("a read-only session wrote a file")
	}
	e := b.event(wire.EventSessionEnded)
	if e.Session != s.id || e.Status != 7 || e.Bytes == 0 || len(e.Tail) != 64 {
		t.Fatalf("the event is %+v", e)
	}
	if fi, err := os.Stat(filepath.Join(b.dir, "spool", s.id)); err != nil || fi.Size() < e.Bytes {
		t.Fatalf("the local copy has %v bytes of %d (%v)", fi, e.Bytes, err)
	}
}

func TestAFastCommandLosesNoByte(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	for range 20 {
		s, _ := b.open(execSpec("echo out; echo err >&2; exit 3"))
		if e := s.ends(); e.Status != 3 {
			t.Fatalf("%+v", e)
		}
		if s.out.String() != "out\n" || s.err.String() != "err\n" {
			t.Fatalf("out %q, err %q", s.out.String(), s.err.String())
		}
	}
}

func TestInputIsHalfClosedAndOutputStillComes(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec("wc -c; echo done"))
	big := bytes.Repeat([]byte("x"), 1<<20+17)
	if err := s.w.Write(wire.FrameStdin, big); err != nil {
		t.Fatal(err)
	}
	if err := s.w.Write(wire.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	if e := s.ends(); e.Status != 0 || s.out.String() != "1048593\ndone\n" {
		t.Fatalf("%+v %q %q", e, s.out.String(), s.err.String())
	}
}

func TestASlowReaderSlowsTheProgramAndLosesNothing(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	p := b.payload(b.serverNow())
	p.Session.Kind, p.Session.Command = wire.SessionExec, "head -c 30000000 /dev/zero"
	order := b.sign(b.entry(p, nil))
	a, f, err := b.c.Order(t.Context(), wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, int64(len(b.leaves)))}.Marshal())
	if err != nil || !a.OK {
		t.Fatal(a, err)
	}
	defer f.Close()
	r := wire.NewReader(io.LimitReader(f, 1<<40))
	total := 0
	for i := 0; ; i++ {
		if i%64 == 0 {
			<-time.After(time.Millisecond)
		}
		ft, body, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ft == wire.FrameExit {
			break
		}
		if ft == wire.FrameStdout {
			total += len(body)
		}
	}
	if total != 30000000 {
		t.Fatalf("%d bytes of 30000000 arrived", total)
	}
}

func TestTheExitSignalIsTold(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec("echo ready; exec sleep 1000"))
	s.sees("ready")
	if err := s.w.Write(wire.FrameSignal, []byte("TERM")); err != nil {
		t.Fatal(err)
	}
	if e := s.ends(); e.Signal != "TERM" || e.Status != 128+15 {
		t.Fatalf("%+v", e)
	}
}

// apart runs a warden in a process of its own.
func (b *bench) apart() *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), wardenEnv+"="+b.dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	b.up()
	return cmd
}

// The list of what the warden may do is short on purpose. A longer one needs a
// reason, here and in the threat model.
func TestAConfinedWardenKeepsOneCapabilityAndStillServes(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(Capabilities, []uintptr{unix.CAP_KILL}) {
		t.Fatalf("the list has grown: %v", Capabilities)
	}
	if !strings.Contains(string(status), "CapEff:\t0000000000000020\n") || !strings.Contains(string(status), "CapPrm:\t0000000000000020\n") {
		if strings.Contains(string(status), "CapEff:\t0000000000000000") || cgo {
			t.Skip("built with cgo: no capability can be given up on all threads")
		}
		t.Fatalf("the warden keeps more:\n%s", status)
	}
	s, _ := b.open(execSpec("id -un"))
	if e := s.ends(); e.Status != 0 || s.out.String() != "ada\n" {
		t.Fatalf("%+v %q", e, s.out.String())
	}
	if k := b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 9}); k.Error != "" {
		t.Fatalf("%+v", k)
	}
}

func TestAnOrderFromBeforeARestartIsRefused(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	p := b.payload(b.serverNow())
	p.Session.Kind, p.Session.Command = wire.SessionExec, "true"
	order := b.sign(b.entry(p, nil))
	env := wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, int64(len(b.leaves)))}
	if _, f, err := b.c.Order(t.Context(), env.Marshal()); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	b.c.Close()
	b.zero -= 20 * time.Second // the next warden is up 20 seconds later
	b.start(nil)
	_, _, err := b.c.Order(t.Context(), env.Marshal())
	if err == nil {
		t.Fatal("an order was carried out twice, once by each warden")
	}
	if e := b.event(wire.EventAlarm); e.Rule != RuleReplay {
		t.Fatalf("%+v", e)
	}
}

func TestTheLastCheckpointOutlivesTheWarden(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	s, _ := b.open(execSpec("true"))
	s.ends()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	p, err := readPin(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := ledger.OpenCheckpoint(p.Checkpoint, testOrigin, newNode(t, b.liar, hostPolicy{}).log)
	if err != nil || tree.N != b.last {
		t.Fatalf("on disk is %d, seen was %d (%v)", tree.N, b.last, err)
	}
}

func TestAWriteSessionIsTheNamedAccount(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, a := b.open(func(s *wire.SessionSpec) {
		execSpec("id -un; echo yes > /var/tmp/handrail-write-test && cat /var/tmp/handrail-write-test; rm /var/tmp/handrail-write-test")(s)
		s.Level, s.Account, s.Root = wire.LevelWrite, "root", true
	})
	if e := s.ends(); e.Status != 0 || s.out.String() != "root\nyes\n" || a.Account != "root" {
		t.Fatalf("%+v %q %q %+v", e, s.out.String(), s.err.String(), a)
	}
	if _, _, err := b.tryOpen(func(s *wire.SessionSpec) { s.Level, s.Account = wire.LevelWrite, "no-such-account" }); err == nil {
		t.Fatal("a session of an account that does not exist")
	}
}

func TestAnOrdinaryUserRunsSessionsInAUserNamespace(t *testing.T) {
	b := newBench(t)
	const user = 65534
	for _, path := range []string{b.dir, filepath.Join(b.dir, pinName)} {
		if err := os.Chown(path, user, user); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(b.dir, "warden") // the test binary's own folder is root's
	copyFile(t, "/proc/self/exe", exe)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), wardenEnv+"="+b.dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	b.c = b.asUser(user)
	b.up()
	st, err := b.c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", st)
	if st.Mode != wire.ModeUserNamespace || !st.Trial || len(st.Missing) == 0 {
		t.Skipf("this kernel gives an ordinary user no namespaces: %+v", st)
	}
	s, a := b.open(func(s *wire.SessionSpec) {
		execSpec("whoami; touch /etc/handrail-was-here || echo refused; ls " + b.dir + " || echo hidden; setsid nohup sleep 98765 >/dev/null 2>&1 & while read x; do echo got $x; done")(s)
		s.LeastFloor = st.Floor
	})
	s.sees("refused")
	s.sees("ada")
	if a.Floor != st.Floor {
		t.Fatalf("%+v", a)
	}
	if k := b.brake(wire.Brake{Kind: wire.BrakePauseSession, Session: s.id}); k.Error != "" {
		t.Fatalf("%+v", k)
	}
	s.enter("one\n")
	<-time.After(100 * time.Millisecond)
	s.mu.Lock()
	still := !strings.Contains(s.out.String(), "got one")
	s.mu.Unlock()
	if !still {
		t.Fatal("a paused session goes on")
	}
	b.resume(s.id)
	s.sees("got one")
	if k := b.brake(wire.Brake{Kind: wire.BrakeStopSession, Session: s.id}); k.Sessions != 1 {
		t.Fatalf("%+v", k)
	}
	if e := s.ends(); e.Why != keeper.WhyStopped {
		t.Fatalf("%+v", e)
	}
	b.eventually("its children are dead", func() bool { return !running("sleep\x0098765") })
	if strings.Contains(s.out.String(), pinName) {
		t.Fatal("a session sees the warden's folder")
	}
}

func TestADiskThatKeepsNothingStartsNothing(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	if err := os.Mkdir(filepath.Join(b.dir, pinName+".new"), 0o700); err != nil { // nothing can be saved now
		t.Fatal(err)
	}
	last := b.last
	_, a, err := b.tryOpen(execSpec(daemonise))
	if err == nil || !strings.Contains(err.Error(), "cannot save the last checkpoint") {
		t.Fatal(a, err)
	}
	b.eventually("nothing of it runs", func() bool {
		st, err := b.c.Status(t.Context())
		return err == nil && st.Live == 0
	})
	if k := b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 1}); k.Error != "" {
		t.Fatalf("the brake does not work: %+v", k)
	}
	if err := os.Remove(filepath.Join(b.dir, pinName+".new")); err != nil {
		t.Fatal(err)
	}
	b.last = int64(len(b.leaves)) // what the warden has seen it has seen
	if b.last <= last {
		t.Fatal("no order was made")
	}
	s, _ := b.open(execSpec("echo again"))
	s.sees("again")
}

func TestOnlyTheLinkMaySpeakToTheWarden(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	_ = os.Chmod(b.dir, 0o755)
	_ = os.Chmod(filepath.Join(b.dir, "s"), 0o666) // even then
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	connectAs(t, fd, filepath.Join(b.dir, "s"), 65534)
	var buf [1]byte
	if n, _ := unix.Read(fd, buf[:]); n != 0 {
		t.Fatal("a stranger is served")
	}
	if e := b.event(wire.EventAlarm); e.Rule != RuleTrust {
		t.Fatalf("%+v", e)
	}
}

func TestASecondWardenOnOneFolderIsRefused(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	if err := Run(t.Context(), testConfig(b.dir)); err == nil || !strings.Contains(err.Error(), "another one runs") {
		t.Fatal(err)
	}
}

func TestAWardenThatHasNotJoinedSaysWhatToDo(t *testing.T) {
	err := Run(t.Context(), testConfig(t.TempDir()))
	if err == nil || !strings.Contains(err.Error(), "not joined") {
		t.Fatal(err)
	}
}

func TestSFTPRunsInsideTheSandboxAndCannotWrite(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(func(s *wire.SessionSpec) { s.Kind = wire.SessionSFTP })
	c, err := sftp.NewClientPipe(sftpPipe{s}, sftpPipe{s})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(f)
	if err != nil || !bytes.Contains(text, []byte("root:")) {
		t.Fatalf("%q %v", text, err)
	}
	if _, err := c.Create("/etc/handrail-sftp-was-here"); err == nil {
		os.Remove("/etc/handrail-sftp-was-here")
		t.Fatal("sftp in a read-only session writes")
	}
	if _, err := c.Open("/etc/shadow"); err == nil {
		t.Fatal("sftp in a read-only session reads /etc/shadow")
	}
	_ = s.w.Write(wire.FrameEOF, nil)
	if e := s.ends(); e.Status != 0 {
		t.Fatalf("%+v", e)
	}
}

func TestAKeeperThatDiedWhileItWaitedCostsNoSession(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec("exec sleep 1000"))
	b.eventually("a keeper waits beside that of the session", func() bool { return len(keepers(os.Getpid())) == 2 })
	s.conn.Close()
	<-s.done
	b.eventually("the one that waits is alone", func() bool { return len(keepers(os.Getpid())) == 1 })
	waiting := keepers(os.Getpid())[0]
	_ = unix.Kill(waiting, unix.SIGKILL)
	b.eventually("it is dead, its sockets closed", func() bool {
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(waiting) + "/status")
		return strings.Contains(string(stat), "\nState:\tZ") && strings.Contains(string(stat), "\nThreads:\t1\n") // its other threads hold them, too
	})
	s, _ = b.open(execSpec("echo still here"))
	s.sees("still here")
}

// keepers are all that are children of a process and alive.
func keepers(parent int) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmd, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline") // empty once dead
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/status")
		if string(cmd) == keeper.Arg0+"\x00" && strings.Contains(string(stat), "\nPPid:\t"+strconv.Itoa(parent)+"\n") {
			pid, _ := strconv.Atoi(e.Name())
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestManySessionsStartQuickly(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	var took []time.Duration
	for range 30 {
		start := time.Now()
		s, _ := b.open(execSpec("exec sleep 1000"))
		took = append(took, time.Since(start))
		s.conn.Close()
		<-s.done
	}
	slices.Sort(took)
	t.Logf("order to running session: p50 %s, worst %s", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 500*time.Millisecond {
		t.Fatal("a session takes too long to start")
	}
}
