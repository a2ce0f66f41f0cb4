package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/when"
)

// The kinds of request that grants bring.
const (
	KindGrant        = "grant"
	KindRatification = "ratification"
)

// Kinds are the approval kinds of grants; hand them to approval.New.
func Kinds(hosts *target.Hosts) []approval.Kind {
	return []approval.Kind{grantKind{hosts}, ratificationKind{}}
}

// request is the exact bytes that people agree to.
type request struct {
	V             int      `json:"v"`
	Grant         string   `json:"grant"`
	Person        string   `json:"person"`
	PersonName    string   `json:"person_name"`
	Kind          string   `json:"kind"`
	Targets       []Target `json:"targets"`
	Account       string   `json:"account,omitempty"`
	Sudo          bool     `json:"sudo"`
	Root          bool     `json:"root"`
	Forwards      []string `json:"forwards,omitempty"`
	Reason        string   `json:"reason"`
	Ticket        string   `json:"ticket,omitempty"`
	ForMS         int64    `json:"for_ms"`
	BuddyRequired bool     `json:"buddy_required"`
	Requested     int64    `json:"requested"`
	Expires       int64    `json:"expires,omitempty"` // break-glass: it runs already
	Policy        int64    `json:"policy"`
}

func (g Grant) request() ([]byte, error) {
	r := request{
		V: 1, Grant: g.ID, Person: g.Person, PersonName: g.PersonName, Kind: g.Kind, Targets: g.Targets, Account: g.Account,
		Sudo: g.Sudo, Root: g.Root, Forwards: g.Forwards, Reason: g.Reason, Ticket: g.Ticket, ForMS: g.AskedFor.Milliseconds(),
		BuddyRequired: g.BuddyRequired, Requested: g.Requested, Policy: g.Policy,
	}
	if g.Kind == BreakGlass {
		r.Expires = g.Expires
	}
	return json.Marshal(r)
}

func parseRequest(b []byte) (request, error) {
	var r request
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fault.Wrap(fault.Invalid, err, "cannot read the request for a grant")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, fault.New(fault.Invalid, "cannot read the request for a grant: something follows it")
	}
	if r.V != 1 || r.Grant == "" || r.Person == "" || len(r.Targets) == 0 || r.ForMS <= 0 {
		return r, fault.New(fault.Invalid, "cannot read the request for a grant: something is missing in it")
	}
	return r, nil
}

// describe says exactly what the bytes ask for.
func (r request) describe() approval.Description {
	length := time.Duration(r.ForMS) * time.Millisecond
	d := approval.Description{
		Subject: r.Grant,
		Summary: fmt.Sprintf("%s asks to %s %s for %s", r.PersonName, r.verb(), count(r.Targets), when.Words(length)),
		Details: []approval.Detail{{Name: "who", Value: r.PersonName}, {Name: "why", Value: r.Reason}},
	}
	if r.Ticket != "" {
		d.Details = append(d.Details, approval.Detail{Name: "ticket", Value: r.Ticket})
	}
	d.Details = append(d.Details, approval.Detail{Name: "for", Value: when.Words(length) + " from the moment it is approved"})
	for _, t := range r.Targets {
		value := t.Name + " (" + t.Environment
		if t.Scope != "none" {
			value += ", " + t.Scope
		}
		if t.Server {
			value += ", the server runs there"
		}
		d.Details = append(d.Details, approval.Detail{Name: "host", Value: value + ")"})
	}
	account := r.Account
	if account == "" {
		account = "the one that policy names for each host"
	}
	d.Details = append(d.Details, approval.Detail{Name: "account", Value: account})
	for _, f := range r.Forwards {
		d.Details = append(d.Details, approval.Detail{Name: "port", Value: portWords(f)})
	}
	d.Grants, d.CannotContain = r.grants(), r.cannotContain()
	return d
}

// verb is what the person wants to do on the hosts.
func (r request) verb() string {
	switch {
	case r.Root:
		return "be root on"
	case r.Sudo:
		return "write with sudo on"
	}
	return "write on"
}

