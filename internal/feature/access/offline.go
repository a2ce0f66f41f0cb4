package access

import (
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// OfflineUse is a break-glass that was made with a voucher while no server
// answered, and is over.
type OfflineUse struct {
	ID      string // the grant's
	Person  string
	Host    target.Host
	Account string
	Reason  string
	For     time.Duration
}

// OwedOfflineTx writes the grant that such a use stands for, ended, with its
// review owed. It is declared and ended in one step: it gives no right to
// anybody, not even for an instant.
func (x *Access) OwedOfflineTx(tx *store.Tx, u OfflineUse) (grant string, entries []ledger.Entry, err error) {
	engine, err := x.d.Policy.EngineTx(tx)
	if err != nil {
		return "", nil, err
	}
	person, err := x.d.People.GetTx(tx, u.Person)
	if err != nil {
		return "", nil, err
	}
	g := Grant{
		ID: u.ID, Person: person.ID, PersonName: person.Name, Kind: BreakGlass, Targets: targetsOf([]target.Host{u.Host}),
		Account: u.Account, Root: u.Account == "root", Sudo: u.Account == "root", Reason: u.Reason, AskedFor: u.For,
		RatifyBy: tx.Now().Add(time.Second).UnixMicro(), ReviewWithin: engine.ReviewWithin(), Policy: engine.Version(),
	}
	if g, _, err = Step(g, Event{Kind: EventDeclare, By: g.Person}, tx.Now()); err != nil {
		return "", nil, err
	}
	if err := saveTx(tx, g); err != nil {
		return "", nil, err
	}
	entries = []ledger.Entry{g.entry(ActionDeclared, g.Person)}
	g, ended, _, err := applyTx(tx, g, Event{Kind: EventEnd, By: ledger.System, Why: Done, Notes: "it was over when the server heard of it"})
	return g.ID, append(entries, ended...), err
}
