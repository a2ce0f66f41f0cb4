package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A node that lies holds a real certificate and speaks the real wire: TLS,
// streams, NATS. hostA lies; hostB is honest.

const patience = time.Minute

// until waits until the ledger has an entry of that action whose payload
// holds the text.
func (b *bench) until(action ledger.Action, text string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	found := false
	err := b.store.Follow(ctx, -1, func(e store.Recorded) error {
		if e.Parsed.Action == action && strings.Contains(string(e.Payload), text) {
			found = true
			cancel()
		}
		return nil
	})
	if !found {
		b.t.Fatalf("no entry %s with %q: %v", action, text, err)
	}
}

// entries are those of an action.
func (b *bench) entries(action ledger.Action) []store.Recorded {
	b.t.Helper()
	all, err := b.store.Entries(b.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// ask sends what a node asks and waits for the answer.
func (n *fakeNode) ask(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := n.nats.RequestWithContext(ctx, wire.UpSubject(n.answer.NATSUser, name), data)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m.Data
}

// event reports what happened, until the server has it.
func (n *fakeNode) event(t *testing.T, e wire.Event) {
	t.Helper()
	e.V = 1
	if e.ID == "" {
		e.ID = store.NewID('e')
	}
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.ask(t, wire.UpEvent, data); string(got) != "ok" {
		t.Fatalf("%q", got)
	}
}

// settled returns when all that this node sent before was handled.
func (n *fakeNode) settled(t *testing.T, b *bench) {
	t.Helper()
	if _, err := n.lease(t, b, wire.LeaseAsk{Node: n.answer.NATSUser}); err != nil {
		t.Fatal(err)
	}
}

func TestALyingNodeUsesNoSubjectOfOthers(t *testing.T) {
	b := newBench(t)
	honest, liar := b.join(hostB), b.join(hostA)
	braked := make(chan *nats.Msg, 16)
	if _, err := honest.nats.ChanSubscribe(wire.DownSubject(hostB, wire.DownBrake), braked); err != nil {
		t.Fatal(err)
	}
	honest.settled(t, b)
	var overheard []*nats.Subscription
	for _, subject := range []string{">", "*", "node.>", "node.*.up.lease", "node." + hostB + ".>", "_INBOX.>", "_INBOX.server.>", "$SYS.>", wire.InboxPrefix(hostB) + ".>"} {
		if s, err := liar.nats.SubscribeSync(subject); err == nil {
			overheard = append(overheard, s)
		}
	}
	brake, err := wire.SignBrake(wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeFreeze, Node: hostB, Issued: 1}, b.ring.Order())
	if err != nil {
		t.Fatal(err)
	}
	facts, _ := json.Marshal(wire.Facts{V: 1, Full: true, Facts: []wire.Fact{{Name: "os", Value: "forged"}}})
	event, _ := json.Marshal(wire.Event{V: 1, ID: "e-00000001", Kind: wire.EventClock})
	for subject, data := range map[string][]byte{
		wire.UpSubject(hostB, wire.UpFacts): facts, wire.UpSubject(hostB, wire.UpEvent): event, wire.UpSubject(hostB, wire.UpLease): nil,
		wire.DownSubject(hostB, wire.DownBrake): brake, wire.FleetSubject(wire.DownBrake): brake, wire.UpSubject("*", wire.UpFacts): facts,
		"_INBOX.server.x": facts, wire.InboxPrefix(hostB) + ".x": facts,
	} {
		if err := liar.nats.PublishMsg(&nats.Msg{Subject: subject, Data: data}); err != nil {
			t.Logf("%s: %v", subject, err) // the client itself may refuse
		}
	}
	liar.settled(t, b)
	honest.settled(t, b)
	b.until(NodeAlarmed, `"rule":"subject"`)
	if len(b.fleet.Node(hostB).Facts) != 0 || len(b.entries(NodeReported)) != 0 || len(braked) != 0 {
		t.Errorf("facts %v, %d reports, %d brakes of another's", b.fleet.Node(hostB).Facts, len(b.entries(NodeReported)), len(braked))
	}
	for _, s := range overheard {
		if n, _, err := s.Pending(); err == nil && n > 0 {
			t.Errorf("%s heard %d messages", s.Subject, n)
		}
	}
	if n := len(b.entries(NodeAlarmed)); n != 1 {
		t.Errorf("%d entries for one crowd of trespasses", n)
	}
}

func TestALyingNodeAnswersForNobodyElse(t *testing.T) {
	b := newBench(t)
	honest, liar := b.join(hostB), b.join(hostA)
	b.join("h-cccccccc") // is away: it listens to no brake
	listen := func(n *fakeNode, do func(*nats.Msg)) {
		for _, subject := range []string{wire.DownSubject(n.answer.NATSUser, wire.DownBrake), wire.FleetSubject(wire.DownBrake)} {
			if _, err := n.nats.Subscribe(subject, do); err != nil {
				t.Fatal(err)
			}
		}
		n.settled(t, b)
	}
	listen(honest, func(m *nats.Msg) {
		out, _ := json.Marshal(wire.BrakeAnswer{V: 1, ID: "b-00000001", Node: hostB, Sessions: 2, Killed: 7})
		_ = m.Respond(out)
	})
	forged, _ := json.Marshal(wire.BrakeAnswer{V: 1, ID: "b-00000001", Node: "h-cccccccc", Sessions: 1, Killed: 99, Error: "\x1b[2Jgone"})
	var answer []byte
	listen(liar, func(m *nats.Msg) {
		_ = m.Respond(answer)
		for _, other := range []string{hostB, "h-cccccccc"} { // and in the others' places
			_ = liar.nats.Publish(strings.Replace(m.Reply, hostA, other, 1), forged)
		}
	})
	for name, lie := range map[string][]byte{"in another's name": forged, "not JSON": []byte("{"), "less than nothing": []byte(`{"v":1,"id":"b-00000001","killed":-1}`), "to another brake": []byte(`{"v":1,"id":"b-00000009"}`)} {
		t.Run(name, func(t *testing.T) {
			answer = lie
			answers, err := b.fleet.Brake(t.Context(), wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeFreeze, Node: wire.EveryNode, Issued: 1})
			if err != nil {
				t.Fatal(err)
			}
			by := map[string]wire.BrakeAnswer{}
			for _, a := range answers {
				by[a.Node] = a
			}
			if len(answers) != 2 || by[hostB].Killed != 7 || by[hostB].Error != "" {
				t.Errorf("answers are %+v", answers)
			}
			if by[hostA].Error == "" || strings.ContainsRune(by[hostA].Error, '\x1b') {
				t.Errorf("the lie reads %+v", by[hostA])
			}
		})
	}
}

