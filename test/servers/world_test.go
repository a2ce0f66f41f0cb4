package servers_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	_ "handrail.dev/handrail/internal/app" // what the binary is made of, so that a cached result is not an old one
	"handrail.dev/handrail/internal/host/lab"
	_ "handrail.dev/handrail/internal/surface/cli"
	"handrail.dev/handrail/test/port"
	"handrail.dev/handrail/test/postgres"
)

// binary is the program under test, built once; cluster is the one database.
var (
	binary  string
	cluster *postgres.Cluster
)

func TestMain(m *testing.M) {
	lab.Main()
	if os.Getenv("HANDRAIL_TEST_RUNS") != "" {
		patience = 15 * time.Minute
	}
	dir, err := os.MkdirTemp("", "handrail-servers")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "handrail")
	build := exec.Command("go", "build", "-o", binary, "handrail.dev/handrail/cmd/handrail")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make builds it
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot build: %v\n%s", err, out)
		os.Exit(1)
	}
	_ = os.Chmod(dir, 0o755) // roles without root must be able to run it
	cluster = postgres.Start()
	code := m.Run()
	cluster.Stop()
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience bounds every wait; nothing is asserted about time. A siege has more of
// it: what is slow on a machine that does other things too is not lost.
var patience = 90 * time.Second

// needRoot skips where hosts cannot be made.
func needRoot(t *testing.T) {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&head, &caps[0]) != nil || caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		t.Skip("hosts of the lab need root, and not that of a container")
	}
}

// until waits for something that happens by itself.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		<-tick.C
	}
}

// buffer may be written and read at the same time.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// server is one `handrail server`.
type server struct {
	t                    *testing.T
	name, data, page, ss string
	database             string
	network              *network // nil: ours
	net, office          string   // files of the network namespaces of it and of its people; "" is ours
	cmd                  *exec.Cmd
	out, errs            *buffer
	done                 chan struct{}
}

// place reserves the ports of a server that does not run yet.
func place(t *testing.T, name, database string) *server {
	t.Helper()
	s := unplaced(t, name, database)
	for _, at := range []*string{&s.page, &s.ss} {
		address, release, err := port.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(release)
		*at = address
	}
	return s
}

func unplaced(t *testing.T, name, database string) *server {
	t.Helper()
	s := &server{t: t, name: name, data: filepath.Join(t.TempDir(), name), database: database, out: &buffer{}, errs: &buffer{}}
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("server %s said:\n%s%s", name, s.out, s.errs)
		}
	})
	return s
}

// beside reserves the ports of a further server.
func (s *server) beside(t *testing.T, name string) *server {
	t.Helper()
	if s.net == "" {
		return place(t, name, s.database)
	}
	return s.network.place(t, name, s.database)
}

// handrail is a command of the program in a network namespace.
func handrail(net string, args ...string) *exec.Cmd {
	if net == "" {
		return exec.Command(binary, args...)
	}
	return exec.Command("nsenter", append([]string{"--net=" + net, binary}, args...)...)
}

// start runs it and waits until it has greeted.
func (s *server) start() *server {
	s.t.Helper()
	s.cmd = handrail(s.net, "server", "--data", s.data, "--listen", s.page, "--ssh-listen", s.ss)
	s.cmd.Env = append(os.Environ(), "HANDRAIL_HOME=", "HANDRAIL_DATABASE="+s.database)
	s.cmd.Stderr = s.errs
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	greeted, done := make(chan struct{}), make(chan struct{})
	s.done = done
	cmd := s.cmd
	go func() {
		defer close(done)
		lines := bufio.NewScanner(stdout)
		once := false
		for lines.Scan() {
			_, _ = s.out.Write(append(lines.Bytes(), '\n'))
			if !once && strings.HasPrefix(lines.Text(), "Ctrl-C") {
				once = true
				close(greeted)
			}
		}
		_ = cmd.Wait()
	}()
	select {
	case <-greeted:
	case <-done:
		s.t.Fatalf("server %s ended:\n%s%s", s.name, s.out, s.errs)
	case <-time.After(patience):
		s.t.Fatalf("server %s did not greet:\n%s%s", s.name, s.out, s.errs)
	}
	return s
}

