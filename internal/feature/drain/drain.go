// Package drain keeps a host to one person for a while: nobody else opens a new
// session there. It is what a host has to be before the memory of one of its
// processes may leave it.
//
// It says what people decided and no more: whether requests of customers still
// go there, no part of handrail knows. Sessions that are open stay open; whoever
// breaks the glass gets in; offline break-glass does not know of it.
package drain

import (
	"context"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// The ledger actions of draining.
const (
	Drained   ledger.Action = "host.drained"
	Undrained ledger.Action = "host.undrained"
)

// Actions lists what this package writes to the ledger.
func Actions() []ledger.Action { return []ledger.Action{Drained, Undrained} }

// Schema is the hosts that are drained. A row whose time is over counts no more.
func Schema() []store.Migration {
	return []store.Migration{{Name: "drain-1-drains", SQL: `CREATE TABLE host_drains (
	host TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	why TEXT NOT NULL,
	since BIGINT NOT NULL,
	until BIGINT NOT NULL,
	version BIGINT NOT NULL
)`}}
}

// Longest is how long a host is drained at most; who needs longer says so again.
const Longest = 12 * time.Hour

const maxWhy = 500

// Drain is one host that is drained.
type Drain struct {
	Host    string `db:"host" json:"host"`
	Person  string `db:"person" json:"person"`
	Why     string `db:"why" json:"why"`
	Since   int64  `db:"since" json:"since"` // µs
	Until   int64  `db:"until" json:"until"`
	Version int64  `db:"version" json:"-"`
}

const columns = `SELECT host, person, why, since, until, version FROM host_drains `

// Deps is what draining needs.
type Deps struct {
	Store  *store.Store
	Door   *doorway.Door
	Hosts  *target.Hosts
	People *identity.People
	// Changed is called, without locks, after a host changed. It may be nil.
	Changed func(host string)
}

// Drains drains hosts.
type Drains struct{ d Deps }

// New returns Drains.
func New(d Deps) *Drains {
	if d.Changed == nil {
		d.Changed = func(string) {}
	}
	return &Drains{d}
}

type payload struct {
	V     int   `json:"v"`
	Drain Drain `json:"drain"`
}

func (d Drain) entry(action ledger.Action, by string) ledger.Entry {
	subjects := []string{by}
	if by != d.Person {
		subjects = append(subjects, d.Person)
	}
	return ledger.Entry{Action: action, Subjects: subjects, Target: "host/" + d.Host, Payload: payload{V: 1, Drain: d}}
}

// Drain keeps a host to by. Of their own drain they may say another time.
func (x *Drains) Drain(ctx context.Context, by identity.Principal, host string, long time.Duration, why string) (d Drain, err error) {
	h, err := x.d.Hosts.Get(ctx, host)
	if err != nil {
		return d, err
	}
	why = strings.TrimSpace(why)
	switch {
	case long <= 0 || long > Longest:
		return d, fault.New(fault.Invalid, "cannot drain %s for %s: up to %s", h.Name, long, Longest).WithHint("handrail host drain %s --for 2h --why \"…\"", h.Name)
	case why == "" || len(why) > maxWhy:
		return d, fault.New(fault.Invalid, "cannot drain %s: say why, in at most %d letters", h.Name, maxWhy).WithHint("handrail host drain %s --for 2h --why \"…\"", h.Name)
	}
	_, err = x.d.Door.Do(ctx, doorway.Act{Action: "hosts.drain", By: by, Host: &h, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		now := tx.Now()
		held, there, err := rowTx(tx, h.ID)
		if err != nil {
			return nil, err
		}
		if held.Until > now.UnixMicro() && held.Person != by.ID {
			return nil, x.refusal(tx, "drain", h, held)
		}
		d = Drain{Host: h.ID, Person: by.ID, Why: why, Since: now.UnixMicro(), Until: now.Add(long).UnixMicro(), Version: held.Version + 1}
		if there {
			_, err = tx.Exec(`UPDATE host_drains SET person = $1, why = $2, since = $3, until = $4, version = $5 WHERE host = $6`, d.Person, d.Why, d.Since, d.Until, d.Version, d.Host)
		} else {
			_, err = tx.Exec(`INSERT INTO host_drains (host, person, why, since, until, version) VALUES ($1, $2, $3, $4, $5, $6)`, d.Host, d.Person, d.Why, d.Since, d.Until, d.Version)
		}
		return []ledger.Entry{d.entry(Drained, by.ID)}, err
	}}, nil)
	if err == nil {
		x.d.Changed(h.ID)
	}
	return d, err
}

