// Package webhook tells other systems what the ledger says, by HTTPS, signed as
// the Standard Webhooks specification has it.
//
//	ledger ─▶ Follow ─▶ one worker a hook ─▶ POST ─▶ 2xx: the next one
//	                                          └────▶ else again, later and later, then off
//
// What must stay true:
//   - Nothing is sent that is not a committed entry, and nothing to an address
//     that a second person has not agreed to.
//   - Entries reach a hook in order, each at least once, under an id that is the
//     same however often it is sent; a server that is killed goes on where it was.
//   - Without the hook's declaration only the leaf is sent, which holds no name.
//     What was erased is not sent, not even by a retry.
//   - A place only moves forward, whichever server writes it.
package webhook

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// The ledger actions of webhooks.
const (
	ActionAsked     ledger.Action = "webhook.asked"
	ActionAdded     ledger.Action = "webhook.added"
	ActionRefused   ledger.Action = "webhook.refused"
	ActionRotated   ledger.Action = "webhook.rotated"
	ActionTested    ledger.Action = "webhook.tested"
	ActionResumed   ledger.Action = "webhook.resumed"
	ActionRemoved   ledger.Action = "webhook.removed"
	ActionDisabled  ledger.Action = "webhook.disabled"
	ActionDelivered ledger.Action = "webhook.delivered"
)

// Actions lists the ledger actions of webhooks.
func Actions() []ledger.Action {
	return []ledger.Action{ActionAsked, ActionAdded, ActionRefused, ActionRotated, ActionTested, ActionResumed, ActionRemoved, ActionDisabled, ActionDelivered}
}

// Schema is the hooks, and how far each is told of in the ledger.
func Schema() []store.Migration {
	return []store.Migration{{Name: "webhook-1-hooks", SQL: `CREATE TABLE webhooks (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL UNIQUE,
	url TEXT NOT NULL,
	actions TEXT NOT NULL,
	names BIGINT NOT NULL,
	scheme TEXT NOT NULL,
	state TEXT NOT NULL,
	why TEXT NOT NULL,
	secret TEXT NOT NULL,
	old_secret TEXT NOT NULL,
	old_until BIGINT NOT NULL,
	after BIGINT NOT NULL,
	asked_by TEXT NOT NULL,
	since BIGINT NOT NULL,
	version BIGINT NOT NULL
);
CREATE TABLE webhook_told (
	hook TEXT PRIMARY KEY,
	seq BIGINT NOT NULL,
	delivered BIGINT NOT NULL,
	failed BIGINT NOT NULL
)`}}
}

// Observations is how far each hook has got, and its last attempts.
func Observations() []store.ObservationMigration {
	return []store.ObservationMigration{{Name: "webhook-1-places", SQL: `CREATE TABLE webhook_places (
	hook TEXT PRIMARY KEY,
	seq BIGINT NOT NULL,
	attempts BIGINT NOT NULL,
	next BIGINT NOT NULL,
	delivered BIGINT NOT NULL,
	failed BIGINT NOT NULL
);
CREATE TABLE webhook_attempts (
	hook TEXT NOT NULL,
	at BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	action TEXT NOT NULL,
	attempt BIGINT NOT NULL,
	took BIGINT NOT NULL,
	status BIGINT NOT NULL,
	failure TEXT NOT NULL,
	PRIMARY KEY (hook, at, seq)
)`}}
}

// The states of a hook.
const (
	StateAsked    = "asked"    // waits for a second person
	StateActive   = "active"   // is told
	StateDisabled = "disabled" // failed for too long, or said that it is gone
)

// Hook is where entries go.
type Hook struct {
	ID       string `db:"id"` // w-…
	Name     string `db:"name"`
	URL      string `db:"url"`
	Actions  string `db:"actions"` // which: "grant.* session.opened"
	Names    bool   `db:"names"`   // payloads go along, with the names in them
	Scheme   string `db:"scheme"`  // v1, v1a
	State    string `db:"state"`
	Why      string `db:"why"`    // it is disabled
	Secret   string `db:"secret"` // sealed
	Old      string `db:"old_secret"`
	OldUntil int64  `db:"old_until"`
	After    int64  `db:"after"` // the last entry that was there before it
	AskedBy  string `db:"asked_by"`
	Since    int64  `db:"since"` // when it was agreed to: nothing older is sent
	Version  int64  `db:"version"`
}

const selectHook = `SELECT id, name, url, actions, names <> 0 AS names, scheme, state, why, secret, old_secret, old_until, after, asked_by, since, version FROM webhooks `

// wants says whether an entry concerns a hook. How deliveries went is told to
// none: it would never end.
func (h Hook) wants(l ledger.Leaf) bool {
	switch {
	case l.Action == ActionDelivered || l.Time < h.Since && l.Action != ActionTested:
		return false
	case l.Action == ActionTested:
		return l.Object == h.ID
	}
	for p := range strings.FieldsSeq(h.Actions) {
		if fits(p, string(l.Action)) {
			return true
		}
	}
	return false
}

