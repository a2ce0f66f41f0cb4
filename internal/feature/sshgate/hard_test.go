package sshgate_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
)

func TestFastRepliesLoseNoByte(t *testing.T) {
	w := newWorld(t)
	conn := w.person("ada", "developer").dial("web-1")
	runs := 500
	if testing.Short() {
		runs = 50
	}
	lines := make(chan int)
	var workers sync.WaitGroup
	for range 4 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range lines {
				s, err := conn.NewSession()
				if err != nil {
					t.Error(err)
					continue
				}
				var out, errs bytes.Buffer
				s.Stdout, s.Stderr = &out, &errs
				err = s.Run(fmt.Sprintf("echo %d; echo e%d >&2; exit %d", i, i, i%3))
				if status, _ := err.(*ssh.ExitError); (i%3 == 0) != (err == nil) || i%3 != 0 && (status == nil || status.ExitStatus() != i%3) {
					t.Errorf("run %d ended with %v", i, err)
				}
				if out.String() != fmt.Sprintf("%d\n", i) || errs.String() != fmt.Sprintf("e%d\n", i) {
					t.Errorf("run %d gave %q and %q", i, out.String(), errs.String())
				}
			}
		}()
	}
	for i := range runs {
		lines <- i
	}
	close(lines)
	workers.Wait()
}

func TestACommandWithoutInputKeepsItsOutput(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	for range 5 {
		cmd := ada.command("ssh", "web-1@gate", "cat; sleep 0.1; seq 1 20000")
		cmd.Stdin = nil // /dev/null
		out, err := cmd.Output()
		if err != nil || !strings.HasSuffix(string(out), "\n20000\n") {
			t.Fatalf("got %d bytes, %v", len(out), err)
		}
	}
}

