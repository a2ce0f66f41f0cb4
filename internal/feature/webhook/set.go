package webhook

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// KindAdd is the kind of request that lets facts about this installation leave it.
const KindAdd = "webhook.add"

// actionSet is what policy decides.
const actionSet = "webhooks.set"

// Bounds of hooks.
const (
	maxHooks    = 16
	maxPatterns = 64
)

// isName says whether a hook may be called so.
func isName(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && isAll(s, ".-_") && !strings.ContainsRune(".-_", rune(s[0])) && !strings.HasPrefix(s, "w-")
}

// isAll says whether a word is of small letters, digits and these.
func isAll(s, more string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune(more, r))
	})
}

// isPattern says whether a word names entries: grant.requested, grant.*, or *.
func isPattern(s string) bool {
	if s == "*" {
		return true
	}
	parts := strings.Split(strings.TrimSuffix(s, ".*"), ".")
	for _, p := range parts {
		if p == "" || !isAll(p, "-") || p[0] < 'a' {
			return false
		}
	}
	return len(s) <= ledger.MaxWord && (len(parts) >= 2 || strings.HasSuffix(s, ".*"))
}

// Wanted is a hook as somebody asks for it.
type Wanted struct {
	Name, URL string
	Actions   []string
	Names     bool
	Scheme    string
}

// check brings what was asked for into its one form.
func (w *Wanted) check() error {
	if !isName(w.Name) {
		return fault.New(fault.Invalid, "cannot call a webhook %.80q: small letters, digits and .-_, at most 64, not beginning with w-", w.Name)
	}
	if _, err := checkURL(w.URL); err != nil {
		return err
	}
	if w.Scheme == "" {
		w.Scheme = SchemeSecret
	}
	if w.Scheme != SchemeSecret && w.Scheme != SchemeKey {
		return fault.New(fault.Invalid, "cannot sign by %.20q: only by %s (a secret) or %s (an Ed25519 key)", w.Scheme, SchemeSecret, SchemeKey)
	}
	slices.Sort(w.Actions)
	w.Actions = slices.Compact(w.Actions)
	if len(w.Actions) == 0 || len(w.Actions) > maxPatterns {
		return fault.New(fault.Invalid, "cannot add a webhook for %d kinds of entries: say 1 to %d", len(w.Actions), maxPatterns).WithHint("handrail webhook add %s %s --actions 'grant.*,breakglass.*'", w.Name, w.URL)
	}
	for _, p := range w.Actions {
		if !isPattern(p) {
			return fault.New(fault.Invalid, "cannot tell a webhook of %.80q: an action is grant.requested, grant.* or *", p).WithHint("handrail ledger list")
		}
	}
	return nil
}

// request is what people sign. The secret is in it by its fingerprint.
type request struct {
	V       int      `json:"v"`
	Once    string   `json:"once"`
	Hook    string   `json:"hook"`
	Name    string   `json:"name"`
	URL     string   `json:"url"`
	Actions []string `json:"actions"`
	Names   bool     `json:"names"`
	Scheme  string   `json:"scheme"`
	Secret  string   `json:"secret"`
}

func (r request) wanted() Wanted {
	return Wanted{Name: r.Name, URL: r.URL, Actions: r.Actions, Names: r.Names, Scheme: r.Scheme}
}

// payload is of all entries about a hook.
type payload struct {
	V        int    `json:"v"`
	Hook     string `json:"hook"`
	Name     string `json:"name"`
	URL      string `json:"url,omitempty"`
	Actions  string `json:"actions,omitempty"`
	Names    bool   `json:"names,omitempty"`
	Secret   string `json:"secret,omitempty"` // its fingerprint
	Approval string `json:"approval,omitempty"`
	Why      string `json:"why,omitempty"`
	Seq      int64  `json:"seq,omitempty"` // of the entry that it stands at
}

