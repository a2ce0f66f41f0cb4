package agentless_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// evil is a host that lies. raw serves a bare connection; without it SSH is
// spoken, and each session channel is given to serve.
type evil struct {
	t        *testing.T
	key      ssh.Signer
	address  string
	raw      func(net.Conn)
	after    func(*ssh.ServerConn)
	serve    func(ssh.Channel, *ssh.Request)
	attempts atomic.Int64 // logins, by any key

	mu   sync.Mutex
	cert *ssh.Certificate
}

func newEvil(t *testing.T) *evil {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	fatal(t, err)
	e := &evil{t: t, key: must(ssh.NewSignerFromKey(private))}
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { l.Close() })
	e.address = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.handle(c)
		}
	}()
	return e
}

func (e *evil) handle(c net.Conn) {
	defer c.Close()
	if e.raw != nil {
		e.raw(c)
		return
	}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		e.attempts.Add(1)
		e.mu.Lock()
		e.cert, _ = key.(*ssh.Certificate)
		e.mu.Unlock()
		return &ssh.Permissions{}, nil
	}}
	conf.AddHostKey(e.key)
	sc, channels, requests, err := ssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	if e.after != nil {
		go e.after(sc)
	}
	for n := range channels {
		ch, asked, err := n.Accept()
		if err != nil {
			return
		}
		go func() {
			for q := range asked {
				if q.Type == "exec" && bytes.Contains(q.Payload, []byte("handrail-sweep")) {
					_ = q.Reply(true, nil)
					_, _ = io.WriteString(ch, "noise of an rc file\nhandrail-sweep 0 0\n")
					ch.Close()
					continue
				}
				if q.Type == "exec" || q.Type == "shell" {
					go e.serve(ch, q)
					continue
				}
				if q.WantReply {
					_ = q.Reply(true, nil)
				}
			}
		}()
	}
}

func (e *evil) host(w *world) target.Host {
	return w.add(target.Host{Name: "db-7", Environment: "dev", SSHAddress: e.address, SSHUser: "reader",
		SSHKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(e.key.PublicKey())))})
}

func exitWith(ch ssh.Channel, status uint32) {
	_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, status))
	ch.Close()
}

func TestTheCertificateSaysWhatItIsForAndNoMore(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	e := newEvil(t)
	e.serve = func(ch ssh.Channel, q *ssh.Request) { _ = q.Reply(true, nil); exitWith(ch, 0) }
	h := e.host(w)
	ada := w.person("ada")
	l, _ := ada.open(session.OpenRequest{Host: "db-7", Command: "true"})
	<-l.Done()
	c := e.cert
	if c == nil {
		t.Fatal("no certificate came")
	}
	left := time.Until(time.Unix(int64(c.ValidBefore), 0))
	if long := time.Duration(c.ValidBefore-c.ValidAfter) * time.Second; long > 5*time.Minute || left > 5*time.Minute || left < time.Minute {
		t.Errorf("it lives for %s, %s are left", long, left)
	}
	if c.Key.Type() != ssh.KeyAlgoED25519 || c.Serial == 0 || c.KeyId != "handrail:"+l.ID()+":"+ada.by.ID || strings.Contains(c.KeyId, "ada") {
		t.Errorf("key %s, serial %d, id %q", c.Key.Type(), c.Serial, c.KeyId)
	}
	if got := strings.Join(c.ValidPrincipals, " "); got != "reader handrail-"+h.ID+"-read" {
		t.Errorf("principals: %s", got)
	}
	if len(c.Extensions) != 0 || c.CriticalOptions["source-address"] != "127.0.0.1" || !strings.Contains(c.CriticalOptions["force-command"], l.ID()) {
		t.Errorf("extensions %v, options %v", c.Extensions, c.CriticalOptions)
	}
	l, _ = ada.open(session.OpenRequest{Host: "db-7", PTY: true, Term: "xterm"})
	<-l.Done()
	if _, ok := e.cert.Extensions["permit-pty"]; !ok || len(e.cert.Extensions) != 1 {
		t.Errorf("a terminal's extensions: %v", e.cert.Extensions)
	}
}

