package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
)

// door is where the other servers reach one: what comes for its API is said back.
func door(t *testing.T, c *colleague) (address string) {
	t.Helper()
	c.d.PeerAPI = func(conn net.Conn) {
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{wire.PeerALPN}, ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.d.Cluster.Cert() }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if conn.(*tls.Conn).Handshake() != nil {
					conn.Close()
					return
				}
				c.ServePeer(ctx, conn.(*tls.Conn))
			}()
		}
	}()
	return l.Addr().String()
}

// tap carries connections to an address and keeps what it carried.
type tap struct {
	mu   sync.Mutex
	kept bytes.Buffer
}

func (w *tap) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kept.Write(p)
}

func (w *tap) before(t *testing.T, address string) (at string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", address)
			if err != nil {
				in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, io.TeeReader(in, w)); out.Close() }()
			go func() { _, _ = io.Copy(in, io.TeeReader(out, w)); in.Close() }()
		}
	}()
	return l.Addr().String()
}

// nowhere is an address at which nobody answers.
func nowhere(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }

// triangle is three servers, of which the first two do not reach each other; the
// third reaches the second by that address.
func triangle(t *testing.T, way func(second string) string) (a, b, c *colleague) {
	t.Helper()
	all := colleagues(t, 3, false, Outside{})
	a, b, c = all[0], all[1], all[2]
	atA, atB, atC := door(t, a), door(t, b), door(t, c)
	a.UsePeers([]Peer{{ID: "v-1", Address: nowhere(t), Alive: true}, {ID: "v-2", Address: atC, Alive: true}})
	b.UsePeers([]Peer{{ID: "v-0", Address: nowhere(t), Alive: true}, {ID: "v-2", Address: atC, Alive: true}})
	c.UsePeers([]Peer{{ID: "v-0", Address: atA, Alive: true}, {ID: "v-1", Address: way(atB), Alive: true}})
	return a, b, c
}

func says(t *testing.T, c net.Conn, words string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(words))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != words {
		t.Fatalf("came back: %q, %v", got, err)
	}
}

var toAPI = wire.PeerHello{V: 1, Use: wire.PeerAPI}

func TestAThirdServerCarriesWhatItCannotRead(t *testing.T) {
	w := &tap{}
	a, _, c := triangle(t, func(second string) string { return w.before(t, second) })
	conn, err := a.DialPeer(t.Context(), "v-1", toAPI)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "what the third server may not read"
	says(t, conn, secret)
	if at, err := keyring.ServerOf(conn.(*tls.Conn).ConnectionState().PeerCertificates[0]); err != nil || at != "v-1" {
		t.Errorf("server %s is there: %v", at, err)
	}
	if n := c.Relaying(); n != 1 {
		t.Errorf("%d connections are carried", n)
	}
	w.mu.Lock()
	if w.kept.Len() == 0 || bytes.Contains(w.kept.Bytes(), []byte(secret[:9])) || bytes.Contains(w.kept.Bytes(), []byte(wire.PeerAPI+`"`)) {
		t.Errorf("of %d bytes the third can read what they are about", w.kept.Len())
	}
	w.mu.Unlock()
	conn.Close()
	for end := time.Now().Add(time.Minute); c.Relaying() != 0; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a connection that ended is still carried")
		}
	}
}

func TestWithoutAThirdServerItIsSaidWhatIsMissing(t *testing.T) {
	all := colleagues(t, 2, false, Outside{})
	all[0].UsePeers([]Peer{{ID: "v-1", Address: nowhere(t), Alive: true}})
	_, err := all[0].DialPeer(t.Context(), "v-1", toAPI)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "there is no third server to go through") {
		t.Errorf("%v", err)
	}
	a, _, _ := triangle(t, func(string) string { return nowhere(t) })
	if _, err = a.DialPeer(t.Context(), "v-1", toAPI); err == nil || !strings.Contains(err.Error(), "cannot reach server v-1 either") {
		t.Errorf("%v", err)
	}
}