func (h Hook) entry(action ledger.Action, by string, p payload) ledger.Entry {
	p.V, p.Hook, p.Name, p.URL = 1, h.ID, h.Name, h.URL
	return ledger.Entry{Action: action, Subjects: []string{by}, Object: h.ID, Version: h.Version, SealTo: ledger.System, Payload: p}
}

// Added is what came of asking for a hook. Given is shown this once.
type Added struct {
	ID       string
	Approval string // it waits for this one; empty: it is told from now on
	Given    string // the secret, or the public key
}

// Add asks for a hook: at once in bootstrap, else when a second person agrees.
func (x *Hooks) Add(ctx context.Context, by identity.Principal, w Wanted) (Added, error) {
	if err := w.check(); err != nil {
		return Added{}, err
	}
	id, secret := store.NewID('w'), newSecret()
	sealed, err := x.sealed(id, secret)
	if err != nil {
		return Added{}, err
	}
	out := Added{ID: id, Given: shown(w.Scheme, secret)}
	_, err = x.d.Door.Do(ctx, doorway.Act{Action: actionSet, By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		out.Approval = ""
		h := Hook{ID: id, Name: w.Name, URL: w.URL, Actions: strings.Join(w.Actions, " "), Names: w.Names, Scheme: w.Scheme, State: StateAsked, Secret: sealed, AskedBy: by.ID, Since: tx.Now().UnixMicro(), Version: 1}
		if err := x.insertTx(tx, h); err != nil {
			return nil, err
		}
		r := request{V: 1, Once: hex.EncodeToString(tx.Random(16)), Hook: id, Name: w.Name, URL: w.URL, Actions: w.Actions, Names: w.Names, Scheme: w.Scheme, Secret: printOf(secret)}
		asked := h.entry(ActionAsked, by.ID, payload{Actions: h.Actions, Names: h.Names, Secret: r.Secret})
		state, err := x.d.People.BootstrapTx(tx, tx.Now())
		if err != nil {
			return nil, err
		}
		if state.Active {
			entries, err := x.activateTx(tx, by.ID, "", r)
			return append([]ledger.Entry{asked}, entries...), err
		}
		raw, err := json.Marshal(r)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
		}
		engine, err := x.d.Policy.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		a, entries, err := x.d.Approvals.RequestTx(tx, by, KindAdd, raw, approval.RuleOf(engine.Approval(KindAdd)))
		out.Approval = a.ID
		return append([]ledger.Entry{asked}, entries...), err
	}}, nil)
	if err != nil {
		_ = x.d.Seals.Destroy(id) // nothing was ever sealed under it that is kept
		return Added{}, err
	}
	x.Look()
	return out, nil
}

func (x *Hooks) insertTx(tx *store.Tx, h Hook) error {
	all, err := store.All[string](tx, `SELECT name FROM webhooks`)
	switch {
	case err != nil:
		return err
	case slices.Contains(all, h.Name):
		return fault.New(fault.Conflict, "cannot add webhook %s: there is one of that name", h.Name).WithHint("handrail webhook list")
	case len(all) >= maxHooks:
		return fault.New(fault.Exhausted, "cannot add webhook %s: there are %d", h.Name, len(all)).WithHint("handrail webhook remove NAME")
	}
	names := int64(0)
	if h.Names {
		names = 1
	}
	_, err = tx.Exec(`INSERT INTO webhooks (id, name, url, actions, names, scheme, state, why, secret, old_secret, old_until, after, asked_by, since, version)
		VALUES ($1, $2, $3, $4, $5, $6, $7, '', $8, '', 0, 0, $9, $10, $11)`, h.ID, h.Name, h.URL, h.Actions, names, h.Scheme, h.State, h.Secret, h.AskedBy, h.Since, h.Version)
	return err
}

