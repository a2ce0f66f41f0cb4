package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

const host = "h-00000001"

// fake is a server with real keys, a real bus and a tree in memory.
type fake struct {
	t     *testing.T
	ring  *keyring.Ring
	l     net.Listener
	bus   *server.Server
	nc    *nats.Conn
	joins int

	mu     sync.Mutex
	hashes []tlog.Hash
	leaves [][]byte
	conns  map[string]*mux.Session
	hello  wire.Hello
	facts  map[string]string
	events []wire.Event
	asked  int  // proofs asked for
	cut    bool // whoever comes is sent away
	sent   int  // away, so far

	life    time.Duration // of the certificate that a join brings; 0 is the usual
	renew   func(wire.RenewAsk) wire.RenewAnswer
	serials []string // of the certificates of each connection
	logged  []string // by the link
	change  sync.Cond
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "handrail.test/ledger"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, ring: ring, conns: map[string]*mux.Session{}, facts: map[string]string{}}
	f.change.L = &f.mu
	f.grow([]byte("first"))
	f.bus, err = server.NewServer(&server.Options{DontListen: true, NoLog: true, NoSigs: true, Username: host, Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	f.bus.Start()
	t.Cleanup(f.bus.Shutdown)
	if f.nc, err = nats.Connect("", nats.InProcessServer(f.bus), nats.UserInfo(host, "p")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.nc.Close)
	f.answer()
	f.listen()
	return f
}

func (f *fake) listen() {
	f.t.Helper()
	cert, err := f.ring.ServerCertificate([]string{"localhost"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.l, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: f.ring.CAPool(),
		ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{wire.ALPN, "http/1.1"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		f.t.Fatal(err)
	}
	l := f.l
	f.t.Cleanup(func() { l.Close() })
	web := &queue{conns: make(chan net.Conn), l: l}
	go http.Serve(web, f.api()) //nolint:errcheck // ends with the listener
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(web.conns)
				return
			}
			if f.sendAway() {
				c.Close()
				continue
			}
			go func() {
				tc := c.(*tls.Conn)
				if tc.Handshake() != nil {
					return
				}
				if tc.ConnectionState().NegotiatedProtocol == wire.ALPN {
					f.node(tc)
					return
				}
				web.conns <- tc
			}()
		}
	}()
}

// journal hears what the link logs.
type journal struct{ f *fake }

func (journal) Enabled(context.Context, slog.Level) bool { return true }
func (j journal) WithAttrs([]slog.Attr) slog.Handler     { return j }
func (j journal) WithGroup(string) slog.Handler          { return j }
func (j journal) Handle(_ context.Context, r slog.Record) error {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	j.f.logged = append(j.f.logged, r.Message)
	j.f.change.Broadcast()
	return nil
}

// interrupt cuts both connections and keeps the node out for a while.
func (f *fake) interrupt() {
	f.t.Helper()
	f.mu.Lock()
	f.cut = true
	for use, y := range f.conns {
		y.Close()
		delete(f.conns, use)
	}
	f.mu.Unlock()
	f.until("the node tries again", func() bool { return f.sent > 1 })
	f.mu.Lock()
	f.cut = false
	f.mu.Unlock()
}

// sendAway says whether the network is cut, and counts who came.
func (f *fake) sendAway() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut {
		f.sent++
		f.change.Broadcast()
	}
	return f.cut
}

type queue struct {
	conns chan net.Conn
	l     net.Listener
}

