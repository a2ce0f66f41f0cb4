// Package spine_test runs the story of the README with the real binary: server,
// link, warden, keeper, sandbox, stock clients. Nothing in it is faked.
package spine_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	_ "handrail.dev/handrail/internal/app" // what the binary is made of, so that a cached result is not an old one

	"handrail.dev/handrail/internal/host/lab"
	_ "handrail.dev/handrail/internal/host/sandbox/attack"
	_ "handrail.dev/handrail/internal/surface/cli"
	"handrail.dev/handrail/test/port"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	lab.Main()
	if os.Getenv("HANDRAIL_TEST_RUNS") != "" {
		patience = 15 * time.Minute
	}
	dir, err := os.MkdirTemp("", "handrail-spine")
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
	// Roles without root must be able to run it.
	_ = os.Chmod(dir, 0o755)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || !wholeRoot() {
		t.Skip("the spine with accounts of its own needs root, and not that of a container")
	}
}

// wholeRoot says whether root is root of the machine: with every account, and
// allowed to mount.
func wholeRoot() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && len(strings.Fields(string(ids))) == 3 && strings.Fields(string(ids))[2] != "4294967295" {
		return false
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	return unix.Capget(&head, &caps[0]) == nil && caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// needWrites skips where the one account is root of a container, which no
// ordinary grant gives.
func (i *installation) needWrites() {
	i.t.Helper()
	i.needShells()
	if os.Geteuid() == 0 && !wholeRoot() {
		i.t.Skip("root of a container gives no ordinary write session")
	}
}

// needShells skips where the kernel lets nobody make a sandbox; modes_test.go
// tries what is left there.
func (i *installation) needShells() {
	i.t.Helper()
	if strings.Contains(i.firstLine(), "without shells") {
		i.t.Skip("this machine gives no shells: " + i.firstLine())
	}
}

// installation is one running `handrail up`.
type installation struct {
	t         *testing.T
	as        *syscall.SysProcAttr // who its people are on this machine; nil: who runs the test
	data      string
	page, ssh string // host:port
	link      string
	cmd       *exec.Cmd
	out       *lockedBuffer
	errs      *lockedBuffer
	done      chan struct{}
}

// patience bounds every wait of this suite; nothing is asserted about time. A
// siege has more of it: what is slow on a machine that does other things too is
// not lost.
var patience = 60 * time.Second

// up starts an installation and waits until it has greeted.
func up(t *testing.T, data string, extra ...string) *installation {
	t.Helper()
	return upAs(t, nil, data, extra...)
}

func upAs(t *testing.T, as *syscall.SysProcAttr, data string, extra ...string) *installation {
	t.Helper()
	cmd := exec.Command(binary, append(upArgs(t, data), extra...)...)
	cmd.SysProcAttr = as
	return upBy(t, cmd, data)
}

// upArgs names ports that stay reserved while the test runs: an installation
// that starts again finds them free.
func upArgs(t *testing.T, data string) []string {
	t.Helper()
	var at [2]string
	for n := range at {
		address, release, err := port.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(release)
		at[n] = address
	}
	return []string{"up", "--data", data, "--listen", at[0], "--ssh-listen", at[1]}
}

// upBy starts an installation by a command that becomes `handrail up`, and ends
// it with the test.
func upBy(t *testing.T, cmd *exec.Cmd, data string) *installation {
	t.Helper()
	i := rise(t, cmd, data)
	t.Cleanup(i.stop)
	return i
}

// rise is upBy without the end.
func rise(t *testing.T, cmd *exec.Cmd, data string) *installation {
	t.Helper()
	i, err := tryRise(t, cmd, data)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// tryRise is rise of what may give up.
func tryRise(t *testing.T, cmd *exec.Cmd, data string) (*installation, error) {
	t.Helper()
	i := &installation{t: t, data: data, cmd: cmd, out: &lockedBuffer{}, errs: &lockedBuffer{}, done: make(chan struct{})}
	i.cmd.Stderr = i.errs
	i.cmd.Env = append(os.Environ(), "HANDRAIL_HOME=")
	stdout, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := i.cmd.Start(); err != nil {
		return nil, err
	}
	greeted := make(chan struct{})
	go func() {
		defer close(i.done)
		lines := bufio.NewScanner(stdout)
		once := false
		for lines.Scan() {
			i.hear(lines.Text())
			if !once && strings.HasPrefix(lines.Text(), "Ctrl-C") {
				once = true
				close(greeted)
			}
		}
		_ = i.cmd.Wait()
	}()
	select {
	case <-greeted:
	case <-i.done:
		return nil, fmt.Errorf("handrail up ended:\n%s%s", i.out, i.errs)
	case <-time.After(patience):
		i.stop()
		return nil, fmt.Errorf("handrail up did not greet:\n%s%s", i.out, i.errs)
	}
	return i, nil
}

// hear takes one line of what `up` prints.
func (i *installation) hear(line string) {
	_, _ = i.out.Write([]byte(line + "\n"))
	f := strings.Fields(line)
	if len(f) < 2 {
		return
	}
	switch f[0] {
	case "page":
		i.link = f[1]
		rest := strings.TrimPrefix(f[1], "http://localhost:")
		port, _, _ := strings.Cut(rest, "/")
		i.page = net.JoinHostPort("127.0.0.1", port)
	case "ssh":
		for n, word := range f {
			if word == "-p" {
				i.ssh = net.JoinHostPort("127.0.0.1", f[n+1])
			}
		}
	}
}

func (i *installation) stop() {
	select {
	case <-i.done:
		return
	default:
	}
	_ = i.cmd.Process.Signal(os.Interrupt)
	select {
	case <-i.done:
	case <-time.After(patience):
		_ = i.cmd.Process.Kill()
		<-i.done
		i.t.Errorf("handrail up did not stop:\n%s", i.errs)
	}
	if i.t.Failed() {
		i.t.Logf("handrail up said:\n%s%s", i.out, i.errs)
	}
}

// person is somebody with a client folder of their own.
type person struct {
	i    *installation
	home string
}

// first logs the first person in.
func (i *installation) first() person {
	i.t.Helper()
	p := person{i, i.newHome()}
	p.ok("login", "--local", "--data", i.data)
	return p
}

// add adds a person and logs them in on a device of their own.
func (p person) add(name string, groups ...string) person {
	p.i.t.Helper()
	args := []string{"person", "add", name, "-o", "json"}
	for _, g := range groups {
		args = append(args, "--group", g)
	}
	var added struct{ Token string }
	p.json(&added, args...)
	return p.i.enter(added.Token)
}

func (i *installation) enter(token string) person {
	i.t.Helper()
	p := person{i, i.newHome()}
	p.ok("login", "--token-file", i.tokenFile(token))
	return p
}

func (i *installation) tokenFile(token string) string {
	i.t.Helper()
	file := filepath.Join(i.newHome(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		i.t.Fatal(err)
	}
	i.give(file)
	return file
}

// newHome is an empty folder of whoever the installation's people are.
func (i *installation) newHome() string {
	i.t.Helper()
	if i.as == nil {
		return i.t.TempDir()
	}
	dir, err := os.MkdirTemp("/var/tmp", "handrail-home")
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { os.RemoveAll(dir) })
	i.give(dir)
	return dir
}

func (i *installation) give(path string) {
	i.t.Helper()
	if i.as == nil || i.as.Credential == nil {
		return
	}
	if err := os.Lchown(path, int(i.as.Credential.Uid), int(i.as.Credential.Gid)); err != nil {
		i.t.Fatal(err)
	}
}

// result is what a command did.
type result struct {
	out, err string
	code     int
}

func (p person) run(args ...string) result {
	p.i.t.Helper()
	return p.runIn("", args...)
}

func (p person) runIn(stdin string, args ...string) result {
	p.i.t.Helper()
	ctx, cancel := context.WithTimeout(p.i.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME="+p.home)
	cmd.SysProcAttr = p.i.as
	cmd.Stdin = strings.NewReader(stdin)
	return finish(p.i.t, cmd)
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must work and returns what it printed.
func (p person) ok(args ...string) string {
	p.i.t.Helper()
	r := p.run(args...)
	if r.code != 0 {
		p.i.t.Fatalf("handrail %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// json runs a command that must work and reads its JSON.
func (p person) json(into any, args ...string) {
	p.i.t.Helper()
	out := p.ok(args...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		p.i.t.Fatalf("handrail %s printed no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// refused runs a command that must fail with that exit code.
func (p person) refused(code int, args ...string) result {
	p.i.t.Helper()
	r := p.run(args...)
	if r.code != code {
		p.i.t.Fatalf("handrail %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.err)
	}
	return r
}

// hostname waits until the installation's own host is online and returns it.
func (p person) hostname() string {
	p.i.t.Helper()
	return p.online(1)[0]
}

// online waits until that many hosts are online.
func (p person) online(n int) []string {
	p.i.t.Helper()
	var names []string
	p.i.until("hosts to be online", func() bool {
		var list struct {
			Hosts []struct{ Name, State string }
		}
		p.json(&list, "hosts", "-o", "json")
		names = names[:0]
		for _, h := range list.Hosts {
			if h.State == "online" {
				names = append(names, h.Name)
			}
		}
		return len(names) >= n
	})
	return names
}

// until polls for something that must become true.
func (i *installation) until(what string, f func() bool) {
	i.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			i.t.Fatalf("waited in vain for %s", what)
		}
	}
}
