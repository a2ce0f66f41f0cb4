package doorway

import (
	"context"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// ruling is one decision with everything it was made from.
type ruling struct {
	act      Act
	query    policy.Query // the one that was refused, or the last
	decision policy.Decision
	engine   *policy.Engine
	grants   map[string]GrantInForce
	robot    robot
	builtIn  bool // not the set's decision, so the set cannot explain it
}

// rule reads everything anew and decides. An error is a refusal too, but one
// that nobody decided.
func (d *Door) rule(q store.Queryer, act Act, now time.Time) (ruling, error) {
	r := ruling{act: act, grants: map[string]GrantInForce{}}
	var err error
	if r.act.By, err = d.principal(q, act.By); err != nil {
		return r, err
	}
	if r.robot, err = d.robot(q, r.act.By); err != nil {
		return r, err
	}
	hosts, err := d.hosts(q, &r.act)
	if err != nil {
		return r, err
	}
	if r.engine, err = d.d.Policy.EngineTx(q); err != nil {
		return r, err
	}
	state, err := d.d.People.BootstrapTx(q, now)
	if err != nil {
		return r, err
	}
	r.act.Context.Bootstrap = state.Active
	if act.Facts != nil {
		if err := act.Facts(q, &r.act.Context); err != nil {
			return r, err
		}
	}
	for _, host := range hosts {
		r.query = policy.Query{Principal: r.act.By, Action: act.Action, Host: host, Context: r.act.Context}
		if err := d.grant(q, &r, host, now); err != nil {
			return r, err
		}
		r.query.Context.FloorOK = r.query.Context.FloorOK && reachesFloor(r.engine, host)
		r.query.Context.Agreed = r.robot.may(r.query, now)
		if r.decision = builtIn(r.query); r.decision.Text != "" {
			r.builtIn = true
			return r, nil
		}
		if r.decision = r.engine.Decide(r.query); !r.decision.Allowed {
			return r, nil
		}
	}
	return r, nil
}

// principal reads the person anew: their groups, lock and epoch count, not what
// they were when the connection began.
func (d *Door) principal(q store.Queryer, by identity.Principal) (identity.Principal, error) {
	if by.Kind != identity.KindPerson && by.Kind != identity.KindRobot {
		return by, nil // policy refuses them
	}
	p, err := d.d.People.GetTx(q, by.ID)
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return by, fault.New(fault.Unauthenticated, "cannot tell who you are: your login is of somebody who is gone").WithHint("handrail login")
	}
	if err != nil {
		return by, err
	}
	if p.ID != by.ID || p.Kind != "" && p.Kind != by.Kind {
		return by, fault.New(fault.Unauthenticated, "cannot tell who you are: your login is of another kind").WithHint("handrail login")
	}
	by.Name, by.Groups, by.Owner, by.Locked = p.Name, p.Groups, p.Owner, by.Locked || p.LockedAt != 0
	if !by.Locked && p.Epoch != by.Epoch {
		return by, fault.New(fault.Unauthenticated, "cannot go on: your login ended when your account changed").WithHint("handrail login")
	}
	return by, nil
}

// hosts reads the hosts anew; one nil host stands for the installation.
func (d *Door) hosts(q store.Queryer, act *Act) ([]*target.Host, error) {
	if act.Host == nil && len(act.Hosts) == 0 {
		return []*target.Host{nil}, nil
	}
	var all []*target.Host
	if act.Host != nil {
		host, err := d.d.Hosts.GetTx(q, act.Host.ID)
		if err != nil {
			return nil, err
		}
		act.Host = &host
		all = append(all, &host)
	}
	fresh := make([]target.Host, len(act.Hosts))
	for i, stale := range act.Hosts {
		host, err := d.d.Hosts.GetTx(q, stale.ID)
		if err != nil {
			return nil, err
		}
		fresh[i] = host
		all = append(all, &fresh[i])
	}
	if len(fresh) > 0 {
		act.Hosts = fresh
	}
	return all, nil
}

// grant completes the query with the grant in force. What the caller said of a
// grant does not count. To open a session is to use the grant, so its sudo and
// root count; whoever asks for another one is judged by what they ask for, not
// by what they have.
func (d *Door) grant(q store.Queryer, r *ruling, host *target.Host, now time.Time) error {
	c := &r.query.Context
	c.GrantActive, c.GrantKind = false, ""
	if host == nil || d.d.Grants == nil {
		return nil
	}
	g, ok, err := d.d.Grants.Active(q, r.act.By.ID, host.ID, now)
	if err != nil {
		return err
	}
	if ok {
		c.GrantActive, c.GrantKind = true, g.Kind
		if r.act.Action == "sessions.open" {
			c.Sudo, c.Root = g.Sudo, g.Root
		}
		r.grants[host.ID] = g
	}
	return nil
}

// builtIn is what no policy can lift; an empty decision says nothing.
func builtIn(q policy.Query) policy.Decision {
	if q.Principal.ReadOnly && (q.Action != "sessions.open" || q.Context.Level != "read") {
		return policy.Decision{Rules: []string{"code-reads-only"}, Text: "Refused: a connection that came by a code may only read.", Next: "handrail login"}
	}
	if q.Principal.Kind == identity.KindRobot && !q.Context.Agreed {
		return policy.Decision{Rules: []string{"robot-only-what-was-agreed"}, Text: "Refused: nobody agreed that this robot may do that, there, now.", Next: "handrail robot show " + q.Principal.Name}
	}
	// Two people agreed that it may write with a grant. The rules that give a
	// person that speak of persons, and a set of rules of one's own may forget it.
	if q.Principal.Kind == identity.KindRobot && q.Action == "sessions.open" && q.Context.Level != wire.LevelRead && !q.Context.GrantActive {
		return policy.Decision{Rules: []string{"robot-writes-with-a-grant"}, Text: "Refused: a robot writes only while a grant of its own is in force on that host.", Next: "handrail elevate HOST --reason \"why\", as the robot"}
	}
	return withoutNode(q)
}