// fits says whether an action is what a pattern means: itself, all of a noun
// ("grant.*"), or everything ("*").
func fits(pattern, action string) bool {
	if noun, all := strings.CutSuffix(pattern, "*"); all {
		return strings.HasPrefix(action, noun)
	}
	return pattern == action
}

// Bounds are the times of delivering; zero fields take the defaults.
type Bounds struct {
	Retry   []time.Duration // before each further attempt; after the last the hook is disabled
	Answer  time.Duration   // how long a receiver may take; 20 s
	Beat    time.Duration   // how often hooks are looked at, and errors tried again; 2 s
	Told    time.Duration   // how often deliveries become an entry; 1 min
	Overlap time.Duration   // how long the old secret signs too; 24 h
}

// retrySchedule is the specification's: three days in all.
var retrySchedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

func (b Bounds) withDefaults() Bounds {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&b.Answer, 20*time.Second)
	set(&b.Beat, 2*time.Second)
	set(&b.Told, time.Minute)
	set(&b.Overlap, 24*time.Hour)
	if b.Retry == nil {
		b.Retry = retrySchedule
	}
	return b
}

// Seals keeps the secrets; each hook has a key of its own, destroyed with it.
type Seals interface {
	Seal(subject string, plain, ad []byte) ([]byte, error)
	Open(subject string, sealed, ad []byte) ([]byte, error)
	Destroy(subject string) error
}

// Deps is what Hooks needs. Approvals must have been made with Kinds.
type Deps struct {
	Store     *store.Store
	Door      *doorway.Door
	Approvals *approval.Approvals
	People    *identity.People
	Policy    *policy.Force
	Seals     Seals
	Ledger    string // the installation's, in what is sent
	Allow     []netip.Prefix
	Roots     *x509.CertPool // nil: the system's
	Bounds    Bounds
	Log       *slog.Logger
}

// Hooks is the feature.
type Hooks struct {
	d    Deps
	b    Bounds
	kick chan struct{}
}

// New returns Hooks. Run must run.
func New(d Deps) *Hooks {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Hooks{d: d, b: d.Bounds.withDefaults(), kick: make(chan struct{}, 1)}
}

// Look makes Run look at once at what changed.
func (x *Hooks) Look() {
	select {
	case x.kick <- struct{}{}:
	default: // it is awake
	}
}

// getTx finds a hook by id or name.
func getTx(q store.Queryer, idOrName string) (Hook, error) {
	h, err := store.One[Hook](q, selectHook+`WHERE id = $1 OR name = $1`, idOrName)
	if fault.KindOf(err) == fault.NotFound {
		return h, fault.New(fault.NotFound, "cannot find webhook %.80q", idOrName).WithHint("handrail webhook list")
	}
	return h, err
}

// Listed is a hook and how it goes.
type Listed struct {
	Hook
	Place
	Behind int64 // entries of the ledger that it has not been shown
}

// List is every hook, with how far it has got.
func (x *Hooks) List(ctx context.Context) (out []Listed, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		hooks, err := store.All[Hook](v, selectHook+`ORDER BY name`)
		for _, h := range hooks {
			out = append(out, Listed{Hook: h})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i].Place, err = x.place(ctx, out[i].Hook); err != nil {
			return nil, err
		}
		if out[i].State != StateAsked {
			out[i].Behind = max(x.d.Store.Size()-1-out[i].Seq, 0)
		}
	}
	return out, nil
}

// Attempt is one time that something was sent.
type Attempt struct {
	At      int64  `db:"at"`
	Seq     int64  `db:"seq"`
	Action  string `db:"action"`
	Attempt int64  `db:"attempt"` // from 1
	Took    int64  `db:"took"`    // µs
	Status  int64  `db:"status"`  // of HTTP; 0: there was no answer
	Failure string `db:"failure"` // empty: it was taken
}

// keepAttempts is how many attempts of each hook are remembered.
const keepAttempts = 200

// Deliveries are the last attempts of a hook, newest first.
func (x *Hooks) Deliveries(ctx context.Context, idOrName string) (h Hook, out []Attempt, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		h, err = getTx(v, idOrName)
		return err
	})
	if err != nil {
		return h, nil, err
	}
	err = x.d.Store.ViewObserved(ctx, func(v *store.View) error {
		out, err = store.All[Attempt](v, `SELECT at, seq, action, attempt, took, status, failure FROM webhook_attempts WHERE hook = $1 ORDER BY at DESC, seq DESC LIMIT $2`, h.ID, keepAttempts)
		return err
	})
	return h, out, err
}