func (r request) grants() []string {
	what := "write sessions on " + count(r.Targets) + ", each recorded, ended when the time is up"
	switch {
	case r.Root:
		what = "sessions as root on " + count(r.Targets) + ", each recorded, ended when the time is up"
	case r.Sudo:
		what += "; sudo works in them"
	}
	list := []string{what}
	if owned := r.owned(); owned != "" {
		list = []string{"THE WHOLE INSTALLATION: the server runs on " + owned + ", and root there reads the keys that sign the ledger and command every host", what}
	}
	if len(r.Forwards) > 0 {
		list = append(list, "connections from the machine of "+r.PersonName+", through "+count(r.Targets)+", to "+strings.Join(each(r.Forwards, portWords), ", "))
	}
	if r.BuddyRequired {
		list = append(list, "only while somebody watches: the session pauses when they leave")
	}
	return list
}

// owned is the server's own host when root there is asked for, else "".
func (r request) owned() string {
	for _, t := range r.Targets {
		if t.Server && (r.Root || r.Sudo) {
			return t.Name
		}
	}
	return ""
}

// cannotContain is what an approver must know: where the promise ends.
func (r request) cannotContain() []string {
	var list []string
	if owned := r.owned(); owned != "" {
		list = append(list, "EVERYTHING: whoever is root on "+owned+" can forge orders to every host and rewrite the ledger that would show it; afterwards only a copy of the ledger elsewhere is proof, and all keys must be made anew")
	}
	list = append(list,
		"what is written stays written: the session is recorded, not undone",
		"what is shown is recorded, not masked: it can hold secrets that the account can read",
	)
	if len(r.Forwards) > 0 {
		list = append(list, "what crosses a forwarded port is recorded as bytes, of long streams their beginning and end; who answers there takes it for the host itself")
	}
	if r.Root || r.Sudo {
		list = append(list,
			"root: what another daemon (at, cron, systemd-run, docker) starts for it outlives it; a job or unit left as a file is recorded, what is asked over a socket alone is not seen",
			"root: it reads every secret on the host and can stop handrail there; the recording at the gateway and the alarm remain")
	} else {
		list = append(list, "what another daemon (at, cron, systemd user units) starts for it outlives the session, and is not looked for")
	}
	return list
}

// portWords says a destination as people do.
func portWords(destination string) string {
	if address, all := strings.CutSuffix(destination, ":*"); all {
		return "every port of " + address
	}
	return destination
}

func each(list []string, f func(string) string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = f(s)
	}
	return out
}