func TestAHostThatProvesNothingGetsNothing(t *testing.T) {
	for name, raw := range map[string]func(net.Conn){
		"never answers":   func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"closes at once":  func(net.Conn) {},
		"endless version": func(c net.Conn) { _, _ = io.Copy(c, endless('S')) },
		"endless lines":   func(c net.Conn) { _, _ = io.Copy(c, endless('\n')) },
		"giant packet": func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-evil\r\n\xff\xff\xff\xff\x04\x14")
			_, _ = io.Copy(io.Discard, c)
		},
		"garbage": func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-evil\r\n")
			_, _ = io.CopyN(c, rand.Reader, 1<<20)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, agentless.Bounds{LoginTime: 300 * time.Millisecond}, session.Bounds{})
			e := newEvil(t)
			e.raw = raw
			e.host(w)
			_, err := w.sessions.Open(context.Background(), w.person("ada").by, session.OpenRequest{Host: "db-7", Command: "id"})
			if k := fault.KindOf(err); k != fault.Unavailable && k != fault.Denied {
				t.Errorf("%v", err)
			}
			if got := w.entries(session.Closed)[0].Parsed.Outcome; got != ledger.Failed {
				t.Errorf("nothing ran there, yet the outcome is %s", got)
			}
		})
	}
}

type endless byte

func (b endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestAHostWithAnotherKeyIsToldNothingOfUs(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	e := newEvil(t)
	h := e.host(w)
	other := newEvil(t)
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		h.SSHAddress = other.address
		entry, err := w.Hosts.SetTx(tx, h)
		return []ledger.Entry{entry}, err
	})
	_, err := w.sessions.Open(context.Background(), w.person("ada").by, session.OpenRequest{Host: "db-7", Command: "id"})
	if fault.KindOf(err) != fault.Denied || other.attempts.Load() != 0 || len(w.entries(agentless.HostMismatched)) != 1 {
		t.Errorf("%v, %d logins were tried", err, other.attempts.Load())
	}
}

func TestWhatAHostOpensBackIsRefusedAndBounded(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	e := newEvil(t)
	refused, cut := make(chan int, 1), make(chan struct{})
	var came atomic.Int64
	e.after = func(sc *ssh.ServerConn) {
		if came.Add(1) > 1 {
			return // whoever looks afterwards what was left
		}
		n := 0
		for _, kind := range []string{"forwarded-tcpip", "auth-agent@openssh.com", "x11", "session", "direct-tcpip"} {
			if _, _, err := sc.OpenChannel(kind, nil); err != nil {
				n++
			}
		}
		refused <- n
		for {
			if _, _, err := sc.SendRequest("tcpip-forward", true, nil); err != nil {
				close(cut)
				return
			}
		}
	}
	e.serve = func(_ ssh.Channel, q *ssh.Request) { _ = q.Reply(true, nil) }
	e.host(w)
	l, _ := w.person("ada").open(session.OpenRequest{Host: "db-7", Command: "sleep"})
	if n := <-refused; n != 5 {
		t.Errorf("%d of 5 channels were refused", n)
	}
	<-cut
	<-l.Done()
	if _, why, _ := l.Result(); why != session.WhyLost {
		t.Errorf("it ended by %s", why)
	}
}

func TestAHostThatFloodsHoldsNobodyUp(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	e := newEvil(t)
	gone := make(chan struct{})
	e.serve = func(ch ssh.Channel, q *ssh.Request) {
		_ = q.Reply(true, nil)
		go func() { _, _ = io.Copy(ch.Stderr(), endless('e')) }()
		_, _ = io.Copy(ch, endless('o'))
		close(gone)
	}
	e.host(w)
	ada, ben := w.person("ada"), w.person("ben", "operator")
	l, err := w.sessions.Open(context.Background(), ada.by, session.OpenRequest{Host: "db-7", Command: "yes"})
	fatal(t, err)
	slow := &slowOwner{stop: make(chan struct{})}
	fatal(t, l.Own(slow))
	<-slow.first()
	must(w.sessions.Stop(context.Background(), ben.by, l.ID(), "enough"))
	<-l.Done()
	<-gone
}

// slowOwner takes one event and then nothing more.
type slowOwner struct {
	stop chan struct{}
	once sync.Once
	mu   sync.Mutex
	got  chan struct{}
}

func (o *slowOwner) first() chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.got == nil {
		o.got = make(chan struct{})
	}
	return o.got
}

func (o *slowOwner) Deliver(session.Event) error {
	got := o.first()
	o.mu.Lock()
	select {
	case <-got:
	default:
		close(got)
	}
	o.mu.Unlock()
	<-o.stop
	return io.ErrClosedPipe
}

func (o *slowOwner) Abort() { o.once.Do(func() { close(o.stop) }) }

