package witness

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// Schema is the witness policy in force and the outages that are told.
func Schema() []store.Migration {
	return []store.Migration{{Name: "witness-1-policy", SQL: `CREATE TABLE witness_policy (
	id {{KEY}},
	version BIGINT NOT NULL,
	policy TEXT NOT NULL
);
CREATE TABLE witness_outage (
	witness TEXT PRIMARY KEY,
	since BIGINT NOT NULL,
	why TEXT NOT NULL
)`}}
}

// Observations is where cosigned checkpoints are kept.
func Observations() []store.ObservationMigration {
	return []store.ObservationMigration{{Name: "witness-1-cosigned", SQL: `CREATE TABLE witness_cosigned (
	n {{KEY}},
	signed TEXT NOT NULL
)`}}
}

type policyRow struct {
	Version int64  `db:"version"`
	Text    string `db:"policy"`
}

func policyTx(q store.Queryer) (policyRow, error) {
	rows, err := store.All[policyRow](q, `SELECT version, policy FROM witness_policy WHERE id = 1`)
	if err != nil {
		return policyRow{}, err
	}
	if len(rows) == 0 {
		return policyRow{Text: ledger.SimplePolicy(nil, nil, 0)}, nil
	}
	return rows[0], nil
}

// KindSet is the kind of request that puts another witness policy in force.
const KindSet = "witness.set"

// action is what policy decides.
const action = "ledger.witness"

// request is what people sign. Once says that it was asked for this once.
type request struct {
	V    int    `json:"v"`
	Once string `json:"once"`
	Base int64  `json:"base"` // the version that it was made from
	Text string `json:"text"`
}

// setPayload is the payload of witness.set.
type setPayload struct {
	V       int    `json:"v"`
	Version int64  `json:"version"`
	Before  string `json:"before"`
	Text    string `json:"text"`
}

func setTx(tx *store.Tx, by string, r request) ([]ledger.Entry, error) {
	if _, err := ledger.ParseWitnessPolicy([]byte(r.Text)); err != nil {
		return nil, err
	}
	was, err := policyTx(tx)
	if err != nil {
		return nil, err
	}
	if was.Version != r.Base {
		return nil, fault.New(fault.Conflict, "cannot set the witnesses: they were set to something else since this was asked (version %d, not %d)", was.Version, r.Base).
			WithHint("handrail ledger witness list")
	}
	next := r.Base + 1
	if _, err := tx.Exec(`DELETE FROM witness_policy WHERE id = 1`); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(`INSERT INTO witness_policy (id, version, policy) VALUES (1, $1, $2)`, next, r.Text); err != nil {
		return nil, err
	}
	// The outage of a witness that is named no more has ended with it.
	p, _ := ledger.ParseWitnessPolicy([]byte(r.Text)) // parsed above
	outs, err := store.All[outage](tx, `SELECT witness, since, why FROM witness_outage`)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, k := range p.Keys() {
		named[idOf(k)] = true
	}
	for _, o := range outs {
		if !named[o.Witness] {
			if _, err := tx.Exec(`DELETE FROM witness_outage WHERE witness = $1`, o.Witness); err != nil {
				return nil, err
			}
		}
	}
	return []ledger.Entry{{
		Action: ActionSet, Subjects: []string{by}, Object: "witnesses", Version: next, SealTo: ledger.System,
		Payload: setPayload{V: 1, Version: next, Before: was.Text, Text: r.Text},
	}}, nil
}

