package inspect

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	roleEnv = "HANDRAIL_INSPECT_ROLE"
	// lookUID is somebody that no test process is.
	lookUID  = 65_532
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	Main()
	if os.Getenv(roleEnv) == "narrow" {
		tryNarrow()
	}
	os.Exit(m.Run())
}

// asked is a running look.
type asked struct {
	cmd     *exec.Cmd
	order   *os.File
	session net.Conn
	raw     []byte
}

func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

func begin(t *testing.T, s wire.InspectSpec, kin ...File) *asked {
	t.Helper()
	mine, theirs := pair(t)
	far, near := pair(t)
	s.ID, s.Person, s.PersonName = "n-00000000", "p-00000000", "ada"
	if s.TimeMS == 0 {
		s.TimeMS = 50_000
	}
	if s.PauseMS == 0 {
		s.PauseMS = 5000
	}
	o := Order{Spec: s, Kin: kin}
	if os.Geteuid() == 0 {
		o.UID = lookUID
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{Arg0}, ExtraFiles: []*os.File{theirs, near}, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	near.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		mine.Close()
		far.Close()
	})
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.WriteBlock(mine, b); err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &asked{cmd: cmd, order: mine, session: conn}
}

// records reads the answer to its end.
func (q *asked) records(t *testing.T) (out []wire.InspectRecord) {
	t.Helper()
	r := wire.NewReader(q.session)
	for {
		_, b, err := r.Next()
		if err != nil {
			return out
		}
		q.raw = append(append(q.raw, b...), '\n')
		record, err := wire.ParseInspectRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, record)
	}
}

func lookAt(t *testing.T, s wire.InspectSpec, kin ...File) ([]wire.InspectRecord, wire.InspectEnd, string) {
	t.Helper()
	q := begin(t, s, kin...)
	all := q.records(t)
	if len(all) == 0 || all[len(all)-1].End == nil {
		t.Fatalf("the answer has no end: %s", q.raw)
	}
	return all, *all[len(all)-1].End, string(q.raw)
}

// targetOf is the process that an answer is about. A note may come before it:
// that this node has no root, for one.
func targetOf(all []wire.InspectRecord) int64 {
	for _, r := range all {
		if r.Target != nil {
			return r.Target.PID
		}
	}
	return 0
}

// run starts a program that says "ready".
func run(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd.Process.Pid
}

func sh(script string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
}

func TestAnEnvironmentComesWithoutItsSecrets(t *testing.T) {
	c := sh("echo ready; read x", "--token", "tok-in-argv-9")
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "DB_PASSWORD=hunter2-secret", "FROBNICATE=some-value-7", "LANG=C", "DEBUG=url=postgres://a:pw-in-url@h/"}
	pipe, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	pid := run(t, c)
	all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectEnv, Target: strconv.Itoa(pid)})
	for _, secret := range []string{"hunter2-secret", "some-value-7", "pw-in-url", "tok-in-argv-9"} {
		if strings.Contains(raw, secret) {
			t.Errorf("%s crosses the wire:\n%s", secret, raw)
		}
	}
	for _, shown := range []string{"DB_PASSWORD", "FROBNICATE", `"LANG","value":"C"`} {
		if !strings.Contains(raw, shown) {
			t.Errorf("%s is not shown:\n%s", shown, raw)
		}
	}
	if end.Masked < 3 || end.Error != "" || end.PauseNS != 0 || targetOf(all) != int64(pid) {
		t.Errorf("%+v", end)
	}
}

func TestALookHasNoPowerButWhatItNeeds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	q := begin(t, wire.InspectSpec{What: wire.InspectTop})
	fields := map[string]string{}
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(patience); fields["Seccomp"] != "2"; <-again.C {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", q.cmd.Process.Pid))
		if err != nil || time.Now().After(end) {
			t.Fatalf("never narrowed: %v, %v", fields, err)
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
		if state := fields["State"]; strings.HasPrefix(state, "Z") {
			t.Fatal("it was over before it was narrowed")
		}
	}
	const traceAndRead = "0000000000080004" // SYS_PTRACE, DAC_READ_SEARCH
	uid := strconv.Itoa(lookUID)
	for name, want := range map[string]string{"CapEff": traceAndRead, "CapBnd": traceAndRead, "NoNewPrivs": "1", "Seccomp": "2",
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Groups": ""} {
		if fields[name] != want {
			t.Errorf("%s is %q, want %q", name, fields[name], want)
		}
	}
	q.records(t)
}

func TestALookEndsWithItsWarden(t *testing.T) {
	q := begin(t, wire.InspectSpec{What: wire.InspectTop})
	q.order.Close()
	if all := q.records(t); len(all) > 0 && all[len(all)-1].End != nil {
		t.Skip("it was quicker")
	}
}

