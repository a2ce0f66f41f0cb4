package access

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// lookEvery is how often Run looks at the rows when nothing wakes it: what
// another server changed is seen by then.
const lookEvery = 10 * time.Second

// enforceBack is how far back Run ends sessions of grants that ended while
// nobody was there to do it. The keeper's own deadline has ended them long
// before; this is the belt.
const enforceBack = 24 * time.Hour

// personLocked is the ledger action of identity that Run listens for.
const personLocked ledger.Action = "person.locked"

// keeper is what Run remembers between two looks. All of it can be lost: a
// restart rebuilds it from the rows.
type keeper struct {
	// deadline holds, per grant, when its time is up by this machine's monotonic
	// clock, so that a wall clock set back does not lengthen a grant.
	deadline map[string]deadline
	enforced map[string]bool
}

// deadline is when a grant's next moment comes, by the monotonic clock.
type deadline struct {
	next int64 // Grant.Next that it was made from; another one starts anew
	at   time.Time
}

// Run lets time pass: requests lapse, grants end, sessions of ended grants are
// ended, grants of locked people are ended. It returns when ctx ends.
func (x *Access) Run(ctx context.Context) error {
	var followers sync.WaitGroup
	defer followers.Wait()
	followers.Go(func() { x.followLocks(ctx) })
	k := &keeper{deadline: map[string]deadline{}, enforced: map[string]bool{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-x.wake:
		}
		wait, err := x.look(ctx, k)
		if err != nil && ctx.Err() == nil {
			slog.ErrorContext(ctx, "grants could not be looked after; trying again", "err", err)
			wait = time.Second
		}
		timer.Reset(wait)
	}
}

