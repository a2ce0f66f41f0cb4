package approval

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// WithdrawTx ends a request that nobody needs any more. It only takes away, so
// it is no error when the request has ended already.
func (s *Approvals) WithdrawTx(tx *store.Tx, by, id, reason string) ([]ledger.Entry, error) {
	a, err := s.GetTx(tx, id)
	if err != nil {
		return nil, err
	}
	if a.State != Requested {
		return nil, nil
	}
	if a, err = Step(a, Event{To: Withdrawn, By: Voter{Person: by}, Reason: reason}, tx.Now()); err != nil {
		return nil, err
	}
	_, entries, err := s.settleTx(tx, a, ActionWithdrawn, by)
	return entries, err
}

// WithdrawAllTx ends every open request of a person: nothing is agreed to for
// somebody who was locked.
func (s *Approvals) WithdrawAllTx(tx *store.Tx, by, requester, reason string) ([]ledger.Entry, error) {
	open, err := store.All[string](tx, `SELECT id FROM approvals WHERE requester = $1 AND state = $2 ORDER BY id`, requester, string(Requested))
	if err != nil {
		return nil, err
	}
	var all []ledger.Entry
	for _, id := range open {
		entries, err := s.WithdrawTx(tx, by, id, reason)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// NextLapse is when the next open request lapses; the zero time is never.
func (s *Approvals) NextLapse(ctx context.Context) (time.Time, error) {
	var next []int64
	err := s.store.View(ctx, func(v *store.View) (err error) {
		next, err = store.All[int64](v, `SELECT lapses FROM approvals WHERE state = $1 ORDER BY lapses LIMIT 1`, string(Requested))
		return err
	})
	if err != nil || len(next) == 0 {
		return time.Time{}, err
	}
	return time.UnixMicro(next[0]).UTC(), nil
}

// Lapse ends every request whose time is up, and says how many. Each is its own
// transaction: one that cannot end must not keep the others.
func (s *Approvals) Lapse(ctx context.Context, now time.Time) (int, error) {
	var due []string
	err := s.store.View(ctx, func(v *store.View) (err error) {
		due, err = store.All[string](v, `SELECT id FROM approvals WHERE state = $1 AND lapses <= $2 ORDER BY lapses LIMIT 200`, string(Requested), now.UnixMicro())
		return err
	})
	if err != nil {
		return 0, err
	}
	count := 0
	var first error
	for _, id := range due {
		_, err := s.store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
			a, err := s.GetTx(tx, id)
			if err != nil {
				return nil, err
			}
			if a, err = Step(a, Event{To: Lapsed}, tx.Now()); err != nil {
				return nil, err
			}
			_, entries, err := s.settleTx(tx, a, ActionLapsed, ledger.System)
			return entries, err
		})
		switch {
		case err == nil:
			count++
		case fault.KindOf(err) != fault.Conflict && first == nil: // a conflict: somebody was faster
			first = err
		}
	}
	return count, first
}
