package warden

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/sandbox"
)

func TestAnHonestOrderIsAcceptedOnce(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	n.now = 4 * time.Second
	order := l.sign(l.entry(l.payload(n.now-time.Second), nil))
	a, err := n.order(l.envelope(n.judge, order))
	if err != nil {
		t.Fatal(err)
	}
	if want := n.now + 59*time.Second; a.deadline != want {
		t.Fatalf("the session ends at %s, want %s: the order's age counts", a.deadline, want)
	}
	_, err = n.order(wire.Envelope{Order: order})
	wantRule(t, err, RuleReplay)
}

func TestAServerThatLiesIsRefused(t *testing.T) {
	type lie func(l *liar, n *node) wire.Envelope
	plain := func(change func(*wire.OrderPayload), leaf func(*ledger.Leaf)) lie {
		return func(l *liar, n *node) wire.Envelope {
			p := l.payload(n.now)
			if change != nil {
				change(&p)
			}
			return l.envelope(n.judge, l.sign(l.entry(p, leaf)))
		}
	}
	forged := func(l *liar, n *node) wire.Envelope {
		e := plain(nil, nil)(l, n)
		_, other, _ := ed25519.GenerateKey(rand.Reader)
		o, _ := wire.ParseOrder(e.Order)
		e.Order, _ = wire.BuildOrder(o.Proof(), other)
		return e
	}
	changed := func(l *liar, n *node) wire.Envelope {
		p := l.payload(n.now)
		proof := l.entry(p, nil)
		p.Session.Level, p.Session.Account, p.Session.Root = wire.LevelWrite, "root", true
		proof.Payload, _ = json.Marshal(p)
		return l.envelope(n.judge, l.sign(proof))
	}
	unproven := func(l *liar, n *node) wire.Envelope {
		p := l.payload(n.now)
		body, _ := json.Marshal(p)
		proof := l.entry(l.payload(n.now), nil)
		leaf, _ := ledger.ParseLeaf(proof.Leaf)
		leaf.Commit, leaf.Session = ledger.Commit(proof.Salt, body), p.Session.ID
		proof.Leaf, proof.Payload = leaf.Marshal(), body
		return l.envelope(n.judge, l.sign(proof))
	}
	otherLog := func(l *liar, n *node) wire.Envelope {
		e := plain(nil, nil)(l, n)
		o, _ := wire.ParseOrder(e.Order)
		s, _, _ := note.GenerateKey(rand.Reader, testOrigin)
		signer, _ := note.NewSigner(s)
		proof := o.Proof()
		proof.Checkpoint, _ = ledger.SignCheckpoint(testOrigin, l.tree(int64(len(l.leaves))), signer)
		e.Order = l.sign(proof)
		return e
	}
	fork := func(grow int) lie {
		return func(l *liar, n *node) wire.Envelope {
			// The same keys, another history: it forgets everything and starts over.
			f := *l
			f.hashes, f.leaves = nil, nil
			for i := range grow {
				f.entry(wire.OrderPayload{Issued: int64(i + 100), Node: testNode, Session: &wire.SessionSpec{ID: "s-1"}}, nil)
			}
			order := f.sign(f.entry(f.payload(n.now), nil))
			size, last := int64(len(f.leaves)), n.size()
			return wire.Envelope{Order: order, From: last, Consistency: f.consistency(min(size, last), max(size, int64(len(f.leaves))))}
		}
	}
	cases := []struct {
		name string
		rule string
		lie  lie
	}{
		{"forged: another key signed it", RuleSignature, forged},
		{"the payload was changed after it was recorded", RuleProof, changed},
		{"unproven: the entry is not in the tree", RuleProof, unproven},
		{"the checkpoint is signed by another log", RuleProof, otherLog},
		{"reordered: a shorter history than was seen", RuleFork, fork(1)},
		{"forked: a history of the same length", RuleFork, fork(4)},
		{"forked: a longer history", RuleFork, fork(40)},
		{"misdirected: the payload names another host", RuleNode, plain(func(p *wire.OrderPayload) { p.Node = "h-00000002" }, nil)},
		{"misdirected: the entry is about another host", RuleNode, plain(nil, func(l *ledger.Leaf) { l.Target = "host/h-00000002" })},
		{"the entry is about another session", RuleNode, plain(nil, func(l *ledger.Leaf) { l.Session = "s-99999999" })},
		{"older than it was valid for", RuleAge, plain(func(p *wire.OrderPayload) { p.Issued -= 61_000_000 }, nil)},
		{"from the future", RuleAge, plain(func(p *wire.OrderPayload) { p.Issued += 30_000_000 }, nil)},
		{"issued before this warden's first lease", RuleReplay, plain(func(p *wire.OrderPayload) { p.Issued = testTime - 20_000_000 }, nil)},
		{"the person was locked since", RuleEpoch, plain(func(p *wire.OrderPayload) { p.Epochs.Person["p-ada00001"] = 0 }, nil)},
		{"it does not name the person's epoch", RuleEpoch, plain(func(p *wire.OrderPayload) { p.Epochs.Person = nil }, nil)},
		{"the lock epoch is overtaken", RuleEpoch, plain(func(p *wire.OrderPayload) { p.Epochs.Lock = -1 }, nil)},
		{"it needs what this node does not know", RuleFeature, plain(func(p *wire.OrderPayload) { p.Need = []string{"teleport"} }, nil)},
		{"it would be valid for too long", RuleForm, plain(func(p *wire.OrderPayload) { p.ValidMS = 3_600_000 }, nil)},
		{"its kind is not known", RuleForm, plain(func(p *wire.OrderPayload) { p.Kind = "host.format" }, nil)},
		{"a read session with an account", RuleForm, plain(func(p *wire.OrderPayload) { p.Session.Account = "root" }, nil)},
		{"it is no order at all", RuleForm, func(*liar, *node) wire.Envelope { return wire.Envelope{Order: []byte("HRO1 please")} }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, n := ready(t, hostPolicy{})
			n.epochs.Person["p-ada00001"] = 1
			_, err := n.order(c.lie(l, n))
			wantRule(t, err, c.rule)
			// What is honest still passes afterwards.
			if err := n.renew(l, nil); err != nil {
				t.Fatalf("after the lie an honest lease fails: %v", err)
			}
			if _, err := n.order(plain(nil, nil)(l, n)); err != nil {
				t.Fatalf("after the lie an honest order fails: %v", err)
			}
		})
	}
}

