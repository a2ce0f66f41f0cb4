package warden

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// These are attacks of a link that was taken over: whoever runs as its account
// may speak to the warden's socket, and nothing else of it.

// knock opens a connection to the warden's socket.
func (b *bench) knock() *net.UnixConn {
	b.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(b.dir, "s"), Net: "unix"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// ends waits until the warden has closed a connection.
func (b *bench) ends(c *net.UnixConn, what string) {
	b.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		b.t.Errorf("%s: the connection is still open", what)
	}
}

func frame(claimed uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, claimed), body...)
}

// serves tells whether all is as before: a session that runs goes on, another opens.
func (b *bench) serves(live *stream) {
	b.t.Helper()
	word := "w" + eventID()[2:]
	live.enter(word + "\n")
	live.sees("got " + word)
	b.renew(nil)
	s, _ := b.open(execSpec("echo fine"))
	if e := s.ends(); e.Status != 0 || s.out.String() != "fine\n" {
		b.t.Fatalf("%+v %q", e, s.out.String())
	}
}

// attacked is a warden with a live session.
func attacked(t *testing.T) (*bench, *stream) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec("while read x; do echo got $x; done"))
	b.serves(s)
	return b, s
}

func TestMessagesThatNoLinkSendsAreRefused(t *testing.T) {
	b, live := attacked(t)
	slow := b.knock() // begins a message and never ends it
	if _, err := slow.Write(frame(1000, `{"op":`)); err != nil {
		t.Fatal(err)
	}
	slower := b.knock() // not even its length
	if _, err := slower.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"too large":      frame(maxFrame+1, "{}"),
		"the largest":    frame(1<<32-1, "{}"),
		"empty":          frame(0, ""),
		"no JSON":        frame(3, "{{{"),
		"another shape":  frame(2, "[]"),
		"deeply nested":  frame(200_000, strings.Repeat("[", 200_000)),
		"countless":      frame(900_024, `{"op":"lease","hashes":[`+strings.Repeat(`"",`, 300_000)[:899_999]+`]}`),
		"negative hash":  frame(32, `{"op":"lease","hashes":[-1,-1] }`),
		"not its length": frame(1000, `{"op":"hello"}`),
	} {
		c := b.knock()
		if _, err := c.Write(raw); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		b.ends(c, name)
	}
	for name, m := range map[string]message{
		"an op of its own": {Op: strings.Repeat("\x1b[2J", 100_000)},
		"an empty order":   {Op: opOrder},
		"garbage order":    {Op: opOrder, Data: bytes.Repeat([]byte{0xff}, 700_000)},
		"garbage lease":    {Op: opLease, Nonce: make([]byte, 1<<19), Data: []byte("x")},
		"negative tree":    {Op: opLease, From: -1, Data: []byte("x")},
		"garbage brake":    {Op: opBrake, Data: bytes.Repeat([]byte("{"), 100_000)},
	} {
		r, f, err := b.c.do(t.Context(), m)
		if fault.KindOf(err) != fault.Denied && fault.KindOf(err) != fault.Invalid || f != nil {
			t.Errorf("%s: %+v %v", name, r, err)
		}
		if text := fault.From(err).Text; len(text) > 1000 || strings.ContainsRune(text, 0x1b) {
			t.Errorf("%s: the answer is %.100q", name, text)
		}
	}
	b.serves(live)
	b.ends(slow, "a message that does not end")
	b.ends(slower, "a length that does not end")
}

func TestACapturedOrderStartsOneSessionHoweverOftenItIsHandedIn(t *testing.T) {
	b, live := attacked(t)
	p := b.payload(b.serverNow())
	p.Session.Kind, p.Session.Command = wire.SessionExec, "echo once; cat"
	order := b.sign(b.entry(p, nil))
	raw := wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, int64(len(b.leaves)))}.Marshal()
	var started atomic.Int64
	var wg sync.WaitGroup
	for range 40 { // each on a connection of its own, at once
		wg.Go(func() {
			a, f, err := b.c.Order(t.Context(), raw)
			if err == nil && a.OK && f != nil {
				started.Add(1)
				f.Close()
			}
		})
	}
	wg.Wait()
	if n := started.Load(); n != 1 {
		t.Errorf("one order started %d sessions", n)
	}
	b.last = int64(len(b.leaves))
	b.serves(live)
}