func TestAHundredMiBArriveWholeEachWay(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	size := 100 << 20
	if testing.Short() {
		size = 4 << 20
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	want := sha256.New()
	up := func(w io.Writer) {
		for left := size; left > 0; left -= len(block) {
			_, _ = w.Write(block[:min(left, len(block))])
		}
	}
	up(want)
	sum := fmt.Sprintf("%x", want.Sum(nil))

	s := must(ada.dial("web-1").NewSession())
	in := must(s.StdinPipe())
	go func() { up(in); in.Close() }()
	out, err := s.Output("sha256sum")
	if err != nil || !strings.HasPrefix(string(out), sum) {
		t.Fatalf("up: %s, %v", out, err)
	}
	s = must(ada.dial("web-1").NewSession())
	down := sha256.New()
	s.Stdout = down
	if err := s.Run(fmt.Sprintf("yes 0123456789abcdef | tr -d '\\n' | head -c %d", size)); err != nil || fmt.Sprintf("%x", down.Sum(nil)) != sum {
		t.Fatalf("down: %v", err)
	}
	eventually(t, "the sessions are closed", func() bool { return len(w.entries(session.Closed)) == 2 })
	for _, e := range w.entries(session.Opened) {
		if b := findBulk(t, w, e.Parsed.Session); b.Length != int64(size) || fmt.Sprintf("%x", b.SHA256) != sum || b.Skipped <= 0 {
			t.Fatalf("the recording says %+v", b)
		}
	}
}

func findBulk(t *testing.T, w *world, id string) recording.Bulk {
	t.Helper()
	for _, e := range w.events(id) {
		if e.Kind == recording.Gap {
			return must(recording.ParseBulk(e.Data))
		}
	}
	t.Fatalf("session %s has no gap", id)
	return recording.Bulk{}
}

// events reads a whole recording.
func (w *world) events(id string) (out []recording.Event) {
	w.t.Helper()
	r := must(w.recordings.Open(w.t.Context(), id))
	defer r.Close()
	for {
		e, err := r.Next()
		if err == io.EOF {
			return out
		}
		fatal(w.t, err)
		e.Data = append([]byte(nil), e.Data...)
		out = append(out, e)
	}
}

func TestASlowReaderSlowsTheCommandAndLosesNothing(t *testing.T) {
	w := newWorld(t)
	s := must(w.person("ada", "developer").dial("web-1").NewSession())
	out := must(s.StdoutPipe())
	fatal(t, s.Start("seq 1 2000000"))
	eventually(t, "the window is full", func() bool { return w.sessions.CountLive() == 1 })
	last, total := "", 0
	buf := make([]byte, 10_000)
	for {
		n, err := out.Read(buf)
		total += n
		if n > 0 {
			last = (last + string(buf[:n]))[max(0, len(last)+n-20):]
		}
		if err != nil {
			break
		}
	}
	if !strings.HasSuffix(last, "\n2000000\n") || total != 14_888_896 {
		t.Fatalf("got %d bytes, ending in %q", total, last)
	}
	fatal(t, s.Wait())
}

func TestAClientThatVanishesEndsItsSession(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	cmd := ada.command("ssh", "web-1@gate", "sleep 300")
	fatal(t, cmd.Start())
	w.alive()
	fatal(t, cmd.Process.Kill())
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	if i := must(w.sessions.List(context.Background(), session.Query{}))[0]; i.EndedWhy != session.WhyHangup || i.State != session.StateEnded {
		t.Fatalf("it is %+v", i)
	}
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.OK {
		t.Fatalf("the node said that it is dead, and the entry says %s", e.Parsed.Outcome)
	}
	_ = cmd.Wait()
}

// alive waits for the one session that is live.
func (w *world) alive() (i session.Info) {
	w.t.Helper()
	eventually(w.t, "one session is live", func() bool {
		all := must(w.sessions.List(context.Background(), session.Query{LiveOnly: true}))
		if len(all) == 1 {
			i = all[0]
		}
		return len(all) == 1 && i.State == session.StateLive
	})
	return i
}

func TestAHostThatVanishesIsALostSessionAndSaysSo(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	done := make(chan result)
	go func() { done <- ada.run("", "ssh", "web-1@gate", "echo begun; sleep 300") }()
	id := w.alive().ID
	eventually(t, "it has begun", func() bool {
		return slices.ContainsFunc(w.events(id), func(e recording.Event) bool { return e.Kind == recording.Output })
	})
	w.node.vanish()
	if r := <-done; r.status != 255 || r.out != "begun\n" || !strings.Contains(r.err, "node went away") {
		t.Fatalf("got %+v", r)
	}
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	if e := w.entries(session.Closed)[0]; e.Parsed.Outcome != ledger.Lost {
		t.Fatalf("the entry says %s", e.Parsed.Outcome)
	}
}

// terminal is a stock ssh in a real terminal.
type terminal struct {
	t    *testing.T
	pty  *os.File
	mu   sync.Mutex
	seen strings.Builder
	done chan struct{}
}

func (c *client) terminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	cmd := c.command("ssh", append([]string{"-tt"}, args...)...)
	f := must(pty.StartWithSize(cmd, &pty.Winsize{Cols: 91, Rows: 33}))
	x := &terminal{t: t, pty: f, done: make(chan struct{})}
	t.Cleanup(func() { f.Close() })
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			x.mu.Lock()
			x.seen.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				_ = cmd.Wait()
				return
			}
		}
	}()
	return x
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seen.String()
}

func (x *terminal) expect(text string) {
	x.t.Helper()
	eventually(x.t, fmt.Sprintf("%q shows", text), func() bool { return strings.Contains(x.text(), text) })
}

func (x *terminal) enter(text string) { _, _ = x.pty.WriteString(text) }

func TestATerminalResizesAndEndsWithItsShell(t *testing.T) {
	w := newWorld(t)
	x := w.person("ada", "developer").terminal(t, "web-1@gate")
	x.expect("read-only")
	x.enter("stty size\r")
	x.expect("33 91")
	fatal(t, pty.Setsize(x.pty, &pty.Winsize{Cols: 120, Rows: 40}))
	eventually(t, "the size changed", func() bool {
		x.enter("stty size\r")
		return strings.Contains(x.text(), "40 120")
	})
	x.enter("exit 3\r")
	<-x.done
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	if i := must(w.sessions.List(context.Background(), session.Query{}))[0]; i.ExitStatus != 3 || i.EndedWhy != session.WhyExit {
		t.Fatalf("it is %+v", i)
	}
}