// A program takes its time over a slow line, and a resident warden may have been
// told the same order before it was restarted.
func TestTheOrderThatBroughtAVisitorMayBeOlderThanIt(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	n.judge.visit = true
	p := l.payload(0)
	p.Issued = testTime - 20_000_000
	order := l.envelope(n.judge, l.sign(l.entry(p, nil)))
	if _, err := n.order(order); err != nil {
		t.Fatal(err)
	}
	_, err := n.order(order)
	wantRule(t, err, RuleReplay)
}

func TestUnknownFieldsInAnOrderAreRefused(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	p := l.payload(0)
	body, _ := json.Marshal(p)
	body = append([]byte(`{"only_on_sundays":true,`), body[1:]...)
	salt := make([]byte, 32)
	leaf := ledger.Leaf{V: ledger.LeafVersion, Time: p.Issued, Action: "session.opened", Subjects: []string{"p-ada00001"},
		Session: p.Session.ID, Target: "host/" + testNode, Outcome: ledger.OK, Commit: ledger.Commit(salt, body)}
	i := l.append(leaf.Marshal())
	_, err := n.order(l.envelope(n.judge, l.sign(l.proof(i, salt, body))))
	wantRule(t, err, RuleForm)
}

func TestAnOrderWithoutItsConsistencyProofAsksForIt(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	order := l.sign(l.entry(l.payload(0), nil))
	_, err := n.order(wire.Envelope{Order: order})
	var need *needProof
	if !errors.As(err, &need) || need.old != 5 || need.new != 6 {
		t.Fatalf("got %v, want to be asked for the proof from 5 to 6", err)
	}
	if _, err := n.order(wire.Envelope{Order: order, From: 5, Consistency: l.consistency(5, 6)}); err != nil {
		t.Fatal(err)
	}
}

func TestAnOrderOvertakenByALeaseIsStillOfTheSameLog(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	order := l.sign(l.entry(l.payload(0), nil)) // at 6
	l.entry(l.payload(0), nil)
	if err := n.renew(l, nil); err != nil { // at 7
		t.Fatal(err)
	}
	_, err := n.order(wire.Envelope{Order: order})
	var need *needProof
	if !errors.As(err, &need) || need.old != 6 || need.new != 7 {
		t.Fatalf("got %v, want to be asked for the proof from 6 to 7", err)
	}
	if _, err := n.order(wire.Envelope{Order: order, From: 7, Consistency: l.consistency(6, 7)}); err != nil {
		t.Fatal(err)
	}
	if n.size() != 7 {
		t.Fatalf("the node went back from 7 to %d", n.size())
	}
}

// Another order or a lease may come between the question for a proof and its
// answer. The proof is then of no use, but it is no fork.
func TestAProofThatWasOvertakenIsAskedForAnew(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	order := l.sign(l.entry(l.payload(0), nil)) // at 6
	_, err := n.order(wire.Envelope{Order: order})
	var asked *needProof
	if !errors.As(err, &asked) {
		t.Fatalf("got %v", err)
	}
	if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil)))); err != nil { // at 7
		t.Fatal(err)
	}
	need := (&warden{judge: n.judge}).failed(err, reply{}).Need
	_, err = n.order(wire.Envelope{Order: order, From: need.At, Consistency: l.consistency(need.Old, need.New)})
	if !errors.As(err, &asked) || asked.old != 6 || asked.new != 7 {
		t.Fatalf("got %v, want to be asked for the proof from 6 to 7", err)
	}
}

