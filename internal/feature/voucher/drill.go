package voucher

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Drill is one rehearsal.
type Drill struct {
	ID         string `db:"id"` // s-…: names the drill in its order
	Host       string `db:"host"`
	HostName   string `db:"host_name"`
	Person     string `db:"person"`
	PersonName string `db:"person_name"`
	At         int64  `db:"at"`
	Took       int64  `db:"took"` // µs; 0: not yet
	Outcome    string `db:"outcome"`
	Failure    string `db:"failure"`
	Version    int64  `db:"version"`
}

const drillColumns = `id, host, host_name, person, person_name, at, took, outcome, failure, version`

const (
	defaultDrill = 5 * time.Minute
	maxFailure   = 512
)

// Rehearse orders a host to let the caller's voucher in for a few minutes as if
// no server answered. The order is the entry's payload, as of every order.
func (x *Vouchers) Rehearse(ctx context.Context, by identity.Principal, host string, length time.Duration) (Drill, time.Time, error) {
	if length == 0 {
		length = defaultDrill
	}
	if length < time.Minute || length > wire.MaxDrill*time.Millisecond {
		return Drill{}, time.Time{}, fault.New(fault.Invalid, "cannot drill for %s: between a minute and %s", length, wire.MaxDrill*time.Millisecond)
	}
	at, err := x.d.Hosts.Get(ctx, host)
	if err != nil {
		return Drill{}, time.Time{}, err
	}
	epochs, err := x.d.Epochs(ctx)
	if err != nil {
		return Drill{}, time.Time{}, err
	}
	d := Drill{ID: store.NewID('s'), Host: at.ID, HostName: at.Name, Person: by.ID, Outcome: string(ledger.Unknown), Version: 1}
	order := store.NewID('o')
	var until time.Time
	_, err = x.d.Door.Do(ctx, doorway.Act{
		Action: "grants.breakglass", By: by, Host: &at, Facts: x.owes(by),
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			person, err := x.d.People.GetTx(tx, by.ID)
			if err != nil {
				return nil, err
			}
			d.PersonName, d.At = person.Name, tx.Now().UnixMicro()
			until = tx.Now().Add(length)
			payload, err := wire.OrderPayload{
				V: 1, Order: order, Kind: wire.KindDrill, Node: at.ID, Issued: tx.Now().UnixMicro(), ValidMS: wire.MaxOrderAge,
				Epochs: wire.Epochs{Person: map[string]int64{person.ID: person.Epoch}, Lock: epochs.Lock, Policy: epochs.Policy},
				Need:   []string{"drill"}, Session: &wire.SessionSpec{ID: d.ID, Person: person.ID, RemainingMS: length.Milliseconds()},
			}.Marshal()
			if err != nil {
				return nil, err
			}
			if _, err := tx.Exec(`INSERT INTO drills (`+drillColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
				d.ID, d.Host, d.HostName, d.Person, d.PersonName, d.At, d.Took, d.Outcome, d.Failure, d.Version); err != nil {
				return nil, err
			}
			return []ledger.Entry{{Action: Ordered, Subjects: []string{person.ID}, Session: d.ID, Target: at.Path(), Object: "drill/" + d.ID, Version: 1, Payload: payload}}, nil
		},
	}, func(ctx context.Context, pass doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		if err := x.d.Nodes.Order(ctx, pass, at.ID); err != nil {
			return ledger.Failed, nil, err
		}
		return ledger.OK, nil, nil
	})
	return d, until, err
}

// drilled is the payload of drill.ended.
type drilled struct {
	V       int    `json:"v"`
	Drill   string `json:"drill"`
	Host    string `json:"host_name"`
	Took    int64  `json:"took_us"`
	Failure string `json:"failure,omitempty"`
}

// End records what came of a drill: only who began it may say.
func (x *Vouchers) End(ctx context.Context, by identity.Principal, id string, took time.Duration, failure string) (Drill, error) {
	if took < 0 || took > time.Hour || len(failure) > maxFailure {
		return Drill{}, fault.New(fault.Invalid, "cannot end drill %.40s: it took %s", id, took)
	}
	var d Drill
	_, err := x.d.Store.Record(ctx, "drill-ended/"+id, func(tx *store.Tx) ([]ledger.Entry, error) {
		rows, err := store.All[Drill](tx, `SELECT `+drillColumns+` FROM drills WHERE id = $1`, id)
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 || rows[0].Person != by.ID {
			return nil, fault.New(fault.NotFound, "cannot find a drill %.40q of yours", id).WithHint("handrail drill list")
		}
		if d = rows[0]; d.Version != 1 {
			return nil, fault.New(fault.Conflict, "cannot end drill %s: it has ended", d.ID)
		}
		d.Took, d.Failure, d.Outcome, d.Version = took.Microseconds(), wire.Plain(failure, maxFailure), string(ledger.OK), 2
		if failure != "" {
			d.Outcome = string(ledger.Failed)
		}
		if _, err := tx.Exec(`UPDATE drills SET took = $1, outcome = $2, failure = $3, version = 2 WHERE id = $4`, d.Took, d.Outcome, d.Failure, d.ID); err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: Rehearsed, Outcome: ledger.Outcome(d.Outcome), Subjects: []string{by.ID}, Session: d.ID, Target: "host/" + d.Host,
			Object: "drill/" + d.ID, Version: 2, Payload: drilled{V: 1, Drill: d.ID, Host: d.HostName, Took: d.Took, Failure: d.Failure}}}, nil
	})
	return d, err
}

// Drills are the last ones, newest first.
func (x *Vouchers) Drills(ctx context.Context) (list []Drill, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		list, err = store.All[Drill](v, `SELECT `+drillColumns+` FROM drills ORDER BY at DESC, id LIMIT 100`)
		return err
	})
	return list, err
}
