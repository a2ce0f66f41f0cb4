// Package approval is any request that a second person must agree to: a grant,
// a new person, a changed rule. A request is exact bytes of a kind; whoever
// agrees signs their hash. The step function is pure and knows what no policy
// can lift: never the requester, never a robot, never twice, never with a
// credential made a minute ago, never something else than what was shown.
//
// A kind says what its bytes mean and what happens when they are agreed to. It
// is handed to New; what it does happens in the transaction that records the
// last approval, so there is no moment in which a request is approved and not
// yet in force.
package approval

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Description is what an approver is shown.
type Description struct {
	Subject       string   // what it is about: g-…, p-…, h-…
	Summary       string   // one line
	Details       []Detail // what exactly, in order
	Grants        []string // what it grants, a sentence each
	CannotContain []string // what handrail cannot hold back once it is granted
}

// Detail is one line of a description.
type Detail struct{ Name, Value string }

// Kind is one kind of request.
type Kind interface {
	Name() string
	// Describe says what the bytes mean; bytes that mean nothing are an error.
	Describe(q store.Queryer, request []byte) (Description, error)
	// Approved carries it out, in the transaction of the last approval.
	Approved(tx *store.Tx, a Approval) ([]ledger.Entry, error)
	// Ended is called when it was denied, lapsed or withdrawn.
	Ended(tx *store.Tx, a Approval, state State) ([]ledger.Entry, error)
}

// Directory is what approvals need of people. *identity.People is one.
type Directory interface {
	GetTx(q store.Queryer, idOrName string) (identity.Person, error)
	BootstrapTx(q store.Queryer, now time.Time) (identity.BootstrapState, error)
	Credentials(q store.Queryer, person string) ([]identity.Credential, error)
	VerifyDeviceSignature(q store.Queryer, person string, message, sshSig []byte) (credentialID string, mayApproveFrom time.Time, err error)
	VerifyPasskeyAssertion(q store.Queryer, person, ceremony, responseJSON string, subjectHash []byte) (credentialID string, mayApproveFrom time.Time, err error)
}

// Evidence is how an approver proves that it is they who agree: a device
// signature over identity.ApprovalMessage(hash), or a passkey assertion whose
// challenge is the hash.
type Evidence struct {
	DeviceSignature []byte // ssh.Marshal(*ssh.Signature)
	Ceremony        string
	Response        string // WebAuthn JSON
}

// Deps is what Approvals needs.
type Deps struct {
	Store  *store.Store
	People Directory
	Kinds  []Kind
}

// Approvals keeps requests.
type Approvals struct {
	store  *store.Store
	people Directory
	kinds  map[string]Kind
}

// New returns the approvals of a store, of exactly these kinds.
func New(d Deps) *Approvals {
	a := &Approvals{store: d.Store, people: d.People, kinds: map[string]Kind{}}
	for _, k := range d.Kinds {
		a.kinds[k.Name()] = k
	}
	return a
}

// The ledger actions of approvals. Approved is one person's approval; the
// payload says whether it was the last that was needed.
const (
	ActionRequested ledger.Action = "approval.requested"
	ActionSigned    ledger.Action = "approval.signed" // the requester signed their own request
	ActionApproved  ledger.Action = "approval.approved"
	ActionDenied    ledger.Action = "approval.denied"
	ActionLapsed    ledger.Action = "approval.lapsed"
	ActionWithdrawn ledger.Action = "approval.withdrawn"
)

// Actions lists the ledger actions of approvals.
func Actions() []ledger.Action {
	return []ledger.Action{ActionRequested, ActionSigned, ActionApproved, ActionDenied, ActionLapsed, ActionWithdrawn}
}