// tryNarrow tries what a look must not, and prints what it could do.
func tryNarrow() {
	_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err := sandbox.Narrow(sandbox.Power{Trace: true, Memory: true}); err != nil {
		fmt.Println("narrow:", err)
		os.Exit(1)
	}
	parent := os.Getppid()
	word := make([]byte, 8)
	local := []unix.Iovec{{Base: &word[0]}}
	local[0].SetLen(8)
	tries := map[string]func() error{
		"make a file": func() error {
			_, err := unix.Open("/tmp/handrail-narrow", unix.O_CREAT|unix.O_WRONLY, 0o600)
			return err
		},
		"write a file": func() error { _, err := unix.Open("/proc/self/mem", unix.O_RDWR, 0); return err },
		"delete":       func() error { return unix.Unlink("/tmp/handrail-narrow-none") },
		"signal":       func() error { return unix.Kill(parent, 0) },
		"write memory": func() error {
			_, err := unix.ProcessVMWritev(parent, local, []unix.RemoteIovec{{Base: 1, Len: 8}}, 0)
			return err
		},
		"poke": func() error {
			_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_POKEDATA, uintptr(parent), 0, 0, 0, 0)
			return e
		},
		"set registers": func() error {
			_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(parent), 1, 0, 0, 0)
			return e
		},
		"end with us": func() error {
			_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETOPTIONS, uintptr(parent), 0, unix.PTRACE_O_EXITKILL, 0, 0)
			return e
		},
		"connect":        func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
		"unix socket":    func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"run":            func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"become another": func() error { _, _, e := unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0); return e },
		"open by handle": func() error { _, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, word), 0); return err },
		"mount":          func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
		"steal a file":   func() error { _, err := unix.PidfdGetfd(0, 0, 0); return err },
	}
	for name, try := range tries {
		if err := try(); err != unix.EPERM && err != unix.ENOSYS {
			fmt.Printf("could %s: %v\n", name, err)
		}
	}
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		fmt.Println("cannot even read:", err)
	}
	fmt.Println("done")
	os.Exit(0)
}

func TestALookCanOnlyLook(t *testing.T) {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleEnv+"=narrow")
	out, err := c.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestFilesThatWereDeletedComeFirst(t *testing.T) {
	dir := t.TempDir()
	pid := run(t, sh(`exec 7<"$1/kept" 8>"$1/gone"; printf 12345 >&8; rm "$1/gone"; echo ready; exec sleep 10000`, prepared(t, dir)))
	all, end, _ := lookAt(t, wire.InspectSpec{What: wire.InspectFiles, Target: strconv.Itoa(pid)})
	var files []wire.InspectFile
	for _, r := range all {
		if r.File != nil {
			files = append(files, *r.File)
		}
	}
	if end.Error != "" || len(files) < 4 || !files[0].Deleted || files[0].FD != 8 || files[0].Size != 5 || files[0].Offset != 5 || files[0].Mode != "w" {
		t.Fatalf("%+v %+v", end, files)
	}
	if !slices.ContainsFunc(files, func(f wire.InspectFile) bool {
		return f.FD == 7 && f.Path == filepath.Join(dir, "kept") && f.Mode == "r"
	}) {
		t.Errorf("%+v", files)
	}
}

func prepared(t *testing.T, dir string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "kept"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAPathIsReadAsAReadSessionWould(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/var/lib", "handrail-inspect-test")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.WriteFile(at("app.log"), []byte("one\npassword=hunter2\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nlast\n"), 0o644))
	must(os.WriteFile(at("secret"), []byte("contents-of-it"), 0o644))
	must(os.Link(at("secret"), at("other-name")))
	must(os.Symlink(at("secret"), at("link")))
	must(os.WriteFile(at("closed"), []byte("of-root-alone"), 0o600))
	must(unix.Mkfifo(at("fifo"), 0o644))
	outside, err := os.MkdirTemp("/tmp", "handrail-inspect-test")
	must(err)
	t.Cleanup(func() { os.RemoveAll(outside) })
	must(os.Chmod(outside, 0o755))
	must(os.WriteFile(filepath.Join(outside, "token"), []byte("contents-of-it"), 0o644))
	must(os.Symlink(outside, at("way")))
	ask := func(path, part string) (string, wire.InspectEnd) {
		_, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectFiles, Target: path, Part: part, Secrets: []string{at("secret")}})
		return raw, end
	}
	raw, end := ask(at("app.log"), "")
	if end.Error != "" || strings.Contains(raw, "hunter2") || strings.Contains(raw, "AAAA") || !strings.Contains(raw, "last") || end.Masked != 2 {
		t.Errorf("%+v\n%s", end, raw)
	}
	for _, path := range []string{at("secret"), at("other-name"), at("link"), at("closed"), at("fifo"), at("way"), at("way/token"), "/etc/shadow", "/proc/1/environ", "/dev/zero", "/tmp", at("none")} {
		for _, part := range []string{"", "head", "tail"} {
			if raw, end := ask(path, part); end.Error == "" || strings.Contains(raw, "contents-of-it") || strings.Contains(raw, "of-root-alone") {
				t.Errorf("%s %s: %+v\n%s", part, path, end, raw)
			}
		}
	}
	if raw, end := ask(dir, ""); end.Error != "" || !strings.Contains(raw, "app.log") || strings.Contains(raw, "other-name") || strings.Contains(raw, `"secret"`) {
		t.Errorf("%+v\n%s", end, raw)
	}
}

