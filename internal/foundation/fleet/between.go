package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Servers ask each other over their routed buses and, where there is one, over
// a NATS that somebody else runs. Every message is signed and fresh, each is
// answered once whichever way it came, and so what carries them can lose and
// delay them, and nothing else. Nothing that must not be lost goes this way:
// that is in the ledger, which all servers follow.

// Outside is a NATS cluster of somebody else's, attached by servers alone.
type Outside struct {
	URLs        []string
	Credentials []byte // a NATS credentials file; empty: none
	CA          []byte // PEM; empty: the system's
}

const (
	// askLate is how long an ask waits for the buses before it takes a connection
	// of its own, which finds a way through a third server too.
	askLate = 500 * time.Millisecond
	// askFresh is how old an ask may be: clocks of servers may differ by less.
	askFresh = time.Minute
	// maxSeen bounds the asks that are remembered, so that none acts twice.
	maxSeen = 16 << 10
	// maxAnswering bounds the asks that are answered at once.
	maxAnswering = 64
)

// between is the servers' common talk.
type between struct {
	f     *Fleet
	slots chan struct{}

	mu      sync.Mutex
	ways    []*nats.Conn
	waiting map[string]chan []byte // by nonce
	seen    map[string]time.Time   // by nonce
}

// prefix is the root of all subjects between servers of this installation.
func (f *Fleet) prefix() string {
	sum := sha256.Sum256([]byte(f.d.Ring.RootHash()))
	return "handrail." + hex.EncodeToString(sum[:6])
}

func (f *Fleet) askSubject(server string) string { return f.prefix() + ".server." + server + ".ask" }
func (f *Fleet) answerSubject(server string) string {
	return f.prefix() + ".server." + server + ".answer"
}

func newBetween(f *Fleet) *between {
	return &between{f: f, slots: make(chan struct{}, maxAnswering), waiting: map[string]chan []byte{}, seen: map[string]time.Time{}}
}

// join adds a way.
func (b *between) join(ctx context.Context, c *nats.Conn) error {
	self := b.f.d.Cluster.ID
	_, err := c.Subscribe(b.f.askSubject(self), func(m *nats.Msg) { b.heard(ctx, m.Data) })
	if err == nil {
		_, err = c.Subscribe(b.f.answerSubject(self), func(m *nats.Msg) { b.answered(m.Data) })
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot listen for other servers")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ways = append(b.ways, c)
	return nil
}

// attach connects to a NATS of somebody else's, for as long as ctx lasts. One
// that is away is tried again and again; nothing waits for it.
func (b *between) attach(ctx context.Context, o Outside) error {
	if len(o.URLs) == 0 {
		return nil
	}
	options := []nats.Option{
		nats.Name("handrail server " + b.f.d.Cluster.ID), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Second), nats.ReconnectJitter(time.Second, time.Second), nats.ReconnectBufSize(-1), nats.PingInterval(10 * time.Second),
	}
	if len(o.Credentials) > 0 {
		options = append(options, nats.UserCredentialBytes(o.Credentials))
	}
	if len(o.CA) > 0 {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(o.CA) {
			return fault.New(fault.Invalid, "cannot attach the NATS cluster: its authority is no PEM certificate")
		}
		options = append(options, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}))
	}
	c, err := nats.Connect(strings.Join(o.URLs, ","), options...)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot attach the NATS cluster")
	}
	context.AfterFunc(ctx, c.Close)
	return b.join(ctx, c)
}

func (b *between) say(subject string, data []byte) {
	b.mu.Lock()
	ways := b.ways
	b.mu.Unlock()
	for _, c := range ways {
		_ = c.Publish(subject, data) // a way that is down loses it, which is allowed
	}
}

func (b *between) keys() []ed25519.PublicKey { return b.f.d.Ring.OrderKeys() }

