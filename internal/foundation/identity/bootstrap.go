package identity

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Bootstrap is the time in which one person may do what later needs two:
//
//	begun ──(second person logs in)──▶ limited ──(24 h)──▶ ended
//	  └──────────────(bootstrap end)──────┴────────────────▶ ended
//
// It never begins again. The row decides, at the time of the transaction;
// Flag only marks entries.

const (
	bootstrapRow  = "bootstrap"
	bootstrapLast = 24 * time.Hour
	bootstrapLink = 15 * time.Minute

	// placeholder is the first person's name until they choose one.
	placeholder = "admin"
	// AdminGroup is the group of the first person.
	AdminGroup = "admin"
)

// Flag says whether entries written now are written in bootstrap. It exists
// before the store, which marks entries by it: store.Config.Bootstrap is
// flag.Active. Until Start has run it says no.
type Flag struct{ until atomic.Int64 }

// Active says whether the installation is in bootstrap at this moment.
func (f *Flag) Active() bool { return time.Now().UnixMicro() < f.until.Load() }

func (f *Flag) set(s BootstrapState) {
	switch {
	case !s.Active:
		f.until.Store(0)
	case s.Ends.IsZero():
		f.until.Store(math.MaxInt64)
	default:
		f.until.Store(micros(s.Ends))
	}
}

// BootstrapState is whether one person may still do what later needs two.
type BootstrapState struct {
	Active bool
	Ends   time.Time // zero until a second person has logged in, or after the end
}

type bootRow struct {
	First   string `db:"first_person"`
	Begun   int64  `db:"begun"`
	Second  int64  `db:"second"`
	Ended   int64  `db:"ended"`
	Version int64  `db:"version"`
}

func (r bootRow) state(now time.Time) BootstrapState {
	if r.Begun == 0 || r.Ended != 0 {
		return BootstrapState{}
	}
	if r.Second == 0 {
		return BootstrapState{Active: true}
	}
	ends := fromMicros(r.Second).Add(bootstrapLast)
	if !now.Before(ends) {
		return BootstrapState{}
	}
	return BootstrapState{Active: true, Ends: ends}
}

func readBootstrap(q store.Queryer) (bootRow, error) {
	rows, err := store.All[bootRow](q, `SELECT first_person, begun, second, ended, version FROM bootstrap WHERE id = $1`, bootstrapRow)
	if err != nil || len(rows) == 0 {
		return bootRow{}, err
	}
	return rows[0], nil
}

func (r bootRow) save(tx *store.Tx) (bootRow, error) {
	n, err := tx.Exec(`UPDATE bootstrap SET first_person = $1, second = $2, ended = $3, version = $4 WHERE id = $5 AND version = $6`,
		r.First, r.Second, r.Ended, r.Version+1, bootstrapRow, r.Version)
	if err != nil {
		return bootRow{}, err
	}
	if n != 1 {
		return bootRow{}, fault.New(fault.Conflict, "cannot change the bootstrap state: it changed meanwhile").WithHint("try again")
	}
	r.Version++
	return r, nil
}

func (r bootRow) entry(action ledger.Action, by string, payload BootstrapPayload) ledger.Entry {
	payload.V = 1
	return ledger.Entry{Action: action, Subjects: subjects(by), Object: bootstrapRow, Version: r.Version, Payload: payload, SealTo: ledger.System}
}

// BootstrapTx returns the state inside a transaction or view, at its time.
func (p *People) BootstrapTx(q store.Queryer, now time.Time) (BootstrapState, error) {
	row, err := readBootstrap(q)
	return row.state(now), err
}

// Bootstrap returns the state now.
func (p *People) Bootstrap(ctx context.Context) (BootstrapState, error) {
	var state BootstrapState
	err := p.store.View(ctx, func(v *store.View) (err error) {
		state, err = p.BootstrapTx(v, time.Now())
		return err
	})
	return state, err
}

// Reload brings the flag in line with the row. Whoever changed the row calls it
// after the commit.
func (p *People) Reload(ctx context.Context) error {
	state, err := p.Bootstrap(ctx)
	if err == nil {
		p.flag.set(state)
	}
	return err
}