// Where many sessions start at once the last tree moves on all the time. A
// proof that an older tree is part of one that was known is as good.
func TestAnOlderTreeIsProvenAgainstAnyTreeThatIsKnown(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	order := l.sign(l.entry(l.payload(0), nil)) // at 6
	for range 3 {                               // at 7, 8, 9
		if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil)))); err != nil {
			t.Fatal(err)
		}
	}
	var asked *needProof
	if _, err := n.order(wire.Envelope{Order: order, From: 5, Consistency: l.consistency(5, 6)}); !errors.As(err, &asked) || asked.at != 9 {
		t.Fatalf("a tree that is newer than a known one proves nothing about the last: %v", err)
	}
	for from, proof := range map[int64][]tlog.Hash{8: l.consistency(6, 9), 7: nil} {
		_, err := n.order(wire.Envelope{Order: order, From: from, Consistency: proof})
		wantRule(t, err, RuleFork)
	}
	if _, err := n.order(wire.Envelope{Order: order, From: 8, Consistency: l.consistency(6, 8)}); err != nil {
		t.Fatal(err)
	}
	if n.size() != 9 {
		t.Errorf("the node went back from 9 to %d", n.size())
	}
}

func TestWithoutAFreshLeaseNothingStarts(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	n.now = leaseFresh + time.Millisecond
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(n.now), nil))))
	wantRule(t, err, RuleLease)
	if err := n.renew(l, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(n.now), nil)))); err != nil {
		t.Fatal(err)
	}
}

func TestBeforeTheFirstLeaseARefusalIsNoAlarm(t *testing.T) {
	l := newLiar(t)
	n := newNode(t, l, hostPolicy{})
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil))))
	var r *refusal
	if !errors.As(err, &r) || r.rule != RuleLease || !r.quiet {
		t.Fatal(err)
	}
}

func TestALeaseRunsFromWhenItWasAskedFor(t *testing.T) {
	l := newLiar(t)
	l.entry(l.payload(0), nil)
	n := newNode(t, l, hostPolicy{})
	b, _ := n.ask()
	ask, _ := wire.ParseLeaseAsk(b)
	a := wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: testTime, Checkpoint: l.checkpoint(1)}
	signed, _ := wire.SignLease(a, l.order)
	n.now = 9 * time.Second // held back on the way
	if _, err := n.answer(ask.Nonce, signed, 0, nil); err != nil {
		t.Fatal(err)
	}
	n.now = 11 * time.Second
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(n.now), nil))))
	wantRule(t, err, RuleLease)
	_, err = n.answer(ask.Nonce, signed, 0, nil)
	wantRule(t, err, RuleReplay)
}

func TestALeaseThatLiesIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, rule string
		change     func(*liar, *wire.LeaseAnswer)
	}{
		{"for another node", RuleSignature, func(_ *liar, a *wire.LeaseAnswer) { a.Node = "h-00000002" }},
		{"to another question", RuleSignature, func(_ *liar, a *wire.LeaseAnswer) { a.Nonce = make([]byte, wire.NonceSize) }},
		{"of a fork", RuleFork, func(l *liar, a *wire.LeaseAnswer) {
			f := *l
			f.hashes, f.leaves = nil, nil
			for range 9 {
				f.entry(f.payload(0), nil)
			}
			a.Checkpoint, a.Consistency = f.checkpoint(9), wire.HashList(f.consistency(5, 9))
		}},
		{"with a bundle of another root", RuleTrust, func(l *liar, a *wire.LeaseAnswer) {
			other := newLiar(l.t)
			other.bundle.Version = 9
			a.Bundle = other.signedBundle()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, n := ready(t, hostPolicy{})
			wantRule(t, n.renew(l, func(a *wire.LeaseAnswer) { c.change(l, a) }), c.rule)
		})
	}
}

func TestANewTrustBundleRotatesTheKeys(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	old := l.order
	pub, priv, _ := ed25519.GenerateKey(rand.Reader)
	l.order, l.bundle.OrderKey, l.bundle.Version = priv, pub, 2
	if err := n.renew(l, func(a *wire.LeaseAnswer) { a.Bundle = l.signedBundle() }); err != nil {
		t.Fatal(err)
	}
	proof := l.entry(l.payload(0), nil)
	forged, _ := wire.BuildOrder(proof, old)
	_, err := n.order(l.envelope(n.judge, forged))
	wantRule(t, err, RuleSignature)
	if _, err := n.order(l.envelope(n.judge, l.sign(proof))); err != nil {
		t.Fatal(err)
	}
}

