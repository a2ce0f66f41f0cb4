package access

import (
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/target"
)

// State is where a grant stands.
//
//	requested ─▶ approved ─▶ active ⇄ paused
//	   │            │           │        │
//	   ├─▶ denied   └───────────┴────────┴─▶ ended (expired, done, revoked,
//	   └─▶ lapsed                              │     locked, unratified)
//	                                           └ break-glass: in-review ─▶ closed
//
// Break-glass starts as active. It goes to in-review the moment it ends, since
// the review is owed from then on.
type State string

// The states.
const (
	Requested State = "requested"
	Approved  State = "approved"
	Denied    State = "denied"
	Lapsed    State = "lapsed"
	Active    State = "active"
	Paused    State = "paused"
	Ended     State = "ended"
	InReview  State = "in-review"
	Closed    State = "closed"
)

// The kinds of grant.
const (
	Routine    = "routine"     // the account that policy names
	Elevated   = "elevated"    // with sudo, or as root
	BreakGlass = "break-glass" // declared, not asked for
)

// Why a grant ended.
const (
	Expired    = "expired"
	Done       = "done"
	Revoked    = "revoked"
	Locked     = "locked"
	Unratified = "unratified"
)

// Target is a host as it was when the grant was asked for. What approvers agreed
// to stays this list, whatever the hosts become.
type Target struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Environment string `json:"environment"`
	Scope       string `json:"scope"`
	Server      bool   `json:"server,omitempty"` // the server runs there: root is the whole installation
}

func targetsOf(hosts []target.Host) []Target {
	list := make([]Target, len(hosts))
	for i, h := range hosts {
		list[i] = Target{ID: h.ID, Name: h.Name, Environment: h.Environment, Scope: h.Scope, Server: h.Server}
	}
	return list
}

// Grant is a person's right to write on named hosts for a stated reason until a
// stated time. All times are µs.
type Grant struct {
	ID            string        `json:"id"`
	Person        string        `json:"person"`
	PersonName    string        `json:"person_name"`
	Kind          string        `json:"kind"`
	State         State         `json:"state"`
	EndedWhy      string        `json:"ended_why,omitempty"`
	EndedBy       string        `json:"ended_by,omitempty"`
	EndedNote     string        `json:"ended_note,omitempty"` // what they said
	Targets       []Target      `json:"targets"`
	Account       string        `json:"account,omitempty"` // "": per host, as policy names
	Sudo          bool          `json:"sudo,omitempty"`
	Root          bool          `json:"root,omitempty"`
	Forwards      []string      `json:"forwards,omitempty"` // destinations of forwarded ports
	Reason        string        `json:"reason"`
	Ticket        string        `json:"ticket,omitempty"`
	AskedFor      time.Duration `json:"asked_for"`
	Requested     int64         `json:"requested"`
	Starts        int64         `json:"starts,omitempty"`
	Expires       int64         `json:"expires,omitempty"`
	Finished      int64         `json:"finished,omitempty"` // when it ended, was denied, or lapsed
	Approval      string        `json:"approval,omitempty"` // of the grant, or the ratification of break-glass
	PausedWhy     string        `json:"paused_why,omitempty"`
	BuddyRequired bool          `json:"buddy_required,omitempty"`
	RatifyBy      int64         `json:"ratify_by,omitempty"`
	Ratified      int64         `json:"ratified,omitempty"`
	RatifiedBy    string        `json:"ratified_by,omitempty"`
	ReviewWithin  time.Duration `json:"review_within,omitempty"`
	ReviewBy      int64         `json:"review_by,omitempty"`
	Reviewed      int64         `json:"reviewed,omitempty"`
	ReviewedBy    string        `json:"reviewed_by,omitempty"`
	Verdict       string        `json:"verdict,omitempty"` // justified, not-justified
	Notes         string        `json:"notes,omitempty"`
	RequestID     string        `json:"request_id,omitempty"`
	Policy        int64         `json:"policy"` // version it was asked for under
	Version       int64         `json:"version"`
}

// InForce says whether the grant lets somebody write now. It does not wait for a
// timer: what is past its time is not in force, whether or not its end is
// recorded yet.
func (g Grant) InForce(now time.Time) bool { return g.State == Active && !g.overdue(now.UnixMicro()) }

// overdue says whether the grant's time is up: its own, or that of a
// ratification that never came.
func (g Grant) overdue(at int64) bool { return at >= g.Expires || g.unratified(at) }

func (g Grant) unratified(at int64) bool {
	return g.Kind == BreakGlass && g.Ratified == 0 && at >= g.RatifyBy
}