func TestPortsAreSeenInTheTargetsOwnNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := sh("echo ready; exec sleep 10000")
	c.ExtraFiles = []*os.File{f}
	pid := run(t, c)
	all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectPorts, Target: strconv.Itoa(pid)})
	if end.Error != "" || !slices.ContainsFunc(all, func(r wire.InspectRecord) bool {
		return r.Socket != nil && r.Socket.Local == l.Addr().String() && r.Socket.State == "listening" && r.Socket.PID == int64(pid) && !r.Socket.Foreign
	}) {
		t.Errorf("%+v\n%s", end, raw)
	}
}

func TestTopShowsWhoIsBusy(t *testing.T) {
	pid := run(t, sh("echo ready; while :; do :; done"))
	all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectTop, Target: strconv.Itoa(pid)})
	if end.Error != "" || !slices.ContainsFunc(all, func(r wire.InspectRecord) bool {
		return r.Process != nil && r.Process.PID == int64(pid) && r.Process.CPU > 0 && r.Process.Resident > 0
	}) {
		t.Errorf("%+v\n%s", end, raw)
	}
}

func TestANameThatTwoHaveIsAListOfThem(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "handrail-twin")
	b, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	start := func() int { return run(t, sh(`echo ready; exec "$1" 10000`, copied)) }
	first := start()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	named := func(pid int) {
		for end := time.Now().Add(patience); ; <-again.C {
			if p, err := readProcess(pid); err == nil && p.called("handrail-twin") {
				return
			}
			if time.Now().After(end) {
				t.Fatal("it never took its name")
			}
		}
	}
	named(first)
	all, end, _ := lookAt(t, wire.InspectSpec{What: wire.InspectEnv, Target: "handrail-twin"})
	if end.Error != "" || targetOf(all) != int64(first) {
		t.Fatalf("one of that name is not found: %+v", end)
	}
	second := start()
	named(second)
	all, end, _ = lookAt(t, wire.InspectSpec{What: wire.InspectEnv, Target: "handrail-twin"})
	var of []int64
	for _, r := range all {
		if r.Candidate != nil {
			of = append(of, r.Candidate.PID)
		}
	}
	want := []int64{int64(min(first, second)), int64(max(first, second))}
	if end.Kind != "conflict" || !slices.Equal(of, want) {
		t.Errorf("%v, want %v: %+v", of, want, end)
	}
}

func TestHandrailsOwnProcessesAreNotLookedInto(t *testing.T) {
	for _, what := range []string{wire.InspectEnv, wire.InspectFiles, wire.InspectStacks} {
		if _, end, _ := lookAt(t, wire.InspectSpec{What: what, Target: strconv.Itoa(os.Getpid())}); end.Kind != "denied" {
			t.Errorf("%s: %+v", what, end)
		}
	}
}

func TestStacksOfAStrangerThroughTheWholeWay(t *testing.T) {
	c := exec.Command("sleep", "10000")
	if os.Geteuid() == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65_533, Gid: 65_533}}
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	all, end, raw := lookAt(t, wire.InspectSpec{What: wire.InspectStacks, Target: strconv.Itoa(c.Process.Pid)})
	if end.Error != "" || end.PauseNS <= 0 || !slices.ContainsFunc(all, func(r wire.InspectRecord) bool { return r.Stack != nil && len(r.Stack.Frames) > 0 }) {
		t.Errorf("%+v\n%s", end, raw)
	}
}

func TestALookThatTakesTooLongSaysSo(t *testing.T) {
	_, end, _ := lookAt(t, wire.InspectSpec{What: wire.InspectTop, TimeMS: 1})
	if end.Kind != "exhausted" || !end.Cut {
		t.Errorf("%+v", end)
	}
}

func TestWhatIsNotThereIsSaid(t *testing.T) {
	for _, s := range []wire.InspectSpec{
		{What: wire.InspectStacks, Target: "4194304"}, {What: wire.InspectEnv, Target: "no-such-unit-here"}, {What: wire.InspectStacks}, {What: wire.InspectEnv, Target: "/etc"},
	} {
		if _, end, _ := lookAt(t, s); end.Error == "" || end.Hint == "" {
			t.Errorf("%+v: %+v", s, end)
		}
	}
}

// FuzzKernelWords gives the readers of procfs what no kernel writes: names are
// the target's.
func FuzzKernelWords(f *testing.F) {
	f.Add("1 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1 1", "Uid:\t1\t2\t3\t4\nNSpid:\t9\t1\n", "0::/system.slice/a.service\n")
	f.Add("  sl\n 0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:0 0 0 0 1", "[<0>] x+0x1/0x2 [m]", "::::")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		p := process{}
		_ = p.parseStat([]byte(a))
		p.parseStatus([]byte(b))
		parseCgroup(c)
		parseSockets("tcp", a)
		kernelFrames(b)
		number([]byte(c), "x")
		_, _ = parseAddress(a)
		_ = literal(c)
	})
}