// followLocks wakes Run at once when somebody is locked; the look itself finds
// out who.
func (x *Access) followLocks(ctx context.Context) {
	for ctx.Err() == nil {
		head, _, err := x.d.Store.Head(ctx)
		if err == nil {
			err = x.d.Store.Follow(ctx, head.N-1, func(e ledger.Recorded) error {
				// A grant that another server ended has sessions here too.
				if e.Parsed.Action == personLocked || e.Parsed.Action == ActionEnded {
					x.poke()
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return
		}
		slog.WarnContext(ctx, "cannot follow the ledger for locks; looking every few seconds instead", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}

// look does everything that is due and says when to look again.
func (x *Access) look(ctx context.Context, k *keeper) (time.Duration, error) {
	for _, e := range x.held() {
		if _, err := x.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) { return x.endedTx(tx, e) }); err != nil {
			return 0, err
		}
		x.recorded(e)
	}
	if _, err := x.d.Approvals.Lapse(ctx, time.Now().UTC()); err != nil {
		return 0, err
	}
	var live, gone []Grant
	wall := time.Now().UTC()
	err := x.d.Store.View(ctx, func(v *store.View) (err error) {
		if live, err = find(v, `WHERE g.state IN ($1, $2, $3, $4) ORDER BY g.next, g.id`, string(Requested), string(Approved), string(Active), string(Paused)); err != nil {
			return err
		}
		gone, err = find(v, `WHERE g.state IN ($1, $2, $3) AND g.finished >= $4 ORDER BY g.finished DESC, g.id LIMIT 1000`,
			string(Ended), string(InReview), string(Closed), wall.Add(-enforceBack).UnixMicro())
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, g := range gone {
		x.enforceOnce(ctx, k, g)
	}
	wait := lookEvery
	alive := map[string]bool{}
	for _, g := range live {
		alive[g.ID] = true
		event, due := x.due(ctx, k, g, wall)
		if due {
			if err := x.happen(ctx, k, g, event); err != nil {
				return 0, err
			}
			continue
		}
		if d, timed := k.deadline[g.ID]; timed {
			wait = min(wait, max(time.Until(d.at), time.Millisecond))
		}
	}
	for id := range k.deadline {
		if !alive[id] {
			delete(k.deadline, id)
		}
	}
	if next, err := x.d.Approvals.NextLapse(ctx); err != nil {
		return 0, err
	} else if !next.IsZero() {
		wait = min(wait, max(time.Until(next), time.Millisecond))
	}
	return wait, nil
}

// due says what time, or a lock, does to a grant now.
func (x *Access) due(ctx context.Context, k *keeper, g Grant, wall time.Time) (Event, bool) {
	person, err := x.d.People.Get(ctx, g.Person)
	switch {
	case err != nil && fault.KindOf(err) == fault.NotFound, err == nil && person.LockedAt != 0:
		return Event{Kind: EventEnd, By: ledger.System, Why: Locked}, true
	case g.Next() == 0:
		return Event{}, false
	}
	left := time.UnixMicro(g.Next()).Sub(wall)
	at := time.Now().Add(left)
	// The earlier of what the wall clock says now and what it said at first: set
	// back it does not lengthen, set forward it shortens.
	if old, known := k.deadline[g.ID]; known && old.next == g.Next() && old.at.Before(at) {
		at = old.at
	}
	k.deadline[g.ID] = deadline{next: g.Next(), at: at}
	if time.Until(at) > 0 {
		return Event{}, false
	}
	why := Expired
	if g.unratified(g.Next()) && g.RatifyBy <= g.Expires {
		why = Unratified
	}
	return Event{Kind: EventEnd, By: ledger.System, Why: why}, true
}

// happen applies an event that no person caused, then its effects. A conflict
// means that somebody was faster; the next look sees what they did.
func (x *Access) happen(ctx context.Context, k *keeper, g Grant, e Event) error {
	var after Grant
	var effects []Effect
	_, err := x.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		fresh, err := getTx(tx, g.ID)
		if err != nil {
			return nil, err
		}
		var entries []ledger.Entry
		if after, entries, effects, err = applyTx(tx, fresh, e); err != nil {
			return nil, err
		}
		if after.Approval != "" {
			more, err := x.d.Approvals.WithdrawTx(tx, ledger.System, after.Approval, e.Why)
			if err != nil {
				return nil, err
			}
			entries = append(entries, more...)
		}
		return entries, nil
	})
	switch {
	case err != nil && fault.KindOf(err) == fault.Conflict:
		x.poke()
		return nil
	case err != nil:
		return err
	}
	x.enforceOnce(ctx, k, after)
	for _, effect := range effects {
		x.tell(ctx, after, effect)
	}
	return nil
}

func (x *Access) enforceOnce(ctx context.Context, k *keeper, g Grant) {
	if k.enforced[g.ID] || g.Live() {
		return
	}
	x.enforce(ctx, g)
	if len(k.enforced) > 10_000 {
		clear(k.enforced)
	}
	k.enforced[g.ID] = true
}

// LockedTx ends every live grant of a person, in the transaction that locks
// them, and says how many those were. Run does the same soon after; this does it
// at once.
func (x *Access) LockedTx(tx *store.Tx, person, by, reason string) (int, []ledger.Entry, error) {
	return x.EndAllTx(tx, person, by, Locked, reason)
}

// EndAllTx ends every live grant of a person, and every request for one, in a
// transaction that takes power from them.
func (x *Access) EndAllTx(tx *store.Tx, person, by, why, reason string) (int, []ledger.Entry, error) {
	live, err := find(tx, `WHERE g.person = $1 AND g.state IN ($2, $3, $4, $5)`, person, string(Requested), string(Approved), string(Active), string(Paused))
	if err != nil {
		return 0, nil, err
	}
	var all []ledger.Entry
	for _, g := range live {
		_, entries, _, err := applyTx(tx, g, Event{Kind: EventEnd, By: by, Why: why, Notes: reason})
		if err != nil {
			return 0, nil, err
		}
		all = append(all, entries...)
		if g.Approval == "" {
			continue
		}
		more, err := x.d.Approvals.WithdrawTx(tx, by, g.Approval, why)
		if err != nil {
			return 0, nil, err
		}
		all = append(all, more...)
	}
	return len(live), all, nil
}
