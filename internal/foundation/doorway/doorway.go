// Package doorway is the one way in. A read of sensitive data, a shell, a
// command on a host, a changed rule: each is authenticated (the principal in the
// Act), decided by policy, recorded, done, and its outcome recorded, in that
// order, here and nowhere else.
//
//	Act ─▶ one transaction: read person, lock, host, grant, policy anew
//	        │               decide
//	        │               state changes and opening entries (Act.Open)
//	        ▼ commit
//	       Pass ─▶ the effect ─▶ closing entries with its outcome
//
// What must stay true: the decision is made inside the transaction that records
// it, from rows read there, so a lock that commits first refuses the act, and a
// lock that commits later finds the act's row and ends it. A Pass, without which
// fleet sends no order, exists only while the effect runs. A crash between
// commit and closing entry leaves an act that is open in the ledger; whoever
// owns it records it as lost when they start again.
package doorway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of the doorway.
const (
	ActDenied     ledger.Action = "act.denied"
	ActEnded      ledger.Action = "act.ended" // the outcome of an act that has no closing entry of its own
	ReadsCounted  ledger.Action = "read.counted"
	DenialCounted ledger.Action = "denial.counted"
)

// Actions lists the ledger actions of the doorway.
func Actions() []ledger.Action {
	return []ledger.Action{ActDenied, ActEnded, ReadsCounted, DenialCounted}
}

// Act is what somebody wants to do.
type Act struct {
	Action  string // "sessions.open"
	By      identity.Principal
	Host    *target.Host   // nil: the installation as a whole
	Hosts   []target.Host  // instead of Host: each of them is decided
	Context policy.Context // what the caller knows; grant and bootstrap are read here
	ID      string         // idempotency; empty: every call is another act

	// Facts completes the circumstances from rows, inside the deciding
	// transaction. It may be nil.
	Facts func(q store.Queryer, c *policy.Context) error
	// Open changes state and returns the opening entries, inside the deciding
	// transaction. It may run more than once: no I/O, time and randomness from tx.
	Open func(tx *store.Tx, d policy.Decision) ([]ledger.Entry, error)
	// Close changes state together with the closing entries; it may be nil. Like
	// Open it may run more than once.
	Close func(tx *store.Tx, outcome ledger.Outcome) error
}

// GrantInForce is what the doorway knows of a grant.
type GrantInForce struct {
	ID            string
	Kind          string // routine, elevated, break-glass
	Account       string // "": the one that policy names
	Sudo, Root    bool
	Forwards      []string // destinations of forwarded ports
	Expires       int64    // µs
	BuddyRequired bool
	Reason        string
	Authority     wire.Authority // the request and everybody's signatures over it
}

// Grants says which grant a person holds on a host at that time.
type Grants interface {
	Active(q store.Queryer, person, host string, now time.Time) (grant GrantInForce, ok bool, err error)
}

// People is what the doorway needs of identity. *identity.People is one.
type People interface {
	GetTx(q store.Queryer, idOrName string) (identity.Person, error)
	BootstrapTx(q store.Queryer, now time.Time) (identity.BootstrapState, error)
	RobotTx(q store.Queryer, id string) (identity.Robot, error)
}

// Deps is what a Door needs.
type Deps struct {
	Store  *store.Store
	People People
	Hosts  *target.Hosts
	Policy *policy.Force
	Grants Grants
}

// Door is the doorway.
type Door struct {
	d       Deps
	reads   counter
	denials counter
}

// New returns the doorway. Run must run for its counts to reach the ledger.
func New(d Deps) *Door { return &Door{d: d} }

// Pass proves that an act was let through and recorded. Only Do makes one, and
// it is valid only while the effect that Do called runs.
type Pass struct{ p *pass }

type pass struct {
	act      Act
	receipt  store.Receipt
	decision policy.Decision
	engine   *policy.Engine
	grants   map[string]GrantInForce
	open     atomic.Bool
}

// Valid says whether the pass was made by a Door whose effect still runs.
func (p Pass) Valid() bool { return p.p != nil && p.p.open.Load() }

// Receipt is that of the opening entries.
func (p Pass) Receipt() store.Receipt {
	if p.p == nil {
		return nil
	}
	return p.p.receipt
}

// Act is the act, with the hosts as they were when it was decided.
func (p Pass) Act() Act {
	if p.p == nil {
		return Act{}
	}
	return p.p.act
}

// Decision is why it was let through.
func (p Pass) Decision() policy.Decision {
	if p.p == nil {
		return policy.Decision{}
	}
	return p.p.decision
}

// Policy is the engine that decided; its settings are the obligations.
func (p Pass) Policy() *policy.Engine {
	if p.p == nil {
		return nil
	}
	return p.p.engine
}

// Grant is the grant that was in force on the host when it was decided.
func (p Pass) Grant(host string) (GrantInForce, bool) {
	if p.p == nil {
		return GrantInForce{}, false
	}
	g, ok := p.p.grants[host]
	return g, ok
}

