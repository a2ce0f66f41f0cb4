// Package directory keeps a read copy of the company's directory: its people,
// nested groups and managers, read from LDAP, dated and signed.
//
//	LDAP ── pushed (RFC 4533), or read in pages ──▶ world ──▶ Copy ──▶ plan ──▶ people
//
// What must stay true: what is read is whole or it is nothing. A referral, a
// limit, a broken connection, a group whose members cannot be seen, an entry
// without its id: each is a failure that changes nothing, never a smaller
// company. The library behind it reports a search that was given up, or whose
// connection went away, as one that ended well; so an end counts only with the
// control that says so.
//
// An entry is known by the id that it keeps for ever. Names are for people.
package directory

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Deps is what a Directory needs.
type Deps struct {
	Store    *store.Store
	People   *identity.People
	Settings Settings
	Log      note.Signer // signs the copy
	Slog     *slog.Logger
	// Leads says whether this is the server that acts by what the directory says.
	// The others read along, for logins and to take over at once. nil: it is.
	Leads func() bool

	// Gone ends at once whatever a person has running; Fallen ends what they hold
	// by grants. Both may be called more than once for the same. nil: nothing runs.
	Gone   func(ctx context.Context, person, why string)
	Fallen func(ctx context.Context, person, why string)
	// EndGrants ends the grants and open requests of a person, in the transaction
	// that takes their power.
	EndGrants func(tx *store.Tx, person, why string) ([]ledger.Entry, error)
	// Ask asks a person to let a change through (a Held), Unask withdraws that.
	Ask   func(tx *store.Tx, request []byte) (approval string, entries []ledger.Entry, err error)
	Unask func(tx *store.Tx, approval, why string) ([]ledger.Entry, error)
}

// Directory follows the company's directory.
type Directory struct {
	Deps
	c      config
	last   atomic.Pointer[here]
	status statusBox
	again  chan struct{} // look at what was agreed, without reading anew
	anew   chan struct{} // read everything anew
	dns    atomic.Pointer[map[string]string]
	tries  tries
	logins chan struct{}

	applying sync.Mutex
}

// New returns a Directory, or says what is wrong with the settings. Without a
// URL it is nil, and a nil Directory is one that nobody has.
func New(d Deps) (*Directory, error) {
	if !d.Settings.On() {
		return nil, nil
	}
	c, err := d.Settings.check()
	if err != nil {
		return nil, err
	}
	if d.Slog == nil {
		d.Slog = slog.New(slog.DiscardHandler)
	}
	x := &Directory{Deps: d, c: c, again: make(chan struct{}, 1), anew: make(chan struct{}, 1), logins: make(chan struct{}, loginsAtOnce)}
	x.status.set(func(s *Status) { s.Host, s.Mode = c.host, ModeNever })
	return x, nil
}

// How the directory is read.
const (
	ModeNever  = "never"  // not yet, since this server started
	ModePushed = "pushed" // changes come by themselves
	ModePaged  = "paged"  // everything is read every so often
)

const (
	firstWait   = time.Second
	longestWait = 30 * time.Second
	pushAgain   = time.Hour // a server that does not push is asked again
)

// Run follows the directory until ctx ends. What fails is tried again.
func (d *Directory) Run(ctx context.Context) error {
	if d == nil {
		return nil
	}
	wait := firstWait
	var noPush time.Time
	for ctx.Err() == nil {
		var err error
		if time.Since(noPush) > pushAgain {
			err = d.follow(ctx)
			if errors.Is(err, errNoPush) {
				noPush, err = time.Now(), nil
			}
		} else {
			err = d.page(ctx)
		}
		switch {
		case ctx.Err() != nil:
		case err == nil || errors.Is(err, errAnew):
			wait = firstWait
		default:
			d.failed(ctx, err)
			select {
			case <-ctx.Done():
			case <-d.anew:
			case <-time.After(wait + rand.N(wait/2)):
			}
			wait = min(wait*2, longestWait)
		}
	}
	return nil
}

// follow reads by push, until it is time to begin anew.
func (d *Directory) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := d.c.open(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	return l.follow(ctx, func(w *world) error { return d.told(ctx, w, ModePushed) }, signals{
		alive: func() error { return d.alive(ctx) }, again: d.again, anew: d.anew,
	})
}

// page reads everything once, and waits for the next time.
func (d *Directory) page(ctx context.Context) error {
	l, err := d.c.open(ctx)
	if err != nil {
		return err
	}
	w, err := l.readAll(ctx)
	l.close()
	if err != nil {
		return err
	}
	next := time.NewTimer(d.c.every)
	defer next.Stop()
	for {
		if err := d.told(ctx, w, ModePaged); err != nil {
			return err
		}
		select {
		case <-d.again: // somebody agreed to what waits
		case <-d.anew:
			return nil
		case <-next.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// told applies a world that is whole.
func (d *Directory) told(ctx context.Context, w *world, mode string) error {
	d.applying.Lock()
	defer d.applying.Unlock()
	err := d.apply(ctx, w, mode)
	for tries := 0; err != nil && fault.KindOf(err) == fault.Conflict && tries < 3 && ctx.Err() == nil; tries++ {
		err = d.apply(ctx, w, mode) // another server was faster, or somebody changed the same person
	}
	if err != nil {
		return err
	}
	dns := make(map[string]string, len(w.people))
	for id, h := range w.people {
		if h.off == "" {
			dns[id] = h.dn
		}
	}
	d.dns.Store(&dns)
	d.status.set(func(s *Status) {
		s.Failing, s.FailingSince, s.recorded = "", time.Time{}, false
		s.Readings++
	})
	return nil
}

func (d *Directory) leads() bool { return d.Leads == nil || d.Leads() }

// TakeOver acts by what was read already. It is called when this server comes to
// lead.
func (d *Directory) TakeOver() {
	if d != nil {
		d.status.set(func(s *Status) { s.recorded = false }) // whoever led before may not have seen that it fails
		d.poke(d.again)
	}
}

// alive notes that the directory still says what it said.
func (d *Directory) alive(ctx context.Context) error {
	now := time.Now()
	d.status.set(func(s *Status) { s.Seen = now })
	row, found, err := d.row(ctx)
	if err != nil || !found || !d.leads() || now.UnixMicro()-row.Confirmed < d.c.confirmEvery().Microseconds() {
		return nil // the database is away: what the directory says is not less true
	}
	d.poke(d.again) // writes it down
	return nil
}

func (d *Directory) poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is poked already
	}
}

// Again looks at what somebody agreed to.
func (d *Directory) Again() {
	if d != nil {
		d.poke(d.again)
	}
}

// failed notes that the directory cannot be read, in the ledger once for each
// time that it ceases.
func (d *Directory) failed(ctx context.Context, err error) {
	f := fault.From(err)
	known, last := false, time.Time{}
	d.status.set(func(s *Status) {
		if s.Failing == "" {
			s.FailingSince = time.Now()
		}
		s.Failing = f.Text
		s.Readings++
		known, last = s.recorded, s.Seen
	})
	d.Slog.Warn("the directory cannot be read", "error", err)
	if known || !d.leads() {
		return
	}
	payload := failedPayload{V: 1, Why: cut(f.Text, 500)}
	if !last.IsZero() {
		payload.Last = micros(last)
	}
	err = d.record(ctx, func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: Failed, Outcome: ledger.Failed, Payload: payload}}, nil
	})
	d.status.set(func(s *Status) { s.recorded = err == nil }) // else the next try records it
}

func cut(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}