// Live says whether the grant is, or can still become, a right.
func (g Grant) Live() bool {
	return g.State == Requested || g.State == Approved || g.State == Active || g.State == Paused
}

// ReviewOverdue says whether the review that the grant owes is past its date.
func (g Grant) ReviewOverdue(now time.Time) bool {
	return g.State == InReview && now.UnixMicro() >= g.ReviewBy
}

// Next is when time alone will change the grant, µs; 0 is never.
func (g Grant) Next() int64 {
	switch {
	case g.State != Active && g.State != Paused:
		return 0
	case g.Kind == BreakGlass && g.Ratified == 0:
		return min(g.Expires, g.RatifyBy)
	}
	return g.Expires
}

// Covers says whether the host is one of the grant's.
func (g Grant) Covers(host string) bool {
	return slices.ContainsFunc(g.Targets, func(t Target) bool { return t.ID == host })
}

// What can happen to a grant.
const (
	EventRequest = "request"
	EventDeclare = "declare" // break-glass
	EventApprove = "approve"
	EventDeny    = "deny"
	EventLapse   = "lapse"
	EventStart   = "start"
	EventPause   = "pause"
	EventResume  = "resume"
	EventTick    = "tick" // time passed
	EventEnd     = "end"  // Why says why
	EventRatify  = "ratify"
	EventReview  = "review"
)

// Event is one thing that happens to a grant.
type Event struct {
	Kind    string
	By      string // who caused it: p-…, or system
	Why     string // EventEnd: why; EventPause: what is missing
	Verdict string // EventReview
	Notes   string // EventReview, EventEnd, EventDeny: what they said
}

// What follows from a step. Effects begin only once the step is committed.
const (
	EffectEndSessions = "end-sessions" // every write session of the grant
	EffectAsk         = "ask"          // tell those who may approve
	EffectPage        = "page"         // wake the buddy: somebody broke the glass
	EffectTell        = "tell"         // tell the person who holds it
	EffectOwe         = "owe"          // a review is owed from now on
)

// Effect is one thing to do after a step.
type Effect struct {
	Kind  string
	Grant string
	Why   string
}

// Step applies an event to a grant at a time. It is pure. A refused event
// changes nothing; a tick that changes nothing is no error and no new version.
func Step(g Grant, e Event, now time.Time) (Grant, []Effect, error) {
	at := now.UnixMicro()
	switch e.Kind {
	case EventRequest, EventDeclare:
		return begin(g, e, at)
	case EventApprove, EventDeny, EventLapse, EventStart:
		return answer(g, e, at)
	case EventPause, EventResume:
		return hold(g, e, at)
	case EventTick:
		return tick(g, at)
	case EventEnd:
		return end(g, e, at)
	case EventRatify, EventReview:
		return agree(g, e, at)
	}
	return g, nil, fault.New(fault.Internal, "cannot change grant %s: %q is no event", g.ID, e.Kind)
}

func illegal(g Grant, e Event) error {
	return fault.New(fault.Conflict, "cannot %s grant %s: it is %s", e.Kind, g.ID, g.State).WithHint("handrail grants")
}

// begin is the first step of a grant.
func begin(g Grant, e Event, at int64) (Grant, []Effect, error) {
	if g.State != "" || g.Version != 0 {
		return g, nil, illegal(g, e)
	}
	if len(g.Targets) == 0 || g.AskedFor <= 0 || g.Person == "" || strings.TrimSpace(g.Reason) == "" {
		return g, nil, fault.New(fault.Invalid, "cannot %s grant: it needs a person, hosts, a reason and a length", e.Kind)
	}
	g.Version, g.Requested = 1, at
	if e.Kind == EventRequest {
		if g.Kind == BreakGlass {
			return g, nil, fault.New(fault.Internal, "cannot request a break-glass: it is declared")
		}
		g.State = Requested
		return g, []Effect{{Kind: EffectAsk, Grant: g.ID}}, nil
	}
	if g.ReviewWithin <= 0 || g.RatifyBy <= at {
		return g, nil, fault.New(fault.Internal, "cannot declare %s: it would owe neither ratification nor review", g.ID)
	}
	g.Kind, g.State = BreakGlass, Active
	g.Starts, g.Expires = at, at+g.AskedFor.Microseconds()
	return g, []Effect{{Kind: EffectPage, Grant: g.ID}, {Kind: EffectAsk, Grant: g.ID}}, nil
}

