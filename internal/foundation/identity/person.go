package identity

import (
	"context"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// AddTx adds a person.
func (p *People) AddTx(tx *store.Tx, by Principal, name string, groups []string) (Person, []ledger.Entry, error) {
	return p.add(tx, by.ID, Person{Name: name, Kind: KindPerson, Named: true}, groups)
}

// AddRobotTx adds a robot that owner, a person, answers for. A robot never
// approves and never breaks glass.
func (p *People) AddRobotTx(tx *store.Tx, by Principal, name, owner string, groups []string) (Person, []ledger.Entry, error) {
	who, err := p.GetTx(tx, owner)
	if err != nil {
		return Person{}, nil, err
	}
	if who.Kind != KindPerson {
		return Person{}, nil, fault.New(fault.Invalid, "cannot add robot %q: its owner %s is no person", name, who.Name)
	}
	return p.add(tx, by.ID, Person{Name: name, Kind: KindRobot, Owner: who.ID, Named: true}, groups)
}

func (p *People) add(tx *store.Tx, by string, person Person, groups []string) (Person, []ledger.Entry, error) {
	if err := CheckName(person.Name); err != nil {
		return Person{}, nil, err
	}
	sorted, err := CheckGroups(groups)
	if err != nil {
		return Person{}, nil, err
	}
	if err := nameFree(tx, person.Name); err != nil {
		return Person{}, nil, err
	}
	person.ID, person.Groups, person.Created, person.Version = store.NewID('p'), sorted, micros(tx.Now()), 1
	if _, err := tx.Exec(`INSERT INTO people (id, name, kind, owner, member_of, named, created, enrolled, locked_at, locked_reason, epoch, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, '', 0, 1)`,
		person.ID, person.Name, person.Kind, person.Owner, person.Groups.Text(), person.Named, person.Created); err != nil {
		return Person{}, nil, err
	}
	return person, []ledger.Entry{person.entry(PersonAdded, by, PersonPayload{
		Name: person.Name, Kind: person.Kind, Owner: person.Owner, Groups: person.Groups,
	})}, nil
}

func nameFree(q store.Queryer, name string) error {
	taken, err := store.All[Person](q, selectPerson+`WHERE name = $1`, name)
	if err != nil {
		return err
	}
	if len(taken) > 0 {
		return fault.New(fault.Conflict, "cannot use the name %q: %s has it", name, taken[0].ID).WithHint("handrail people")
	}
	return nil
}

// entry is an entry about a person, sealed to them so that erasing them
// erases it.
func (p Person) entry(action ledger.Action, by string, payload PersonPayload) ledger.Entry {
	payload.V, payload.Person = 1, p.ID
	return ledger.Entry{
		Action: action, Subjects: subjects(by, p.ID), Object: p.ID, Version: p.Version, Payload: payload, SealTo: p.ID,
	}
}

// subjects is actor first, each once.
func subjects(by string, others ...string) []string {
	if by == "" {
		by = ledger.System
	}
	out := []string{by}
	for _, o := range others {
		if o != by && o != "" {
			out = append(out, o)
		}
	}
	return out
}

// save writes what may change of a person, under compare-and-set on the
// version it was read at, and raises that version.
func (p Person) save(tx *store.Tx) (Person, error) {
	n, err := tx.Exec(`UPDATE people SET name = $1, member_of = $2, named = $3, enrolled = $4, locked_at = $5, locked_reason = $6, epoch = $7, version = $8
WHERE id = $9 AND version = $10`,
		p.Name, p.Groups.Text(), p.Named, p.Enrolled, p.LockedAt, p.LockedReason, p.Epoch, p.Version+1, p.ID, p.Version)
	if err != nil {
		return Person{}, err
	}
	if n != 1 {
		return Person{}, fault.New(fault.Conflict, "cannot change %s: somebody changed them meanwhile", p.Name).WithHint("try again")
	}
	p.Version++
	return p, nil
}

// SetGroupsTx replaces a person's groups.
func (p *People) SetGroupsTx(tx *store.Tx, by Principal, person string, groups []string) (Person, []ledger.Entry, error) {
	sorted, err := CheckGroups(groups)
	if err != nil {
		return Person{}, nil, err
	}
	who, err := p.GetTx(tx, person)
	if err != nil {
		return Person{}, nil, err
	}
	before := who.Groups
	who.Groups = sorted
	if who, err = who.save(tx); err != nil {
		return Person{}, nil, err
	}
	p.cache.disturb()
	return who, []ledger.Entry{who.entry(PersonRegrouped, by.ID, PersonPayload{Groups: sorted, Before: before})}, nil
}

// SetName gives the first person, who has none yet, a name. It is asked once:
// a name is how others know somebody, so it does not change under them.
func (p *People) SetName(ctx context.Context, by Principal, name string) (Person, error) {
	if err := CheckName(name); err != nil {
		return Person{}, err
	}
	var who Person
	err := p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) {
		var err error
		if who, err = byID(tx, by.ID); err != nil {
			return nil, err
		}
		if who.Named {
			return nil, fault.New(fault.Conflict, "cannot change the name of %s: it was chosen already", who.Name)
		}
		before := who.Name
		if name != before {
			if err := nameFree(tx, name); err != nil {
				return nil, err
			}
		}
		who.Name, who.Named = name, true
		if who, err = who.save(tx); err != nil {
			return nil, err
		}
		p.cache.disturb()
		return []ledger.Entry{who.entry(PersonNamed, by.ID, PersonPayload{Name: name, Before: []string{before}})}, nil
	})
	return who, err
}

