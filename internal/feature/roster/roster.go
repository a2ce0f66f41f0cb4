// Package roster is what people do with people, hosts and the rules: add
// somebody, give them a login link, lock and unlock, end the bootstrap, invite
// and set hosts, apply a policy.
//
// During bootstrap one person does these at once. Afterwards each is a request
// that somebody else approves, and the approval carries it out in its own
// transaction. What ends in a secret (a login link, an invitation) cannot be
// carried out by the approver, who would hold the secret: the approval leaves a
// right instead, and the requester collects the secret by asking again.
//
// One thing would lock everybody out for good: bootstrap runs out while there
// is one person only who may approve, who then can ask for a second one but has
// nobody to agree. As long as nobody else who may approve has ever logged in,
// that person may add one alone, and the ledger says so loudly. It cannot be
// brought about later: neither a lock nor a lost device makes a second person
// never to have been.
//
// Locking is a brake: it acts first and is recorded after.
package roster

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Deps is what a Roster needs. Approvals must have been made with Kinds.
type Deps struct {
	Store     *store.Store
	Ring      *keyring.Ring
	People    *identity.People
	Hosts     *target.Hosts
	Policy    *policy.Force
	Approvals *approval.Approvals
	Door      *doorway.Door

	// Brake ends at once whatever the person has running, everywhere, and says
	// how many sessions that were. It is called before and after the lock is
	// recorded, the second time for what began in between. nil: nothing runs.
	Brake func(ctx context.Context, person, reason string) int
	// EndGrants ends the person's grants in the transaction of the lock and says
	// how many. nil: whoever owns grants follows the ledger.
	EndGrants func(tx *store.Tx, person, by, reason string) (int, []ledger.Entry, error)
	// Here says whether a host that joins from that address is the machine that
	// the server runs on, where root is never granted by default. nil: none is.
	Here func(source string) bool
}

// Roster does it.
type Roster struct {
	Deps

	mu      sync.Mutex
	pending map[string]lock // braked, and not yet recorded
}

// New returns a Roster. Run must run for locks to be recorded that could not be
// at once.
func New(d Deps) *Roster { return &Roster{Deps: d, pending: map[string]lock{}} }

// rightFor is how long the requester has to collect what was approved.
const rightFor = 24 * time.Hour

// Schema is the table of rights.
func Schema() []store.Migration {
	return []store.Migration{{Name: "roster-1-rights", SQL: `CREATE TABLE roster_rights (
	approval TEXT PRIMARY KEY,
	kind TEXT NOT NULL,
	requester TEXT NOT NULL,
	request TEXT NOT NULL,
	subject TEXT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL
)`}}
}

// AddedAlone says that the only person who may approve added a second one after
// bootstrap, with nobody to agree.
const AddedAlone ledger.Action = "approver.added"

// Actions are the ledger actions of roster. What it changes belongs to
// identity, target, policy or approval, and is recorded as theirs.
func Actions() []ledger.Action { return []ledger.Action{AddedAlone} }

// alonePayload is the payload of approver.added.
type alonePayload struct {
	V      int      `json:"v"`
	Person string   `json:"person"`
	Groups []string `json:"groups"`
	Reason string   `json:"reason"`
}

// right is what an approval left for its requester: to collect one secret.
type right struct {
	Approval  string `db:"approval"`
	Kind      string `db:"kind"`
	Requester string `db:"requester"`
	Request   string `db:"request"`
	Subject   string `db:"subject"`
	Expires   int64  `db:"expires"`
	Used      int64  `db:"used"`
}

const selectRight = `SELECT approval, kind, requester, request, subject, expires, used FROM roster_rights `

// asked is what people sign: the request, and that it was asked for this once. A
// signature over an earlier request with the same words agrees to nothing.
type asked struct {
	V       int             `json:"v"`
	Once    string          `json:"once"`
	Request json.RawMessage `json:"request"`
}

func leaveRight(tx *store.Tx, a approval.Approval, subject string) error {
	_, err := tx.Exec(`INSERT INTO roster_rights (approval, kind, requester, request, subject, expires, used) VALUES ($1, $2, $3, $4, $5, $6, 0)`,
		a.ID, a.Kind, a.Requester, string(a.Request), subject, tx.Now().Add(rightFor).UnixMicro())
	return err
}

// takeRight uses up a right of the requester, if there is one: one for exactly
// this request, or, where subject is given, one about that subject.
func takeRight(tx *store.Tx, requester, kind, request, subject string) (right, bool, error) {
	rows, err := store.All[right](tx, selectRight+`WHERE requester = $1 AND used = 0 AND expires > $2 ORDER BY expires DESC`, requester, tx.Now().UnixMicro())
	if err != nil {
		return right{}, false, err
	}
	for _, r := range rows {
		if !(r.Kind == kind && r.Request == request) && !(subject != "" && r.Subject == subject) {
			continue
		}
		n, err := tx.Exec(`UPDATE roster_rights SET used = $1 WHERE approval = $2 AND used = 0`, tx.Now().UnixMicro(), r.Approval)
		return r, err == nil && n == 1, err
	}
	return right{}, false, nil
}