// A third server that leads elsewhere than it was asked is found out.
func TestAThirdServerThatLiesLeadsNowhere(t *testing.T) {
	all := colleagues(t, 4, false, Outside{})
	atC, atD := door(t, all[2]), door(t, all[3])
	all[0].UsePeers([]Peer{{ID: "v-1", Address: nowhere(t), Alive: true}, {ID: "v-2", Address: atC, Alive: true}})
	all[2].UsePeers([]Peer{{ID: "v-0", Address: nowhere(t), Alive: true}, {ID: "v-1", Address: atD, Alive: true}})
	if _, err := all[0].DialPeer(t.Context(), "v-1", toAPI); err == nil || !strings.Contains(err.Error(), "another server is there: v-3") {
		t.Errorf("%v", err)
	}
}

// Connections are carried for servers of the list to servers of the list, not for
// themselves, and not without bound.
func TestOnlyServersAreCarriedForAndOnlyToServers(t *testing.T) {
	a, _, c := triangle(t, func(second string) string { return second })
	third, _ := a.peer("v-2")
	for to, want := range map[string]string{
		"v-9": "no other one of the list", "v-0": "no other one of the list", "v-2": "no other one of the list", "": "no other one of the list",
		"127.0.0.1:22": "no other one of the list",
	} {
		_, err := a.knock(t.Context(), third, dialPeer, wire.PeerHello{V: 1, Use: wire.PeerRelay, To: to})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %q: %v", to, err)
		}
	}
	node := certify(t, a.ring, "h-00000001")
	for who, certs := range map[string][]tls.Certificate{"a node": {node}, "a stranger": nil} {
		conn, err := tls.Dial("tcp", third.Address, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: a.ring.CAPool(), ServerName: keyring.ServerName, NextProtos: []string{wire.PeerALPN}, Certificates: certs})
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		var answer wire.HelloAnswer
		if err := wire.WriteLine(conn, wire.PeerHello{V: 1, Use: wire.PeerRelay, To: "v-1"}); err == nil {
			err = wire.ReadLine(conn, &answer)
			if err == nil && answer.Error == "" {
				t.Errorf("a connection is carried for %s", who)
			}
		}
		conn.Close()
	}
	c.relays.Store(maxRelays)
	if _, err := a.DialPeer(t.Context(), "v-1", toAPI); err == nil || !strings.Contains(err.Error(), "are carried already") {
		t.Errorf("%v", err)
	}
	if n := c.Relaying(); n != maxRelays {
		t.Errorf("%d count as carried", n)
	}
	c.relays.Store(0)
	c.Drain(true)
	if _, err := a.DialPeer(t.Context(), "v-1", toAPI); err == nil || !strings.Contains(err.Error(), "about to restart") {
		t.Errorf("%v", err)
	}
}

// The straight way is taken where there is one, and again once it is back.
func TestTheStraightWayIsTakenWhereThereIsOne(t *testing.T) {
	a, b, c := triangle(t, func(second string) string { return second })
	conn, err := a.DialPeer(t.Context(), "v-1", toAPI)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if a.patienceWith("v-1") != 0 || a.patienceWith("v-2") != directFirst {
		t.Error("it is not remembered which server takes a detour")
	}
	straight, _ := c.peer("v-1")
	third, _ := a.peer("v-2")
	a.UsePeers([]Peer{straight, third})
	c.Drain(true) // nothing is carried any more
	again, err := a.DialPeer(t.Context(), "v-1", toAPI)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	says(t, again, "hello")
	if a.patienceWith(b.d.Cluster.ID) != directFirst {
		t.Error("the straight way is back, and it is not remembered")
	}
}

// A question finds its way around too, and is answered once.
func TestAQuestionGoesThroughAThirdServer(t *testing.T) {
	a, b, _ := triangle(t, func(second string) string { return second })
	hears(t, a, b)
	b.mu.Lock()
	defer b.mu.Unlock()
	for words, times := range b.heard {
		if times != 1 {
			t.Errorf("it was asked %q %d times", words, times)
		}
	}
}
