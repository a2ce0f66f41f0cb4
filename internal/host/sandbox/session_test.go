package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// terminal runs an interactive session and talks to it.
type terminal struct {
	t testing.TB
	*Child
	r *bufio.Reader
}

func openTerminal(t testing.TB, spec Spec, o Options) *terminal {
	t.Helper()
	spec.PTY = true
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := Start(ctx, spec, o)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { c.PTY.Close() })
	return &terminal{t, c, bufio.NewReader(c.PTY)}
}

func (s *terminal) say(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.PTY, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

// until reads up to the mark.
func (s *terminal) until(mark string) string {
	s.t.Helper()
	_ = s.PTY.SetReadDeadline(time.Now().Add(time.Minute))
	var b bytes.Buffer
	for !strings.Contains(b.String(), mark) {
		c, err := s.r.ReadByte()
		if err != nil {
			s.t.Fatalf("waiting for %q: %v; so far:\n%s", mark, err, b.String())
		}
		b.WriteByte(c)
	}
	return b.String()
}

func TestAnInteractiveSessionHasItsPromptTerminalAndJobControl(t *testing.T) {
	needRoot(t)
	spec := readSpec()
	spec.Command, spec.Cols, spec.Rows = nil, 100, 40
	spec.Prompt = `[prod \u isn't]$ `
	s := openTerminal(t, spec, Options{})
	s.until("[prod alice isn't]$ ")
	s.say("tty; stty size")
	if out := s.until("100"); !strings.Contains(out, "/dev/pts/0") || !strings.Contains(out, "40 100") {
		t.Errorf("tty and size: %q", out)
	}
	if err := s.Resize(90, 30); err != nil {
		t.Fatal(err)
	}
	s.say("stty size")
	s.until("30 90\r\n")
	s.say("bash -c 'echo up-$((1+1)); exec sleep 100'")
	s.until("up-2")
	s.say("\x03")
	s.until("isn't]$ ")
	s.say("sleep 100 & kill %1; wait $!; echo done-$?")
	s.until("done-143")
	s.say("exit 7")
	status, err := s.Wait()
	if err != nil || status.ExitStatus() != 7 {
		t.Fatalf("exit %v, %v", status, err)
	}
}

func TestTheFirstRefusalIsToldOnceAndOnlyTheFirst(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ run, call, path string }{
		{"echo x > /dev/null; echo x > /tmp/mine; ls > /dev/null; : > /no/such; echo x >> /etc/hostname; rm -f /etc/passwd", "openat", "/no/such"},
		{"cd /etc; rm -f hostname; rm -f passwd", "unlinkat", "/etc/hostname"},
		{"mkdir /srv/new", "mkdir", "/srv/new"},
		{"git status; less /etc/hostname > /dev/null; kill -0 1", "", ""},
		{"kill 1", "kill", "process 1"},
	} {
		told := make(chan Refusal, 10)
		output(t, readSpec("bash", "-c", c.run), Options{Refused: func(r Refusal) { told <- r }})
		var got []Refusal
		if c.call != "" {
			got = append(got, waitFor(t, told))
		}
		got = append(got, drain(told)...)
		if c.call == "" {
			if len(got) != 0 {
				t.Errorf("%s: told %+v", c.run, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Syscall != c.call || got[0].Path != c.path || got[0].Command == "" {
			t.Errorf("%s: told %+v", c.run, got)
		}
	}
}

func waitFor(t *testing.T, told chan Refusal) Refusal {
	t.Helper()
	select {
	case r := <-told:
		return r
	case <-time.After(time.Minute):
		t.Error("nothing was told")
		return Refusal{}
	}
}

func drain(told chan Refusal) (more []Refusal) {
	for {
		select {
		case r := <-told:
			more = append(more, r)
		default:
			return more
		}
	}
}

func TestASpecThatContradictsItselfIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"read with sudo":        func(s *Spec) { s.Sudo = true },
		"read with root":        func(s *Spec) { s.Root = true },
		"read as uid 0":         func(s *Spec) { s.UID = 0 },
		"no level":              func(s *Spec) { s.Level = "" },
		"no mode":               func(s *Spec) { s.Mode = "" },
		"write as 0, not root":  func(s *Spec) { s.Level, s.UID = Write, 0 },
		"a relative secret":     func(s *Spec) { s.Secrets = []string{"etc/x"} },
		"a bad pattern":         func(s *Spec) { s.Secrets = []string{"/etc/["} },
		"a zero byte":           func(s *Spec) { s.Command = []string{"a\x00b"} },
		"itself with no words":  func(s *Spec) { s.Self, s.Command = true, nil },
		"a zero byte in a path": func(s *Spec) { s.Hide = []string{"/a\x00b"} },
	} {
		spec := readSpec("true")
		change(&spec)
		if _, err := Start(context.Background(), spec, Options{}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestWhatCannotBeGivenIsAnErrorThatSaysSo(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"a group that is root in disguise": {func(s *Spec) { s.Groups = []string{"shadow"} }, "can do more than read"},
		"gid 0 by number":                  {func(s *Spec) { s.Groups = []string{"0"} }, "can do more than read"},
		"an account's uid":                 {func(s *Spec) { s.UID = 1 }, "belongs to account"},
		"a program that is not there":      {func(s *Spec) { s.Command = []string{"/no/such/program"} }, "cannot run"},
	} {
		spec := readSpec("true")
		c.change(&spec)
		_, err := Start(context.Background(), spec, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignalEndsASessionWithoutATerminal(t *testing.T) {
	needRoot(t)
	c, err := Start(context.Background(), readSpec("sleep", "100"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	status, err := c.Wait()
	if err != nil || status.Signal() != syscall.SIGTERM {
		t.Fatalf("%v, %v", status, err)
	}
}

func BenchmarkStart(b *testing.B) {
	needRoot(b)
	for _, bc := range []struct {
		name string
		spec Spec
	}{
		{"true", readSpec("/bin/true")},
		{"bash", readSpec("bash", "--norc", "-c", "true")},
	} {
		b.Run(bc.name, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				cg, err := NewCgroup("bench", Limits{Pids: 64, MemoryBytes: 1 << 30, CPUPercent: 200})
				if err != nil {
					b.Fatal(err)
				}
				c, err := Start(context.Background(), bc.spec, Options{Cgroup: cg})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Wait(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := cg.Kill(context.Background()); err != nil {
					b.Fatal(err)
				}
				if err := cg.Remove(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func TestAConnectIsToldToo(t *testing.T) {
	needRoot(t)
	cg, err := NewCgroup("test-connect", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Remove()
	if err := cg.refuseSockets(); err != nil {
		t.Skip(err)
	}
	told := make(chan Refusal, 1)
	out, _ := output(t, readSpec("bash", "-c", "echo > /dev/tcp/127.0.0.1/9"), Options{Cgroup: cg, Refused: func(r Refusal) { told <- r }})
	if r := waitFor(t, told); r.Syscall != "socket" || r.Command != "bash" {
		t.Errorf("%+v; %s", r, out)
	}
}

func TestANotifierThatPermitsEverythingPermitsNothing(t *testing.T) {
	needRoot(t)
	cg, err := NewCgroup("test-permit", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Remove()
	run := `touch /var/lib/made; rm -f /etc/hostname; mkdir /srv/made; kill -WINCH 1; chmod 777 /etc/passwd
		python3 -c 'import socket; socket.socket(); print("through")'; exec 3<>/dev/tcp/127.0.0.1/9 && echo through; echo x > /etc/hostname && echo through`
	out, _ := output(t, readSpec("bash", "-c", run), Options{Cgroup: cg, permit: true})
	if strings.Contains(out, "through") {
		t.Errorf("%s", out)
	}
	for _, path := range []string{"/var/lib/made", "/srv/made"} {
		if isRealDir(path) {
			t.Errorf("%s was made", path)
		}
	}
	if strings.Count(out, "Read-only file system") < 4 {
		t.Errorf("refused otherwise:\n%s", out)
	}
}

// BenchmarkOpen shows what the filter, Landlock and the notifier cost an open
// for reading and one for writing.
func BenchmarkOpen(b *testing.B) {
	needRoot(b)
	for _, c := range []struct{ name, mode string }{{"read", "r"}, {"write", "r+"}} {
		for _, where := range []string{"session", "session without hints", "host"} {
			b.Run(c.name+" "+where, func(b *testing.B) {
				script := "import time\nt=time.perf_counter()\nimport os\nf=os.O_RDONLY if '" + c.mode + "'=='r' else os.O_RDWR\nfor i in range(20000): os.close(os.open('/dev/null',f))\nprint((time.perf_counter()-t)/20000*1e9)"
				spec := readSpec("/usr/bin/python3", "-c", script)
				spec.Hints = where == "session"
				if where == "host" {
					spec = Spec{Level: Write, Mode: RootMode, UID: 1, GID: 1, User: "daemon", Command: spec.Command}
				}
				out, _ := output(b, spec, Options{})
				ns, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
				if err != nil {
					b.Skip(out)
				}
				b.ReportMetric(ns, "ns/open")
			})
		}
	}
}
