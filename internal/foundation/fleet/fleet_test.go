package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// bench is a fleet on a real store behind a real TLS port.
type bench struct {
	t       *testing.T
	fleet   *Fleet
	store   *store.Store
	ring    *keyring.Ring
	address string
	changed atomic.Int64
	removed atomic.Bool
	ordered map[string]string // session: host; set before anybody connects
	late    time.Duration     // after which nodes say their first word on the message channel
}

func newRing(t *testing.T) *keyring.Ring {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(dir+"/keys", dir+"/root", "handrail/test"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(dir + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchWith(t, newRing(t))
}

func newBenchWith(t *testing.T, ring *keyring.Ring) *bench {
	t.Helper()
	b := &bench{t: t, ring: ring}
	dir := t.TempDir()
	var err error
	b.store, err = store.Open(t.Context(), store.Config{
		DSN: "sqlite:" + dir, Origin: b.ring.Origin(), Signer: b.ring.Log(), Verifier: b.ring.LogVerifier(),
		Seals: b.ring.Subjects(), Spool: dir, Observations: Observations(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.store.Close() })
	b.fleet, err = New(t.Context(), Deps{
		Store: b.store, Ring: b.ring, Log: slog.New(slog.DiscardHandler),
		Known: func(context.Context, string) error {
			if b.removed.Load() {
				return fault.New(fault.NotFound, "cannot find the host")
			}
			return nil
		},
		Ordered: func(_ context.Context, host, session string) (bool, error) { return b.ordered[session] == host, nil },
		Epochs: func(context.Context) (Epochs, error) {
			return Epochs{Lock: 3, Policy: 2, Person: map[string]int64{"p-00000001": 1}}, nil
		},
		Changed: func(string) { b.changed.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.serve()
	b.note("first")
	return b
}

func (b *bench) serve() {
	cert, err := b.ring.ServerCertificate([]string{"127.0.0.1"})
	if err != nil {
		b.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: b.ring.CAPool(), NextProtos: []string{wire.ALPN, wire.PastALPN},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.fleet.Run(ctx) }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				t := c.(*tls.Conn)
				if t.HandshakeContext(ctx) == nil {
					b.fleet.ServeConn(ctx, t)
				}
				c.Close()
			}()
		}
	}()
	b.t.Cleanup(func() { l.Close(); cancel(); <-done })
}

// note adds an entry, so that the tree grows.
func (b *bench) note(text string) {
	b.t.Helper()
	_, err := b.store.Record(b.t.Context(), store.NewID('x'), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: "test.noted", Subjects: []string{"system"}, Payload: map[string]string{"text": text}}}, nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// certify makes a key and a certificate for a host.
func certify(t *testing.T, ring *keyring.Ring, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ring.IssueNode(csr, host)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// fakeNode is the far end of a node's control connection, by hand.
type fakeNode struct {
	session *mux.Session
	nats    *nats.Conn
	answer  wire.HelloAnswer
	late    time.Duration
}

func (b *bench) dial(cert *tls.Certificate, host string) (*fakeNode, error) {
	return b.dialAs(wire.ALPN, cert, host)
}

func (b *bench) dialAs(protocol string, cert *tls.Certificate, host string) (*fakeNode, error) {
	conf := &tls.Config{RootCAs: b.ring.CAPool(), ServerName: keyring.ServerName, NextProtos: []string{protocol}}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	c, err := tls.Dial("tcp", b.address, conf)
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { c.Close() })
	n := &fakeNode{late: b.late}
	if err := wire.WriteLine(c, wire.Hello{V: 1, Use: wire.UseControl, Version: "test", Mode: wire.ModeRoot, Floor: wire.FloorFull}); err != nil {
		return nil, err
	}
	if err := wire.ReadLine(c, &n.answer); err != nil {
		return nil, err
	}
	if n.answer.Error != "" {
		return n, fmt.Errorf("refused: %s", n.answer.Error)
	}
	n.session = mux.Client(c)
	n.nats, err = nats.Connect("nats://node", nats.SetCustomDialer(n), nats.SkipHostLookup(), nats.UserInfo(n.answer.NATSUser, n.answer.NATSPass),
		nats.CustomInboxPrefix(wire.InboxPrefix(host)), nats.NoReconnect(), nats.Timeout(patience), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(n.nats.Close)
	return n, nil
}

// Dial gives the NATS client its channel; SkipTLSHandshake says TLS is done.
func (n *fakeNode) Dial(_, _ string) (net.Conn, error) {
	s, err := n.session.Open()
	if err != nil {
		return nil, err
	}
	return &hesitant{Conn: s, late: n.late}, wire.WriteStreamKind(s, wire.StreamNATS)
}

// hesitant is a channel whose first word comes late.
type hesitant struct {
	net.Conn
	late time.Duration
	once sync.Once
}

func (h *hesitant) Write(p []byte) (int, error) {
	h.once.Do(func() { <-time.After(h.late) })
	return h.Conn.Write(p)
}

func (*fakeNode) SkipTLSHandshake() bool { return true }

const hostA, hostB = "h-aaaaaaaa", "h-bbbbbbbb"

func (b *bench) join(host string) *fakeNode {
	b.t.Helper()
	cert := certify(b.t, b.ring, host)
	n, err := b.dial(&cert, host)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (n *fakeNode) lease(t *testing.T, b *bench, ask wire.LeaseAsk) (wire.LeaseAnswer, error) {
	t.Helper()
	ask.V, ask.Nonce = 1, make([]byte, wire.NonceSize)
	_, _ = rand.Read(ask.Nonce)
	data, err := ask.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	wait := patience
	if ask.Node != n.answer.NATSUser {
		wait = 2 * time.Second // a refusal is silent
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	m, err := n.nats.RequestWithContext(ctx, wire.UpSubject(n.answer.NATSUser, wire.UpLease), data)
	if err != nil {
		return wire.LeaseAnswer{}, err
	}
	bundle, _ := b.ring.Bundle()
	return wire.OpenLease(m.Data, bundle.OrderKey, ask)
}

func TestOnlyACertificateOfThisInstallationConnects(t *testing.T) {
	b := newBench(t)
	if _, err := b.dial(nil, hostA); err == nil {
		t.Error("a node without a certificate was let in")
	}
	foreign := certify(t, newRing(t), hostA)
	if _, err := b.dial(&foreign, hostA); err == nil {
		t.Error("a node of another installation was let in")
	}
	if s := b.fleet.Node(hostA).State; s != Never {
		t.Errorf("a refused node is shown as %s", s)
	}
	b.join(hostA)
	if s := b.fleet.Node(hostA).State; s != Online {
		t.Errorf("an admitted node is shown as %s", s)
	}
}

// A host that gets no processor for some seconds is slow, and not refused.
func TestANodeThatIsSlowToSpeakKeepsItsMessageChannel(t *testing.T) {
	b := newBench(t)
	b.late = 3 * time.Second // what the message bus waits for by itself, and a half
	n := b.join(hostA)
	if _, err := n.lease(t, b, wire.LeaseAsk{Node: hostA}); err != nil {
		t.Error(err)
	}
}

func TestARemovedHostIsToldSo(t *testing.T) {
	b := newBench(t)
	b.removed.Store(true)
	cert := certify(t, b.ring, hostA)
	_, err := b.dial(&cert, hostA)
	if err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("got %v", err)
	}
}

func TestALeaseProvesThatTheLedgerOnlyGrew(t *testing.T) {
	b := newBench(t)
	n := b.join(hostA)
	first, err := n.lease(t, b, wire.LeaseAsk{Node: hostA})
	if err != nil {
		t.Fatal(err)
	}
	old, err := b.fleet.openCheckpoint(first.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 5 {
		b.note(fmt.Sprint(k))
	}
	second, err := n.lease(t, b, wire.LeaseAsk{Node: hostA, Size: old.N, Root: old.Hash[:]})
	if err != nil {
		t.Fatal(err)
	}
	now, err := b.fleet.openCheckpoint(second.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := wire.ParseHashList(second.Consistency)
	if err != nil {
		t.Fatal(err)
	}
	if now.N < old.N+5 {
		t.Errorf("the lease is at %d, after %d", now.N, old.N)
	}
	if err := ledger.CheckConsistency(hashes, old, now); err != nil {
		t.Errorf("the lease does not prove that the ledger grew: %v", err)
	}
	if second.LockEpoch != 3 || second.PolicyEpoch != 2 || second.PersonEpochs["p-00000001"] != 1 {
		t.Errorf("the lease carries other epochs: %+v", second)
	}
}

func TestAnOrderProvesThatTheLedgerGrewSinceTheLastOne(t *testing.T) {
	b := newBench(t)
	head := func() (tlog.Tree, []byte) {
		tree, signed, err := b.store.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tree, signed
	}
	first, _ := head()
	b.fleet.seen(hostA, first.N) // a lease
	for range 3 {
		before := b.fleet.nodes[hostA].size
		old, _ := head()
		b.note("more")
		tree, signed := head()
		var env wire.Envelope
		size := b.fleet.addConsistency(t.Context(), &env, hostA, signed)
		if size != tree.N || env.From != before || before != old.N {
			t.Fatalf("an order at %d proves from %d to %d; the node was at %d", tree.N, env.From, size, old.N)
		}
		if err := ledger.CheckConsistency(env.Consistency, old, tree); err != nil {
			t.Fatal(err)
		}
		b.fleet.proved(hostA, size)
	}
	b.fleet.proved(hostA, first.N) // an order that was slower than others
	if now, _ := head(); b.fleet.nodes[hostA].size != now.N {
		t.Error("an older order set the node back")
	}
}

func TestANodeSpeaksForItselfAlone(t *testing.T) {
	b := newBench(t)
	b.join(hostB)
	n := b.join(hostA)
	if _, err := n.lease(t, b, wire.LeaseAsk{Node: hostB}); err == nil {
		t.Error("a node got a lease in another's name")
	}
	facts, _ := json.Marshal(wire.Facts{V: 1, Full: true, Facts: []wire.Fact{{Name: "os", Value: "forged"}}})
	if err := n.nats.Publish(wire.UpSubject(hostB, wire.UpFacts), facts); err != nil {
		t.Fatal(err)
	}
	sub, err := n.nats.SubscribeSync(wire.DownSubject(hostB, wire.DownBrake))
	if err == nil {
		err = n.nats.FlushTimeout(time.Second)
	}
	_ = err // the server answers with an error that the client hands to its handler
	if _, err := n.lease(t, b, wire.LeaseAsk{Node: hostA}); err != nil {
		t.Fatal(err) // also: everything sent before has been handled
	}
	if len(b.fleet.Node(hostB).Facts) != 0 {
		t.Error("a node reported facts of another host")
	}
	if sub != nil {
		go func() {
			_, _ = b.fleet.Brake(context.Background(), wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeFreeze, Node: hostB, Issued: time.Now().UnixMicro()})
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if m, err := sub.NextMsgWithContext(ctx); err == nil {
			t.Errorf("a node heard a brake for another host: %d bytes", len(m.Data))
		}
	}
}

func TestFactsAreBoundedAndShown(t *testing.T) {
	b := newBench(t)
	n := b.join(hostA)
	send := func(f wire.Facts) {
		data, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		before := b.changed.Load()
		if err := n.nats.Publish(wire.UpSubject(hostA, wire.UpFacts), data); err != nil {
			t.Fatal(err)
		}
		for b.changed.Load() == before {
			select {
			case <-t.Context().Done():
				t.Fatal("the facts did not arrive")
			default:
				if _, err := n.lease(t, b, wire.LeaseAsk{Node: hostA}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	send(wire.Facts{V: 1, Full: true, Facts: []wire.Fact{{Name: "os", Value: "Debian"}, {Name: "huge", Value: strings.Repeat("x", 5000)}}})
	send(wire.Facts{V: 1, At: time.Now().Add(-time.Hour).UnixMicro(), Facts: []wire.Fact{{Name: "load1", Value: "0.5"}}})
	if apart := b.fleet.Node(hostA).Apart; apart > -time.Hour || apart < -2*time.Hour {
		t.Errorf("its clock is %s ahead", apart)
	}
	got := b.fleet.Node(hostA).Facts
	if len(got) != 2 || got[0].Name != "load1" || got[1].Value != "Debian" {
		t.Errorf("facts are %+v", got)
	}
}

func TestANodeThatLeavesIsAnEntryAndKnownAfterARestart(t *testing.T) {
	b := newBench(t)
	n := b.join(hostA)
	n.session.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen := map[ledger.Action]bool{}
	err := b.store.Follow(ctx, -1, func(e store.Recorded) error {
		seen[e.Parsed.Action] = true
		if seen[NodeConnected] && seen[NodeLeft] {
			cancel()
		}
		return nil
	})
	if !seen[NodeConnected] || !seen[NodeLeft] {
		t.Fatalf("the ledger has %v: %v", seen, err)
	}
	again := &Fleet{d: b.fleet.d, bus: b.fleet.bus, nodes: map[string]*node{}}
	if err := again.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := again.Node(hostA); got.State != Offline || got.Version != "test" {
		t.Errorf("after a restart the host is %+v", got)
	}
}

func TestEntriesAboutAFlappingHostAreBounded(t *testing.T) {
	var bud budget
	now := time.Now()
	passed := 0
	for range 100 {
		if _, ok := bud.take(now); ok {
			passed++
		}
	}
	if passed != noteRate {
		t.Errorf("%d of 100 passed, want %d", passed, noteRate)
	}
	if left, ok := bud.take(now.Add(2 * time.Minute)); !ok || left != 100-noteRate {
		t.Errorf("the next entry says that %d were left out, want %d", left, 100-noteRate)
	}
}