// change is one thing that a person wants and that may need another.
type change struct {
	action  string // of the policy
	kind    string // of the approval
	request any    // marshalled, the exact bytes that are approved
	host    *target.Host
	subject string // of a right that counts too, may be empty
	id      string // idempotency, may be empty

	now     func(tx *store.Tx) ([]ledger.Entry, error)          // bootstrap: at once
	check   func(q store.Queryer) error                         // before it is asked for; may be nil
	second  func(rule []string) bool                            // it makes somebody who may approve; nil: it does not
	collect func(tx *store.Tx, r right) ([]ledger.Entry, error) // approved before; nil: nothing to collect
}

// do carries out a change at once, collects what was approved, or asks for
// approval and returns its id. All is decided in the doorway's transaction.
func (r *Roster) do(ctx context.Context, by identity.Principal, c change) (approvalID string, err error) {
	request, err := json.Marshal(c.request)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot ask for approval")
	}
	ran := false
	act := doorway.Act{Action: c.action, By: by, Host: c.host, ID: c.id}
	act.Open = func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		approvalID, ran = "", true
		state, err := r.People.BootstrapTx(tx, tx.Now())
		if err != nil {
			return nil, err
		}
		if state.Active {
			return c.now(tx)
		}
		if c.collect != nil {
			got, ok, err := takeRight(tx, by.ID, c.kind, string(request), c.subject)
			if err != nil {
				return nil, err
			}
			if ok {
				return c.collect(tx, got)
			}
		}
		engine, err := r.Policy.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		rule := approval.RuleOf(engine.Approval(c.kind))
		if c.second != nil && c.second(rule.Groups) {
			if alone, err := r.alone(tx, by, rule); err != nil {
				return nil, err
			} else if alone {
				return c.now(tx)
			}
		}
		if err := r.alreadyAsked(tx, by, c.kind, request); err != nil {
			return nil, err
		}
		if c.check != nil {
			if err := c.check(tx); err != nil {
				return nil, err
			}
		}
		once, err := json.Marshal(asked{V: 1, Once: hex.EncodeToString(tx.Random(16)), Request: request})
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
		}
		a, entries, err := r.Approvals.RequestTx(tx, by, c.kind, once, rule)
		approvalID = a.ID
		return entries, err
	}
	_, err = r.Door.Do(ctx, act, nil)
	if err == nil && !ran { // a retry of what was done: its secret was given out then
		err = fault.New(fault.Conflict, "cannot do this again: the same request was carried out already").WithHint("handrail people; handrail login-link NAME makes another link")
	}
	return approvalID, err
}

// alone says that nobody but this person could ever have approved.
func (r *Roster) alone(q store.Queryer, by identity.Principal, rule approval.Rule) (bool, error) {
	people, err := r.People.ListTx(q)
	if err != nil {
		return false, err
	}
	for _, p := range people {
		if p.ID != by.ID && p.Kind == identity.KindPerson && p.Enrolled != 0 && inAny(p.Groups, rule.Groups) {
			return false, nil
		}
	}
	return inAny(by.Groups, rule.Groups) && rule.Needed == 1, nil
}

// aloneEntry marks what one person did alone after bootstrap; none in bootstrap,
// where every entry is marked anyhow.
func (r *Roster) aloneEntry(tx *store.Tx, by identity.Principal, person identity.Person, entries []ledger.Entry) ([]ledger.Entry, error) {
	state, err := r.People.BootstrapTx(tx, tx.Now())
	if err != nil || state.Active {
		return entries, err
	}
	return append(entries, ledger.Entry{
		Action: AddedAlone, Subjects: []string{by.ID, person.ID}, SealTo: person.ID,
		Payload: alonePayload{V: 1, Person: person.ID, Groups: person.Groups, Reason: "nobody who may approve but the requester had ever logged in"},
	}), nil
}

// alreadyAsked refuses to ask twice for the same thing.
func (r *Roster) alreadyAsked(q store.Queryer, by identity.Principal, kind string, request []byte) error {
	open, err := r.Approvals.ListTx(q, true)
	if err != nil {
		return err
	}
	for _, a := range open {
		var before asked
		if a.Requester != by.ID || a.Kind != kind || json.Unmarshal(a.Request, &before) != nil {
			continue
		}
		if bytes.Equal(before.Request, request) {
			return fault.New(fault.NeedsApproval, "cannot do this yet: your request %s waits for somebody to approve it", a.ID).
				WithHint("ask somebody in %s to run: handrail approve %s", a.Rule.Groups[0], a.ID)
		}
	}
	return nil
}
