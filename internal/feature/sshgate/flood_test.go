package sshgate_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// clean waits until nothing is left of what connections and sessions held:
// no session, no open recording, no goroutine.
func (w *world) clean(goroutines int) {
	w.t.Helper()
	eventually(w.t, "all sessions are closed", func() bool {
		return w.sessions.CountLive() == 0 && len(w.entries(session.Closed)) == len(w.entries(session.Opened)) &&
			len(w.entries(recording.ActionClosed)) == len(w.entries(recording.ActionStarted))
	})
	end := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > goroutines {
		select {
		case <-tick.C:
		case <-end:
			stacks := make([]byte, 1<<20)
			w.t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), goroutines, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// goroutines is how many there are once somebody has come and gone, so that
// what is made once is made.
func (w *world) goroutines(c *client) int {
	w.t.Helper()
	conn := c.dial("web-1")
	fatal(w.t, must(conn.NewSession()).Run("true"))
	conn.Close()
	eventually(w.t, "the first session is closed", func() bool { return len(w.entries(session.Closed)) == 1 })
	n := runtime.NumGoroutine()
	for range 50 { // the last ones are on their way out
		runtime.Gosched()
		n = min(n, runtime.NumGoroutine())
	}
	return n
}

func TestAFloodToAClientThatDoesNotReadIsBounded(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	before := w.goroutines(ada)
	heap := used()
	conn := ada.dial("web-1")
	s := must(conn.NewSession())
	fatal(t, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	out := must(s.StdoutPipe())
	fatal(t, s.Start("yes 0123456789abcdef0123456789abcdef"))
	must(out.Read(make([]byte, 1))) // and never again
	w.still()
	if grown := used() - heap; grown > 64<<20 {
		t.Errorf("a client that does not read costs %d MiB", grown>>20)
	}
	// Its other session, and everybody else's, go on.
	for _, c := range []*ssh.Client{conn, w.person("bob", "developer").dial("web-1")} {
		if got, err := must(c.NewSession()).Output("echo on"); err != nil || string(got) != "on\n" {
			t.Errorf("another session gave %q, %v", got, err)
		}
		if c != conn {
			c.Close()
		}
	}
	conn.Close()
	w.clean(before)
	for _, e := range w.entries(session.Closed) {
		if e.Parsed.Outcome != ledger.OK {
			t.Errorf("a session was closed as %s", e.Parsed.Outcome)
		}
	}
}

// still waits until the one session that floods has filled everything between
// its program and its client.
func (w *world) still() {
	w.t.Helper()
	last, still := int64(-1), 0
	eventually(w.t, "the flood stands still", func() bool {
		size := w.alive().RecordingBytes
		if still++; size != last {
			last, still = size, 0
		}
		return still == 50
	})
}

func TestALockEndsAFloodThatNobodyReads(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	before := w.goroutines(ada)
	conn := ada.dial("web-1")
	s := must(conn.NewSession())
	fatal(t, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	out := must(s.StdoutPipe())
	fatal(t, s.Start("yes 0123456789abcdef0123456789abcdef"))
	must(out.Read(make([]byte, 1))) // and never again
	w.still()
	w.sessions.EndByPerson(t.Context(), ada.id, 2, "left the company")
	eventually(t, "the session is over although its client holds on", func() bool { return w.sessions.CountLive() == 0 })
	conn.Close()
	w.clean(before)
}

func TestOfAThousandChannelsTenAreOpen(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	before := w.goroutines(ada)
	conn := ada.dial("web-1")
	var mu sync.Mutex
	var open []ssh.Channel
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			ch, requests, err := conn.OpenChannel("session", nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				go ssh.DiscardRequests(requests)
				open = append(open, ch)
				return
			}
			var refused *ssh.OpenChannelError
			if !errors.As(err, &refused) || refused.Reason != ssh.ResourceShortage || !strings.Contains(refused.Message, "too many sessions") {
				t.Errorf("refused with %v", err)
			}
		})
	}
	wg.Wait()
	if len(open) != 10 {
		t.Errorf("%d channels are open", len(open))
	}
	var full *ssh.OpenChannelError // a forwarded port counts as one, too
	if _, _, err := conn.OpenChannel("direct-tcpip", nil); !errors.As(err, &full) || full.Reason != ssh.ResourceShortage {
		t.Errorf("direct-tcpip: %v", err)
	}
	for _, kind := range []string{"forwarded-tcpip", "x11", "auth-agent@openssh.com", strings.Repeat("x", 100_000)} {
		var refused *ssh.OpenChannelError
		if _, _, err := conn.OpenChannel(kind, nil); !errors.As(err, &refused) || refused.Reason != ssh.Prohibited {
			t.Errorf("%.20s: %v", kind, err)
		}
	}
	for _, ch := range open {
		ch.Close()
	}
	eventually(t, "there is room again", func() bool {
		s, err := conn.NewSession()
		if err != nil {
			return false
		}
		fatal(t, s.Run("true"))
		return true
	})
	conn.Close()
	w.clean(before)
}

func TestOversizedRequestsAreRefusedAndCostNothing(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "developer")
	before := w.goroutines(ada)
	conn := ada.dial("web-1")
	huge := strings.Repeat("x", 200<<10)
	text := func(s string) []byte { return ssh.Marshal(struct{ Text string }{s}) }
	ask := func(ch ssh.Channel, kind string, payload []byte) bool {
		t.Helper()
		ok, err := ch.SendRequest(kind, true, payload)
		fatal(t, err)
		return ok
	}
	heap := used()
	var all []ssh.Channel
	for range 10 {
		ch, requests, err := conn.OpenChannel("session", nil)
		fatal(t, err)
		go ssh.DiscardRequests(requests)
		all = append(all, ch)
		for i := range 100 {
			if ask(ch, "env", ssh.Marshal(struct{ Name, Value string }{fmt.Sprintf("LC_%d", i), huge})) {
				t.Fatal("a huge value was taken")
			}
			if i < 4 && ask(ch, "env", ssh.Marshal(struct{ Name, Value string }{"LC_" + huge, "x"})) {
				t.Fatal("a huge name was taken")
			}
		}
		if ask(ch, "subsystem", text(huge)) || ask(ch, "subsystem", text("sftp\x00x")) || ask(ch, "env", []byte{0xff, 0xff, 0xff, 0xff}) {
			t.Fatal("a malformed request was taken")
		}
	}
	if grown := used() - heap; grown > 8<<20 {
		t.Errorf("ten channels that never started hold %d MiB", grown>>20)
	}
	for _, ch := range all {
		ch.Close()
	}
	eventually(t, "there is room again", func() bool {
		s, err := conn.NewSession()
		if err != nil {
			return false
		}
		errs := must(s.StderrPipe())
		fatal(t, s.Start("echo "+huge))
		said := string(must(io.ReadAll(errs)))
		if err := s.Wait(); err == nil || !strings.Contains(said, "cannot run a command of") {
			t.Errorf("a huge command: %v, %s", err, said)
		}
		return true
	})
	// A packet beyond what the protocol allows ends that connection, and no other.
	other := ada.dial("web-1")
	if _, _, err := conn.SendRequest("keepalive@openssh.com", true, make([]byte, 1<<20)); err == nil {
		t.Error("a packet of 1 MiB was taken")
	}
	fatal(t, must(other.NewSession()).Run("true"))
	other.Close()
	w.clean(before)
}
