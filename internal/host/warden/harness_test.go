package warden

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// wardenEnv makes this test binary a warden of its own, so that it can be killed.
const wardenEnv = "HANDRAIL_TEST_WARDEN"

// lostEnv is how long that warden goes without a lease before vouchers count.
const lostEnv = "HANDRAIL_TEST_LOST"

func TestMain(m *testing.M) {
	keeper.Main()
	if dir := os.Getenv(wardenEnv); dir != "" {
		c := testConfig(dir)
		c.Confine = true
		c.Lost, _ = time.ParseDuration(os.Getenv(lostEnv))
		c.Upgrades, c.Resume = upgradesOf(os.Args)
		if err := Run(context.Background(), c); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func testConfig(dir string) Config {
	return Config{Dir: dir, Socket: filepath.Join(dir, "s"), LinkUID: os.Getuid(), LinkGID: os.Getgid(), Version: "test"}
}

// bench is a server in memory and a real warden with real sessions.
type bench struct {
	*liar
	t    *testing.T
	dir  string
	c    *Client
	mu   sync.Mutex // of the liar's tree
	zero time.Duration
	last int64 // the tree that the warden knows
	now  func() time.Duration
	seen []wire.Event
	stop func() // ends the warden of start
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "hrw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{liar: newLiar(t), t: t, dir: dir, zero: bootTime(), now: bootTime}
	b.entry(b.payload(0), nil)
	if err := SetPin(dir, Pin{Node: testNode, RootHash: ledger.RootHash(b.rootV), Bundle: b.signedBundle()}); err != nil {
		t.Fatal(err)
	}
	b.c = NewClient(filepath.Join(dir, "s"))
	t.Cleanup(b.c.Close)
	return b
}

// start runs a warden in this process.
func (b *bench) start(change func(*Config)) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	c := testConfig(b.dir)
	if change != nil {
		change(&c)
	}
	if c.Boot != nil {
		b.now, b.zero = c.Boot, c.Boot()
	}
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
	b.up()
}

// up waits for the socket and takes the first lease.
func (b *bench) up() {
	b.t.Helper()
	b.eventually("the warden answers", func() bool {
		_, err := b.c.Status(b.t.Context())
		return err == nil
	})
	b.renew(nil)
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	end := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(end) {
			b.t.Fatalf("after a minute it is still not so that %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (b *bench) serverNow() time.Duration { return b.now() - b.zero }

func (b *bench) renew(change func(*wire.LeaseAnswer)) {
	b.t.Helper()
	// Taken before the ask, so that on a slow machine no order looks older than
	// it is.
	at := b.serverNow()
	raw, err := b.c.LeaseAsk(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	ask, err := wire.ParseLeaseAsk(raw)
	if err != nil {
		b.t.Fatal(err)
	}
	size := int64(len(b.leaves))
	a := wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: testTime + at.Microseconds(),
		Checkpoint: b.checkpoint(size), Consistency: wire.HashList(b.consistency(ask.Size, size))}
	if change != nil {
		change(&a)
	}
	signed, err := wire.SignLease(a, b.order)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.c.Lease(b.t.Context(), ask.Nonce, signed, 0, nil); err != nil {
		b.t.Fatal(err)
	}
	b.last = size
}

// open sends an order for a session and returns its stream.
func (b *bench) open(change func(*wire.SessionSpec)) (*stream, wire.SessionAnswer) {
	b.t.Helper()
	s, a, err := b.tryOpen(change)
	if err != nil {
		b.t.Fatal(err)
	}
	return s, a
}

func (b *bench) tryOpen(change func(*wire.SessionSpec)) (*stream, wire.SessionAnswer, error) {
	b.t.Helper()
	p := b.payload(b.serverNow())
	if change != nil {
		change(p.Session)
	}
	order := b.sign(b.entry(p, nil))
	size := int64(len(b.leaves))
	env := wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, size)}
	a, f, err := b.c.Order(b.t.Context(), env.Marshal())
	if err != nil {
		return nil, a, err
	}
	b.last = size
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, a, err
	}
	s := &stream{t: b.t, id: p.Session.ID, conn: conn.(*net.UnixConn), w: wire.NewWriter(conn), got: make(chan struct{}, 1), done: make(chan struct{})}
	b.t.Cleanup(func() { s.conn.Close(); <-s.done })
	go s.read()
	return s, a, nil
}

// resume sends the order that lets a paused session go on.
func (b *bench) resume(session string) {
	b.t.Helper()
	p := b.payload(b.serverNow())
	p.Kind, p.Session = wire.KindSessionResume, &wire.SessionSpec{ID: session}
	order := b.sign(b.entry(p, nil))
	size := int64(len(b.leaves))
	a, f, err := b.c.Order(b.t.Context(), wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, size)}.Marshal())
	if err != nil || !a.OK || f != nil {
		b.t.Fatal(a, f, err)
	}
	b.last = size
}