// stop ends it as an operator does.
func (s *server) stop() {
	if s.done == nil {
		return
	}
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case <-s.done:
	case <-time.After(patience):
		s.kill()
		s.t.Errorf("server %s did not stop", s.name)
	}
	s.done = nil
}

// kill ends the server's process and its supervisor at once, as a power cut.
func (s *server) kill() {
	s.t.Helper()
	if s.done == nil {
		return
	}
	role := s.role()
	_ = s.cmd.Process.Kill()
	if role != 0 {
		_ = unix.Kill(role, unix.SIGKILL)
	}
	<-s.done
	s.done = nil
}

// role is the process that serves, below the supervisor.
func (s *server) role() int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(line), "server-role\x00") || !strings.Contains(string(line), s.data+"\x00") {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil {
			return pid
		}
	}
	return 0
}

// person is somebody with a client folder of their own, at one server.
type person struct {
	t    *testing.T
	at   *server
	home string
}

// first logs the first person in.
func (s *server) first() person {
	s.t.Helper()
	p := person{s.t, s, s.t.TempDir()}
	p.ok("login", "--local", "--data", s.data)
	return p
}

// add adds a person and logs them in, at the same server.
func (p person) add(name string, groups ...string) person {
	p.t.Helper()
	args := []string{"person", "add", name, "-o", "json"}
	for _, g := range groups {
		args = append(args, "--group", g)
	}
	var added struct{ Token string }
	p.json(&added, args...)
	other := person{p.t, p.at, p.t.TempDir()}
	other.ok("login", "--token-file", tokenFile(p.t, added.Token))
	return other
}

// via is the same person with the same login, at another server.
func (p person) via(s *server) person {
	p.t.Helper()
	other := person{p.t, s, p.t.TempDir()}
	if err := os.CopyFS(other.home, os.DirFS(p.home)); err != nil {
		p.t.Fatal(err)
	}
	err := filepath.WalkDir(other.home, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text = bytes.ReplaceAll(text, []byte(p.at.page), []byte(s.page))
		text = bytes.ReplaceAll(text, []byte(p.at.ss), []byte(s.ss))
		text = bytes.ReplaceAll(text, []byte(p.home), []byte(other.home))
		at, port, _ := strings.Cut(p.at.ss, ":")
		there, theirs, _ := strings.Cut(s.ss, ":")
		text = bytes.ReplaceAll(text, []byte(port), []byte(theirs))
		text = bytes.ReplaceAll(text, []byte(at), []byte(there))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return other
}

func tokenFile(t *testing.T, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// result is what a command did.
type result struct {
	out, err string
	code     int
}

func (p person) run(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	cmd := handrail(p.at.office, args...)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+p.home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("%s: %v", cmd, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must work and returns what it printed.
func (p person) ok(args ...string) string {
	p.t.Helper()
	r := p.run(args...)
	if r.code != 0 {
		p.t.Fatalf("handrail %s at %s: exit %d\n%s%s", strings.Join(args, " "), p.at.name, r.code, r.out, r.err)
	}
	return r.out
}

// json runs a command that must work and reads its JSON.
func (p person) json(into any, args ...string) {
	p.t.Helper()
	out := p.ok(args...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		p.t.Fatalf("handrail %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// process is a command that runs while the test goes on.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *buffer
	done chan struct{}
	over time.Time // when it ended, once done is closed
}

func (p person) begin(args ...string) *process {
	p.t.Helper()
	return begin(p.t, handrail(p.at.office, args...), "HANDRAIL_HOME="+p.home)
}

// beginTyping is begin with a hand at the keyboard.
func (p person) beginTyping(args ...string) (r *process, enter func(text string)) {
	p.t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { out.Close() })
	defer in.Close()
	cmd := handrail(p.at.office, args...)
	cmd.Stdin = in
	return begin(p.t, cmd, "HANDRAIL_HOME="+p.home), func(text string) {
		p.t.Helper()
		if _, err := out.WriteString(text); err != nil {
			p.t.Fatal(err)
		}
	}
}

func begin(t *testing.T, cmd *exec.Cmd, env ...string) *process {
	t.Helper()
	r := &process{t: t, cmd: cmd, out: &buffer{}, done: make(chan struct{})}
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = r.out, r.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		_ = cmd.Wait()
		r.over = time.Now()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-r.done
	})
	return r
}

// says waits until the process has printed text.
func (r *process) says(text string) {
	r.t.Helper()
	until(r.t, "«"+text+"» from "+strings.Join(r.cmd.Args[1:], " "), func() bool {
		if strings.Contains(r.out.String(), text) {
			return true
		}
		select {
		case <-r.done:
			if !strings.Contains(r.out.String(), text) {
				r.t.Fatalf("%s ended without «%s»:\n%s", strings.Join(r.cmd.Args[1:], " "), text, r.out)
			}
		default:
		}
		return false
	})
}

// ends waits until the process has ended by itself.
func (r *process) ends() int {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("%s did not end:\n%s", strings.Join(r.cmd.Args[1:], " "), r.out)
	}
	return r.cmd.ProcessState.ExitCode()
}

// running says whether it still does.
func (r *process) running() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// labHost starts a host that joins with token and runs its node.
func labHost(t *testing.T, name, token, net string, hide ...string) *lab.Host {
	t.Helper()
	said := &buffer{}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	const data = "/var/lib/handrail-node"
	script := "set -e; " + lab.ProgramPath + " join --data " + data + " --name " + name + " --token-file /etc/handrail-token; " +
		"rm /etc/handrail-token; exec " + lab.ProgramPath + " node --data " + data
	h, err := lab.Start(ctx, lab.Config{
		Name: name, Dir: t.TempDir(), Program: binary, Run: []string{"/bin/sh", "-c", script},
		Files: map[string]string{"/etc/handrail-token": token + "\n"}, Hide: hide, Net: net, Stdout: said, Stderr: said,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, said)
		}
	})
	return h
}

