// Package access is grants: a person asks to write on named hosts for a reason
// and a time, somebody else agrees, and when the time is up it ends. Break-glass
// is the same machine, begun at once: louder, shorter, ratified within minutes
// or cut back to read, and a review owed.
//
// The machine is a pure step function (Step); rows, timers and sessions follow
// it. What must stay true: a grant that is past its time is not in force even
// when no timer has fired (Grant.InForce); every change is one row and one entry
// in one transaction; folding the entries gives the rows; and after a crash Run
// takes up from the rows alone.
package access

import (
	"context"
	"regexp"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Sessions ends what runs under a grant. The session feature is one. Ending is
// idempotent: a grant without live sessions is no error.
type Sessions interface {
	EndByGrant(ctx context.Context, grant, why string) (n int)
}

// Notices tells people. It may be nil: whoever follows the ledger sees the same.
type Notices interface {
	GrantChanged(ctx context.Context, g Grant, e Effect)
}

// Deps is what Access needs.
type Deps struct {
	Store     *store.Store
	Door      *doorway.Door
	Approvals *approval.Approvals
	Policy    *policy.Force
	Hosts     *target.Hosts
	People    *identity.People
	Sessions  Sessions // may be nil until UseSessions
	// MoreApprovers is how many must agree to a grant beyond what policy says,
	// because of what is not known now. nil: none.
	MoreApprovers func(q store.Queryer, now time.Time) (int, error)
	Notices       Notices // may be nil
}

// Access is the feature.
type Access struct {
	d    Deps
	wake chan struct{}

	mu      sync.Mutex
	pending map[string]ended // grants whose end not even the spool could keep
}

// New returns Access. Run must run for grants to end by themselves.
func New(d Deps) *Access {
	return &Access{d: d, wake: make(chan struct{}, 1), pending: map[string]ended{}}
}

// UseSessions says who ends sessions. Sessions need Access to exist first; call
// it before Run.
func (x *Access) UseSessions(s Sessions) { x.d.Sessions = s }

const (
	defaultFor = 30 * time.Minute
	shortest   = time.Minute
	maxReason  = 2000
	maxTicket  = 200
	maxCallID  = 100
	maxTargets = 500
	maxOpen    = 20 // live grants of one person
)

// Over is a grant that somebody ended.
type Over struct {
	Grant   Grant
	Killed  int  // sessions that died of it
	Pending bool // it acted; the database will hear of it as soon as it answers
}

// Revoke ends somebody's grant, or a request for one. It is a brake: what runs
// under the grant dies before anything is recorded.
func (x *Access) Revoke(ctx context.Context, id, reason string) (Over, error) {
	return x.finish(ctx, id, Revoked, reason)
}

// Done ends one's own grant early.
func (x *Access) Done(ctx context.Context, id string) (Over, error) {
	return x.finish(ctx, id, Done, "")
}

func (x *Access) finish(ctx context.Context, id, why, note string) (Over, error) {
	by, err := actor(ctx)
	if err != nil {
		return Over{}, err
	}
	note = strings.TrimSpace(note)
	if cut := []rune(note); len(cut) > maxReason { // a brake is not refused for being told at length
		note = string(cut[:maxReason])
	}
	act := doorway.Act{Action: "grants.revoke", By: by, Facts: x.self(id, by)}
	before, killed := x.brake(ctx, act, id, why)
	var g Grant
	act.Open = func(tx *store.Tx, _ policy.Decision) (entries []ledger.Entry, err error) {
		now, err := x.mineTx(tx, id, by)
		if err != nil {
			return nil, err
		}
		if why == Done && now.Person != by.ID {
			return nil, fault.New(fault.Denied, "cannot finish grant %s: it is of %s", now.ID, now.PersonName).WithHint("handrail revoke %s", now.ID)
		}
		g, entries, err = x.endTx(tx, now, Event{Kind: EventEnd, By: by.ID, Why: why, Notes: note})
		return entries, err
	}
	pending, err := x.d.Door.Brake(ctx, act)
	switch {
	case err != nil:
		return Over{}, err
	case pending && before.ID == "":
		return Over{}, fault.New(fault.Unavailable, "cannot end grant %.40s: the database does not answer, and nobody can say what it is", id).
			WithHint("handrail stop SESSION stops what runs under it")
	case pending && before.State == "":
		x.later(ended{Grant: before.ID, By: by.ID, Why: why, Note: note})
		return Over{before, killed, true}, nil
	case pending:
		x.later(ended{Grant: before.ID, By: by.ID, Why: why, Note: note})
		if before, _, err = Step(before, Event{Kind: EventEnd, By: by.ID, Why: why, Notes: note}, time.Now().UTC()); err != nil {
			return Over{}, err
		}
		return Over{before, killed, true}, nil // as it will be recorded
	}
	killed = max(killed, x.enforce(ctx, g)) // and what began in between
	x.tell(ctx, g, Effect{Kind: EffectTell, Grant: g.ID, Why: why})
	return Over{Grant: g, Killed: killed}, nil
}

var wholeID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^g-[0-9a-z]{8}$`) })

// brake ends what runs under a grant before anything is recorded, if the person
// may: a brake waits for no database. Whether they may is decided again where it
// is recorded.
func (x *Access) brake(ctx context.Context, act doorway.Act, id, why string) (Grant, int) {
	decision, err := x.d.Door.Explain(ctx, act)
	if fault.KindOf(err) == fault.Unavailable && why == Revoked && x.d.Sessions != nil && act.By.MayBrake() && wholeID().MatchString(id) {
		// The database is away: what runs under that id is known all the same.
		return Grant{ID: id}, x.d.Sessions.EndByGrant(ctx, id, why)
	}
	if err != nil || !decision.Allowed {
		return Grant{}, 0
	}
	var g Grant
	err = x.d.Store.View(ctx, func(v *store.View) (err error) {
		g, err = x.mineTx(v, id, act.By)
		return err
	})
	if err != nil || !g.Live() || why == Done && g.Person != act.By.ID || x.d.Sessions == nil {
		return g, 0
	}
	return g, x.d.Sessions.EndByGrant(ctx, g.ID, why)
}

// endTx ends a grant and the request that goes with it.
func (x *Access) endTx(tx *store.Tx, g Grant, e Event) (Grant, []ledger.Entry, error) {
	g, entries, _, err := applyTx(tx, g, e)
	if err != nil || g.Approval == "" {
		return g, entries, err
	}
	more, err := x.d.Approvals.WithdrawTx(tx, e.By, g.Approval, e.Why)
	return g, append(entries, more...), err
}

// self completes the circumstances with whether the grant is the actor's own.
func (x *Access) self(id string, by identity.Principal) func(store.Queryer, *policy.Context) error {
	return func(q store.Queryer, c *policy.Context) error {
		g, err := x.mineTx(q, id, by)
		c.Self = g.Person == by.ID
		return err
	}
}

// mineTx is getTx, and "-" is the actor's latest.
func (x *Access) mineTx(q store.Queryer, id string, by identity.Principal) (Grant, error) {
	if id != "-" {
		return getTx(q, id)
	}
	list, err := find(q, `WHERE g.person = $1 ORDER BY g.requested DESC, g.id LIMIT 1`, by.ID)
	if err != nil {
		return Grant{}, err
	}
	if len(list) == 0 {
		return Grant{}, fault.New(fault.NotFound, "cannot find a grant of yours").WithHint(`handrail elevate HOST --reason "why"`)
	}
	return list[0], nil
}

// enforce ends the sessions of a grant that is not in force any more.
func (x *Access) enforce(ctx context.Context, g Grant) int {
	if x.d.Sessions == nil || g.ID == "" || g.Live() {
		return 0
	}
	why := g.EndedWhy
	if why == "" {
		why = string(g.State)
	}
	return x.d.Sessions.EndByGrant(ctx, g.ID, why)
}

func (x *Access) tell(ctx context.Context, g Grant, e Effect) {
	if x.d.Notices != nil {
		x.d.Notices.GrantChanged(ctx, g, e)
	}
}

// poke makes Run look at the rows again.
func (x *Access) poke() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// Review closes the review that a break-glass owes. Never by who declared it.
func (x *Access) Review(ctx context.Context, id, verdict, notes string) (Grant, error) {
	by, err := actor(ctx)
	if err != nil {
		return Grant{}, err
	}
	if len(notes) > maxReason {
		return Grant{}, fault.New(fault.Invalid, "cannot close the review: the notes may have %d characters", maxReason)
	}
	return x.change(ctx, by, "grants.review", id, Event{Kind: EventReview, By: by.ID, Verdict: verdict, Notes: notes})
}

// Pause takes a grant's power away for a while; its time goes on.
func (x *Access) Pause(ctx context.Context, id, why string) (Grant, error) {
	by, err := actor(ctx)
	if err != nil {
		return Grant{}, err
	}
	return x.change(ctx, by, "grants.revoke", id, Event{Kind: EventPause, By: by.ID, Why: why})
}

// Resume gives it back, which takes somebody who may agree to grants, and is
// never the person who holds it.
func (x *Access) Resume(ctx context.Context, id string) (Grant, error) {
	by, err := actor(ctx)
	if err != nil {
		return Grant{}, err
	}
	return x.change(ctx, by, "approvals.decide", id, Event{Kind: EventResume, By: by.ID})
}

// change is one event of a person on a grant.
func (x *Access) change(ctx context.Context, by identity.Principal, action, id string, e Event) (Grant, error) {
	var g Grant
	var effects []Effect
	_, err := x.d.Door.Do(ctx, doorway.Act{
		Action: action, By: by, Facts: x.self(id, by),
		Open: func(tx *store.Tx, _ policy.Decision) (entries []ledger.Entry, err error) {
			if g, err = x.mineTx(tx, id, by); err != nil {
				return nil, err
			}
			g, entries, effects, err = applyTx(tx, g, e)
			return entries, err
		},
	}, nil)
	if err != nil {
		return Grant{}, err
	}
	for _, effect := range effects {
		x.tell(ctx, g, effect)
	}
	x.poke()
	return g, nil
}

// Get returns a grant by id, unique beginning of one, or "-" for my latest.
func (x *Access) Get(ctx context.Context, id string) (Grant, error) {
	by, err := actor(ctx)
	if err != nil {
		return Grant{}, err
	}
	if err := x.d.Door.Read(ctx, doorway.Act{Action: "grants.list", By: by}); err != nil {
		return Grant{}, err
	}
	var g Grant
	err = x.d.Store.View(ctx, func(v *store.View) (err error) {
		g, err = x.mineTx(v, id, by)
		return err
	})
	return g, err
}