// Undrain lets everybody in again.
func (x *Drains) Undrain(ctx context.Context, by identity.Principal, host string) error {
	h, err := x.d.Hosts.Get(ctx, host)
	if err != nil {
		return err
	}
	held, ok, err := x.Of(ctx, h.ID)
	if err != nil {
		return err
	}
	if !ok {
		return notDrained("undrain", h)
	}
	_, err = x.d.Door.Do(ctx, doorway.Act{Action: "hosts.drain", By: by, Host: &h, Context: policy.Context{Self: held.Person == by.ID}, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		d, ok, err := OfTx(tx, h.ID, tx.Now())
		if err != nil {
			return nil, err
		}
		if !ok || d.Person != held.Person {
			return nil, notDrained("undrain", h)
		}
		d.Version++
		d.Until = tx.Now().UnixMicro()
		_, err = tx.Exec(`UPDATE host_drains SET until = $1, version = $2 WHERE host = $3`, d.Until, d.Version, h.ID)
		return []ledger.Entry{d.entry(Undrained, by.ID)}, err
	}}, nil)
	if err == nil {
		x.d.Changed(h.ID)
	}
	return err
}

func notDrained(verb string, h target.Host) error {
	return fault.New(fault.Conflict, "cannot %s %s: it is not drained", verb, h.Name).WithHint("handrail host show %s", h.Name)
}

func rowTx(q store.Queryer, host string) (d Drain, there bool, err error) {
	rows, err := store.All[Drain](q, columns+`WHERE host = $1`, host)
	if err != nil || len(rows) == 0 {
		return d, false, err
	}
	return rows[0], true, nil
}

// OfTx is the drain in force of a host.
func OfTx(q store.Queryer, host string, now time.Time) (Drain, bool, error) {
	d, there, err := rowTx(q, host)
	return d, there && d.Until > now.UnixMicro(), err
}

// Of is OfTx now.
func (x *Drains) Of(ctx context.Context, host string) (d Drain, ok bool, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) (err error) {
		d, ok, err = OfTx(v, host, time.Now())
		return err
	})
	return d, ok, err
}

// Admits refuses a new session of somebody else on a host that is drained.
// glass is whether they broke the glass.
func (x *Drains) Admits(q store.Queryer, h target.Host, by identity.Principal, glass bool, now time.Time) error {
	d, ok, err := OfTx(q, h.ID, now)
	if err != nil || !ok || d.Person == by.ID || glass {
		return err
	}
	return x.refusal(q, "open a session on", h, d)
}

func (x *Drains) refusal(q store.Queryer, verb string, h target.Host, d Drain) error {
	name := d.Person
	if p, err := x.d.People.GetTx(q, d.Person); err == nil {
		name = p.Name
	}
	return fault.New(fault.Conflict, "cannot %s %s: %s keeps it to themselves until %s UTC: %s", verb, h.Name, name, time.UnixMicro(d.Until).UTC().Format("15:04"), d.Why).
		WithHint("ask them, or an operator: handrail host undrain %s", h.Name)
}

// NeedTx refuses what may be done on a drained host only.
func NeedTx(q store.Queryer, verb string, h target.Host, now time.Time) error {
	_, ok, err := OfTx(q, h.ID, now)
	if err != nil || ok {
		return err
	}
	return fault.New(fault.Conflict, "cannot %s %s: it is not drained", verb, h.Name).WithHint("handrail host drain %s --for 2h --why \"…\"", h.Name)
}

// EraseTx leaves of somebody's drains when they were.
func EraseTx(tx *store.Tx, person string) error {
	_, err := tx.Exec(`UPDATE host_drains SET why = '' WHERE person = $1`, person)
	return err
}