// deniedPayload is the ledger's form of a refusal.
type deniedPayload struct {
	V       int      `json:"v"`
	Action  string   `json:"action"`
	Rules   []string `json:"rules,omitempty"`
	Text    string   `json:"text"`
	Errors  []string `json:"errors,omitempty"`
	Policy  int64    `json:"policy"`
	Level   string   `json:"level,omitempty"`
	Source  string   `json:"source,omitempty"`
	Through string   `json:"through,omitempty"`
}

// refuse records a refusal and says it so that the person can act on it.
func (d *Door) refuse(ctx context.Context, r ruling) error {
	decision := r.decision
	if len(decision.Errors) == 0 && r.engine != nil && !r.builtIn {
		decision = r.engine.Explain(r.query)
	}
	what := Verb(r.act.Action)
	if r.query.Context.Level == "write" && r.act.Action == "sessions.open" {
		what = "open a write session"
	}
	switch {
	case r.query.Host != nil && r.act.Action == "inspect":
		what += " " + r.query.Host.Name
	case r.query.Host != nil:
		what += " on " + r.query.Host.Name
	}
	why := strings.TrimSuffix(strings.TrimPrefix(decision.Text, "Refused: "), ".")
	denied := fault.New(fault.Denied, "cannot %s: %s%s", what, why, could(decision.WhoCould))
	if len(decision.Rules) > 0 {
		denied.Rule = decision.Rules[0]
	}
	denied.Hint = decision.Next
	if decision.Next == "" {
		denied.Hint = "handrail policy explain " + r.act.By.Name + " " + r.act.Action
		if r.query.Host != nil {
			denied.Hint += " " + r.query.Host.Name
		}
	}
	if r.act.By.Kind != identity.KindPerson && r.act.By.Kind != identity.KindRobot {
		denied.Kind = fault.Unauthenticated
	}
	seq, err := d.recordDenial(ctx, r, decision)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "%s (and the refusal could not be recorded)", denied.Text).WithRule(denied.Rule).WithHint("%s", denied.Hint)
	}
	if seq > 0 {
		denied.WithEntry(seq)
	}
	return denied
}

func could(groups []string) string {
	switch len(groups) {
	case 0:
		return ""
	case 1:
		return "; " + groups[0] + " could agree"
	}
	return "; " + strings.Join(groups[:len(groups)-1], ", ") + " or " + groups[len(groups)-1] + " could agree"
}

// recordDenial writes an entry for the first few refusals of somebody in a
// minute and counts the rest, so that asking again and again cannot fill the
// ledger.
func (d *Door) recordDenial(ctx context.Context, r ruling, decision policy.Decision) (int64, error) {
	key := r.act.By.ID
	known := r.act.By.Kind == identity.KindPerson || r.act.By.Kind == identity.KindRobot
	if key == "" || !known {
		key = ledger.System
	}
	if !d.denials.first(key, r.act.Action, deniedPerMinute) {
		return 0, nil
	}
	entry := ledger.Entry{
		Action: ActDenied, Outcome: ledger.Denied, Subjects: []string{key},
		Payload: deniedPayload{V: 1, Action: r.act.Action, Rules: decision.Rules, Text: decision.Text, Errors: decision.Errors,
			Policy: decision.Version, Level: r.act.Context.Level, Source: r.act.By.Source, Through: r.act.By.Via},
	}
	if r.query.Host != nil {
		entry.Target = r.query.Host.Path()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	receipt, err := d.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{entry}, nil
	})
	if err != nil {
		return 0, err
	}
	if got := receipt.Entries(); len(got) > 0 {
		return got[0].Seq, nil
	}
	return 0, nil
}

// Verb says an action as a person would: "open a session".
func Verb(action string) string {
	switch action {
	case "sessions.open":
		return "open a session"
	case "inspect":
		return "inspect"
	case "sessions.watch":
		return "watch the session"
	case "sessions.join":
		return "join the session"
	case "sessions.control":
		return "control the session"
	case "sessions.replay":
		return "replay the session"
	case "grants.request":
		return "ask for a grant"
	case "grants.breakglass":
		return "break the glass"
	case "grants.revoke":
		return "end the grant"
	case "grants.review":
		return "close the review"
	case "approvals.decide":
		return "decide the request"
	case "people.add":
		return "add a person"
	case "people.lock":
		return "lock a person"
	case "people.unlock":
		return "unlock a person"
	case "hosts.invite":
		return "invite a host"
	case "hosts.set":
		return "set a host"
	case "policies.apply":
		return "apply a policy"
	case "bootstrap.end":
		return "end the bootstrap"
	case "ledger.export":
		return "export the ledger"
	case "ledger.erase":
		return "erase a person"
	case "ledger.witness":
		return "set the witnesses"
	case "webhooks.set":
		return "set a webhook"
	case "webhooks.list":
		return "look at the webhooks"
	}
	noun, act, found := strings.Cut(action, ".")
	if !found {
		return "do " + action
	}
	return act + " " + noun
}
