package warden

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// wantQuiet wants a refusal that says why and raises no alarm.
func wantQuiet(t *testing.T, err error, rule string) {
	t.Helper()
	var r *refusal
	if !errors.As(err, &r) || r.rule != rule || fault.From(err).Text == "" {
		t.Fatalf("got %v, want a refusal by rule %q", err, rule)
	}
	if !r.quiet {
		t.Fatalf("%q raises an alarm, and an honest server met it", err)
	}
}

// lock raises the epoch of ada as a brake does.
func (n *node) lock(t *testing.T, l *liar, id string, epoch int64) {
	t.Helper()
	signed, err := wire.SignBrake(wire.Brake{V: 1, ID: id, Kind: wire.BrakeLockPerson, Node: wire.EveryNode, Person: "p-ada00001", Epoch: epoch, Issued: testTime + n.now.Microseconds()}, l.order)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.judge.brake(signed); err != nil {
		t.Fatal(err)
	}
}

func TestALockThatMeetsAnOrderOnItsWayIsNoAlarm(t *testing.T) {
	leased := func(change func(a *wire.LeaseAnswer)) func(*testing.T, *liar, *node) {
		return func(t *testing.T, l *liar, n *node) {
			if err := n.renew(l, change); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, raise := range map[string]func(*testing.T, *liar, *node){
		"a brake":                func(t *testing.T, l *liar, n *node) { n.lock(t, l, "b-00000001", 2) },
		"a lease":                leased(func(a *wire.LeaseAnswer) { a.PersonEpochs = map[string]int64{"p-ada00001": 2} }),
		"the lock of another":    leased(func(a *wire.LeaseAnswer) { a.LockEpoch = 1 }),
		"a policy":               leased(func(a *wire.LeaseAnswer) { a.PolicyEpoch = 1 }),
		"a lock, and its policy": leased(func(a *wire.LeaseAnswer) { a.LockEpoch, a.PolicyEpoch = 1, 1 }),
	} {
		t.Run(name, func(t *testing.T) {
			l, n := ready(t, hostPolicy{})
			arrives := func(p wire.OrderPayload) error {
				_, err := n.order(l.envelope(n.judge, l.sign(l.entry(p, nil))))
				return err
			}
			made := l.payload(2 * time.Second)
			n.now = 3 * time.Second
			raise(t, l, n)
			n.now = 4 * time.Second
			wantQuiet(t, arrives(made), RuleEpoch)
			wantRule(t, arrives(l.payload(3*time.Second)), RuleEpoch) // it was made when the epoch stood higher
			n.now = 3*time.Second + leaseFresh
			if err := n.renew(l, nil); err != nil {
				t.Fatal(err)
			}
			wantQuiet(t, arrives(made), RuleEpoch)
			n.now += time.Millisecond
			wantRule(t, arrives(made), RuleEpoch) // nothing honest is on its way for so long
		})
	}
}

func TestALaterLockHidesNoOrderThatAnEarlierOneHadOvertaken(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	n.now = 2 * time.Second
	n.lock(t, l, "b-00000001", 2)
	n.now = 3 * time.Second
	stale := l.payload(n.now)
	met := l.payload(n.now)
	met.Epochs.Person["p-ada00001"] = 2
	n.now = 4 * time.Second
	n.lock(t, l, "b-00000002", 3)
	n.now = 5 * time.Second
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(stale, nil))))
	wantRule(t, err, RuleEpoch)
	_, err = n.order(l.envelope(n.judge, l.sign(l.entry(met, nil))))
	wantQuiet(t, err, RuleEpoch)
}

func TestOneStaleEpochIsAnAlarmBesideOneThatWasMet(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	n.lock(t, l, "b-00000001", 2)
	n.now = time.Second
	p := l.payload(n.now)
	n.now = 2 * time.Second
	if err := n.renew(l, func(a *wire.LeaseAnswer) { a.LockEpoch = 1 }); err != nil {
		t.Fatal(err)
	}
	n.now = 3 * time.Second
	_, err := n.order(l.envelope(n.judge, l.sign(l.entry(p, nil))))
	wantRule(t, err, RuleEpoch)
	nameless := l.payload(time.Second)
	nameless.Epochs.Person = nil
	_, err = n.order(l.envelope(n.judge, l.sign(l.entry(nameless, nil))))
	wantRule(t, err, RuleEpoch)
}

func TestRisesAreNotKeptForEver(t *testing.T) {
	l, n := ready(t, hostPolicy{})
	for i := range int64(3 * maxRises) {
		n.lock(t, l, fmt.Sprintf("b-%08d", i), 2+i)
	}
	if got := len(n.rises["p-ada00001"]); got != maxRises {
		t.Errorf("%d rises are remembered", got)
	}
	n.now += leaseFresh + time.Second
	if err := n.renew(l, nil); err != nil {
		t.Fatal(err)
	}
	if len(n.rises) != 0 {
		t.Errorf("%v is remembered when it counts no more", n.rises)
	}
}

func TestAWardenAlarmsTheStaleOrderAndNotTheOneThatALockMet(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	s, _ := b.open(execSpec(daemonise))
	s.sees("ready")
	met := b.payload(b.serverNow() - 3*time.Second)
	b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 2})
	if e := s.ends(); e.Why != keeper.WhyLocked {
		t.Fatalf("%+v", e)
	}
	order := b.sign(b.entry(met, nil))
	_, _, err := b.c.Order(b.t.Context(), wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, int64(len(b.leaves)))}.Marshal())
	if f := fault.From(err); err == nil || f.Rule != RuleEpoch {
		t.Fatalf("the order that a lock met: %v", err)
	}
	b.last = int64(len(b.leaves))
	if _, _, err := b.tryOpen(nil); err == nil {
		t.Fatal("a locked person's next order is accepted")
	}
	if e := b.event(wire.EventAlarm); e.Rule != RuleEpoch || e.Order == met.Order {
		t.Fatalf("%+v", e)
	}
}