// LockTx locks a person. It works on somebody who is locked already too: the
// epoch rises again and the newer reason stands.
func (p *People) LockTx(tx *store.Tx, by, person, reason string) (Person, []ledger.Entry, error) {
	who, err := p.GetTx(tx, person)
	if err != nil {
		return Person{}, nil, err
	}
	who.LockedAt, who.LockedReason = micros(tx.Now()), label(reason, maxReason)
	who.Epoch++
	if who, err = who.save(tx); err != nil {
		return Person{}, nil, err
	}
	p.cache.disturb()
	entries := []ledger.Entry{who.entry(PersonLocked, by, PersonPayload{Reason: who.LockedReason, Epoch: who.Epoch})}
	robots, err := p.RobotsOf(tx, who.ID)
	if err != nil {
		return Person{}, nil, err
	}
	for _, r := range robots { // nobody answers for them any more
		_, more, err := p.LockTx(tx, by, r.ID, "its owner "+who.Name+" is locked")
		if err != nil {
			return Person{}, nil, err
		}
		entries = append(entries, more...)
	}
	return who, entries, nil
}

// UnlockTx lets a locked person log in again. Logins, tokens and certificates
// from before the lock stay dead. The epoch rises here too: a brake may have
// told the nodes one more than the lock's own, and what is ordered after the
// unlock must not be below that.
func (p *People) UnlockTx(tx *store.Tx, by, person, reason string) (Person, []ledger.Entry, error) {
	who, err := p.GetTx(tx, person)
	if err != nil {
		return Person{}, nil, err
	}
	if err := p.mayUnlock(tx, who); err != nil {
		return Person{}, nil, err
	}
	if !who.Locked() {
		return Person{}, nil, fault.New(fault.Conflict, "cannot unlock %s: they are not locked", who.Name)
	}
	who.LockedAt, who.LockedReason = 0, ""
	who.Epoch++
	if who, err = who.save(tx); err != nil {
		return Person{}, nil, err
	}
	p.cache.disturb()
	p.Release(who.ID)
	return who, []ledger.Entry{who.entry(PersonUnlocked, by, PersonPayload{Reason: label(reason, maxReason), Epoch: who.Epoch})}, nil
}

// mayUnlock refuses a robot that was removed, or that nobody answers for.
func (p *People) mayUnlock(q store.Queryer, who Person) error {
	if who.Kind != KindRobot {
		return nil
	}
	if r, err := p.RobotTx(q, who.ID); err == nil && r.Removed != 0 {
		return fault.New(fault.Conflict, "cannot unlock robot %s: it was removed", who.Name).WithHint("handrail robot add NAME")
	} else if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	owner, err := byID(q, who.Owner)
	if err != nil {
		return err
	}
	return p.admit(owner)
}

// Brake refuses a person from this moment on this server, before the database
// knows: a lock must work while the database is away. It lasts until Release.
func (p *People) Brake(person string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.braked[person] = true
	p.cache.disturb()
	p.standing.leave(person)
}

// Release ends Brake, once the lock is recorded or was lifted.
func (p *People) Release(person string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.braked, person)
}

// admit refuses who is locked.
func (p *People) admit(who Person) error {
	p.mu.RLock()
	braked := p.braked[who.ID] || who.Owner != "" && p.braked[who.Owner]
	p.mu.RUnlock()
	if !who.Locked() && !braked {
		return nil
	}
	why := who.LockedReason
	if why == "" {
		why = "no reason given"
	}
	return fault.New(fault.Denied, "cannot let %s in: locked (%s)", who.Name, why).
		WithRule("person-locked").WithHint("ask an administrator: handrail unlock %s", who.Name)
}