func TestEventsAreOfSessionsThatWereOrderedThere(t *testing.T) {
	b := newBench(t)
	b.ordered = map[string]string{"s-aaaaaaaa": hostA, "s-bbbbbbbb": hostB}
	liar, honest := b.join(hostA), b.join(hostB)
	ended := wire.Event{ID: "e-00000001", Kind: wire.EventSessionEnded, Session: "s-bbbbbbbb", Why: "done"}
	liar.event(t, ended)                                                                    // another's, which has not ended
	liar.event(t, wire.Event{Kind: wire.EventSessionStarted, Session: "s-00000000"})        // never ordered anywhere
	liar.event(t, wire.Event{Kind: wire.EventAlarm, Rule: "replay", Session: "s-bbbbbbbb"}) // whatever its kind
	b.until(NodeAlarmed, "never ordered there")
	honest.event(t, ended) // the liar cannot use the id up either
	for range 50 {
		liar.event(t, wire.Event{Kind: wire.EventSessionEnded, Session: "s-aaaaaaaa", Why: "done"})
		honest.event(t, ended)
	}
	var of []string
	for _, e := range b.entries(NodeReported) {
		of = append(of, e.Parsed.Target+" "+e.Parsed.Session)
	}
	if len(of) != 2 || of[0] == of[1] {
		t.Errorf("the ledger has %v", of)
	}
}