// Do lets an act through or refuses it. do is the effect and may be nil when
// the act only changes state. The receipt is that of the opening entries.
func (d *Door) Do(ctx context.Context, act Act, do func(ctx context.Context, p Pass) (ledger.Outcome, []ledger.Entry, error)) (store.Receipt, error) {
	if act.Open == nil {
		return nil, fault.New(fault.Internal, "cannot %s: nothing would be recorded before it is done", Verb(act.Action))
	}
	id := act.ID
	if id == "" {
		id = store.Once()
	}
	var passed *pass
	receipt, err := d.d.Store.Record(ctx, id, func(tx *store.Tx) ([]ledger.Entry, error) {
		ruled, err := d.rule(tx, act, tx.Now())
		if err != nil {
			return nil, err
		}
		if !ruled.decision.Allowed {
			return nil, &refusal{ruled}
		}
		entries, err := act.Open(tx, ruled.decision)
		if err == nil && len(entries) == 0 {
			err = fault.New(fault.Internal, "cannot %s: it would leave no entry", Verb(act.Action))
		}
		passed = &pass{act: ruled.act, decision: ruled.decision, engine: ruled.engine, grants: ruled.grants}
		return entries, err
	})
	var refused *refusal
	if errors.As(err, &refused) {
		return nil, d.refuse(ctx, refused.ruling)
	}
	if err != nil {
		return nil, err
	}
	if passed == nil || do == nil { // passed is nil: this id was done before, its effect too
		return receipt, nil
	}
	passed.receipt = receipt
	return receipt, d.carryOut(ctx, id, passed, do)
}

// closeWithin is how long the closing entry may take, also when the caller has
// gone away: an act without an outcome is what must not be.
const closeWithin = 30 * time.Second

func (d *Door) carryOut(ctx context.Context, id string, p *pass, do func(context.Context, Pass) (ledger.Outcome, []ledger.Entry, error)) (err error) {
	p.open.Store(true)
	outcome := ledger.Unknown
	var entries []ledger.Entry
	defer func() {
		p.open.Store(false)
		panicked := recover()
		if panicked != nil {
			outcome, entries = ledger.Failed, nil
			err = fault.New(fault.Internal, "cannot %s: it broke off: %v", Verb(p.act.Action), panicked)
		}
		if closing := d.close(ctx, id, p, outcome, entries, err); closing != nil && err == nil {
			err = closing
		}
		if panicked != nil {
			panic(panicked)
		}
	}()
	outcome, entries, err = do(ctx, Pass{p})
	if outcome == "" {
		outcome = ledger.OK
		if err != nil {
			outcome = ledger.Failed
		}
	}
	return err
}

// endedPayload is the ledger's form of an outcome.
type endedPayload struct {
	V      int    `json:"v"`
	Action string `json:"action"`
	Error  string `json:"error,omitempty"`
	Of     string `json:"of,omitempty"` // the hash of the opening leaf, so that both are shown as one
}

func (d *Door) close(ctx context.Context, id string, p *pass, outcome ledger.Outcome, entries []ledger.Entry, failure error) error {
	if len(entries) == 0 {
		ended := ledger.Entry{Action: ActEnded, Subjects: []string{p.act.By.ID}}
		payload := endedPayload{V: 1, Action: p.act.Action, Error: text(failure)}
		if p.act.Host != nil {
			ended.Target = p.act.Host.Path()
		}
		if opening := p.receipt.Entries(); len(opening) > 0 {
			ended.Session, payload.Of = opening[0].Parsed.Session, ledger.HashOf(opening[0].Leaf).String()
		}
		ended.Payload = payload
		entries = []ledger.Entry{ended}
	}
	for i := range entries {
		if entries[i].Outcome == "" {
			entries[i].Outcome = outcome
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	_, err := d.d.Store.Record(ctx, id+"/close", func(tx *store.Tx) ([]ledger.Entry, error) {
		if p.act.Close != nil {
			if err := p.act.Close(tx, outcome); err != nil {
				return nil, err
			}
		}
		return entries, nil
	})
	return err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Read decides an act that only looks. It leaves no entry of its own: reads are
// counted per person and minute, and one entry a minute says how many.
func (d *Door) Read(ctx context.Context, act Act) error {
	var ruled ruling
	err := d.d.Store.View(ctx, func(v *store.View) (err error) {
		ruled, err = d.rule(v, act, time.Now().UTC())
		return err
	})
	if err != nil {
		return err
	}
	if !ruled.decision.Allowed {
		return d.refuse(ctx, ruled)
	}
	d.reads.add(act.By.ID, act.Action)
	return nil
}

// Explain answers without doing or counting anything: what would be decided now,
// and why. The caller decides who may ask about whom.
func (d *Door) Explain(ctx context.Context, act Act) (policy.Decision, error) {
	var decision policy.Decision
	err := d.d.Store.View(ctx, func(v *store.View) error {
		ruled, err := d.rule(v, act, time.Now().UTC())
		if err != nil {
			return err
		}
		decision = ruled.decision
		if !decision.Allowed && ruled.engine != nil && !ruled.builtIn {
			decision = ruled.engine.Explain(ruled.query)
		}
		return nil
	})
	return decision, err
}

// refusal carries a ruling out of a transaction that must not commit.
type refusal struct{ ruling ruling }

func (r *refusal) Error() string { return fmt.Sprintf("refused: %s", r.ruling.decision.Text) }
