package access

import (
	"context"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/when"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Ask is what a person asks for.
type Ask struct {
	Hosts      []string // names, ids or selectors
	Reason     string
	Ticket     string
	For        time.Duration // 0: half an hour, or the longest where that is less
	Sudo, Root bool
	Forwards   []string          // destinations of forwarded ports: address:port, address:*
	Account    string            // "": the one that policy names
	RequestID  string            // idempotency
	Signature  approval.Evidence // the requester's own, over the subject hash; may be empty
}

func actor(ctx context.Context) (identity.Principal, error) {
	by, ok := identity.FromContext(ctx)
	if !ok {
		return by, fault.New(fault.Unauthenticated, "cannot tell who you are").WithHint("handrail login")
	}
	return by, nil
}

// check refuses what no approver should have to read.
func (a Ask) check() error {
	reason := strings.TrimSpace(a.Reason)
	switch {
	case len(a.Hosts) == 0:
		return fault.New(fault.Invalid, "cannot ask for a grant: name at least one host").WithHint("handrail hosts")
	case reason == "":
		return fault.New(fault.Invalid, "cannot ask for a grant: say why").WithHint(`add --reason "why"`)
	case len(reason) > maxReason || len(a.Ticket) > maxTicket || len(a.RequestID) > maxCallID || len(a.Hosts) > maxTargets:
		return fault.New(fault.Invalid, "cannot ask for a grant: the reason may have %d characters, the ticket %d, and %d hosts may be named", maxReason, maxTicket, maxTargets)
	case len(a.Forwards) > wire.MaxForwards:
		return fault.New(fault.Invalid, "cannot ask for %d forwarded ports: at most %d in one grant", len(a.Forwards), wire.MaxForwards)
	case a.For < 0 || a.For > 0 && a.For < shortest:
		return fault.New(fault.Invalid, "cannot ask for a grant for %s: at least a minute", when.Words(a.For)).WithHint("handrail elevate HOST --for 30m")
	}
	return nil
}

// hosts resolves what was asked for to the exact list that people agree to.
func (x *Access) hosts(ctx context.Context, words []string) ([]target.Host, error) {
	var hosts []target.Host
	err := x.d.Store.View(ctx, func(v *store.View) (err error) {
		hosts, err = x.d.Hosts.ResolveTx(v, words)
		return err
	})
	if err == nil && len(hosts) > maxTargets {
		err = fault.New(fault.Invalid, "cannot ask for a grant on %d hosts: at most %d", len(hosts), maxTargets)
	}
	return hosts, err
}

// draft makes a grant from what was asked for and what policy says, inside the
// deciding transaction.
func (x *Access) draft(tx *store.Tx, by identity.Principal, ask Ask, hosts []target.Host, engine *policy.Engine) (Grant, error) {
	open, err := store.One[int64](tx, `SELECT COUNT(*) FROM grants WHERE person = $1 AND state IN ($2, $3, $4, $5)`,
		by.ID, string(Requested), string(Approved), string(Active), string(Paused))
	if err != nil {
		return Grant{}, err
	}
	if open >= maxOpen {
		return Grant{}, fault.New(fault.Exhausted, "cannot ask for another grant: you have %d", open).WithHint("handrail grants --mine, then end one: handrail done ID")
	}
	person, err := x.d.People.GetTx(tx, by.ID)
	if err != nil {
		return Grant{}, err
	}
	g := Grant{
		Person: by.ID, PersonName: person.Name, Kind: Routine, Targets: targetsOf(hosts), Sudo: ask.Sudo || ask.Root, Root: ask.Root,
		Reason: strings.TrimSpace(ask.Reason), Ticket: strings.TrimSpace(ask.Ticket), RequestID: ask.RequestID,
		BuddyRequired: engine.BuddyRequired(hosts...), Policy: engine.Version(),
	}
	for _, f := range ask.Forwards {
		one, err := wire.ForwardDestination(f, true)
		if err != nil {
			return Grant{}, err
		}
		if !slices.Contains(g.Forwards, one) {
			g.Forwards = append(g.Forwards, one)
		}
	}
	if g.Sudo || g.Root {
		g.Kind = Elevated
	}
	if ask.Root { // root is not an account that policy names: it is what was asked for
		g.Account = "root"
		return g, nil
	}
	g.Account, err = account(ask.Account, hosts, engine)
	return g, err
}

// account is the account that policy names on all the hosts, or "" where it
// differs. Somebody who asks for another is refused, not corrected.
func account(asked string, hosts []target.Host, engine *policy.Engine) (string, error) {
	named := engine.WriteAccount(hosts[0])
	for _, h := range hosts {
		mine := engine.WriteAccount(h)
		if asked != "" && asked != mine {
			return "", fault.New(fault.Denied, "cannot write as %.40q on %s: policy names %s", asked, h.Name, mine)
		}
		if mine != named {
			named = ""
		}
	}
	return named, nil
}

// Asked is the answer to Elevate and BreakGlass.
type Asked struct {
	Grant     Grant
	Approval  approval.Approval
	Approvers []string // groups that could agree
}

// Elevate asks for a grant. Somebody else makes it active.
func (x *Access) Elevate(ctx context.Context, ask Ask) (Asked, error) {
	return x.ask(ctx, ask, "grants.request", "elevate")
}

// BreakGlass makes a grant active at once.
func (x *Access) BreakGlass(ctx context.Context, ask Ask) (Asked, error) {
	return x.ask(ctx, ask, "grants.breakglass", "break-glass")
}

func (x *Access) ask(ctx context.Context, ask Ask, action, word string) (Asked, error) {
	by, err := actor(ctx)
	if err != nil {
		return Asked{}, err
	}
	if err := ask.check(); err != nil {
		return Asked{}, err
	}
	if ask.RequestID != "" {
		if old, found, err := x.again(ctx, by, ask); err != nil || found {
			return old, err
		}
	}
	hosts, err := x.hosts(ctx, ask.Hosts)
	if err != nil {
		return Asked{}, err
	}
	var asked Asked
	id := store.NewID('g')
	act := doorway.Act{
		Action: action, By: by, Hosts: hosts, Context: policy.Context{Sudo: ask.Sudo || ask.Root, Root: ask.Root, Forward: len(ask.Forwards) > 0},
		Facts: func(q store.Queryer, c *policy.Context) (err error) {
			c.OwesReview, err = owes(q, by.ID, now(q))
			return err
		},
		Open: func(tx *store.Tx, _ policy.Decision) (entries []ledger.Entry, err error) {
			asked, entries, err = x.openTx(tx, by, ask, hosts, id, action == "grants.breakglass")
			return entries, err
		},
	}
	if ask.RequestID != "" {
		act.ID = word + "/" + by.ID + "/" + ask.RequestID
	}
	if _, err := x.d.Door.Do(ctx, act, nil); err != nil {
		return Asked{}, err
	}
	if asked.Grant.ID == "" { // two calls with one request id raced, and the other won
		old, _, err := x.again(ctx, by, ask)
		return old, err
	}
	x.tell(ctx, asked.Grant, Effect{Kind: EffectAsk, Grant: asked.Grant.ID})
	if asked.Grant.Kind == BreakGlass {
		x.tell(ctx, asked.Grant, Effect{Kind: EffectPage, Grant: asked.Grant.ID})
	}
	x.poke()
	return asked, nil
}

// openTx writes the grant and the request that goes with it: for the grant
// itself, or for the ratification of one that runs.
func (x *Access) openTx(tx *store.Tx, by identity.Principal, ask Ask, stale []target.Host, id string, glass bool) (Asked, []ledger.Entry, error) {
	hosts := make([]target.Host, len(stale))
	for i, h := range stale {
		fresh, err := x.d.Hosts.GetTx(tx, h.ID)
		if err != nil {
			return Asked{}, nil, err
		}
		hosts[i] = fresh
	}
	engine, err := x.d.Policy.EngineTx(tx)
	if err != nil {
		return Asked{}, nil, err
	}
	g, err := x.draft(tx, by, ask, hosts, engine)
	if err != nil {
		return Asked{}, nil, err
	}
	g.ID = id
	event, kind := Event{Kind: EventRequest, By: by.ID}, KindGrant
	longest := engine.MaxDuration(hosts...)
	g.AskedFor = ask.For
	if g.AskedFor == 0 {
		g.AskedFor = min(defaultFor, longest)
	}
	if g.AskedFor > longest {
		return Asked{}, nil, fault.New(fault.Denied, "cannot ask for a grant of %s there: policy allows %s", when.Words(g.AskedFor), when.Words(longest)).
			WithRule("longest_grant").WithHint("handrail elevate %s --for %s", hosts[0].Name, strings.TrimSuffix(strings.TrimSuffix(longest.String(), "0s"), "0m"))
	}
	if glass {
		event.Kind, kind = EventDeclare, KindRatification
		g.Kind, g.AskedFor = BreakGlass, engine.BreakGlassFor(hosts...)
		g.RatifyBy, g.ReviewWithin = tx.Now().Add(engine.RatifyWithin()).UnixMicro(), engine.ReviewWithin()
	}
	g, _, err = Step(g, event, tx.Now())
	if err != nil {
		return Asked{}, nil, err
	}
	body, err := g.request()
	if err != nil {
		return Asked{}, nil, err
	}
	rule, err := x.ruleTx(tx, engine.Approval(kind, hosts...), glass)
	if err != nil {
		return Asked{}, nil, err
	}
	if glass { // not a moment longer than the grant waits for it
		rule.Lapse = engine.RatifyWithin()
	}
	a, asks, err := x.d.Approvals.RequestTx(tx, by, kind, body, rule)
	if err != nil {
		return Asked{}, nil, err
	}
	g.Approval = a.ID
	if err := saveTx(tx, g); err != nil {
		return Asked{}, nil, err
	}
	return Asked{Grant: g, Approval: a, Approvers: a.Rule.Groups}, append([]ledger.Entry{g.entry(actionOf[event.Kind], by.ID)}, asks...), nil
}

// ruleTx is who must agree. A break-glass runs already: its ratification does
// not wait for more people than policy says.
func (x *Access) ruleTx(tx *store.Tx, r policy.ApprovalRule, glass bool) (approval.Rule, error) {
	rule := approval.RuleOf(r)
	if glass || x.d.MoreApprovers == nil {
		return rule, nil
	}
	more, err := x.d.MoreApprovers(tx, tx.Now())
	rule.Needed += more
	return rule, err
}

// again answers a call whose request id is known: the same grant. It also takes
// the requester's own signature, which needs the subject hash of the first
// answer.
func (x *Access) again(ctx context.Context, by identity.Principal, ask Ask) (Asked, bool, error) {
	var asked Asked
	found := false
	err := x.d.Store.View(ctx, func(v *store.View) error {
		list, err := find(v, `WHERE g.person = $1 AND g.request_id = $2 LIMIT 1`, by.ID, ask.RequestID)
		if err != nil || len(list) == 0 {
			return err
		}
		found = true
		a, err := x.d.Approvals.GetTx(v, list[0].Approval)
		asked = Asked{Grant: list[0], Approval: a, Approvers: a.Rule.Groups}
		return err
	})
	if err != nil || !found || len(ask.Signature.DeviceSignature) == 0 && ask.Signature.Response == "" || asked.Approval.Signed != nil {
		return asked, found, err
	}
	hosts := make([]target.Host, len(asked.Grant.Targets))
	for i, t := range asked.Grant.Targets {
		hosts[i] = target.Host{ID: t.ID}
	}
	_, err = x.d.Door.Do(ctx, doorway.Act{
		Action: "grants.request", By: by, Hosts: hosts, Context: policy.Context{Sudo: asked.Grant.Sudo, Root: asked.Grant.Root, Forward: len(asked.Grant.Forwards) > 0},
		Open: func(tx *store.Tx, _ policy.Decision) (entries []ledger.Entry, err error) {
			asked.Approval, entries, err = x.d.Approvals.SignTx(tx, by, asked.Approval.ID, ask.Signature)
			return entries, err
		},
	}, nil)
	return asked, true, err
}

// now is the time of a transaction, or of the call for a view.
func now(q store.Queryer) time.Time {
	if tx, ok := q.(*store.Tx); ok {
		return tx.Now()
	}
	return time.Now().UTC()
}

// owes says whether the person owes a review past its date.
func owes(q store.Queryer, person string, at time.Time) (bool, error) {
	n, err := store.One[int64](q, `SELECT COUNT(*) FROM grants WHERE person = $1 AND state = $2 AND review_by <= $3`, person, string(InReview), at.UnixMicro())
	return n > 0, err
}