func TestWhatAHostSaysOfTheEndIsOnlyItsWord(t *testing.T) {
	for name, c := range map[string]struct {
		serve   func(ssh.Channel)
		status  int32
		why     string
		outcome ledger.Outcome
	}{
		"two statuses": {func(ch ssh.Channel) {
			_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, 3))
			exitWith(ch, 0)
		}, 3, session.WhyExit, ledger.OK},
		"a giant status":     {func(ch ssh.Channel) { exitWith(ch, 1<<31) }, 255, session.WhyExit, ledger.OK},
		"no status":          {func(ch ssh.Channel) { ch.Close() }, 255, session.WhyLost, ledger.Lost},
		"a malformed status": {func(ch ssh.Channel) { _, _ = ch.SendRequest("exit-status", false, []byte{1}); ch.Close() }, 255, session.WhyLost, ledger.Lost},
		"a signal that is no name": {func(ch ssh.Channel) {
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Signal     string
				Core       bool
				Text, Lang string
			}{"\x1b[2J" + strings.Repeat("K", 9000), false, "", ""}))
			ch.Close()
		}, 255, session.WhyExit, ledger.OK},
		"output after the status": {func(ch ssh.Channel) {
			_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, 0))
			_, _ = io.WriteString(ch, "late")
			ch.Close()
		}, 0, session.WhyExit, ledger.OK},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, agentless.Bounds{}, session.Bounds{})
			e := newEvil(t)
			e.serve = func(ch ssh.Channel, q *ssh.Request) { _ = q.Reply(true, nil); c.serve(ch) }
			e.host(w)
			l, o := w.person("ada").open(session.OpenRequest{Host: "db-7", Command: "x"})
			<-l.Done()
			exit, why, _ := l.Result()
			if exit.Status != c.status || why != c.why || len(exit.Signal) > 40 || strings.Contains(exit.Signal, "\x1b") {
				t.Errorf("status %d, why %s, signal %q", exit.Status, why, exit.Signal)
			}
			if got := w.entries(session.Closed)[0].Parsed.Outcome; got != c.outcome {
				t.Errorf("the outcome is %s", got)
			}
			if name == "output after the status" && !strings.Contains(o.text(), "late") {
				t.Error("the late output was lost")
			}
		})
	}
}

func TestAHostThatFallsSilentIsGone(t *testing.T) {
	w := newWorld(t, agentless.Bounds{Silence: 50 * time.Millisecond, KeepAlive: 20 * time.Millisecond, DialTime: 100 * time.Millisecond}, session.Bounds{})
	e := newEvil(t)
	relay := must(net.Listen("tcp", "127.0.0.1:0"))
	defer relay.Close()
	deaf := make(chan struct{})
	go func() { // from the host's side nothing more comes once it is deaf
		c, err := relay.Accept()
		if err != nil {
			return
		}
		relay.Close()
		up := must(net.Dial("tcp", e.address))
		go func() { _, _ = io.Copy(up, c) }()
		buf := make([]byte, 32<<10)
		for {
			n, err := up.Read(buf)
			select {
			case <-deaf:
				return
			default:
			}
			if err != nil {
				return
			}
			_, _ = c.Write(buf[:n])
		}
	}()
	e.serve = func(_ ssh.Channel, q *ssh.Request) { _ = q.Reply(true, nil) }
	h := e.host(w)
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		h.SSHAddress = relay.Addr().String()
		entry, err := w.Hosts.SetTx(tx, h)
		return []ledger.Entry{entry}, err
	})
	l, _ := w.person("ada").open(session.OpenRequest{Host: "db-7", Command: "x"})
	close(deaf)
	<-l.Done()
	if _, why, _ := l.Result(); why != session.WhyLost {
		t.Errorf("it ended by %s", why)
	}
	eventually(t, "that nobody could look is an entry", func() bool {
		found := w.entries(agentless.SessionSwept)
		return len(found) == 1 && found[0].Parsed.Outcome == ledger.Unknown
	})
}

func FuzzWhatASweepAnswers(f *testing.F) {
	f.Add([]byte("handrail-sweep 1 0\n"))
	f.Add([]byte("x\nhandrail-sweep 1 0\r\nhandrail-sweep 9999999 1\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		hit, left, err := agentless.ParseSwept(said)
		if err == nil && (hit < 0 || left < 0 || hit > 999999 || left > 999999) {
			t.Errorf("%q gave %d and %d", said, hit, left)
		}
	})
}
