package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	testOrigin = "handrail.test/ledger"
	testNode   = "h-00000001"
	testTime   = int64(1_800_000_000_000_000) // µs: the server's clock when the boot clock is 0
)

// liar is a server in memory, with real keys and a real tree, that can be told
// to lie.
type liar struct {
	t         testing.TB
	root, log note.Signer
	rootV     string
	order     ed25519.PrivateKey
	bundle    ledger.Bundle
	hashes    []tlog.Hash // stored hashes of the tree
	leaves    [][]byte
	issued    int
}

func newLiar(t testing.TB) *liar {
	t.Helper()
	key := func(name string) (note.Signer, string) {
		s, v, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := note.NewSigner(s)
		if err != nil {
			t.Fatal(err)
		}
		return signer, v
	}
	l := &liar{t: t}
	var logV string
	l.root, l.rootV = key("root.test")
	l.log, logV = key(testOrigin)
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.order = priv
	l.bundle = ledger.Bundle{RootKey: l.rootV, Version: 1, Origin: testOrigin, LogKey: logV, OrderKey: pub}
	return l
}

func (l *liar) signedBundle() []byte {
	b, err := ledger.SignBundle(l.bundle, l.root)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

func (l *liar) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = l.hashes[x]
	}
	return out, nil
}

func (l *liar) append(leaf []byte) int64 {
	n := int64(len(l.leaves))
	hs, err := tlog.StoredHashes(n, leaf, l)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hashes = append(l.hashes, hs...)
	l.leaves = append(l.leaves, leaf)
	return n
}

func (l *liar) tree(n int64) tlog.Tree {
	h, err := tlog.TreeHash(n, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return tlog.Tree{N: n, Hash: h}
}

func (l *liar) checkpoint(n int64) []byte {
	c, err := ledger.SignCheckpoint(testOrigin, l.tree(n), l.log)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *liar) consistency(old, size int64) []tlog.Hash {
	if old == 0 || old == size {
		return nil
	}
	p, err := tlog.ProveTree(size, old, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// payload is an honest order for a read-only shell.
func (l *liar) payload(now time.Duration) wire.OrderPayload {
	l.issued++
	return wire.OrderPayload{
		V: 1, Order: fmt.Sprintf("o-%08d", l.issued), Kind: wire.KindSessionStart, Node: testNode,
		Issued: testTime + now.Microseconds(), ValidMS: 60_000,
		Epochs: wire.Epochs{Person: map[string]int64{"p-ada00001": 1}},
		Session: &wire.SessionSpec{ID: fmt.Sprintf("s-%08d", l.issued), Person: "p-ada00001", PersonName: "ada",
			Level: wire.LevelRead, Kind: wire.SessionShell, RemainingMS: 60_000, HostName: "web-1", Environment: "production"},
	}
}

// entry records a payload and returns its proof at the tree that it made.
func (l *liar) entry(p wire.OrderPayload, change func(*ledger.Leaf)) ledger.Proof {
	body, err := json.Marshal(p)
	if err != nil {
		l.t.Fatal(err)
	}
	salt := make([]byte, 32)
	leaf := ledger.Leaf{V: ledger.LeafVersion, Time: p.Issued, Action: "session.opened", Subjects: []string{"p-ada00001"},
		Session: p.SessionID(), Target: "host/" + p.Node, Outcome: ledger.OK, Commit: ledger.Commit(salt, body)}
	if change != nil {
		change(&leaf)
	}
	raw := leaf.Marshal()
	n := l.append(raw)
	return l.proof(n, salt, body)
}

func (l *liar) proof(n int64, salt, body []byte) ledger.Proof {
	size := int64(len(l.leaves))
	inc, err := tlog.ProveRecord(size, n, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return ledger.Proof{Index: n, Leaf: l.leaves[n], Salt: salt, Payload: body, Inclusion: inc, Checkpoint: l.checkpoint(size)}
}

func (l *liar) sign(p ledger.Proof) []byte {
	b, err := wire.BuildOrder(p, l.order)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// envelope adds the consistency proof from what the node knows.
func (l *liar) envelope(j *judge, order []byte) wire.Envelope {
	from := j.size()
	return wire.Envelope{Order: order, From: from, Consistency: l.consistency(from, int64(len(l.leaves)))}
}

// node is a judge on a clock that the test moves.
type node struct {
	*judge
	now time.Duration
}

func newNode(t testing.TB, l *liar, policy hostPolicy) *node {
	t.Helper()
	n := &node{}
	j, err := newJudge(pinFile{V: 1, Node: testNode, RootHash: ledger.RootHash(l.rootV), Bundle: l.signedBundle()}, policy,
		func() time.Duration { return n.now })
	if err != nil {
		t.Fatal(err)
	}
	n.judge = j
	return n
}

// renew gives the node a lease at its present time.
func (n *node) renew(l *liar, change func(*wire.LeaseAnswer)) error {
	b, err := n.ask()
	if err != nil {
		return err
	}
	ask, err := wire.ParseLeaseAsk(b)
	if err != nil {
		return err
	}
	size := int64(len(l.leaves))
	a := wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: testTime + n.now.Microseconds(), Checkpoint: l.checkpoint(size),
		Consistency: wire.HashList(l.consistency(ask.Size, size))}
	if change != nil {
		change(&a)
	}
	signed, err := wire.SignLease(a, l.order)
	if err != nil {
		return err
	}
	_, err = n.answer(ask.Nonce, signed, 0, nil)
	return err
}

// ready is a server with some history and a node with a fresh lease.
func ready(t testing.TB, policy hostPolicy) (*liar, *node) {
	t.Helper()
	l := newLiar(t)
	for i := range 5 {
		l.entry(wire.OrderPayload{Issued: int64(i + 1), Node: testNode, Session: &wire.SessionSpec{ID: "s-0"}}, nil)
	}
	n := newNode(t, l, policy)
	if err := n.renew(l, nil); err != nil {
		t.Fatal(err)
	}
	return l, n
}

func wantRule(t *testing.T, err error, rule string) {
	t.Helper()
	var r *refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal by rule %q", err, rule)
	}
	if r.rule != rule {
		t.Fatalf("refused by rule %q (%v), want %q", r.rule, err, rule)
	}
	if fault.From(err).Text == "" || r.quiet {
		t.Fatalf("the refusal %q says nothing or raises no alarm", err)
	}
}