// Schema is the table of approvals.
func Schema() []store.Migration {
	return []store.Migration{
		{Name: "approval-1-approvals", SQL: `CREATE TABLE approvals (
	id TEXT PRIMARY KEY,
	kind TEXT NOT NULL,
	state TEXT NOT NULL,
	requester TEXT NOT NULL,
	subject TEXT NOT NULL,
	body TEXT NOT NULL,
	lapses BIGINT NOT NULL,
	requested BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "approval-2-by-subject", SQL: `CREATE INDEX approvals_subject ON approvals (subject)`},
		{Name: "approval-3-by-state", SQL: `CREATE INDEX approvals_state ON approvals (state, lapses)`},
	}
}

// row is what is queried by; body is the whole approval.
type row struct {
	ID      string `db:"id"`
	Body    string `db:"body"`
	Version int64  `db:"version"`
}

const selectRow = `SELECT id, body, version FROM approvals `

// payload is the ledger's form: the whole approval, with the exact request and
// the signatures, so that the ledger alone proves who agreed to what.
type payload struct {
	V        int      `json:"v"`
	Approval Approval `json:"approval"`
}

func (a Approval) entry(action ledger.Action, actor string) ledger.Entry {
	subjects := []string{actor}
	if actor != a.Requester {
		subjects = append(subjects, a.Requester)
	}
	return ledger.Entry{
		Action: action, Subjects: subjects, Object: a.ID, Version: a.Version,
		Payload: payload{V: 1, Approval: a}, SealTo: a.ID,
	}
}

const (
	maxRequest = 256 << 10
	maxOpen    = 50 // requests of one person
)

// RequestTx asks for the agreement of others. request is the exact bytes that
// they agree to.
func (s *Approvals) RequestTx(tx *store.Tx, by identity.Principal, kind string, request []byte, rule Rule) (Approval, []ledger.Entry, error) {
	k, known := s.kinds[kind]
	switch {
	case !known:
		return Approval{}, nil, fault.New(fault.Internal, "cannot ask for approval: there is no kind %q", kind)
	case len(request) > maxRequest:
		return Approval{}, nil, fault.New(fault.Invalid, "cannot ask for approval: the request has %d bytes, at most %d", len(request), maxRequest)
	case rule.Needed < 1 || len(rule.Groups) == 0 || rule.Lapse <= 0:
		return Approval{}, nil, fault.New(fault.Internal, "cannot ask for approval of %s: its rule is empty", kind)
	}
	open, err := store.One[int64](tx, `SELECT COUNT(*) FROM approvals WHERE requester = $1 AND state = $2`, by.ID, string(Requested))
	if err != nil {
		return Approval{}, nil, err
	}
	if open >= maxOpen {
		return Approval{}, nil, fault.New(fault.Exhausted, "cannot ask for approval: %d requests of yours are open", open).WithHint("handrail requests")
	}
	d, err := k.Describe(tx, request)
	if err != nil {
		return Approval{}, nil, err
	}
	now := tx.Now()
	a := Approval{
		ID: store.NewID('a'), Kind: kind, State: Requested, Requester: by.ID, RequesterName: by.Name, Subject: d.Subject,
		Request: request, Hash: SubjectHash(kind, request), Rule: rule,
		Requested: now.UnixMicro(), Lapses: now.Add(rule.Lapse).UnixMicro(), Version: 1,
	}
	body, err := json.Marshal(a)
	if err != nil {
		return Approval{}, nil, err
	}
	_, err = tx.Exec(`INSERT INTO approvals (id, kind, state, requester, subject, body, lapses, requested, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		a.ID, a.Kind, string(a.State), a.Requester, a.Subject, string(body), a.Lapses, a.Requested, a.Version)
	if err != nil {
		return Approval{}, nil, err
	}
	return a, []ledger.Entry{a.entry(ActionRequested, by.ID)}, nil
}

// saveTx writes an approval that was read at the version before.
func (s *Approvals) saveTx(tx *store.Tx, a Approval) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	n, err := tx.Exec(`UPDATE approvals SET state = $1, body = $2, version = $3 WHERE id = $4 AND version = $5`,
		string(a.State), string(body), a.Version, a.ID, a.Version-1)
	if err != nil {
		return err
	}
	if n != 1 {
		return fault.New(fault.Conflict, "cannot decide %s: somebody decided it meanwhile", a.ID).WithHint("handrail requests")
	}
	return nil
}

// GetTx is Lookup.
func (s *Approvals) GetTx(q store.Queryer, idOrSubject string) (Approval, error) {
	return Lookup(q, idOrSubject)
}

// Lookup returns the approval of that id, or the newest about that subject. A
// unique beginning of either is enough.
func Lookup(q store.Queryer, idOrSubject string) (Approval, error) {
	missing := fault.New(fault.NotFound, "cannot find request %.80q", idOrSubject).WithHint("handrail requests")
	rows, err := store.All[row](q, selectRow+`WHERE id = $1 OR subject = $1 ORDER BY requested DESC, id LIMIT 1`, idOrSubject)
	if err != nil {
		return Approval{}, err
	}
	if len(rows) > 0 {
		return rows[0].approval()
	}
	if len(idOrSubject) < 4 || len(idOrSubject) > 40 || strings.ContainsAny(idOrSubject, "%_") {
		return Approval{}, missing
	}
	rows, err = store.All[row](q, selectRow+`WHERE id LIKE $1 OR subject LIKE $1 ORDER BY requested DESC, id LIMIT 2`, idOrSubject+"%")
	switch {
	case err != nil:
		return Approval{}, err
	case len(rows) == 0:
		return Approval{}, missing
	case len(rows) == 2:
		return Approval{}, fault.New(fault.Invalid, "cannot choose a request: %q fits more than one", idOrSubject).WithHint("handrail requests")
	}
	return rows[0].approval()
}

func (r row) approval() (Approval, error) {
	var a Approval
	if err := json.Unmarshal([]byte(r.Body), &a); err != nil {
		return Approval{}, fault.Wrap(fault.Internal, err, "cannot read request %s", r.ID)
	}
	return a, nil
}

// Get is GetTx in a view of its own.
func (s *Approvals) Get(ctx context.Context, idOrSubject string) (Approval, error) {
	var a Approval
	err := s.store.View(ctx, func(v *store.View) (err error) {
		a, err = s.GetTx(v, idOrSubject)
		return err
	})
	return a, err
}

// maxListed bounds a list.
const maxListed = 500

// List returns requests, newest first; open ones only, or all.
func (s *Approvals) List(ctx context.Context, openOnly bool) ([]Approval, error) {
	var list []Approval
	err := s.store.View(ctx, func(v *store.View) (err error) {
		list, err = s.ListTx(v, openOnly)
		return err
	})
	return list, err
}

// ListTx is List inside a transaction or view.
func (s *Approvals) ListTx(q store.Queryer, openOnly bool) ([]Approval, error) {
	where, args := ``, []any{maxListed}
	if openOnly {
		where, args = `WHERE state = $2 `, []any{maxListed, string(Requested)}
	}
	rows, err := store.All[row](q, selectRow+where+`ORDER BY requested DESC, id LIMIT $1`, args...)
	if err != nil {
		return nil, err
	}
	list := make([]Approval, 0, len(rows))
	for _, r := range rows {
		a, err := r.approval()
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// AgreedTx are the requests, by id, that somebody's approval counts for now.
func (s *Approvals) AgreedTx(q store.Queryer, person string) (map[string]bool, error) {
	rows, err := store.All[row](q, selectRow+`WHERE body LIKE $1`, `%"person":"`+person+`"%`) // those that name them at all
	if err != nil {
		return nil, err
	}
	agreed := map[string]bool{}
	for _, r := range rows {
		a, err := r.approval()
		if err != nil {
			return nil, err
		}
		if a, err = s.NowTx(q, a); err != nil {
			return nil, err
		}
		agreed[a.ID] = slices.ContainsFunc(a.Agreed(), func(d Decision) bool { return d.Person == person })
	}
	return agreed, nil
}

// DescribeTx says what an approver is shown.
func (s *Approvals) DescribeTx(q store.Queryer, a Approval) (Description, error) {
	k, known := s.kinds[a.Kind]
	if !known {
		return Description{Subject: a.Subject, Summary: a.Kind}, nil
	}
	return k.Describe(q, a.Request)
}

// Shown is an approval with what a person sees of it.
type Shown struct {
	Approval    Approval
	Description Description
	MayNot      error // why this person cannot decide it; nil: they can
}

// ShowTx prepares one approval for a person. A request that cannot be described
// any more is shown as such, and cannot be agreed to: it must not hide the
// others.
func (s *Approvals) ShowTx(q store.Queryer, by identity.Principal, a Approval, now time.Time) (Shown, error) {
	a, err := s.NowTx(q, a)
	if err != nil {
		return Shown{}, err
	}
	d, err := s.DescribeTx(q, a)
	if err != nil {
		d = Description{Subject: a.Subject, Summary: a.RequesterName + " asks for " + a.Kind, Details: []Detail{{Name: "cannot be shown", Value: err.Error()}}}
		return Shown{Approval: a, Description: d, MayNot: err}, nil
	}
	voter, err := s.voterTx(q, by, a, now)
	if err != nil {
		return Shown{}, err
	}
	return Shown{Approval: a, Description: d, MayNot: a.May(voter, now)}, nil
}

// voterTx is somebody as they may decide about a request now.
func (s *Approvals) voterTx(q store.Queryer, by identity.Principal, a Approval, now time.Time) (Voter, error) {
	v := Voter{Person: by.ID, Name: by.Name, Kind: by.Kind, ReadOnly: by.ReadOnly, Locked: by.Locked}
	if by.Kind != identity.KindPerson {
		return v, nil
	}
	p, err := s.people.GetTx(q, by.ID)
	if err != nil {
		return v, err
	}
	state, err := s.people.BootstrapTx(q, now)
	if err != nil {
		return v, err
	}
	v.Name, v.Kind, v.Groups, v.Bootstrap = p.Name, p.Kind, p.Groups, state.Active
	v.Locked = v.Locked || p.LockedAt != 0
	if a.Requester == ledger.System { // the installation itself asks; it is never locked
		return v, nil
	}
	asks, err := s.people.GetTx(q, a.Requester)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return v, err
	}
	v.ForLocked = err != nil || asks.LockedAt != 0
	return v, nil
}

// NowTx marks the approvals of a request that count no more: between the first
// and the last somebody can be locked, regrouped, or lose the key. What is
// decided stays as it was decided.
func (s *Approvals) NowTx(q store.Queryer, a Approval) (Approval, error) {
	if a.State != Requested {
		return a, nil
	}
	void, err := s.voidTx(q, a)
	return a.without(void), err
}

// voidTx is whose earlier approval counts no more, and why.
func (s *Approvals) voidTx(q store.Queryer, a Approval) (map[string]string, error) {
	void := map[string]string{}
	for _, d := range a.Agreed() {
		p, err := s.people.GetTx(q, d.Person)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return nil, err
		}
		key := d.Signature == nil
		if err == nil && !key {
			held, err := s.people.Credentials(q, d.Person)
			if err != nil {
				return nil, err
			}
			key = slices.ContainsFunc(held, func(c identity.Credential) bool { return c.ID == d.Signature.Credential && c.Revoked == 0 })
		}
		switch {
		case err != nil || p.LockedAt != 0:
			void[d.Person] = "they were locked since"
		case len(common(d.Groups, p.Groups)) != len(d.Groups):
			void[d.Person] = "they left " + names(d.Groups) + " since"
		case !key:
			void[d.Person] = "the key they signed with was taken away since"
		}
	}
	return void, nil
}

// decidingTx is a request and who decides about it, as both are now.
func (s *Approvals) decidingTx(tx *store.Tx, by identity.Principal, id string) (Approval, Voter, error) {
	a, err := s.GetTx(tx, id)
	if err != nil {
		return Approval{}, Voter{}, err
	}
	if a, err = s.NowTx(tx, a); err != nil {
		return Approval{}, Voter{}, err
	}
	voter, err := s.voterTx(tx, by, a, tx.Now())
	return a, voter, err
}

// ApproveTx records that a person agrees to exactly these bytes. With the last
// approval that is needed the kind carries it out, in this transaction. Only
// what doorway let through may call it.
func (s *Approvals) ApproveTx(tx *store.Tx, by identity.Principal, id string, hash []byte, ev Evidence) (Approval, []ledger.Entry, error) {
	a, voter, err := s.decidingTx(tx, by, id)
	if err != nil {
		return Approval{}, nil, err
	}
	if err := a.May(voter, tx.Now()); err != nil { // before a signature is looked at
		return Approval{}, nil, err
	}
	voter.Signature, voter.MayApproveFrom, err = s.verifyTx(tx, by.ID, approver, a.Hash, ev)
	if err != nil {
		return Approval{}, nil, err
	}
	a, err = Step(a, Event{To: Approved, By: voter, Hash: hash}, tx.Now())
	if err != nil {
		return Approval{}, nil, err
	}
	return s.settleTx(tx, a, ActionApproved, by.ID)
}

// DenyTx records that a person refuses; one refusal ends the request.
func (s *Approvals) DenyTx(tx *store.Tx, by identity.Principal, id, reason string) (Approval, []ledger.Entry, error) {
	a, voter, err := s.decidingTx(tx, by, id)
	if err != nil {
		return Approval{}, nil, err
	}
	a, err = Step(a, Event{To: Denied, By: voter, Reason: reason}, tx.Now())
	if err != nil {
		return Approval{}, nil, err
	}
	return s.settleTx(tx, a, ActionDenied, by.ID)
}

// settleTx saves a step and lets the kind act on its result.
func (s *Approvals) settleTx(tx *store.Tx, a Approval, action ledger.Action, actor string) (Approval, []ledger.Entry, error) {
	if err := s.saveTx(tx, a); err != nil {
		return Approval{}, nil, err
	}
	entries := []ledger.Entry{a.entry(action, actor)}
	k, known := s.kinds[a.Kind]
	if !known {
		if a.State == Approved {
			return Approval{}, nil, fault.New(fault.Internal, "cannot approve %s: there is no kind %q", a.ID, a.Kind)
		}
		return a, entries, nil // what has no kind any more can still end
	}
	var more []ledger.Entry
	var err error
	switch a.State {
	case Requested:
	case Approved:
		more, err = k.Approved(tx, a)
	default:
		more, err = k.Ended(tx, a, a.State)
	}
	if err != nil {
		return Approval{}, nil, err
	}
	return a, append(entries, more...), nil
}

// Authority is what a write order carries: the exact request and everybody's
// own signatures over it.
func (a Approval) Authority() wire.Authority {
	out := wire.Authority{Kind: a.Kind, Request: a.Request}
	if a.Signed != nil {
		out.Signatures = append(out.Signatures, *a.Signed)
	}
	for _, d := range a.Agreed() {
		if d.Signature != nil {
			out.Signatures = append(out.Signatures, *d.Signature)
		}
	}
	return out
}
