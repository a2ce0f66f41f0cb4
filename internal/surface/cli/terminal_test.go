package cli_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// window is a person's terminal with handrail running in it.
type window struct {
	t       *testing.T
	file    *os.File
	cmd     *exec.Cmd
	mu      sync.Mutex
	seen    bytes.Buffer // behind what was awaited
	all     bytes.Buffer
	changed chan struct{}
	ended   chan error
}

// openWindow runs handrail in a terminal of 80 by 24, logged in as ada.
func openWindow(t *testing.T, f *fake, args ...string) *window {
	t.Helper()
	return openWindowAs(t, f.token("ada"), args...)
}

// openWindowAs logs in with a token first, unless it is empty. Leading words of
// the form NAME=VALUE are environment, as in a shell.
func openWindowAs(t *testing.T, token string, args ...string) *window {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	program := filepath.Join(dir, "handrail") // TestMain looks at its own name
	must(t, os.Symlink(self, program))
	env := []string{"HANDRAIL_HOME=" + filepath.Join(dir, "home"), "HOME=" + dir, "TERM=xterm", "TZ=UTC", "PATH=" + os.Getenv("PATH")}
	if token != "" {
		login := exec.Command(program, "login")
		login.Env, login.Stdin = env, strings.NewReader(token)
		if out, err := login.CombinedOutput(); err != nil {
			t.Fatalf("login: %v\n%s", err, out)
		}
	}
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	w := &window{t: t, cmd: exec.Command(program, args...), changed: make(chan struct{}, 1), ended: make(chan error, 1)}
	w.cmd.Env = env
	w.file, err = pty.StartWithSize(w.cmd, &pty.Winsize{Rows: 24, Cols: 80})
	must(t, err)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := w.file.Read(buf)
			w.mu.Lock()
			w.seen.Write(buf[:n])
			w.all.Write(buf[:n])
			w.mu.Unlock()
			select {
			case w.changed <- struct{}{}:
			default:
			}
			if err != nil {
				w.ended <- w.cmd.Wait()
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		w.file.Close()
	})
	return w
}

func (w *window) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.String()
}

// await waits for a text on the screen, behind what was awaited before.
func (w *window) await(text string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		w.mu.Lock()
		_, after, found := bytes.Cut(w.seen.Bytes(), []byte(text))
		if found {
			rest := bytes.Clone(after)
			w.seen.Reset()
			w.seen.Write(rest)
		}
		w.mu.Unlock()
		if found {
			return
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			w.t.Fatalf("%q did not appear in:\n%q", text, w.text())
		}
	}
}

func (w *window) press(keys string) {
	w.t.Helper()
	_, err := io.WriteString(w.file, keys)
	must(w.t, err)
}

// exits waits for the end and returns the exit status.
func (w *window) exits() int {
	w.t.Helper()
	select {
	case <-w.ended:
		return w.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		w.t.Fatalf("handrail does not end; the screen:\n%q", w.text())
		return -1
	}
}

func TestAShellFollowsTheWindowAndPassesItsStatusOn(t *testing.T) {
	w := openWindow(t, startFake(t), "ssh", "web-1")
	w.await("production · read-only")
	w.await("$ ")
	must(t, pty.Setsize(w.file, &pty.Winsize{Rows: 50, Cols: 132}))
	w.await("now 132x50")
	w.press("uname\r")
	w.await("ran uname")
	w.press("\x03") // goes to the session, and does not end us
	w.await("^C")
	w.press("exit 5\r")
	if status := w.exits(); status != 5 {
		t.Errorf("exits with %d, want the 5 of the shell", status)
	}
}

func TestTheTerminalIsGivenBackWhenTheConnectionBreaks(t *testing.T) {
	f := startFake(t)
	w := openWindow(t, f, "ssh", "web-1")
	w.await("$ ")
	f.server.CloseClientConnections()
	f.dropSessions()
	w.await("the connection broke")
	if strings.Contains(w.text(), "\n  next: handrail session show") && !strings.Contains(w.text(), "\r\n  next:") {
		t.Error("the error was printed on a terminal that is still raw")
	}
	if status := w.exits(); status != 255 {
		t.Errorf("exits with %d, want 255", status)
	}
}

func TestATerminatedShellLeavesTheTerminalInOrder(t *testing.T) {
	w := openWindow(t, startFake(t), "ssh", "web-1")
	w.await("$ ")
	must(t, w.cmd.Process.Signal(syscall.SIGTERM))
	w.await("interrupted")
	if status := w.exits(); status != 255 {
		t.Errorf("exits with %d, want 255", status)
	}
}

func TestAWatcherLeavesWithQ(t *testing.T) {
	w := openWindow(t, startFake(t), "watch", "s-00000002")
	w.await("still going")
	w.press("q")
	if status := w.exits(); status != 0 {
		t.Errorf("exits with %d, want 0", status)
	}
}

func TestThePlayerPlaysSeeksAndLists(t *testing.T) {
	w := openWindow(t, startFake(t), "replay", "s-00000000", "--idle", "200ms")
	w.await("Linux")
	w.press(" ")
	w.await("paused")
	w.press("c")
	w.await("1      0:00  uname")
	w.await("2   1:00:00  exit")
	w.press("2\r")
	w.await("\x1bc") // a terminal made new, and everything up to there again
	w.await("Linux")
	w.await("bye")
	w.await("paused  1:00:00")
	w.press("[")
	w.await("paused  0:00")
	w.press("\x1b[C")
	w.await("paused  0:05")
	w.press("+")
	w.await("speed 2")
	w.press(" ")
	w.await("gap: 3.7 MiB of 4.8 MiB of output")
	w.await("the end")
	w.press("q")
	if status := w.exits(); status != 0 {
		t.Errorf("exits with %d, want 0", status)
	}
}

func TestControlCEndsAQuestion(t *testing.T) {
	f := startFake(t)
	w := openWindow(t, f, "bootstrap", "end")
	w.await("[y/N]")
	w.press("\x03")
	if status := w.exits(); status != 1 {
		t.Errorf("exits with %d, want 1", status)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.bootstrap {
		t.Error("bootstrap was ended")
	}
}

func TestALoginTokenIsAskedForAndNotShown(t *testing.T) {
	token := startFake(t).token("ada")
	w := openWindowAs(t, "", "login")
	w.await("not shown")
	w.press("oops\x15x\x7f" + token + "\r") // as at any prompt
	w.await("person")
	if status := w.exits(); status != 0 {
		t.Errorf("exits with %d, want 0", status)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(w.all.String(), token) {
		t.Error("the token was shown")
	}
}

func TestColoursAreForTerminalsThatWantThem(t *testing.T) {
	f := startFake(t)
	for _, c := range []struct {
		env  string
		want bool
	}{{"X=", true}, {"NO_COLOR=1", false}, {"TERM=dumb", false}} {
		w := openWindow(t, f, c.env, "hosts")
		if status := w.exits(); status != 0 {
			t.Errorf("%s: exits with %d", c.env, status)
		}
		if got := strings.Contains(w.text(), "\x1b["); got != c.want || !strings.Contains(w.text(), "production") {
			t.Errorf("%s: coloured %v, want %v:\n%q", c.env, got, c.want, w.text())
		}
	}
}

func TestControlCEndsALogin(t *testing.T) {
	startFake(t)
	w := openWindowAs(t, "", "login")
	w.await("not shown")
	w.press("\x03")
	w.await("interrupted")
	if status := w.exits(); status != 1 {
		t.Errorf("exits with %d, want 1", status)
	}
}
