package role

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Main()
	if len(os.Args) > 2 && os.Args[1] == "play" {
		play(os.Args[2], os.Args[3:])
	}
	os.Exit(m.Run())
}

// play is the program of the roles under test.
func play(part string, args []string) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	switch part {
	case "tell":
		for _, file := range []string{"/proc/self/environ", "/proc/self/status"} {
			b, _ := os.ReadFile(file)
			fmt.Println(strings.ReplaceAll(string(b), "\x00", "\n"))
		}
		for _, path := range args {
			_, err := os.ReadDir(path)
			fmt.Println("read", path, err)
		}
	case "rave":
		fmt.Fprint(os.Stderr, rave+"\n"+strings.Repeat("x", 3*maxLine)+"\nno end")
		fmt.Println(rave)
	case "live":
		fmt.Println("pid", os.Getpid())
	case "fail":
		os.Exit(3)
	case "hang":
		<-term
		os.Exit(0)
	}
	SayReady()
	<-term
	fmt.Println("end of", part, args)
	os.Exit(0)
}

// rave is what a role that was taken over would say to a terminal.
const rave = "\x1b]0;mine\x07\x1b[2J\rnothing \u202eto\u200b see \x9b31m\xff\x00 here"

// heard is what the supervisor printed.
type heard struct {
	mu   sync.Mutex
	text strings.Builder
	more sync.Cond
}

func newHeard() *heard {
	h := &heard{}
	h.more.L = &h.mu
	return h
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.more.Broadcast()
	return h.text.Write(p)
}

// until waits until what was printed is as it should be.
func (h *heard) until(t *testing.T, ok func(text string) bool) string {
	t.Helper()
	var late bool
	stop := time.AfterFunc(time.Minute, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		late = true
		h.more.Broadcast()
	})
	defer stop.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !ok(h.text.String()) {
		if late {
			t.Fatalf("after a minute there is only:\n%q", h.text.String())
		}
		h.more.Wait()
	}
	return h.text.String()
}

// stage is a place with a watch over it.
func stage(t *testing.T, mode os.FileMode) (Place, *Watch, *heard) {
	t.Helper()
	above := t.TempDir()
	if err := os.Chmod(above, mode); err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(filepath.Join(above, "data"), true)
	if err != nil {
		t.Fatal(err)
	}
	h := newHeard()
	w := NewWatch(p, h, h, slog.New(slog.DiscardHandler))
	t.Cleanup(w.Stop)
	return p, w, h
}

func TestARoleGetsNothingOfItsSurroundings(t *testing.T) {
	t.Setenv("PGPASSWORD", "a secret of whoever started it")
	t.Setenv("LD_PRELOAD", "")
	p, w, h := stage(t, 0o700)
	if err := w.Start(t.Context(), Role{Name: "tell", Account: p.Link, Args: []string{"play", "tell"}, Env: []string{"MINE=yes"}}); err != nil {
		t.Fatal(err)
	}
	text := h.until(t, func(s string) bool { return strings.Contains(s, "NoNewPrivs") })
	var names []string
	for _, line := range strings.Split(text[:strings.Index(text, "Name:")], "\n") {
		if name, _, ok := strings.Cut(line, "="); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if want := []string{"HOME", "LANG", "MINE", "PATH"}; !slices.Equal(slices.DeleteFunc(names, func(n string) bool { return n == "TZ" || n == "GOCOVERDIR" }), want) {
		t.Errorf("it has %v, want %v", names, want)
	}
}

func TestARoleHasAnAccountAndAFolderAndNoPower(t *testing.T) {
	if !isRoot() {
		t.Skip("accounts of their own need root")
	}
	p, w, h := stage(t, 0o700) // t.TempDir lies in a folder that only root may enter
	err := w.Start(t.Context(), Role{Name: "tell", Account: p.Link, Args: []string{"play", "tell", p.Seen(p.Link, "link"), p.Seen(p.Link, "server"), p.Seen(p.Link, "root"), p.Seen(p.Link, "warden")}})
	if err != nil {
		t.Fatal(err)
	}
	text := h.until(t, func(s string) bool { return strings.Contains(s, "/warden") })
	id := strconv.Itoa(p.Link)
	for _, want := range []string{
		"Uid:\t" + id + "\t" + id + "\t" + id + "\t" + id, "Gid:\t" + id, "Groups:\t" + id, "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "HOME=/nonexistent",
		"read /mnt/link <nil>", "read /mnt/server open /mnt/server: permission denied", "read /mnt/root open /mnt/root: permission denied",
		"read /mnt/warden open /mnt/warden: permission denied",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestWhatARoleSaysCommandsNoTerminal(t *testing.T) {
	_, w, h := stage(t, 0o711)
	if err := w.Start(t.Context(), Role{Name: "rave", Account: os.Geteuid(), Args: []string{"play", "rave"}}); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	text := h.until(t, func(s string) bool { return strings.Contains(s, "no end") && strings.Count(s, "mine") == 2 })
	for _, r := range text {
		if r != '\n' && (r < ' ' || r == 0x7f || r >= 0x80) {
			t.Fatalf("%q came through in %.200q", r, text)
		}
	}
	if want := `\x1b]0;mine\a\x1b[2J\rnothing \u202eto\u200b see \x9b31m\xff\x00 here`; !strings.Contains(text, want) {
		t.Errorf("%q is missing in %.300q", want, text)
	}
	if got := strings.Count(text, "x\n"); got != 3 {
		t.Errorf("a line of %d bytes became %d", 3*maxLine, got)
	}
}

func TestARoleThatDiesIsStartedAgain(t *testing.T) {
	_, w, h := stage(t, 0o711)
	if err := w.Start(t.Context(), Role{Name: "live", Account: os.Geteuid(), Args: []string{"play", "live"}}); err != nil {
		t.Fatal(err)
	}
	lives := func(n int) int {
		text := h.until(t, func(s string) bool { return strings.Count(s, "pid ") == n && strings.HasSuffix(s, "\n") })
		pid, err := strconv.Atoi(strings.TrimSpace(text[strings.LastIndex(text, "pid ")+4:]))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := lives(1)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if second := lives(2); second == first {
		t.Error("nothing was started again")
	}
}

func TestRolesEndInTheReverseOrder(t *testing.T) {
	_, w, h := stage(t, 0o711)
	for _, name := range []string{"one", "two", "three"} {
		if err := w.Start(t.Context(), Role{Name: name, Account: os.Geteuid(), Args: []string{"play", "quiet", name}}); err != nil {
			t.Fatal(err)
		}
	}
	w.Stop()
	if got := h.until(t, func(string) bool { return true }); got != "end of quiet [three]\nend of quiet [two]\nend of quiet [one]\n" {
		t.Errorf("%s", got)
	}
}

func TestARoleThatNeverServesIsWaitedForUntilItsStarterGivesUp(t *testing.T) {
	_, w, _ := stage(t, 0o711)
	done := make(chan error, 1)
	give, up := context.WithCancel(t.Context())
	go func() {
		done <- w.Start(give, Role{Name: "hang", Account: os.Geteuid(), Args: []string{"play", "hang"}})
	}()
	up()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// What keeps a role from starting is for a person to mend, who should not have to
// find it between the same lines again and again.
func TestARoleThatEndsBeforeItServesIsNotTriedAgain(t *testing.T) {
	_, w, _ := stage(t, 0o711)
	err := w.Start(t.Context(), Role{Name: "fail", Account: os.Geteuid(), Args: []string{"play", "fail"}})
	if err == nil || !strings.Contains(err.Error(), "the fail ended before it served") {
		t.Errorf("got %v", err)
	}
}