// activateTx lets a hook be told from now on.
func (x *Hooks) activateTx(tx *store.Tx, by, approvalID string, r request) ([]ledger.Entry, error) {
	h, err := getTx(tx, r.Hook)
	if err != nil {
		return nil, err
	}
	if h.State != StateAsked || h.URL != r.URL || h.Actions != strings.Join(r.Actions, " ") || h.Names != r.Names || h.Scheme != r.Scheme {
		return nil, fault.New(fault.Conflict, "cannot add webhook %s: it is not what was asked for", r.Name).WithHint("handrail webhook list")
	}
	h.State, h.Version = StateActive, h.Version+1
	if _, err := tx.Exec(`UPDATE webhooks SET state = $1, after = $2, since = $3, version = $4 WHERE id = $5`, h.State, x.d.Store.Size()-1, tx.Now().UnixMicro(), h.Version, h.ID); err != nil {
		return nil, err
	}
	return []ledger.Entry{h.entry(ActionAdded, by, payload{Actions: h.Actions, Names: h.Names, Secret: r.Secret, Approval: approvalID})}, nil
}

// change is an act on one hook that needs nobody else: it makes nothing leave
// that did not leave before.
func (x *Hooks) change(ctx context.Context, by identity.Principal, idOrName string, do func(tx *store.Tx, h *Hook) (ledger.Entry, error)) (h Hook, seq int64, err error) {
	receipt, err := x.d.Door.Do(ctx, doorway.Act{Action: actionSet, By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if h, err = getTx(tx, idOrName); err != nil {
			return nil, err
		}
		h.Version++
		entry, err := do(tx, &h)
		return []ledger.Entry{entry}, err
	}}, nil)
	if err != nil {
		return h, 0, err
	}
	x.Look()
	return h, receipt.Entries()[0].Seq, nil
}

// Rotate gives a hook another secret; the old one signs too for a while.
func (x *Hooks) Rotate(ctx context.Context, by identity.Principal, idOrName string) (h Hook, given string, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		h, err = getTx(v, idOrName)
		return err
	})
	if err != nil {
		return h, "", err
	}
	secret := newSecret()
	sealed, err := x.sealed(h.ID, secret)
	if err != nil {
		return h, "", err
	}
	h, _, err = x.change(ctx, by, h.ID, func(tx *store.Tx, h *Hook) (ledger.Entry, error) {
		if h.State == StateAsked {
			return ledger.Entry{}, fault.New(fault.Conflict, "cannot rotate the secret of webhook %s: nobody has agreed to it yet", h.Name).WithHint("handrail webhook list; somebody else approves it")
		}
		h.Old, h.OldUntil, h.Secret = h.Secret, tx.Now().Add(x.b.Overlap).UnixMicro(), sealed
		_, err := tx.Exec(`UPDATE webhooks SET secret = $1, old_secret = $2, old_until = $3, version = $4 WHERE id = $5`, h.Secret, h.Old, h.OldUntil, h.Version, h.ID)
		return h.entry(ActionRotated, by.ID, payload{Secret: printOf(secret)}), err
	})
	return h, shown(h.Scheme, secret), err
}

// Test sends a hook an entry of its own, after what waits for it, and says
// which entry that is.
func (x *Hooks) Test(ctx context.Context, by identity.Principal, idOrName string) (h Hook, seq int64, err error) {
	return x.change(ctx, by, idOrName, func(tx *store.Tx, h *Hook) (ledger.Entry, error) {
		if err := h.active("test"); err != nil {
			return ledger.Entry{}, err
		}
		_, err := tx.Exec(`UPDATE webhooks SET version = $1 WHERE id = $2`, h.Version, h.ID)
		return h.entry(ActionTested, by.ID, payload{}), err
	})
}

func (h Hook) active(what string) error {
	switch h.State {
	case StateAsked:
		return fault.New(fault.NeedsApproval, "cannot %s webhook %s: nobody has agreed to it yet", what, h.Name).WithHint("handrail webhook list; somebody else approves it")
	case StateDisabled:
		return fault.New(fault.Conflict, "cannot %s webhook %s: it is disabled (%s)", what, h.Name, h.Why).WithHint("handrail webhook resume %s", h.Name)
	}
	return nil
}