// Set puts another policy in force, made from the version base: at once in
// bootstrap, else when a second person agrees.
func (c *Circle) Set(ctx context.Context, by identity.Principal, base int64, text string) (approvalID string, err error) {
	if _, err := ledger.ParseWitnessPolicy([]byte(text)); err != nil {
		return "", err
	}
	_, err = c.d.Door.Do(ctx, doorway.Act{Action: action, By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		approvalID = ""
		r := request{V: 1, Once: hex.EncodeToString(tx.Random(16)), Base: base, Text: text}
		state, err := c.d.People.BootstrapTx(tx, tx.Now())
		if err != nil {
			return nil, err
		}
		if state.Active {
			return setTx(tx, by.ID, r)
		}
		if was, err := policyTx(tx); err != nil {
			return nil, err
		} else if was.Version != base {
			return nil, fault.New(fault.Conflict, "cannot set the witnesses: version %d is in force, not %d", was.Version, base).WithHint("handrail ledger witness list")
		}
		raw, err := json.Marshal(r)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
		}
		engine, err := c.d.Policy.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		a, entries, err := c.d.Approvals.RequestTx(tx, by, KindSet, raw, approval.RuleOf(engine.Approval(KindSet)))
		approvalID = a.ID
		return entries, err
	}}, nil)
	if err == nil {
		select {
		case c.kick <- struct{}{}:
		default: // it is awake
		}
	}
	return approvalID, err
}

// Kinds are the kinds of request that a circle carries out.
func Kinds() []approval.Kind { return []approval.Kind{setKind{}} }

type setKind struct{}

func (setKind) Name() string { return KindSet }

func parseRequest(raw []byte) (request, ledger.WitnessPolicy, error) {
	var r request
	if err := approval.Read(KindSet, raw, &r); err != nil {
		return r, ledger.WitnessPolicy{}, err
	}
	p, err := ledger.ParseWitnessPolicy([]byte(r.Text))
	return r, p, err
}

// Describe says who is added and removed, and how many must cosign.
func (setKind) Describe(q store.Queryer, raw []byte) (approval.Description, error) {
	r, p, err := parseRequest(raw)
	if err != nil {
		return approval.Description{}, err
	}
	row, err := policyTx(q)
	if err != nil {
		return approval.Description{}, err
	}
	was, err := ledger.ParseWitnessPolicy([]byte(row.Text))
	if err != nil {
		return approval.Description{}, err
	}
	d := approval.Description{Subject: "witnesses", Summary: "witnesses of the ledger: " + inWords(p)}
	for _, w := range p.Witnesses {
		d.Details = append(d.Details, approval.Detail{Name: "witness " + w.Name, Value: w.Key.String() + " " + w.URL})
	}
	for _, l := range p.Logs {
		d.Details = append(d.Details, approval.Detail{Name: "cosigned here", Value: l.Text})
	}
	d.Details = append(d.Details, approval.Detail{Name: "before", Value: inWords(was)}, approval.Detail{Name: "policy", Value: r.Text})
	if p.Wants() {
		d.Grants = append(d.Grants, "hosts that demand cosignatures take orders only while enough of these answer")
	} else {
		d.CannotContain = append(d.CannotContain, "nobody outside vouches for the ledger: whoever holds the log key could keep two histories")
	}
	return d, nil
}

// inWords is a policy in one line.
func inWords(p ledger.WitnessPolicy) string {
	switch n := p.Need(); {
	case len(p.Witnesses) == 0:
		return "none"
	case n == 0:
		return fmt.Sprintf("%d, none of which must answer", len(p.Witnesses))
	case n > 0:
		return fmt.Sprintf("%d of %d must cosign", n, len(p.Witnesses))
	}
	return fmt.Sprintf("%d, by groups", len(p.Witnesses))
}

// Approved puts it in force.
func (setKind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	r, _, err := parseRequest(a.Request)
	if err != nil {
		return nil, err
	}
	return setTx(tx, a.Requester, r)
}

// Ended does nothing.
func (setKind) Ended(*store.Tx, approval.Approval, approval.State) ([]ledger.Entry, error) {
	return nil, nil
}

// LogsOf picks, for this server as a witness of others, the logs that the
// policy in force names.
func (c *Circle) LogsOf(origin string) (keys []note.Verifier) {
	_, p, _ := c.List()
	for _, l := range p.Logs {
		if l.Key.Name() == origin {
			keys = append(keys, l.Key)
		}
	}
	return keys
}
