package roster

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// linkFor is how long a login link of a person lives.
const linkFor = 24 * time.Hour

// Added is a person and how they log in, or the approval that it waits for.
type Added struct {
	Person   identity.Person
	Secret   string    // of the login token; empty while it waits
	Expires  time.Time // of the secret
	Approval string
}

// AddPerson adds a person and makes a login link for them. requestID makes it
// idempotent in bootstrap (the secret comes only the first time); it may be empty.
func (r *Roster) AddPerson(ctx context.Context, by identity.Principal, name string, groups []string, requestID string) (Added, error) {
	if err := identity.CheckName(name); err != nil {
		return Added{}, err
	}
	sorted, err := identity.CheckGroups(groups)
	if err != nil {
		return Added{}, err
	}
	var added Added
	id := ""
	if requestID != "" {
		id = "person.add/" + by.ID + "/" + requestID
	}
	added.Approval, err = r.do(ctx, by, change{
		action: "people.add", kind: KindPersonAdd, request: personAdd{V: 1, Name: name, Groups: sorted}, id: id,
		now: func(tx *store.Tx) ([]ledger.Entry, error) {
			person, entries, err := r.People.AddTx(tx, by, name, sorted)
			if err != nil {
				return nil, err
			}
			added.Person = person
			if entries, err = r.aloneEntry(tx, by, person, entries); err != nil {
				return nil, err
			}
			return r.linkTx(tx, by, person.ID, entries, &added)
		},
		second: func(rule []string) bool { return inAny(sorted, rule) },
		collect: func(tx *store.Tx, got right) (_ []ledger.Entry, err error) {
			if added.Person, err = r.People.GetTx(tx, got.Subject); err != nil {
				return nil, err
			}
			return r.linkTx(tx, by, got.Subject, nil, &added)
		},
		check: func(q store.Queryer) error {
			who, err := r.People.GetTx(q, name)
			if err == nil {
				return fault.New(fault.Conflict, "cannot add %s: there is one, %s", name, who.ID).WithHint("handrail login-link %s", name)
			}
			if fault.KindOf(err) != fault.NotFound {
				return err
			}
			return nil
		},
	})
	return added, err
}

func (r *Roster) linkTx(tx *store.Tx, by identity.Principal, person string, entries []ledger.Entry, out *Added) ([]ledger.Entry, error) {
	secret, entry, err := r.People.LoginTokenTx(tx, person, by.ID, linkFor)
	if err != nil {
		return nil, err
	}
	out.Secret, out.Expires = secret, tx.Now().Add(linkFor)
	return append(entries, entry), nil
}

// LoginLink makes another login link for a person: for a new device, for
// another passkey, or because the first was lost.
func (r *Roster) LoginLink(ctx context.Context, by identity.Principal, person string) (Added, error) {
	who, err := r.People.Get(ctx, person)
	if err != nil {
		return Added{}, err
	}
	if who.Kind == identity.KindRobot {
		return Added{}, fault.New(fault.Invalid, "cannot make a login link for robot %s: it proves itself by its workload or its key", who.Name).WithHint("handrail robot show %s", who.Name)
	}
	added := Added{Person: who}
	link := func(tx *store.Tx) ([]ledger.Entry, error) { return r.linkTx(tx, by, who.ID, nil, &added) }
	first := func(tx *store.Tx) ([]ledger.Entry, error) {
		entries, err := r.aloneEntry(tx, by, who, nil)
		if err != nil {
			return nil, err
		}
		return r.linkTx(tx, by, who.ID, entries, &added)
	}
	added.Approval, err = r.do(ctx, by, change{
		action: "people.add", kind: KindPersonLink, request: personLink{V: 1, Person: who.ID}, subject: who.ID,
		now: first, collect: func(tx *store.Tx, _ right) ([]ledger.Entry, error) { return link(tx) },
		second: func(rule []string) bool { return who.ID != by.ID && who.Enrolled == 0 && inAny(who.Groups, rule) },
	})
	return added, err
}

// Unlock lets a locked person in again. It gives power back, so it takes the
// full path.
func (r *Roster) Unlock(ctx context.Context, by identity.Principal, person, reason string) (who identity.Person, approvalID string, err error) {
	if who, err = r.People.Get(ctx, person); err != nil {
		return who, "", err
	}
	if !who.Locked() {
		return who, "", fault.New(fault.Conflict, "cannot unlock %s: they are not locked", who.Name)
	}
	if who.ID == by.ID {
		return who, "", fault.New(fault.Denied, "cannot unlock yourself").WithRule("never-your-own")
	}
	id := who.ID
	approvalID, err = r.do(ctx, by, change{
		action: "people.unlock", kind: KindPersonUnlock, request: personUnlock{V: 1, Person: id, Epoch: who.Epoch, Reason: reason},
		now: func(tx *store.Tx) (entries []ledger.Entry, err error) {
			who, entries, err = r.People.UnlockTx(tx, by.ID, id, reason)
			return entries, err
		},
	})
	return who, approvalID, err
}

// EndBootstrap ends the bootstrap for good. It refuses while nobody could
// approve what the others ask: an installation in which nothing can be approved
// could never be changed again.
func (r *Roster) EndBootstrap(ctx context.Context, by identity.Principal) error {
	_, err := r.Door.Do(ctx, doorway.Act{Action: "bootstrap.end", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if err := r.twoCouldAgree(tx); err != nil {
			return nil, err
		}
		return r.People.EndBootstrapTx(tx, by.ID)
	}}, nil)
	if reload := r.People.Reload(ctx); err == nil {
		err = reload
	}
	return err
}

func (r *Roster) twoCouldAgree(q store.Queryer) error {
	engine, err := r.Policy.EngineTx(q)
	if err != nil {
		return err
	}
	people, err := r.People.ListTx(q)
	if err != nil {
		return err
	}
	rule := engine.Approval(KindPersonAdd)
	count := 0
	for _, p := range people {
		if p.Kind == identity.KindPerson && !p.Locked() && p.Enrolled != 0 && inAny(p.Groups, rule.Groups) {
			count++
		}
	}
	if need := rule.Needed + 1; count < need {
		return fault.New(fault.Conflict, "cannot end bootstrap: %d of those who have logged in could approve, and it takes %d so that one can ask and another agree", count, need).
			WithHint("handrail person add NAME --group %s, and let them log in", rule.Groups[0])
	}
	return nil
}

func inAny(have []string, want []string) bool {
	for _, w := range want {
		for _, h := range have {
			if h == w {
				return true
			}
		}
	}
	return false
}

var _ approval.Directory = (*identity.People)(nil)
var _ doorway.People = (*identity.People)(nil)
