package identity

import (
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// What the company's directory does to people. It decides who they are and in
// which groups; that a lock is a lock, and what a name may be, stays ours.

// The ledger actions of people who come by the directory. Few have an entry
// each; many at once are folded into one that names ids and groups, no names.
const (
	PersonJoined    ledger.Action = "person.joined"
	PeopleJoined    ledger.Action = "people.joined"
	PeopleRegrouped ledger.Action = "people.regrouped"
	PeopleReturned  ledger.Action = "people.returned"
)

// foldAbove is how many people one change may concern before they share an entry.
const foldAbove = 20

// FoldedPayload is the payload of people.joined and people.regrouped.
type FoldedPayload struct {
	V      int            `json:"v"`
	People []FoldedPerson `json:"people"`
}

// FoldedPerson is one of many: an id and the groups they are in now.
type FoldedPerson struct {
	Person string   `json:"person"`
	Groups []string `json:"groups,omitempty"`
	Before []string `json:"before,omitempty"`
}

// Newcomer is somebody whom the directory knows and who is not here yet.
type Newcomer struct {
	Name   string
	Groups []string
}

// JoinTx adds people of the directory, in the order in which they are given.
func (p *People) JoinTx(tx *store.Tx, news []Newcomer) ([]Person, []ledger.Entry, error) {
	people := make([]Person, 0, len(news))
	var entries []ledger.Entry
	folded := FoldedPayload{V: 1}
	for _, n := range news {
		person, _, err := p.add(tx, ledger.System, Person{Name: n.Name, Kind: KindPerson, Named: true}, n.Groups)
		if err != nil {
			return nil, nil, err
		}
		people = append(people, person)
		folded.People = append(folded.People, FoldedPerson{Person: person.ID, Groups: person.Groups})
		entries = append(entries, person.entry(PersonJoined, ledger.System, PersonPayload{Name: person.Name, Kind: person.Kind, Groups: person.Groups}))
	}
	if len(news) > foldAbove {
		entries = []ledger.Entry{{Action: PeopleJoined, Payload: folded}}
	}
	return people, entries, nil
}

// Regroup is somebody and the groups they are to be in.
type Regroup struct {
	Person string
	Groups []string
}

// RegroupTx sets the groups of many.
func (p *People) RegroupTx(tx *store.Tx, changes []Regroup) ([]ledger.Entry, error) {
	var entries []ledger.Entry
	folded := FoldedPayload{V: 1}
	for _, c := range changes {
		who, one, err := p.SetGroupsTx(tx, Principal{ID: ledger.System}, c.Person, c.Groups)
		if err != nil {
			return nil, err
		}
		entries = append(entries, one...)
		was, _ := one[0].Payload.(PersonPayload) // SetGroupsTx makes one entry, of that payload
		folded.People = append(folded.People, FoldedPerson{Person: who.ID, Groups: who.Groups, Before: was.Before})
	}
	if len(changes) > foldAbove {
		entries = []ledger.Entry{{Action: PeopleRegrouped, Payload: folded}}
	}
	return entries, nil
}

// RenameTx follows a person whose login name changed. Who they are, their
// credentials, locks and history stay.
func (p *People) RenameTx(tx *store.Tx, person, name string) ([]ledger.Entry, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	who, err := byID(tx, person)
	if err != nil {
		return nil, err
	}
	before := who.Name
	if err := nameFree(tx, name); err != nil {
		return nil, err
	}
	who.Name = name
	if who, err = who.save(tx); err != nil {
		return nil, err
	}
	p.cache.disturb()
	return []ledger.Entry{who.entry(PersonNamed, ledger.System, PersonPayload{Name: name, Before: []string{before}})}, nil
}

// AsideTx frees the name of somebody who left and is locked, for somebody new
// who has it now: they are two people, and an old name must not be a door.
func (p *People) AsideTx(tx *store.Tx, person string) ([]ledger.Entry, error) {
	who, err := byID(tx, person)
	if err != nil {
		return nil, err
	}
	if !who.Locked() {
		return nil, fault.New(fault.Conflict, "cannot give the name of %s to somebody else: they are not locked", who.Name)
	}
	suffix := "." + who.ID[len("p-"):]
	base := who.Name[:min(len(who.Name), 32-len(suffix))]
	return p.RenameTx(tx, person, base+suffix)
}

// forget forgets every login; their owners are asked anew.
func (s *standing) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.logins)
}