func TestABuddyWatchesJoinsPausesAndStops(t *testing.T) {
	w := newWorld(t)
	ada, bob := w.person("ada", "developer"), w.principal("bob", "operator")
	x := ada.terminal(t, "web-1@gate")
	x.expect("$ ")
	ctx := context.Background()
	id := w.alive().ID
	watch := must(w.sessions.Watch(ctx, bob, id, session.ModeWatch))
	x.expect("bob watches this session")
	x.enter("echo se''en\r")
	sees(t, watch, "seen")
	if err := watch.Send(session.Event{Kind: session.Input, Data: []byte("x")}); err == nil {
		t.Fatal("a watcher could type")
	}
	fatal(t, watch.Close())
	x.expect("bob left")
	join := must(w.sessions.Watch(ctx, bob, id, session.ModeJoin))
	fatal(t, join.Send(session.Event{Kind: session.Input, Data: []byte("echo by-b''ob\r")}))
	x.expect("by-bob")
	must(w.sessions.Pause(ctx, bob, id, "look first"))
	x.expect("paused: bob paused it: look first")
	x.enter("echo la''ter\r")
	must(w.sessions.Resume(ctx, bob, id))
	x.expect("later")
	must(w.sessions.Stop(ctx, bob, id, "enough"))
	<-x.done
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	for _, a := range []ledger.Action{session.Watched, session.Left, session.Joined, session.Paused, session.Resumed, session.Stopped} {
		if len(w.entries(a)) == 0 {
			t.Errorf("no entry %s", a)
		}
	}
	typed := false
	for _, e := range w.events(id) {
		typed = typed || e.Kind == recording.Typed && e.By == bob.ID
	}
	if !typed {
		t.Error("the recording does not say who typed")
	}
}

func sees(t *testing.T, a *session.Attachment, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen strings.Builder
	for !strings.Contains(seen.String(), text) {
		e, err := a.Recv(ctx)
		if err != nil {
			t.Fatalf("saw %q, then %v", seen.String(), err)
		}
		seen.Write(e.Data)
	}
}

// principal adds somebody and returns them as they act.
func (w *world) principal(name string, groups ...string) identity.Principal {
	c := w.person(name, groups...)
	by := must(w.People.AuthenticateKey(context.Background(), c.signer.PublicKey().(*ssh.Certificate).Key))
	return by
}

func TestExpiryAndLockEndASession(t *testing.T) {
	w := newWorldWith(t, recording.Bounds{}, session.Bounds{EndGrace: time.Minute}) // however slow the node is to answer
	ada := w.person("ada", "developer")
	ada.grant(doorway.GrantInForce{ID: "g-00000001", Expires: time.Now().Add(5 * time.Second).UnixMicro()})
	r := ada.run("", "ssh", "web-1+write@gate", "sleep 300")
	if !strings.Contains(r.err, "Time is up") || r.status != 255 {
		t.Fatalf("got %+v", r)
	}
	eventually(t, "the session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	done := make(chan result)
	go func() { done <- ada.run("", "ssh", "web-1@gate", "sleep 300") }()
	w.alive()
	w.sessions.EndByPerson(context.Background(), ada.id, 2, "left the company")
	if r := <-done; r.status != 255 || !strings.Contains(r.err, "you are locked") {
		t.Fatalf("got %+v", r)
	}
}

func TestAFullDiskRefusesNewSessionsAndSaysSo(t *testing.T) {
	w := newWorldWith(t, recording.Bounds{KeepFree: 1 << 62}, session.Bounds{})
	r := w.person("ada", "developer").run("", "ssh", "web-1@gate", "true")
	if r.status != 255 || !strings.Contains(r.err, "disk of the recordings is full") {
		t.Fatalf("got %+v", r)
	}
	if len(w.entries(session.Opened)) != 0 {
		t.Fatal("a session was opened unrecorded")
	}
}

func TestAStockClientWithoutKeyComesInByACode(t *testing.T) {
	w := newWorld(t)
	ada := w.principal("ada", "developer")
	cmd := (&client{w: w, config: "/dev/null"}).command("ssh", "-p", fmt.Sprint(w.addr.Port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "PubkeyAuthentication=no", "-tt", "web-1@127.0.0.1", "echo let''in")
	f := must(pty.Start(cmd))
	defer f.Close()
	var seen strings.Builder
	buf := make([]byte, 4096)
	confirmed := false
	for {
		n, err := f.Read(buf)
		seen.Write(buf[:n])
		if _, after, ok := strings.Cut(seen.String(), "type the code  "); ok && !confirmed && strings.Contains(after, "\n") {
			confirmed = true
			code := strings.TrimSpace(strings.SplitN(after, "\n", 2)[0])
			fatal(t, w.People.ConfirmCode(context.Background(), ada, code))
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()
	if !strings.Contains(seen.String(), "letin") {
		t.Fatalf("saw %s", seen.String())
	}
}