func count(targets []Target) string {
	switch len(targets) {
	case 1:
		return targets[0].Name
	case 2, 3:
		names := make([]string, len(targets))
		for i, t := range targets {
			names[i] = t.Name
		}
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%d hosts", len(targets))
}

// Phrase is what the grant is, in the middle of a sentence: "write access to
// web-1 for 30 min".
func (g Grant) Phrase() string {
	return request{Targets: g.Targets, Sudo: g.Sudo, Root: g.Root, ForMS: g.AskedFor.Milliseconds()}.phrase()
}

// PhraseOf is Phrase of what somebody agreed to, and whose it is; "" is a request
// of another kind.
func PhraseOf(kind string, signed []byte) (phrase, person string) {
	r, err := parseRequest(signed)
	if err != nil || kind != KindGrant && kind != KindRatification {
		return "", ""
	}
	if kind == KindRatification {
		return "break-glass on " + count(r.Targets), r.PersonName
	}
	return r.phrase(), r.PersonName
}

func (r request) phrase() string {
	what := "write access to "
	switch {
	case r.Root:
		what = "root on "
	case r.Sudo:
		what = "write access with sudo to "
	}
	return what + count(r.Targets) + " for " + when.Words(time.Duration(r.ForMS)*time.Millisecond)
}

// CannotContain is what an approver of this grant is told about its limits.
func (g Grant) CannotContain() []string {
	return request{Targets: g.Targets, Sudo: g.Sudo, Root: g.Root, Forwards: g.Forwards}.cannotContain()
}

// grantKind is the request for a grant.
type grantKind struct{ hosts *target.Hosts }

func (grantKind) Name() string { return KindGrant }

func (grantKind) Describe(_ store.Queryer, b []byte) (approval.Description, error) {
	r, err := parseRequest(b)
	if err != nil {
		return approval.Description{}, err
	}
	return r.describe(), nil
}

// loadTx returns the grant of an approval. The row must still say what was
// agreed to, byte for byte: a grant that changed after people signed is not the
// one they signed.
func loadTx(q store.Queryer, a approval.Approval) (Grant, error) {
	g, err := getTx(q, a.Subject)
	if err != nil {
		return Grant{}, err
	}
	b, err := g.request()
	if err != nil {
		return Grant{}, err
	}
	if !bytes.Equal(b, a.Request) || g.Approval != a.ID {
		return Grant{}, fault.New(fault.Conflict, "cannot approve %s: grant %s is not what was asked for", a.ID, g.ID)
	}
	return g, nil
}

// last is the person whose approval completed it.
func last(a approval.Approval) string {
	if len(a.Decisions) == 0 {
		return ledger.System
	}
	return a.Decisions[len(a.Decisions)-1].Person
}

// asShown refuses when a host is not any more what the approvers were shown: a
// grant for eight hours on a dev host is none on production.
func (k grantKind) asShown(tx *store.Tx, g Grant) error {
	for _, t := range g.Targets {
		h, err := k.hosts.GetTx(tx, t.ID)
		if err != nil {
			return err
		}
		now := targetsOf([]target.Host{h})[0]
		if now.Name = t.Name; now != t {
			return fault.New(fault.Conflict, "cannot approve grant %s: %s was %s, %s, when it was asked for, and is %s, %s", g.ID, t.Name, t.Environment, t.Scope, now.Environment, now.Scope).
				WithHint("%s asks anew: handrail elevate %s", g.PersonName, now.Name)
		}
	}
	return nil
}

func (k grantKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	g, err := loadTx(tx, a)
	if err != nil {
		return nil, err
	}
	if err := k.asShown(tx, g); err != nil {
		return nil, err
	}
	by := last(a)
	g, entries, _, err := applyTx(tx, g, Event{Kind: EventApprove, By: by})
	if err != nil {
		return nil, err
	}
	_, more, _, err := applyTx(tx, g, Event{Kind: EventStart, By: by})
	return append(entries, more...), err
}

func (grantKind) Ended(tx *store.Tx, a approval.Approval, state approval.State) ([]ledger.Entry, error) {
	g, err := getTx(tx, a.Subject)
	if err != nil || g.State != Requested {
		return nil, err
	}
	event := Event{Kind: EventDeny, By: last(a)}
	switch {
	case state == approval.Lapsed:
		event = Event{Kind: EventLapse, By: ledger.System}
	case len(a.Decisions) > 0:
		event.Notes = a.Decisions[len(a.Decisions)-1].Reason
	}
	_, entries, _, err := applyTx(tx, g, event)
	return entries, err
}

// ratificationKind is the request that a break-glass makes at once: that a
// second person agrees, while it runs.
type ratificationKind struct{}

func (ratificationKind) Name() string { return KindRatification }

func (ratificationKind) Describe(_ store.Queryer, b []byte) (approval.Description, error) {
	r, err := parseRequest(b)
	if err != nil {
		return approval.Description{}, err
	}
	d := r.describe()
	d.Summary = fmt.Sprintf("%s broke the glass on %s; agree, or it is cut back to read", r.PersonName, count(r.Targets))
	for i := range d.Details {
		if d.Details[i].Name == "for" {
			d.Details[i].Value = "until " + time.UnixMicro(r.Expires).UTC().Format(time.RFC3339)
		}
	}
	d.Grants = append([]string{"that it goes on; a review is owed either way"}, d.Grants...)
	return d, nil
}

func (ratificationKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	g, err := loadTx(tx, a)
	if err != nil {
		return nil, err
	}
	_, entries, _, err := applyTx(tx, g, Event{Kind: EventRatify, By: last(a)})
	return entries, err
}

// Ended cuts it back to read: denied, or nobody came.
func (ratificationKind) Ended(tx *store.Tx, a approval.Approval, state approval.State) ([]ledger.Entry, error) {
	g, err := getTx(tx, a.Subject)
	if err != nil || g.State != Active && g.State != Paused || state == approval.Withdrawn {
		return nil, err
	}
	event := Event{Kind: EventEnd, By: ledger.System, Why: Unratified} // nobody came, or too few
	if state == approval.Denied {
		event.By, event.Notes = last(a), a.Decisions[len(a.Decisions)-1].Reason
	}
	_, entries, _, err := applyTx(tx, g, event)
	return entries, err
}