func (q *queue) Accept() (net.Conn, error) {
	c, ok := <-q.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (q *queue) Close() error   { return nil }
func (q *queue) Addr() net.Addr { return q.l.Addr() }

func (f *fake) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /handrail.v1.Logins/Trust", func(w http.ResponseWriter, _ *http.Request) {
		_, signed := f.ring.Bundle()
		_ = json.NewEncoder(w).Encode(map[string]any{"bundle": signed})
	})
	mux.HandleFunc("POST /handrail.v1.Hosts/Join", func(w http.ResponseWriter, r *http.Request) {
		f.joins++
		var in struct {
			Token, Hostname string
			CSR             []byte
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		if !strings.HasSuffix(in.Token, "a-good-secret-word") {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"code":"not_found","message":"cannot join: the token was used already"}`))
			return
		}
		life := f.life
		if life == 0 {
			life = 90 * 24 * time.Hour
		}
		der, err := f.ring.IssueNodeFor(in.CSR, host, life)
		if err != nil {
			f.t.Error(err)
		}
		_, signed := f.ring.Bundle()
		_ = json.NewEncoder(w).Encode(map[string]any{"host": host, "name": in.Hostname, "certificate": der, "bundle": signed})
	})
	return mux
}

func (f *fake) node(c *tls.Conn) {
	who, err := keyring.NodeOf(c.ConnectionState().PeerCertificates[0])
	var h wire.Hello
	if err != nil || who != host || wire.ReadLine(c, &h) != nil {
		c.Close()
		return
	}
	_ = wire.WriteLine(c, wire.HelloAnswer{V: 1, NATSUser: host, NATSPass: "p"})
	m := mux.Server(c)
	f.mu.Lock()
	f.conns[h.Use], f.hello = m, h
	f.serials = append(f.serials, c.ConnectionState().PeerCertificates[0].SerialNumber.String())
	f.change.Broadcast()
	f.mu.Unlock()
	for {
		s, err := m.Accept()
		if err != nil {
			return
		}
		go func() {
			if kind, err := wire.ReadStreamKind(s); err != nil || kind != wire.StreamNATS {
				s.Close()
				return
			}
			in, err := f.bus.InProcessConn()
			if err != nil {
				return
			}
			go func() { pour(in, s); in.Close() }()
			pour(s, in)
			s.Close()
		}()
	}
}

// answer is the server's side of the bus.
func (f *fake) answer() {
	sub := func(name string, do func(*nats.Msg)) {
		if _, err := f.nc.Subscribe(wire.UpWildcard(name), do); err != nil {
			f.t.Fatal(err)
		}
	}
	sub(wire.UpLease, func(m *nats.Msg) {
		f.mu.Lock()
		defer f.mu.Unlock()
		ask, err := wire.ParseLeaseAsk(m.Data)
		if err != nil {
			return
		}
		size := int64(len(f.leaves))
		a := wire.LeaseAnswer{V: 1, Node: host, Nonce: ask.Nonce, ServerTime: time.Now().UnixMicro(), Checkpoint: f.checkpoint(size)}
		if ask.Size > 0 && ask.Size < size {
			p, _ := tlog.ProveTree(size, ask.Size, f)
			a.Consistency = wire.HashList(p)
		}
		b, _ := wire.SignLease(a, f.ring.Order())
		_ = m.Respond(b)
	})
	sub(wire.UpConsistency, func(m *nats.Msg) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked++
		var ask wire.ConsistencyAsk
		_ = json.Unmarshal(m.Data, &ask)
		p, err := tlog.ProveTree(ask.New, ask.Old, f)
		a := wire.ConsistencyAnswer{V: 1, Hashes: wire.HashList(p)}
		if err != nil {
			a.Error = err.Error()
		}
		out, _ := json.Marshal(a)
		_ = m.Respond(out)
	})
	sub(wire.UpRenew, func(m *nats.Msg) {
		var ask wire.RenewAsk
		_ = json.Unmarshal(m.Data, &ask)
		a := wire.RenewAnswer{V: 1, Error: "cannot renew: not now"}
		if f.renew != nil {
			a = f.renew(ask)
		}
		out, _ := json.Marshal(a)
		_ = m.Respond(out)
	})
	sub(wire.UpFacts, func(m *nats.Msg) {
		var in wire.Facts
		_ = json.Unmarshal(m.Data, &in)
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, fact := range in.Facts {
			f.facts[fact.Name] = fact.Value
		}
		f.change.Broadcast()
	})
	sub(wire.UpEvent, func(m *nats.Msg) {
		var e wire.Event
		_ = json.Unmarshal(m.Data, &e)
		f.mu.Lock()
		f.events = append(f.events, e)
		f.change.Broadcast()
		f.mu.Unlock()
		_ = m.Respond([]byte("ok"))
	})
}

// ReadHashes implements tlog.HashReader. The caller holds mu.
func (f *fake) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = f.hashes[x]
	}
	return out, nil
}

func (f *fake) grow(leaf []byte) int64 {
	n := int64(len(f.leaves))
	hs, err := tlog.StoredHashes(n, leaf, f)
	if err != nil {
		f.t.Fatal(err)
	}
	f.hashes, f.leaves = append(f.hashes, hs...), append(f.leaves, leaf)
	return n
}

func (f *fake) checkpoint(size int64) []byte {
	h, err := tlog.TreeHash(size, f)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := ledger.SignCheckpoint(f.ring.Origin(), tlog.Tree{N: size, Hash: h}, f.ring.Log())
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// order records and signs an order for a session.
func (f *fake) order(id string, s wire.SessionSpec) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.ID, s.Person, s.PersonName, s.Level, s.HostName = "s-"+id, "p-ada00001", "ada", wire.LevelRead, "web-1"
	if s.RemainingMS == 0 {
		s.RemainingMS = 60_000
	}
	p := wire.OrderPayload{V: 1, Order: "o-" + id, Kind: wire.KindSessionStart, Node: host, Issued: time.Now().UnixMicro(), ValidMS: 60_000,
		Epochs: wire.Epochs{Person: map[string]int64{"p-ada00001": 1}}, Session: &s}
	body, err := p.Marshal()
	if err != nil {
		f.t.Fatal(err)
	}
	salt := make([]byte, 32)
	leaf := ledger.Leaf{V: ledger.LeafVersion, Time: p.Issued, Action: "session.opened", Subjects: []string{"p-ada00001"}, Session: s.ID,
		Target: "host/" + host, Outcome: ledger.OK, Commit: ledger.Commit(salt, body)}
	raw := leaf.Marshal()
	n := f.grow(raw)
	size := int64(len(f.leaves))
	inc, err := tlog.ProveRecord(size, n, f)
	if err != nil {
		f.t.Fatal(err)
	}
	b, err := wire.BuildOrder(ledger.Proof{Index: n, Leaf: raw, Salt: salt, Payload: body, Inclusion: inc, Checkpoint: f.checkpoint(size)}, f.ring.Order())
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

// until waits for what the fake has heard.
func (f *fake) until(what string, ok func() bool) {
	f.t.Helper()
	stop := time.AfterFunc(time.Minute, func() {
		f.mu.Lock()
		f.change.Broadcast()
		f.mu.Unlock()
	})
	defer stop.Stop()
	end := time.Now().Add(time.Minute)
	f.mu.Lock()
	defer f.mu.Unlock()
	for !ok() {
		if time.Now().After(end) {
			f.t.Fatalf("after a minute it is still not so that %s", what)
		}
		f.change.Wait()
	}
}

// open opens a session stream on one of the connections, with no consistency
// proof, so that the node asks for it.
func (f *fake) open(use string, order []byte) (*mux.Stream, wire.SessionAnswer) {
	f.t.Helper()
	f.mu.Lock()
	m := f.conns[use]
	f.mu.Unlock()
	s, err := m.Open()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := wire.WriteSessionOrder(s, wire.Envelope{Order: order}.Marshal()); err != nil {
		f.t.Fatal(err)
	}
	a, err := wire.ReadAnswer(s)
	if err != nil {
		f.t.Fatal(err)
	}
	return s, a
}

func (f *fake) token(root, secret string) string {
	return ledger.Token{Address: f.l.Addr().String(), RootHash: root, Secret: secret}.String()
}

// node joins and runs link and warden in this process.
func startNode(t *testing.T, f *fake) (dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "hrl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	joined, err := Join(t.Context(), f.token(f.ring.RootHash(), "a-good-secret-word"), filepath.Join(dir, "link"), JoinOptions{Hostname: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	if joined.Node != host || joined.Name != "web-1" || !IsJoined(filepath.Join(dir, "link")) {
		t.Fatalf("%+v", joined)
	}
	if err := warden.SetPin(filepath.Join(dir, "warden"), warden.Pin{Node: joined.Node, RootHash: joined.RootHash, Bundle: joined.Bundle}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() {
		done <- warden.Run(ctx, warden.Config{Dir: filepath.Join(dir, "warden"), Socket: socket, Version: "test"})
	}()
	go func() {
		done <- Run(ctx, Config{Dir: filepath.Join(dir, "link"), Socket: socket, Version: "test", Log: slog.New(journal{f})})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	f.until("both connections are there", func() bool { return f.conns[wire.UseControl] != nil && f.conns[wire.UseBulk] != nil })
	return filepath.Join(dir, "link")
}

// output reads a session to its end.
func output(t *testing.T, s *mux.Stream) (string, wire.Exit) {
	t.Helper()
	var out bytes.Buffer
	r := wire.NewReader(s)
	for {
		ft, p, err := r.Next()
		if err != nil {
			t.Fatalf("%v after %q", err, out.String())
		}
		switch ft {
		case wire.FrameStdout, wire.FrameStderr:
			out.Write(p)
		case wire.FrameExit:
			e, err := wire.DecodeExit(p)
			if err != nil {
				t.Fatal(err)
			}
			return out.String(), e
		}
	}
}
