package identity

import (
	"context"
	"slices"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Outside is who a provider outside says that somebody is. It was verified
// already; here it is decided which person that is, and whether they come in.
//
// A person is bound to a subject of an issuer once, the first time, by a claim
// that says which person it is. From then on the subject alone counts: a name
// or an address that goes to somebody else later does not take a person along.
// A binding is never changed by a login.
type Outside struct {
	Issuer, Subject string
	Value           string // which person, the first time; empty: the provider did not say
	Lasting         bool   // Value is the lasting id of a directory's entry, not a name
	Claim           string // that Value came from
	NewName         string // a person of this name is added for somebody unknown; empty: they are refused
	Groups          []string
	Question        string // that was asked; it opens one login
}

// Keeper is a directory that knows people by a lasting id and keeps the groups
// of those it knows.
type Keeper interface {
	// PersonOf is the person of an entry; "" if it has none.
	PersonOf(q store.Queryer, lasting string) (person string, err error)
	// KeepsGroups says whether the groups of a person are the directory's to say.
	KeepsGroups(q store.Queryer, person string) (bool, error)
}

// UseKeeper has a directory say whom it knows. Groups have one source: where it
// keeps a person's, a provider's claim about groups is passed over.
func (p *People) UseKeeper(k Keeper) { p.keeper = k }

type bindingRow struct {
	Issuer  string `db:"issuer"`
	Subject string `db:"subject"`
	Person  string `db:"person"`
	Given   Groups `db:"given"` // groups that the claim gave, and so takes away
	Created int64  `db:"created"`
	Version int64  `db:"version"`
}

const selectBinding = `SELECT issuer, subject, person, given, created, version FROM bindings `

// BindingPayload is the payload of person.bound.
type BindingPayload struct {
	V       int    `json:"v"`
	Person  string `json:"person"`
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
	Claim   string `json:"claim,omitempty"` // that said which person
}

// LoginOutside lets somebody in whom a provider vouches for. With a device key
// it enrols the device; such a device asks the provider again at each login.
func (p *People) LoginOutside(ctx context.Context, o Outside, deviceKey []byte, deviceName, source string) (Login, Person, *ssh.Certificate, error) {
	key, err := parseDeviceKey(deviceKey)
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	var login Login
	var who Person
	err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
		bound, who_, entries, err := p.bound(tx, o)
		if err != nil {
			return nil, err
		}
		if err := p.admit(who_); err != nil {
			return nil, err
		}
		who_, regrouped, err := p.given(tx, bound, who_, o.Groups)
		if err != nil {
			return nil, err
		}
		entries = append(entries, regrouped...)
		via := ViaBrowser
		if key != nil {
			via = ViaDevice
		}
		var opened []ledger.Entry
		login, who, opened, err = p.open(tx, opening{
			who: who_, key: key, name: deviceName, via: via, born: bornProvider, source: source,
			proof: hashOf(kindProof, "provider\n"+o.Issuer+"\n"+o.Question),
		})
		return append(entries, opened...), err
	})
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Denied {
			p.FailedLogin(source, "provider's subject refused")
		}
		return Login{}, Person{}, nil, err
	}
	if err := p.Reload(ctx); err != nil { // the second person may have started the clock
		return Login{}, Person{}, nil, err
	}
	cert, err := p.certify(key, login)
	return login, who, cert, err
}

// bound finds the person of a subject, or binds one.
func (p *People) bound(tx *store.Tx, o Outside) (bindingRow, Person, []ledger.Entry, error) {
	rows, err := store.All[bindingRow](tx, selectBinding+`WHERE issuer = $1 AND subject = $2`, o.Issuer, o.Subject)
	if err != nil {
		return bindingRow{}, Person{}, nil, err
	}
	if len(rows) > 0 {
		who, err := byID(tx, rows[0].Person)
		return rows[0], who, nil, err
	}
	who, entries, err := p.claimed(tx, o)
	if err != nil {
		return bindingRow{}, Person{}, nil, err
	}
	others, err := store.All[bindingRow](tx, selectBinding+`WHERE issuer = $1 AND person = $2`, o.Issuer, who.ID)
	if err != nil {
		return bindingRow{}, Person{}, nil, err
	}
	if len(others) > 0 {
		return bindingRow{}, Person{}, nil, fault.New(fault.Denied, "cannot let you in as %s: they are bound to another account at your provider, and that is not changed by a login", who.Name).
			WithRule("bound-once").WithHint("ask an admin, who can see whether the account was replaced: handrail ledger --person %s", who.Name)
	}
	row := bindingRow{Issuer: o.Issuer, Subject: o.Subject, Person: who.ID, Created: micros(tx.Now()), Version: 1}
	if _, err := tx.Exec(`INSERT INTO bindings (issuer, subject, person, given, created, version) VALUES ($1, $2, $3, $4, $5, 1)`,
		row.Issuer, row.Subject, row.Person, row.Given.Text(), row.Created); err != nil {
		return bindingRow{}, Person{}, nil, err
	}
	return row, who, append(entries, ledger.Entry{
		Action: PersonBound, Subjects: []string{who.ID}, Object: who.ID, Version: who.Version, SealTo: who.ID,
		Payload: BindingPayload{V: 1, Person: who.ID, Issuer: o.Issuer, Subject: o.Subject, Claim: o.Claim},
	}), nil
}