// answer is what comes of a request.
func answer(g Grant, e Event, at int64) (Grant, []Effect, error) {
	if e.Kind == EventStart {
		if g.State != Approved {
			return g, nil, illegal(g, e)
		}
		g.State, g.Starts, g.Expires = Active, at, at+g.AskedFor.Microseconds()
		g.Version++
		return g, []Effect{{Kind: EffectTell, Grant: g.ID}}, nil
	}
	if g.State != Requested || e.Kind == EventApprove && e.By == g.Person {
		return g, nil, illegal(g, e)
	}
	switch e.Kind {
	case EventApprove:
		g.State = Approved
	case EventDeny:
		g.State, g.EndedWhy, g.EndedBy, g.EndedNote, g.Finished = Denied, e.Why, e.By, e.Notes, at
	case EventLapse:
		g.State, g.Finished = Lapsed, at
	}
	g.Version++
	return g, []Effect{{Kind: EffectTell, Grant: g.ID, Why: string(g.State)}}, nil
}

// hold pauses and resumes. Time does not stop while a grant is paused, and a
// grant whose time is up cannot be resumed.
func hold(g Grant, e Event, at int64) (Grant, []Effect, error) {
	switch {
	case e.Kind == EventPause && g.State == Active:
		g.State, g.PausedWhy = Paused, e.Why
	case e.Kind == EventResume && g.State == Paused && !g.overdue(at):
		g.State, g.PausedWhy = Active, ""
	default:
		return g, nil, illegal(g, e)
	}
	g.Version++
	return g, nil, nil
}

// tick lets time pass.
func tick(g Grant, at int64) (Grant, []Effect, error) {
	switch {
	case g.State != Active && g.State != Paused:
		return g, nil, nil
	case g.unratified(at) && g.RatifyBy <= g.Expires:
		return end(g, Event{Kind: EventEnd, By: "system", Why: Unratified}, at)
	case at >= g.Expires:
		return end(g, Event{Kind: EventEnd, By: "system", Why: Expired}, at)
	}
	return g, nil, nil
}

// end takes the right away, at any time: ending early is never wrong.
func end(g Grant, e Event, at int64) (Grant, []Effect, error) {
	if !slices.Contains([]string{Expired, Done, Revoked, Locked, Unratified}, e.Why) {
		return g, nil, fault.New(fault.Internal, "cannot end grant %s: %q is no reason", g.ID, e.Why)
	}
	if g.State == Requested { // nobody has agreed yet: there is nothing to end
		return answer(g, Event{Kind: EventDeny, By: e.By, Why: e.Why, Notes: e.Notes}, at)
	}
	if g.State != Approved && g.State != Active && g.State != Paused {
		return g, nil, illegal(g, e)
	}
	g.State, g.EndedWhy, g.EndedBy, g.EndedNote, g.Finished, g.PausedWhy = Ended, e.Why, e.By, e.Notes, at, ""
	g.Version++
	effects := []Effect{{Kind: EffectEndSessions, Grant: g.ID, Why: e.Why}, {Kind: EffectTell, Grant: g.ID, Why: e.Why}}
	if g.Kind == BreakGlass {
		g.State, g.ReviewBy = InReview, at+g.ReviewWithin.Microseconds()
		effects = append(effects, Effect{Kind: EffectOwe, Grant: g.ID})
	}
	return g, effects, nil
}

// agree is what somebody else says to a break-glass: now (ratify) and afterwards
// (review). Never the person who declared it.
func agree(g Grant, e Event, at int64) (Grant, []Effect, error) {
	if e.By == g.Person || e.By == "" || e.By == "system" {
		return g, nil, fault.New(fault.Denied, "cannot %s %s: not by the person who declared it", e.Kind, g.ID).WithRule("never-your-own")
	}
	switch {
	case e.Kind == EventRatify && g.Kind == BreakGlass && g.Ratified == 0 && (g.State == Active || g.State == Paused) && !g.overdue(at):
		g.Ratified, g.RatifiedBy = at, e.By
	case e.Kind == EventReview && g.State == InReview:
		if e.Verdict != "justified" && e.Verdict != "not-justified" {
			return g, nil, fault.New(fault.Invalid, "cannot close review %s: the verdict is justified or not-justified, not %q", g.ID, e.Verdict)
		}
		g.State, g.Reviewed, g.ReviewedBy, g.Verdict, g.Notes = Closed, at, e.By, e.Verdict, e.Notes
	default:
		return g, nil, illegal(g, e)
	}
	g.Version++
	return g, []Effect{{Kind: EffectTell, Grant: g.ID, Why: e.Kind}}, nil
}