func TestALeaseAnswerCountsOnce(t *testing.T) {
	b, live := attacked(t)
	raw, err := b.c.LeaseAsk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask, err := wire.ParseLeaseAsk(raw)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(b.leaves))
	signed, err := wire.SignLease(wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: testTime + b.serverNow().Microseconds(),
		Checkpoint: b.checkpoint(size), Consistency: wire.HashList(b.consistency(ask.Size, size))}, b.order)
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if b.c.Lease(t.Context(), ask.Nonce, signed, 0, nil) == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("one lease was taken %d times", n)
	}
	b.serves(live)
}

func TestDescriptorsThatAreSentInAreDropped(t *testing.T) {
	b, live := attacked(t)
	held, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := open()
	body, _ := json.Marshal(message{Op: opHello})
	rights := unix.UnixRights(int(held.Fd()), int(held.Fd()), int(held.Fd()), int(held.Fd()))
	for range 50 {
		c := b.knock()
		for _, part := range [][]byte{frame(uint32(len(body)), "")[:1], frame(uint32(len(body)), "")[1:], body[:5], body[5:]} {
			if _, _, err := c.WriteMsgUnix(part, rights, nil); err != nil {
				t.Fatal(err)
			}
		}
		var r reply
		if _, err := receive(c, &r, false, 0); err != nil || r.Status == nil {
			t.Fatal(r, err)
		}
		c.Close()
	}
	b.eventually("no descriptor is kept", func() bool { return open() <= before })
	b.serves(live)
}

func TestAFloodOfAlarmsHidesNothing(t *testing.T) {
	b, live := attacked(t)
	for range 2 * maxEvents {
		if _, _, err := b.c.Order(t.Context(), []byte("none")); err == nil {
			t.Fatal("an order of nothing")
		}
	}
	if err := live.w.Write(wire.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	live.ends()
	for {
		if e := b.event(wire.EventSessionEnded); e.Session == live.id {
			break
		}
	}
	told := 0
	for _, e := range b.seen {
		if e.Kind == wire.EventAlarm {
			told++
		}
		if e.Kind == wire.EventGap {
			t.Errorf("%d events were lost", e.Count)
		}
	}
	if told == 0 || told > 2*alarmRate { // a minute may end while it runs
		t.Errorf("%d alarms", told)
	}
}

func TestConnectionsThatAreHeldAreBounded(t *testing.T) {
	b, live := attacked(t)
	var all []*net.UnixConn
	for range 5 * maxConns {
		all = append(all, b.knock())
	}
	for _, c := range all[maxConns:] {
		b.ends(c, "one too many")
	}
	b.serves(live) // the link's own connections are older
	for _, c := range all {
		c.Close()
	}
	// One that asks and never listens is ended too.
	deaf := b.knock()
	body, _ := json.Marshal(message{Op: opHello})
	_ = deaf.SetWriteDeadline(time.Now().Add(time.Minute))
	for {
		if _, err := deaf.Write(frame(uint32(len(body)), string(body))); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it is served for ever")
			}
			break
		}
	}
	b.eventually("there is room again", func() bool {
		_, err := NewClient(filepath.Join(b.dir, "s")).Status(t.Context())
		return err == nil
	})
	b.serves(live)
}

func TestAWardenOutOfDescriptorsKeepsItsSessions(t *testing.T) {
	b := newBench(t)
	cmd := b.apart()
	live, _ := b.open(execSpec("while read x; do echo got $x; done"))
	b.serves(live)
	pid := cmd.Process.Pid
	var usual unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &usual); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: usual.Max}, nil); err != nil {
		t.Fatal(err)
	}
	waits := b.knock()
	body, _ := json.Marshal(message{Op: opHello})
	if _, err := waits.Write(frame(uint32(len(body)), string(body))); err != nil {
		t.Fatal(err)
	}
	live.enter("still\n")
	live.sees("got still")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &usual, nil); err != nil {
		t.Fatal(err)
	}
	var r reply
	_ = waits.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := receive(waits, &r, false, 0); err != nil || r.Status == nil {
		t.Errorf("who came meanwhile is not served: %+v %v", r, err)
	}
	b.serves(live)
}