func (b *bench) brake(k wire.Brake) wire.BrakeAnswer {
	b.t.Helper()
	k.V, k.ID, k.Node, k.Issued = 1, "b-"+eventID()[2:], testNode, testTime
	signed, err := wire.SignBrake(k, b.order)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := b.c.Brake(b.t.Context(), signed)
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// event waits for the next event of a kind.
func (b *bench) event(kind string) wire.Event {
	b.t.Helper()
	ack := ""
	ctx := timeout(b.t, time.Minute)
	for range 50 {
		e, ok, err := b.c.NextEvent(ctx, ack)
		if err != nil {
			b.t.Fatalf("waiting for event %q: %v", kind, err)
		}
		if !ok {
			continue
		}
		b.seen = append(b.seen, e)
		if ack = e.ID; e.Kind == kind {
			_, _, _ = b.c.NextEvent(timeout(b.t, time.Millisecond), ack)
			return e
		}
	}
	b.t.Fatalf("no event %q", kind)
	return wire.Event{}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// stream is the server's end of a session.
type stream struct {
	t    *testing.T
	id   string
	conn *net.UnixConn
	w    *wire.Writer

	mu       sync.Mutex
	out, err bytes.Buffer
	types    []wire.FrameType
	refusal  string
	notices  string
	exit     *wire.Exit
	got      chan struct{}
	done     chan struct{}
}

func (s *stream) read() {
	defer close(s.done)
	r := wire.NewReader(s.conn)
	for {
		ft, p, err := r.Next()
		if err != nil {
			return
		}
		s.mu.Lock()
		switch ft {
		case wire.FrameStdout:
			s.out.Write(p)
		case wire.FrameStderr:
			s.err.Write(p)
		case wire.FrameNotice:
			s.notices += string(p) + "\n"
		case wire.FrameRefusal:
			s.refusal = string(p)
		case wire.FrameExit:
			e, err := wire.DecodeExit(p)
			if err == nil {
				s.exit = &e
			}
		}
		s.types = append(s.types, ft)
		s.mu.Unlock()
		select {
		case s.got <- struct{}{}:
		default:
		}
	}
}

// until waits for a condition on what has arrived.
func (s *stream) until(what string, ok func() bool) {
	s.t.Helper()
	end := time.After(time.Minute)
	for {
		s.mu.Lock()
		now := ok()
		text := s.out.String() + s.err.String()
		s.mu.Unlock()
		if now {
			return
		}
		select {
		case <-s.got:
		case <-s.done:
			s.mu.Lock()
			now = ok()
			s.mu.Unlock()
			if !now {
				s.t.Fatalf("the stream ended before %s; it said:\n%s", what, text)
			}
			return
		case <-end:
			s.t.Fatalf("after a minute not yet %s; it said:\n%s", what, text)
		}
	}
}

func (s *stream) sees(text string) {
	s.t.Helper()
	s.until("it says "+strconv.Quote(text), func() bool { return strings.Contains(s.out.String()+s.err.String(), text) })
}

// said is all that has arrived so far.
func (s *stream) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String() + s.err.String()
}

func (s *stream) has(ft wire.FrameType) bool {
	for _, t := range s.types {
		if t == ft {
			return true
		}
	}
	return false
}

func (s *stream) enter(text string) {
	s.t.Helper()
	if err := s.w.Write(wire.FrameStdin, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) ends() wire.Exit {
	s.t.Helper()
	s.until("it has ended", func() bool { return s.exit != nil })
	return *s.exit
}

func execSpec(command string) func(*wire.SessionSpec) {
	return func(s *wire.SessionSpec) { s.Kind, s.Command = wire.SessionExec, command }
}

func shellSpec(s *wire.SessionSpec) {
	s.PTY, s.Term, s.Cols, s.Rows = true, "xterm-256color", 100, 30
}

// sftpPipe is an sftp client's connection over session frames.
type sftpPipe struct{ s *stream }

func (p sftpPipe) Write(b []byte) (int, error) { return len(b), p.s.w.Write(wire.FrameStdin, b) }
func (p sftpPipe) Close() error                { return p.s.w.Write(wire.FrameEOF, nil) }

// Read takes what the session has printed so far.
func (p sftpPipe) Read(b []byte) (int, error) {
	for {
		p.s.mu.Lock()
		n, _ := p.s.out.Read(b)
		p.s.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-p.s.got:
		case <-p.s.done:
			return 0, io.EOF
		}
	}
}