// claimed is the person that a claim names, or a new one.
func (p *People) claimed(tx *store.Tx, o Outside) (Person, []ledger.Entry, error) {
	if o.Value == "" && o.NewName == "" {
		return Person{}, nil, fault.New(fault.Denied, "cannot tell who you are here: your provider says nothing that can be believed in the claim %q", o.Claim).
			WithRule("nobody-known").WithHint("ask an admin to compare the account at the provider with person-claim in [oidc]")
	}
	var found []Person
	var err error
	switch {
	case o.Value == "":
	case o.Lasting && p.keeper != nil:
		var id string
		if id, err = p.keeper.PersonOf(tx, o.Value); err == nil && id != "" {
			found, err = store.All[Person](tx, selectPerson+`WHERE id = $1`, id)
		}
	case !o.Lasting: // exactly that name: never an id, never a beginning
		found, err = store.All[Person](tx, selectPerson+`WHERE name = $1`, o.Value)
	}
	if err != nil {
		return Person{}, nil, err
	}
	if len(found) == 1 && found[0].Kind == KindPerson && found[0].Named {
		return found[0], nil, nil
	}
	if len(found) > 0 || o.NewName == "" {
		refused := fault.New(fault.Denied, "cannot let you in: nobody here is %.60q", label(o.Value, maxLabel)).WithRule("nobody-known")
		if CheckName(o.Value) == nil && !o.Lasting {
			return Person{}, nil, refused.WithHint("ask an admin to add you: handrail person add %s", o.Value)
		}
		return Person{}, nil, refused.WithHint("ask an admin to add you")
	}
	who, entries, err := p.add(tx, ledger.System, Person{Name: o.NewName, Kind: KindPerson, Named: true}, nil)
	if err != nil {
		return Person{}, nil, fault.Wrap(fault.Denied, err, "cannot add you as %.60q", label(o.NewName, maxLabel)).WithHint("ask an admin to add you")
	}
	return who, entries, nil
}

// given makes the groups of a person those that people gave them and those of
// the claim. What the claim gave before and does not name now is taken away,
// the last one too; what people gave stays.
func (p *People) given(tx *store.Tx, bound bindingRow, who Person, claimed []string) (Person, []ledger.Entry, error) {
	if p.keeper != nil {
		kept, err := p.keeper.KeepsGroups(tx, who.ID)
		if err != nil {
			return Person{}, nil, err
		}
		if kept {
			return who, nil, p.giveTx(tx, bound, nil)
		}
	}
	var own, given []string
	for _, g := range who.Groups {
		if !slices.Contains(bound.Given, g) {
			own = append(own, g)
		}
	}
	for _, g := range claimed {
		if !slices.Contains(own, g) {
			given = append(given, g)
		}
	}
	all, err := CheckGroups(append(slices.Clone(own), given...))
	if err != nil {
		return Person{}, nil, err
	}
	sorted, err := CheckGroups(given)
	if err != nil {
		return Person{}, nil, err
	}
	if err := p.giveTx(tx, bound, sorted); err != nil || slices.Equal(all, who.Groups) {
		return who, nil, err
	}
	before := who.Groups
	who.Groups = all
	if who, err = who.save(tx); err != nil {
		return Person{}, nil, err
	}
	p.cache.disturb()
	return who, []ledger.Entry{who.entry(PersonRegrouped, ledger.System, PersonPayload{Groups: all, Before: before, Reason: "the provider's claim"})}, nil
}

func (p *People) giveTx(tx *store.Tx, bound bindingRow, given Groups) error {
	if slices.Equal(given, bound.Given) {
		return nil
	}
	n, err := tx.Exec(`UPDATE bindings SET given = $1, version = $2 WHERE issuer = $3 AND subject = $4 AND version = $5`,
		given.Text(), bound.Version+1, bound.Issuer, bound.Subject, bound.Version)
	if err == nil && n != 1 {
		err = fault.New(fault.Conflict, "cannot log in: another login of yours changed your groups meanwhile").WithHint("try again")
	}
	return err
}
