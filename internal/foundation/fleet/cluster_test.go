package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// colleague is one of several servers of an installation.
type colleague struct {
	*Fleet
	ring  *keyring.Ring
	route string
	asks  atomic.Int64 // how many it has made

	mu    sync.Mutex
	heard map[string]int // what it was asked, and how often
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// colleagues are servers with one ring; each calls the buses of those before it.
func colleagues(t *testing.T, n int, routed bool, o Outside) []*colleague {
	t.Helper()
	keys := t.TempDir()
	if err := keyring.Init(keys+"/keys", keys+"/root", "handrail/test"); err != nil {
		t.Fatal(err)
	}
	var all []*colleague
	var list []Peer
	var routes []string
	for i := range n {
		ring, err := keyring.Open(keys + "/keys")
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("v-%d", i)
		if err := ring.ActAs(id); err != nil {
			t.Fatal(err)
		}
		cert, err := ring.ServerCertificates([]string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		s, err := store.Open(t.Context(), store.Config{DSN: "sqlite:" + dir, Origin: ring.Origin(), Signer: ring.Log(), Verifier: ring.LogVerifier(),
			Seals: ring.Subjects(), Spool: dir, Observations: Observations()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		c := &colleague{ring: ring, heard: map[string]int{}}
		cluster := &Cluster{ID: id, Host: "127.0.0.1", Port: freePort(t), Cert: cert, Outside: o}
		c.route = net.JoinHostPort("127.0.0.1", fmt.Sprint(cluster.Port))
		if routed {
			cluster.Routes = routes
		}
		c.Fleet, err = New(t.Context(), Deps{
			Store: s, Ring: ring, Log: slog.New(slog.DiscardHandler), Changed: func(string) {}, Cluster: cluster,
			Answer: func(_ context.Context, from, what string, body []byte) ([]byte, error) {
				c.mu.Lock()
				c.heard[string(body)]++
				c.mu.Unlock()
				return []byte(id + " heard " + what + " " + string(body) + " from " + from), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		routes, list, all = append(routes, c.route), append(list, Peer{ID: id, Alive: true}), append(all, c)
	}
	for _, c := range all {
		c.UsePeers(list)
	}
	return all
}

// hears waits until one server answers another.
func hears(t *testing.T, from, to *colleague) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		words := fmt.Sprint("words ", from.asks.Add(1)) // each ask its own: one that is late is not the next
		answer, err := from.Ask(ctx, to.d.Cluster.ID, "test", []byte(words))
		cancel()
		if err == nil {
			if want := to.d.Cluster.ID + " heard test " + words + " from " + from.d.Cluster.ID; string(answer) != want {
				t.Fatalf("the answer is %q, not %q", answer, want)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestServersAskEachOtherOverTheirRoutedBuses(t *testing.T) {
	all := colleagues(t, 3, true, Outside{})
	for _, from := range all {
		for _, to := range all {
			if from != to {
				hears(t, from, to)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got := all[0].AskAll(ctx, "test", nil); len(got) != 2 {
		t.Errorf("%d of 2 others answered", len(got))
	}
}

func TestNoNodeActsAsARouteAndTheClientsPortLetsNobodyIn(t *testing.T) {
	all := colleagues(t, 2, true, Outside{})
	hears(t, all[0], all[1])
	own, err := all[1].d.Cluster.Cert()
	if err != nil {
		t.Fatal(err)
	}
	if pretend(t, all[0].route, false, all[0].ring, []tls.Certificate{*own}) {
		t.Fatal("not even a server gets through the handshake")
	}
	routes := all[0].Routed()
	node := certify(t, all[0].ring, "h-00000001")
	for what, certs := range map[string][]tls.Certificate{"a node": {node}, "a stranger": nil} {
		if !pretend(t, all[0].route, false, all[0].ring, certs) {
			t.Errorf("%s is let in as a route", what)
		}
		if !pretend(t, all[0].bus.nats.Addr().String(), true, all[0].ring, certs) {
			t.Errorf("%s is let in as a client", what)
		}
	}
	if got := all[0].Routed(); got != routes {
		t.Errorf("there are %d routes, not %d", got, routes)
	}
}

// pretend speaks NATS to a port and says whether the TLS handshake refused it. A
// port for clients greets with a line before the handshake.
func pretend(t *testing.T, address string, greets bool, ring *keyring.Ring, certs []tls.Certificate) (refused bool) {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(time.Minute))
	err = handshake(&afterLine{Conn: raw, done: !greets}, ring, certs)
	return err != nil && strings.Contains(err.Error(), "tls: ")
}

func handshake(raw net.Conn, ring *keyring.Ring, certs []tls.Certificate) error {
	c := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ring.CAPool(), ServerName: keyring.ServerName, Certificates: certs})
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err := c.Write([]byte("CONNECT {\"verbose\":true,\"name\":\"liar\"}\r\nPING\r\n")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 16)) // with TLS 1.3 the server's refusal comes with the first read
	return err
}

// afterLine skips the first line.
type afterLine struct {
	net.Conn
	done bool
}

func (a *afterLine) Read(p []byte) (int, error) {
	one := make([]byte, 1)
	for !a.done {
		if _, err := a.Conn.Read(one); err != nil {
			return 0, err
		}
		a.done = one[0] == '\n'
	}
	return a.Conn.Read(p)
}

// outsiders are three NATS servers of somebody else's.
func outsiders(t *testing.T) (list []*server.Server, o Outside) {
	t.Helper()
	var routes []*url.URL
	for i := range 3 {
		s, err := server.NewServer(&server.Options{ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, Routes: routes,
			Cluster: server.ClusterOpts{Name: "theirs", Host: "127.0.0.1", Port: server.RANDOM_PORT}})
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		if !s.ReadyForConnections(time.Minute) {
			t.Fatal("a NATS server did not start")
		}
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: s.ClusterAddr().String()})
		list, o.URLs = append(list, s), append(o.URLs, s.ClientURL())
	}
	return list, o
}

func TestServersReachEachOtherThroughANATSOfSomebodyElse(t *testing.T) {
	theirs, o := outsiders(t)
	all := colleagues(t, 2, false, o) // with no route between them
	hears(t, all[0], all[1])
	hears(t, all[1], all[0])
	theirs[0].Shutdown()
	hears(t, all[0], all[1])
	hears(t, all[1], all[0])
}

func TestANATSThatLiesCanLoseAndDelayAndNothingElse(t *testing.T) {
	_, o := outsiders(t)
	all := colleagues(t, 2, false, o)
	a, b := all[0], all[1]
	liar, err := nats.Connect(strings.Join(o.URLs, ","))
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	heard := make(chan *nats.Msg, 1024)
	if _, err := liar.ChanSubscribe(">", heard); err != nil {
		t.Fatal(err)
	}
	if err := liar.Flush(); err != nil {
		t.Fatal(err)
	}
	var ask *nats.Msg
	for end := time.Now().Add(time.Minute); ask == nil; { // until the cluster has heard who listens where
		hears(t, a, b)
		select {
		case m := <-heard:
			if m.Subject == b.askSubject("v-1") {
				ask = m
			}
		default:
		}
		if time.Now().After(end) {
			t.Fatal("nothing was heard")
		}
	}
	own := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	forged, err := wire.SignPeerAsk(wire.PeerAsk{V: 1, Nonce: make([]byte, wire.NonceSize), From: "v-0", To: "v-1", Issued: time.Now().UnixMicro(), What: "test"}, own)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := wire.SignPeerAsk(wire.PeerAsk{V: 1, Nonce: make([]byte, wire.NonceSize), From: "v-0", To: "v-1", Issued: time.Now().Add(-time.Hour).UnixMicro(), What: "test"}, a.ring.Order())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := wire.SignPeerAsk(wire.PeerAsk{V: 1, Nonce: []byte("0123456789abcdef"), From: "v-9", To: "v-1", Issued: time.Now().UnixMicro(), What: "test"}, a.ring.Order())
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte(nil), ask.Data...)
	changed[len(changed)/2] ^= 1
	for _, lie := range [][]byte{ask.Data, ask.Data, changed, forged, stale, stranger, nil, []byte("{}"), make([]byte, wire.MaxPeer+1)} {
		if err := liar.Publish(ask.Subject, lie); err != nil {
			t.Fatal(err)
		}
		if err := liar.Publish(a.answerSubject("v-0"), lie); err != nil {
			t.Fatal(err)
		}
	}
	// A node's subjects and a brake's are of no use out there.
	for _, subject := range []string{wire.UpSubject("h-00000001", wire.UpEvent), wire.DownSubject("h-00000001", wire.DownBrake), wire.FleetSubject(wire.DownBrake)} {
		if err := liar.Publish(subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := liar.Flush(); err != nil {
		t.Fatal(err)
	}
	hears(t, a, b) // after all of them, since one server's subscription is in order
	b.mu.Lock()
	defer b.mu.Unlock()
	for words, times := range b.heard {
		if times != 1 || !strings.HasPrefix(words, "words ") {
			t.Errorf("it was asked %q %d times, not once", words, times)
		}
	}
}
