package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// rotated gives the installation another log and order key; the old ones count
// until then.
func (l *liar) rotated(until time.Time) (oldLog note.Signer, oldOrder ed25519.PrivateKey) {
	l.t.Helper()
	oldLog, oldOrder = l.log, l.order
	l.bundle.Version++
	l.bundle.Former = append(l.bundle.Former,
		ledger.Former{Kind: ledger.KeyLog, Until: until.Unix(), Key: l.bundle.LogKey},
		ledger.Former{Kind: ledger.KeyOrder, Until: until.Unix(), Key: base64.StdEncoding.EncodeToString(l.bundle.OrderKey)})
	skey, vkey, err := note.GenerateKey(rand.Reader, testOrigin)
	if err != nil {
		l.t.Fatal(err)
	}
	if l.log, err = note.NewSigner(skey); err != nil {
		l.t.Fatal(err)
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	l.order, l.bundle.LogKey, l.bundle.OrderKey = priv, vkey, pub
	return oldLog, oldOrder
}

func TestOldKeysCountUntilTheirEndAndNoLonger(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	wall := time.UnixMicro(testTime)
	n.alone.wall = func() time.Time { return wall }
	oldLog, oldOrder := l.rotated(wall.Add(time.Hour))
	newLog, newOrder := l.log, l.order
	if err := n.renew(l, func(a *wire.LeaseAnswer) { a.Bundle = l.signedBundle() }); err != nil {
		t.Fatal(err)
	}
	// A server that has not handed over yet signs by the old keys.
	l.log, l.order = oldLog, oldOrder
	if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil)))); err != nil {
		t.Errorf("an order by the old keys is refused before their end: %v", err)
	}
	l.log, l.order = newLog, newOrder
	if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil)))); err != nil {
		t.Errorf("an order by the new keys is refused: %v", err)
	}
	wall = wall.Add(2 * time.Hour)
	l.order = oldOrder
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil))))
	wantRule(t, err, RuleSignature)
	wantRule(t, n.renew(l, nil), RuleSignature)
	signed, err := wire.SignBrake(wire.Brake{V: 1, ID: "b-1", Node: wire.EveryNode, Kind: wire.BrakeFreeze, Issued: wall.UnixMicro()}, oldOrder)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = n.brake(signed)
	wantRule(t, err, RuleSignature)
	l.log, l.order = oldLog, newOrder
	_, err = n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil))))
	wantRule(t, err, RuleProof)
	// The clock of the host is set back: what the last lease said holds.
	l.log = newLog
	n.now += time.Second
	if err := n.renew(l, func(a *wire.LeaseAnswer) { a.ServerTime = wall.UnixMicro() }); err != nil {
		t.Fatal(err)
	}
	wall = wall.Add(-2 * time.Hour)
	l.order = oldOrder
	wantRule(t, n.renew(l, nil), RuleSignature)
}

func TestANodeThatWasAwayDuringTwoRotationsComesBack(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	before := n.snapshot()
	first := l.signedBundle()
	l.rotated(time.Now().Add(time.Hour))
	second := l.signedBundle()
	l.rotated(time.Now().Add(time.Hour))
	// It starts anew, from what it kept: a checkpoint by the first of three keys.
	j, err := newJudge(before, hostPolicy{}, n.boot)
	if err != nil {
		t.Fatal(err)
	}
	again := &node{judge: j}
	if err := again.renew(l, func(a *wire.LeaseAnswer) { a.Bundle = l.signedBundle() }); err != nil {
		t.Fatalf("a node that was away is not taken back: %v", err)
	}
	if _, err := j.order(l.envelope(j, l.sign(l.entry(l.payload(0), nil)))); err != nil {
		t.Error(err)
	}
	// Kept under the third bundle, its checkpoint still opens at the next start.
	if _, err := newJudge(j.snapshot(), hostPolicy{}, n.boot); err != nil {
		t.Errorf("what it kept cannot be opened after the rotation: %v", err)
	}
	for what, old := range map[string][]byte{"first": first, "second": second} {
		if err := j.trust(old); err == nil {
			t.Errorf("the %s bundle was taken again", what)
		}
	}
}
