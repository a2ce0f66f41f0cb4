package roster

import (
	"context"
	"encoding/json"
	"regexp"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// lock is a brake that must still be recorded.
type lock struct {
	by             identity.Principal
	person, reason string
}

// Locked is what a lock did.
type Locked struct {
	Person   identity.Person
	Sessions int
	Grants   int
	Pending  bool // the brake acts; the database will hear of it as soon as it is back
}

var personID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^p-[0-9a-z]{8}$`) })

// retryLocks is how often a lock that could not be recorded is tried again.
const retryLocks = 2 * time.Second

// Lock locks a person: at once, everywhere. The brake acts before the database
// is asked to remember, and once more after, for what began in between.
func (r *Roster) Lock(ctx context.Context, by identity.Principal, person, reason string) (Locked, error) {
	who, err := r.People.Get(ctx, person)
	if err != nil {
		id, known := person, personID().MatchString(person)
		if !known {
			id, known = r.People.Known(person)
		}
		if fault.KindOf(err) == fault.NotFound || !known {
			return Locked{}, err
		}
		who = identity.Person{ID: id, Name: person} // the database is away; an id is enough to brake
	}
	if err := r.mayLock(ctx, by, who); err != nil {
		return Locked{}, err
	}
	out := Locked{Person: who}
	r.People.Brake(who.ID)
	out.Sessions = r.brake(ctx, who.ID, reason)
	var recorded Locked
	what := lock{by: by, person: who.ID, reason: reason}
	out.Pending, err = r.Door.Brake(ctx, doorway.Act{Action: "people.lock", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		return r.lockTx(tx, what, &recorded)
	}})
	switch {
	case err != nil && fault.KindOf(err) != fault.Conflict: // refused
		r.People.Release(who.ID)
		return Locked{}, err
	case err != nil || out.Pending: // somebody was faster, or the database is away
		out.Pending = true
		r.later(what)
	default:
		r.People.Release(who.ID) // the row says it now
		out.Person, out.Grants = recorded.Person, recorded.Grants
	}
	out.Sessions += r.brake(ctx, who.ID, reason)
	return out, nil
}

// mayLock decides before the brake is pulled.
func (r *Roster) mayLock(ctx context.Context, by identity.Principal, who identity.Person) error {
	act := doorway.Act{Action: "people.lock", By: by}
	decision, err := r.Door.Explain(ctx, act)
	switch {
	case err == nil && decision.Allowed:
		return nil
	case err == nil:
		// The doorway refuses in its own words, and records that it did.
		act.Open = func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
			return nil, fault.New(fault.Conflict, "cannot lock %s: the rules changed meanwhile", who.Name).WithHint("try again")
		}
		_, err = r.Door.Do(ctx, act, nil)
		return err
	case fault.KindOf(err) == fault.Unauthenticated || fault.KindOf(err) == fault.Denied:
		return err
	}
	if by.MayBrake() {
		return nil
	}
	return err
}

// brake ends what a person has running, and what the robots have that they
// answer for.
func (r *Roster) brake(ctx context.Context, person, reason string) int {
	if r.Brake == nil {
		return 0
	}
	ended := r.Brake(ctx, person, reason)
	for _, robot := range r.People.RobotIDs(ctx, person) {
		ended += r.Brake(ctx, robot, "its owner is locked: "+reason)
	}
	return ended
}

func (r *Roster) lockTx(tx *store.Tx, l lock, out *Locked) ([]ledger.Entry, error) {
	robots, err := r.People.RobotsOf(tx, l.person) // they are locked with who answers for them
	if err != nil {
		return nil, err
	}
	who, entries, err := r.People.LockTx(tx, l.by.ID, l.person, l.reason)
	if err != nil {
		return nil, err
	}
	out.Person = who
	for _, p := range append([]identity.Person{who}, robots...) {
		if r.EndGrants == nil {
			break
		}
		ended, more, err := r.EndGrants(tx, p.ID, l.by.ID, l.reason)
		if err != nil {
			return nil, err
		}
		out.Grants, entries = out.Grants+ended, append(entries, more...)
	}
	more, err := r.Approvals.WithdrawAllTx(tx, l.by.ID, who.ID, "locked")
	return append(entries, more...), err
}

// later keeps a lock until it is recorded: in the spool, which drains itself
// and survives a crash, or else in memory, tried again and again. If we crash
// before either has it, the brake still acted.
func (r *Roster) later(l lock) {
	err := r.Store.Spool().Append(ledger.Entry{
		Action: identity.PersonLocked, Subjects: []string{l.by.ID, l.person}, SealTo: l.person,
		Payload: identity.PersonPayload{V: 1, Person: l.person, Reason: l.reason},
	})
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending[l.person] = l
}

// Unspool changes state for a lock that was kept in the spool, when the
// database is back (store.Config.Unspool). Other entries it returns as they are.
func (r *Roster) Unspool(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) {
	if e.Action != identity.PersonLocked || len(e.Subjects) == 0 {
		return []ledger.Entry{e}, nil
	}
	raw, ok := e.Payload.(json.RawMessage)
	if !ok {
		return []ledger.Entry{e}, nil
	}
	var what identity.PersonPayload
	if err := json.Unmarshal(raw, &what); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read a lock from the spool")
	}
	var out Locked
	entries, err := r.lockTx(tx, lock{by: identity.Principal{ID: e.Subjects[0]}, person: what.Person, reason: what.Reason}, &out)
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return []ledger.Entry{e}, nil // nobody of that id: the brake stays in the ledger all the same
	}
	return entries, err
}

// Run records the locks that not even the spool could keep.
func (r *Roster) Run(ctx context.Context) error {
	tick := time.NewTicker(retryLocks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.retry(ctx)
		}
	}
}

func (r *Roster) retry(ctx context.Context) {
	r.mu.Lock()
	due := make([]lock, 0, len(r.pending))
	for _, l := range r.pending {
		due = append(due, l)
	}
	r.mu.Unlock()
	for _, l := range due {
		var out Locked
		// It was decided when the brake was pulled; a policy that changed since
		// does not lift a brake.
		_, err := r.Store.Record(ctx, newID(), func(tx *store.Tx) ([]ledger.Entry, error) { return r.lockTx(tx, l, &out) })
		if err != nil {
			continue
		}
		r.People.Release(l.person)
		r.mu.Lock()
		delete(r.pending, l.person)
		r.mu.Unlock()
	}
}
