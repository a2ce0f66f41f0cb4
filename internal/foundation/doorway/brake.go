package doorway

import (
	"context"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// brakeWithin is how long a brake waits for its entry: whoever pulls one must
// not wait for a database that is away or that somebody holds.
const brakeWithin = 2 * time.Second

// Brake records an act that only takes power away and that has acted already.
// pending says that the database did not answer: the caller then keeps the act
// in the spool, and must not look at what Open would have written. An error is a
// refusal. A database that answers in the same moment as the patience ends may
// record the act twice, so it must be harmless twice.
func (d *Door) Brake(ctx context.Context, act Act) (pending bool, err error) {
	var left atomic.Bool
	open := act.Open
	act.Open = func(tx *store.Tx, decision policy.Decision) ([]ledger.Entry, error) {
		if left.Load() {
			return nil, fault.New(fault.Conflict, "cannot %s here: the spool records it", Verb(act.Action))
		}
		return open(tx, decision)
	}
	done := make(chan error, 1)
	go func() {
		_, err := d.Do(context.WithoutCancel(ctx), act, nil)
		done <- err
	}()
	select {
	case err := <-done:
		switch fault.KindOf(err) {
		case fault.Unavailable, fault.Exhausted, fault.Internal:
			return err != nil, nil
		}
		return false, err
	case <-time.After(brakeWithin):
		left.Store(true)
		return true, nil
	}
}