// Ask asks one other server and waits for its answer, or until ctx ends.
func (f *Fleet) Ask(ctx context.Context, server, what string, body []byte) ([]byte, error) {
	if f.between == nil {
		return nil, fault.New(fault.Unavailable, "cannot ask server %s: this one is alone", server)
	}
	b := f.between
	ask := wire.PeerAsk{V: 1, Nonce: make([]byte, wire.NonceSize), From: f.d.Cluster.ID, To: server, Issued: time.Now().UnixMicro(), What: what, Body: body}
	_, _ = rand.Read(ask.Nonce) // never fails
	signed, err := wire.SignPeerAsk(ask, f.d.Ring.Order())
	if err != nil {
		return nil, err
	}
	heard := make(chan []byte, 4) // one for each way
	b.mu.Lock()
	b.waiting[string(ask.Nonce)] = heard
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.waiting, string(ask.Nonce))
		b.mu.Unlock()
	}()
	b.say(f.askSubject(server), signed)
	late := time.NewTimer(askLate)
	defer late.Stop()
	for {
		select {
		case <-late.C:
			go b.askBy(ctx, server, signed, heard)
		case raw := <-heard:
			a, err := wire.ByAny(b.keys(), func(k ed25519.PublicKey) (wire.PeerAnswer, error) { return wire.OpenPeerAnswer(raw, k, ask) })
			if err != nil {
				continue // somebody else's: wait for the right one
			}
			if a.Error != "" {
				return nil, &fault.Error{Kind: fault.ParseKind(a.Kind), Text: a.Error}
			}
			return a.Body, nil
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "cannot ask server %s: it does not answer", server).WithHint("handrail servers")
		}
	}
}

// AskAll asks every other server that lives, at once. Who is missing from the
// answers is counted by the caller.
func (f *Fleet) AskAll(ctx context.Context, what string, body []byte) map[string][]byte {
	var mu sync.Mutex
	var group sync.WaitGroup
	out := map[string][]byte{}
	for _, id := range f.alivePeers() {
		group.Go(func() {
			answer, err := f.Ask(ctx, id, what, body)
			if err != nil {
				f.d.Log.Warn("a server was asked and did not do it", "server", id, "what", what, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = answer
		})
	}
	group.Wait()
	return out
}

// answered hands an answer to whoever waits for it. The nonce is in the signed
// part; who waits checks it.
func (b *between) answered(raw []byte) {
	nonce, ok := wire.PeekPeerNonce(raw)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if ch := b.waiting[nonce]; ch != nil {
		select {
		case ch <- raw:
		default:
		}
	}
}

// heard answers an ask of another server, once.
func (b *between) heard(ctx context.Context, raw []byte) {
	b.take(ctx, raw, func(ask wire.PeerAsk, signed []byte) { b.say(b.f.answerSubject(ask.From), signed) })
}

// take does what an ask wants, once, and says it by reply. It does not where
// the ask is refused, was heard before, or where too many are.
func (b *between) take(ctx context.Context, raw []byte, reply func(ask wire.PeerAsk, signed []byte)) (taken bool) {
	ask, err := wire.ByAny(b.keys(), func(k ed25519.PublicKey) (wire.PeerAsk, error) { return wire.OpenPeerAsk(raw, k) })
	if err != nil || ask.To != b.f.d.Cluster.ID {
		b.f.d.Log.Warn("a message between servers was refused", "error", err)
		return false
	}
	if _, ok := b.f.peer(ask.From); !ok || !b.first(ask, time.Now()) {
		return false
	}
	select {
	case b.slots <- struct{}{}:
	default:
		return false // overwhelmed: it asks again, or follows the ledger
	}
	go func() {
		defer func() { <-b.slots }()
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		answer := wire.PeerAnswer{V: 1, Nonce: ask.Nonce, From: b.f.d.Cluster.ID}
		body, err := b.f.answer(ctx, ask)
		if answer.Body = body; err != nil {
			f := fault.From(err)
			answer.Kind, answer.Error = f.Kind.String(), f.Text
		}
		signed, err := wire.SignPeerAnswer(answer, b.f.d.Ring.Order())
		if err != nil {
			b.f.d.Log.Error("an answer to a server could not be signed", "error", err)
			return
		}
		reply(ask, signed)
	}()
	return true
}

// first says that an ask is fresh and was not heard before: a way that repeats
// what it once carried has no effect.
func (b *between) first(ask wire.PeerAsk, now time.Time) bool {
	age := now.Sub(time.UnixMicro(ask.Issued))
	if age > askFresh || age < -askFresh {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, again := b.seen[string(ask.Nonce)]; again {
		return false
	}
	if len(b.seen) >= maxSeen {
		for nonce, at := range b.seen {
			if now.Sub(at) > 2*askFresh {
				delete(b.seen, nonce)
			}
		}
		if len(b.seen) >= maxSeen {
			return false
		}
	}
	b.seen[string(ask.Nonce)] = now
	return true
}