// Resume tells a hook again that was disabled, from where it stood.
func (x *Hooks) Resume(ctx context.Context, by identity.Principal, idOrName string) (h Hook, err error) {
	h, _, err = x.change(ctx, by, idOrName, func(tx *store.Tx, h *Hook) (ledger.Entry, error) {
		if h.State != StateDisabled {
			return ledger.Entry{}, fault.New(fault.Conflict, "cannot resume webhook %s: it is not disabled", h.Name).WithHint("handrail webhook list")
		}
		h.State, h.Why = StateActive, ""
		_, err := tx.Exec(`UPDATE webhooks SET state = $1, why = '', version = $2 WHERE id = $3`, h.State, h.Version, h.ID)
		return h.entry(ActionResumed, by.ID, payload{}), err
	})
	return h, err
}

// Remove ends a hook for good, also one that nobody has agreed to yet.
func (x *Hooks) Remove(ctx context.Context, by identity.Principal, idOrName string) (Hook, error) {
	h, _, err := x.change(ctx, by, idOrName, func(tx *store.Tx, h *Hook) (ledger.Entry, error) {
		return h.entry(ActionRemoved, by.ID, payload{}), dropTx(tx, h.ID)
	})
	if err != nil {
		return h, err
	}
	return h, x.d.Seals.Destroy(h.ID)
}

func dropTx(tx *store.Tx, id string) error {
	if _, err := tx.Exec(`DELETE FROM webhook_told WHERE hook = $1`, id); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM webhooks WHERE id = $1`, id)
	return err
}

// Kinds are the kinds of request that webhooks carry out. They need what New is
// given later.
func Kinds(of func() *Hooks) []approval.Kind { return []approval.Kind{addKind{of}} }

type addKind struct{ of func() *Hooks }

func (addKind) Name() string { return KindAdd }

func parse(raw []byte) (request, error) {
	var r request
	if err := approval.Read(KindAdd, raw, &r); err != nil {
		return r, err
	}
	w := r.wanted()
	return r, w.check()
}

// Describe says what leaves, and where to.
func (addKind) Describe(_ store.Queryer, raw []byte) (approval.Description, error) {
	r, err := parse(raw)
	if err != nil {
		return approval.Description{}, err
	}
	what, contents := "ids, times and outcomes, without names", "no"
	if r.Names {
		what, contents = "all that the ledger says about it, with names, reasons, addresses and commands", "yes"
	}
	return approval.Description{
		Subject: r.Hook, Summary: "tell " + r.URL + " of " + strings.Join(r.Actions, ", "),
		Details: []approval.Detail{
			{Name: "webhook", Value: r.Name}, {Name: "address", Value: r.URL}, {Name: "entries", Value: strings.Join(r.Actions, ", ")},
			{Name: "with names", Value: contents}, {Name: "signed by", Value: r.Scheme + ", secret " + r.Secret},
		},
		Grants:        []string{"from now on " + r.URL + " is sent each such entry of the ledger: " + what},
		CannotContain: []string{"what was sent stays where it went, also when somebody is erased here, and with whoever reads there"},
	}, nil
}

// Approved lets it be told.
func (k addKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	r, err := parse(a.Request)
	if err != nil {
		return nil, err
	}
	return k.of().activateTx(tx, a.Requester, a.ID, r)
}

// Ended forgets a hook that nobody agreed to.
func (addKind) Ended(tx *store.Tx, a approval.Approval, _ approval.State) ([]ledger.Entry, error) {
	r, err := parse(a.Request)
	if err != nil {
		return nil, err
	}
	h, err := getTx(tx, r.Hook)
	if err != nil || h.State != StateAsked {
		return nil, nil // it was removed meanwhile
	}
	h.Version++
	return []ledger.Entry{h.entry(ActionRefused, a.Requester, payload{Approval: a.ID})}, dropTx(tx, h.ID)
}