func TestAFloodOfEventsIsCountedNotKept(t *testing.T) {
	b := newBench(t)
	liar := b.join(hostA)
	for n := range 10 * noteRate {
		liar.event(t, wire.Event{Kind: []string{wire.EventAlarm, wire.EventGap, "new"}[n%3], Text: fmt.Sprint("flood ", n)})
	}
	if n := len(b.entries(NodeAlarmed)) + len(b.entries(NodeReported)); n > 2*noteRate { // a minute may end while it runs
		t.Errorf("%d events made %d entries", 10*noteRate, n)
	}
	for _, bad := range []string{"", "{", `{"v":1,"id":"../x","kind":"gap"}`, `{"v":1,"id":"e-00000001","session":"s-\u001b[2J"}`} {
		if got := liar.ask(t, wire.UpEvent, []byte(bad)); string(got) != "ok" {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func TestAFloodStarvesNobody(t *testing.T) {
	b := newBench(t)
	honest, liar := b.join(hostB), b.join(hostA)
	stop := make(chan struct{})
	flooded := make(chan struct{})
	ask, _ := wire.LeaseAsk{V: 1, Node: hostA, Nonce: make([]byte, wire.NonceSize)}.Marshal()
	facts, _ := json.Marshal(wire.Facts{V: 1, Facts: []wire.Fact{{Name: "load1", Value: "9"}}})
	go func() {
		defer close(flooded)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 500 {
				_ = liar.nats.PublishRequest(wire.UpSubject(hostA, wire.UpLease), wire.InboxPrefix(hostA)+".x", ask)
				_ = liar.nats.Publish(wire.UpSubject(hostA, wire.UpFacts), facts)
			}
			_ = liar.nats.FlushTimeout(patience)
		}
	}()
	b.until(NodeAlarmed, `"rule":"flood"`)
	for range 10 {
		honest.settled(t, b)
	}
	close(stop)
	<-flooded
	if n := len(b.entries(NodeAlarmed)); n > noteRate {
		t.Errorf("the flood made %d entries", n)
	}
}

func TestARateSlowsDownThenDrops(t *testing.T) {
	r := rate{100 * time.Millisecond, 5}
	var used time.Time
	now := time.Unix(1000, 0)
	var waits []time.Duration
	for {
		wait, ok := r.take(&used, now)
		if !ok {
			break
		}
		waits = append(waits, wait)
	}
	if want := 5 + int(maxWait/r.each); len(waits) != want || waits[4] != 0 || waits[5] != r.each || waits[len(waits)-1] != maxWait {
		t.Errorf("at once: %v", waits)
	}
	if wait, ok := r.take(&used, now.Add(2*time.Second)); !ok || wait != 0 {
		t.Errorf("later: %v %v", wait, ok)
	}
}

func TestFactsOfALyingNodeAreBoundedAndPlain(t *testing.T) {
	b := newBench(t)
	liar := b.join(hostA)
	send := func(f wire.Facts) {
		data, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := liar.nats.Publish(wire.UpSubject(hostA, wire.UpFacts), data); err != nil {
			t.Fatal(err)
		}
	}
	many := make([]wire.Fact, 10*wire.MaxFacts)
	for i := range many {
		many[i] = wire.Fact{Name: fmt.Sprint("fact", i), Value: "x"}
	}
	send(wire.Facts{V: 1, Full: true, Facts: many})
	send(wire.Facts{V: 1, Facts: []wire.Fact{{Name: "a", Value: "x", Source: strings.Repeat("s", 1<<19)}, {Name: strings.Repeat("n", 1<<18)}}})
	b.until(NodeAlarmed, `"rule":"facts"`)
	send(wire.Facts{V: 1, Facts: []wire.Fact{
		{Name: "environment", Value: "dev"}, {Name: "os\x1b]0;x\x07", Value: "Debian\r\n\x1b[2J\u202e", Source: "/etc\x00"},
	}})
	for k := range wire.MaxFacts { // in pieces, too, it keeps no more
		send(wire.Facts{V: 1, Facts: []wire.Fact{{Name: fmt.Sprint("more", k), Value: strings.Repeat("v", 100)}}})
		if k%8 == 0 {
			liar.settled(t, b)
		}
	}
	b.until(NodeAlarmed, `"rule":"flood"`)
	kept := b.fleet.Node(hostA).Facts
	if len(kept) == 0 || len(kept) > wire.MaxFacts {
		t.Errorf("%d facts", len(kept))
	}
	for _, f := range kept {
		if s := f.Name + f.Value + f.Source; strings.ContainsAny(s, "\x00\x07\r\n\x1b\u202e") || len(s) > 5000 {
			t.Errorf("a fact is %.200q", s)
		}
	}
	// A message that is too large for the bus ends the node's own channel.
	_ = liar.nats.Publish(wire.UpSubject(hostA, wire.UpFacts), make([]byte, maxPayload+1))
	if _, err := b.join(hostB).lease(t, b, wire.LeaseAsk{Node: hostB}); err != nil {
		t.Error(err)
	}
}

func TestAHelloOfALyingNodeIsPlain(t *testing.T) {
	b := newBench(t)
	c := b.dialRaw(hostA)
	missing := make([]string, 500)
	for i := range missing {
		missing[i] = "\x1b[31mno"
	}
	if err := wire.WriteLine(c, wire.Hello{V: 1, Use: wire.UseControl, Version: "1\x1b]0;x\x07" + strings.Repeat("v", 9000), Mode: wire.ModeRoot, Missing: missing[:300]}); err != nil {
		t.Fatal(err)
	}
	var answer wire.HelloAnswer
	if err := wire.ReadLine(c, &answer); err != nil || answer.Error != "" {
		t.Fatal(answer, err)
	}
	b.until(NodeConnected, `\\x1b`)
	n := b.fleet.Node(hostA)
	if s := n.Version + strings.Join(n.Missing, ""); strings.ContainsAny(s, "\x1b\x07") || len(n.Version) > 200 || len(n.Missing) > 32 {
		t.Errorf("%.300q and %d missing", n.Version, len(n.Missing))
	}
}

// dialRaw makes a node's TLS connection and says nothing yet.
func (b *bench) dialRaw(host string) *tls.Conn {
	b.t.Helper()
	cert := certify(b.t, b.ring, host)
	c, err := tls.Dial("tcp", b.address, &tls.Config{RootCAs: b.ring.CAPool(), ServerName: keyring.ServerName, NextProtos: []string{wire.ALPN}, Certificates: []tls.Certificate{cert}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func TestACrowdOfConnectionsOfOneNodeIsTurnedAway(t *testing.T) {
	b := newBench(t)
	held := map[*tls.Conn]bool{}
	ended := make(chan *tls.Conn)
	const crowd = 60
	for range crowd {
		c := b.dialRaw(hostA)
		held[c] = true
		go func() {
			_, _ = io.Copy(io.Discard, c)
			ended <- c
		}()
	}
	for range crowd - maxConns { // all but as many are ended at once, long before the hello is late
		delete(held, <-ended)
	}
	b.until(NodeAlarmed, `"rule":"connections"`)
	b.join(hostB).settled(t, b)
	for c := range held {
		c.Close()
		<-ended
	}
	cert := certify(t, b.ring, hostA)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for { // and it may come again
		if _, err := b.dial(&cert, hostA); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the host was kept out for good")
		}
	}
}

func TestASecondStreamEndsTheConnection(t *testing.T) {
	b := newBench(t)
	liar := b.join(hostA)
	liar.settled(t, b)
	for range 300 {
		s, err := liar.session.Open()
		if err != nil {
			break
		}
		_, _ = s.Write(make([]byte, 1<<10))
	}
	<-liar.session.Done()
	b.until(NodeAlarmed, `"rule":"streams"`)
	b.until(NodeLeft, "")
}

func TestACertificateIsRenewedForAnotherKeyOfTheSameHost(t *testing.T) {
	b := newBench(t)
	n := b.join(hostA)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Whom it asks for makes no difference.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: hostB}, URIs: []*url.URL{{Scheme: "handrail", Host: "node", Path: "/" + hostB}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	renew := func(csr []byte) (a wire.RenewAnswer) {
		ask, _ := json.Marshal(wire.RenewAsk{V: 1, CSR: csr})
		if err := json.Unmarshal(n.ask(t, wire.UpRenew, ask), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := renew(csr)
	if a.Error != "" {
		t.Fatal(a.Error)
	}
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if host, err := keyring.NodeOf(cert); err != nil || host != hostA || !key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("it is for %s: %v", host, err)
	}
	b.until(NodeRenewed, cert.SerialNumber.Text(16))
	if _, err := b.dial(&tls.Certificate{Certificate: [][]byte{a.Certificate}, PrivateKey: key}, hostA); err != nil {
		t.Error(err)
	}
	n = b.join(hostA)
	if a := renew([]byte("none")); a.Error == "" || a.Certificate != nil {
		t.Errorf("%+v", a)
	}
	b.until(NodeAlarmed, `"rule":"renew"`)
	b.removed.Store(true)
	if a := renew(csr); a.Error == "" || a.Certificate != nil {
		t.Errorf("a removed host got %+v", a)
	}
	if n := len(b.entries(NodeRenewed)); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// A node of an older release shares its connection in another way. It is told
// so in words that it logs, and nothing of what it would say is guessed at.
func TestANodeOfAnOlderReleaseIsToldWhyItIsRefused(t *testing.T) {
	b := newBench(t)
	cert := certify(t, b.ring, hostA)
	if _, err := b.dialAs(wire.PastALPN, &cert, hostA); err == nil || !strings.Contains(err.Error(), "older than the server") {
		t.Errorf("it is told: %v", err)
	}
	if n := b.fleet.Node(hostA); !strings.Contains(n.Refused, "older than the server") || b.changed.Load() == 0 {
		t.Errorf("whoever asks for the host is told %+v, %d changes", n, b.changed.Load())
	}
	if _, err := b.dial(&cert, hostA); err != nil {
		t.Errorf("once upgraded: %v", err)
	}
	if n := b.fleet.Node(hostA); n.Refused != "" {
		t.Errorf("once upgraded: %+v", n)
	}
}