func TestALockReachesLaterOrdersAndRunningSessions(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	signed, err := wire.SignBrake(wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeLockPerson, Node: wire.EveryNode, Person: "p-ada00001", Epoch: 2, Issued: testTime}, l.order)
	if err != nil {
		t.Fatal(err)
	}
	if _, fresh, err := n.brake(signed); err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	if !n.overtaken("p-ada00001", 1) {
		t.Fatal("a session of a locked person goes on")
	}
	_, err = n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil))))
	wantRule(t, err, RuleEpoch)
	if _, fresh, err := n.brake(signed); err != nil || fresh {
		t.Fatal("a brake that was seen counts as new", err)
	}
}

func TestABrakeNeedsTheOrderKeyAndThisNode(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	b := wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeFreeze, Node: "h-00000002", Issued: testTime}
	signed, _ := wire.SignBrake(b, l.order)
	_, _, err := n.brake(signed)
	wantRule(t, err, RuleNode)
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	b.Node = testNode
	signed, _ = wire.SignBrake(b, other)
	_, _, err = n.brake(signed)
	wantRule(t, err, RuleSignature)
}

func TestAFreezeLastsUntilALaterLeaseLiftsIt(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	signed, _ := wire.SignBrake(wire.Brake{V: 1, ID: "b-00000001", Kind: wire.BrakeFreeze, Node: wire.EveryNode, Issued: testTime}, l.order)
	if _, _, err := n.brake(signed); err != nil {
		t.Fatal(err)
	}
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(0), nil))))
	wantRule(t, err, RuleFrozen)
	n.now = time.Second
	if err := n.renew(l, func(a *wire.LeaseAnswer) { a.Off = true }); err != nil {
		t.Fatal(err)
	}
	_, err = n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(n.now), nil))))
	wantRule(t, err, RuleFrozen)
	n.now = 2 * time.Second
	if err := n.renew(l, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.order(l.envelope(n.judge, l.sign(l.entry(l.payload(n.now), nil)))); err != nil {
		t.Fatal(err)
	}
}

func TestAnEventReachesEveryoneWhoWaits(t *testing.T) {
	q := newEvents()
	got := make(chan *wire.Event, 2)
	for range 2 { // one of them waits for a link that is gone
		go func() { got <- q.next(t.Context(), "") }()
	}
	q.put(wire.Event{Kind: wire.EventAlarm})
	for range 2 {
		select {
		case e := <-got:
			if e == nil || e.Kind != wire.EventAlarm {
				t.Fatalf("%+v", e)
			}
		case <-time.After(time.Minute):
			t.Fatal("somebody still waits")
		}
	}
}

func TestAFullQueueOfEventsTellsOfItsGap(t *testing.T) {
	q := newEvents()
	for range maxEvents + 7 {
		q.put(wire.Event{Kind: wire.EventAlarm})
	}
	ack := ""
	for range 2 {
		ack = q.next(t.Context(), ack).ID
	}
	q.next(t.Context(), ack)
	q.put(wire.Event{Kind: wire.EventClock})
	var gap *wire.Event
	for e := q.next(t.Context(), ""); len(q.queue) > 0; e = q.next(t.Context(), e.ID) {
		if e.Kind == wire.EventGap {
			gap = e
		}
		if e.Kind == wire.EventClock {
			break
		}
	}
	if gap == nil || gap.Count != 7 {
		t.Fatalf("the gap is %+v", gap)
	}
}

func TestAClockThatJumpsIsReported(t *testing.T) {
	w := &warden{events: newEvents()}
	at := w.clock(time.Hour, time.Hour+time.Second)
	at = w.clock(at, at-3*time.Minute)
	w.clock(at, at)
	if len(w.events.queue) != 1 || w.events.queue[0].Kind != wire.EventClock || w.events.queue[0].Count != -180_000 {
		t.Fatalf("%+v", w.events.queue)
	}
}

func TestAHostWithoutShellsSaysWhichLayerIsMissing(t *testing.T) {
	w := &warden{run: &sessions{mode: sandbox.NoShells}, status: Status{Missing: []string{"no user namespaces"}}}
	_, _, err := w.carryOut(t.Context(), accepted{OrderPayload: wire.OrderPayload{Kind: wire.KindSessionStart, Session: &wire.SessionSpec{ID: "s-1"}}})
	f := fault.From(err)
	if f.Kind != fault.Unavailable || !strings.Contains(f.Text, "no user namespaces") || !strings.Contains(f.Hint, "handrail doctor") {
		t.Fatalf("%v (%s)", err, f.Hint)
	}
}