// Start begins bootstrap on a new installation, and on any other reads how it
// stands. Nothing else may be called before.
func (p *People) Start(ctx context.Context) error {
	var row bootRow
	err := p.store.View(ctx, func(v *store.View) (err error) {
		row, err = readBootstrap(v)
		return err
	})
	if err != nil {
		return err
	}
	if row.Begun != 0 {
		return p.Reload(ctx)
	}
	p.flag.set(BootstrapState{Active: true}) // the very first entry is marked too
	err = p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) {
		if row, err := readBootstrap(tx); err != nil || row.Begun != 0 {
			return nil, err // another server was first
		}
		if _, err := tx.Exec(`INSERT INTO bootstrap (id, first_person, begun, second, ended, version) VALUES ($1, '', $2, 0, 0, 1)`,
			bootstrapRow, micros(tx.Now())); err != nil {
			return nil, err
		}
		return []ledger.Entry{bootRow{Version: 1}.entry(BootstrapBegun, ledger.System, BootstrapPayload{})}, nil
	})
	if err != nil {
		return err
	}
	return p.Reload(ctx)
}

// limitBootstrap starts the clock when the second person logs in.
func limitBootstrap(tx *store.Tx, who Person) ([]ledger.Entry, error) {
	row, err := readBootstrap(tx)
	if err != nil || row.Begun == 0 || row.Ended != 0 || row.Second != 0 || row.First == who.ID || who.Kind != KindPerson {
		return nil, err
	}
	row.Second = micros(tx.Now())
	if row, err = row.save(tx); err != nil {
		return nil, err
	}
	return []ledger.Entry{row.entry(BootstrapLimited, who.ID, BootstrapPayload{Ends: micros(tx.Now().Add(bootstrapLast))})}, nil
}

// EndBootstrapTx ends bootstrap for good. Call Reload after the commit.
func (p *People) EndBootstrapTx(tx *store.Tx, by string) ([]ledger.Entry, error) {
	return p.endBootstrap(tx, by, "asked for")
}

func (p *People) endBootstrap(tx *store.Tx, by, reason string) ([]ledger.Entry, error) {
	row, err := readBootstrap(tx)
	if err != nil {
		return nil, err
	}
	if row.Begun == 0 || row.Ended != 0 {
		return nil, fault.New(fault.Conflict, "cannot end bootstrap: it has ended already")
	}
	row.Ended = micros(tx.Now())
	if row, err = row.save(tx); err != nil {
		return nil, err
	}
	return []ledger.Entry{row.entry(BootstrapEnded, by, BootstrapPayload{Reason: reason})}, nil
}

// endInTime writes down that the time is over. What decides is the time itself,
// so nothing depends on when this runs.
func (p *People) endInTime(ctx context.Context) {
	var row bootRow
	err := p.store.View(ctx, func(v *store.View) (err error) {
		row, err = readBootstrap(v)
		return err
	})
	if err != nil || row.Begun == 0 || row.Ended != 0 || row.state(time.Now()).Active {
		return
	}
	_ = p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { // if it fails, the next minute tries again
		return p.endBootstrap(tx, ledger.System, "24 hours after the second person logged in")
	})
	_ = p.Reload(ctx)
}

// EnsureBootstrapLink makes the first person if there is none, and a login
// token of 15 minutes for them. Only the owner of the data folder may cause a
// call, and only bootstrap allows it: afterwards the server's own account is
// no way in.
func (p *People) EnsureBootstrapLink(ctx context.Context) (secret string, err error) {
	if err := p.Start(ctx); err != nil {
		return "", err
	}
	err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
		row, err := readBootstrap(tx)
		if err != nil {
			return nil, err
		}
		if !row.state(tx.Now()).Active {
			return nil, fault.New(fault.Denied, "cannot make a login link here: bootstrap has ended").WithRule("bootstrap-ended").
				WithHint("ask somebody who is logged in: handrail login-link NAME")
		}
		if row.First == "" {
			first, made, err := p.add(tx, ledger.System, Person{Name: placeholder, Kind: KindPerson}, []string{AdminGroup})
			if err != nil {
				return nil, err
			}
			row.First = first.ID
			if _, err := row.save(tx); err != nil {
				return nil, err
			}
			entries = append(entries, made...)
		}
		var token ledger.Entry
		secret, token, err = p.LoginTokenTx(tx, row.First, ledger.System, bootstrapLink)
		return append(entries, token), err
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}
