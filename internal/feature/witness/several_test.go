package witness

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// beside runs the circle of another server over the same ledger.
func (i *installation) beside(leads *atomic.Bool) *Circle {
	i.t.Helper()
	c := New(Deps{Store: i.store, Bounds: quick, Leads: leads.Load})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	i.t.Cleanup(func() { cancel(); <-done })
	return c
}

func TestOfSeveralServersOneTellsThatAWitnessIsMissing(t *testing.T) {
	r := newRing(t)
	var first, second atomic.Bool
	first.Store(true)
	i := install(t, r, Bounds{Every: time.Hour}) // its own circle stands still
	i.circle = i.beside(&first)
	other := i.beside(&second)
	dir := filepath.Join(t.TempDir(), "w1")
	w, kill := outside(t, dir, r)
	i.policy(0, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1))
	i.grow(3)
	for _, c := range []*Circle{i.circle, other} { // whoever waits is answered, at either server
		if _, _, err := c.Cosigned(t.Context(), i.store.Size()); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	i.grow(3)
	for _, c := range []*Circle{i.circle, other} {
		i.until("that it is missing, at both servers", func() bool {
			states, _, _ := c.List()
			return !states[0].Missing.IsZero()
		})
	}
	first.Store(false)
	second.Store(true)
	i.grow(3)
	i.until("the other server to have asked and failed", func() bool {
		states, _, _ := other.List()
		return other.Tail().Late && states[0].Why != ""
	})
	again, _ := process(t, dir)
	w.URL = again
	i.policy(1, ledger.SimplePolicy(nil, []ledger.PolicyWitness{w}, 1))
	i.until("an entry that it is back", func() bool { return len(i.entries(ActionReturned)) > 0 })
	first.Store(true) // whoever led before has not noticed yet
	i.until("both to know", func() bool { return !i.circle.Tail().Late && !other.Tail().Late })
	if missing, back := len(i.entries(ActionMissing)), len(i.entries(ActionReturned)); missing != 1 || back != 1 {
		t.Errorf("%d entries that it is missing, %d that it is back", missing, back)
	}
}