// invite asks for a token with which a host joins.
func (p person) invite(name string) string {
	p.t.Helper()
	var invited struct{ Token string }
	p.json(&invited, "host", "invite", name, "-o", "json")
	return invited.Token
}

// stateOf is what the list of hosts says of one.
func (p person) stateOf(host string) string {
	p.t.Helper()
	var list struct {
		Hosts []struct{ Name, State string }
	}
	p.json(&list, "hosts", "-o", "json")
	for _, h := range list.Hosts {
		if h.Name == host {
			return h.State
		}
	}
	return ""
}

// another joins a second server by the token of the first. agrees is whoever
// compares its key and says yes.
func (p person) another(t *testing.T, name string, agrees person) *server {
	t.Helper()
	b := p.at.beside(t, name)
	var invited struct{ Token string }
	p.json(&invited, "server", "invite", name, "-o", "json")
	join := begin(t, handrail(b.net, "server", "join", "--data", b.data, "--listen", b.page, "--ssh-listen", b.ss,
		"--token-file", tokenFile(t, invited.Token)))
	join.says("handrail approve ")
	words := strings.Fields(join.out.String())
	key, id := words[slices.Index(words, "key")+1], words[slices.Index(words, "approve")+1]
	if shown := agrees.ok("requests", "-o", "json"); !strings.Contains(shown, key) {
		t.Errorf("the approver does not see the key %s:\n%s", key, shown)
	}
	agrees.ok("approve", id, "--yes")
	if join.ends() != 0 {
		t.Fatalf("server join: %s", join.out)
	}
	return b
}

// runs says whether some process on this machine, in whatever namespace, is that
// command.
func runs(command ...string) bool {
	want := strings.Join(command, "\x00") + "\x00"
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(files, func(file string) bool {
		line, err := os.ReadFile(file)
		return err == nil && string(line) == want
	})
}
