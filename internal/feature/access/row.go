package access

import (
	"encoding/json"
	"fmt"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of grants. Each entry holds the whole grant as it became,
// with its version, so that folding them gives the table.
const (
	ActionRequested ledger.Action = "grant.requested"
	ActionDeclared  ledger.Action = "grant.declared"
	ActionApproved  ledger.Action = "grant.approved"
	ActionDenied    ledger.Action = "grant.denied"
	ActionLapsed    ledger.Action = "grant.lapsed"
	ActionActivated ledger.Action = "grant.activated"
	ActionPaused    ledger.Action = "grant.paused"
	ActionResumed   ledger.Action = "grant.resumed"
	ActionEnded     ledger.Action = "grant.ended"
	ActionRatified  ledger.Action = "grant.ratified"
	ActionReviewed  ledger.Action = "grant.reviewed"
)

// Actions lists the ledger actions of grants.
func Actions() []ledger.Action {
	return []ledger.Action{ActionRequested, ActionDeclared, ActionApproved, ActionDenied, ActionLapsed, ActionActivated,
		ActionPaused, ActionResumed, ActionEnded, ActionRatified, ActionReviewed}
}

// Schema is the tables of grants.
func Schema() []store.Migration {
	return []store.Migration{
		{Name: "access-1-grants", SQL: `CREATE TABLE grants (
	id TEXT PRIMARY KEY,
	person TEXT NOT NULL,
	state TEXT NOT NULL,
	body TEXT NOT NULL,
	request_id TEXT NOT NULL,
	requested BIGINT NOT NULL,
	finished BIGINT NOT NULL,
	next BIGINT NOT NULL,
	review_by BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "access-2-by-person", SQL: `CREATE INDEX grants_person ON grants (person, state)`},
		{Name: "access-3-by-next", SQL: `CREATE INDEX grants_state ON grants (state, next)`},
		{Name: "access-4-targets", SQL: `CREATE TABLE grant_targets (
	host TEXT NOT NULL,
	grant_id TEXT NOT NULL,
	PRIMARY KEY (host, grant_id)
)`},
	}
}

// payload is the ledger's form of a grant.
type payload struct {
	V     int    `json:"v"`
	By    string `json:"by"`
	Grant Grant  `json:"grant"`
}

func (g Grant) entry(action ledger.Action, by string) ledger.Entry {
	subjects := []string{by}
	if by != g.Person {
		subjects = append(subjects, g.Person)
	}
	e := ledger.Entry{
		Action: action, Subjects: subjects, Object: g.ID, Version: g.Version,
		Payload: payload{V: 1, By: by, Grant: g}, SealTo: g.Person,
	}
	if len(g.Targets) == 1 {
		e.Target = "host/" + g.Targets[0].ID
	}
	return e
}

// actionOf is the ledger action of an event.
var actionOf = map[string]ledger.Action{
	EventRequest: ActionRequested, EventDeclare: ActionDeclared, EventApprove: ActionApproved, EventDeny: ActionDenied,
	EventLapse: ActionLapsed, EventStart: ActionActivated, EventPause: ActionPaused, EventResume: ActionResumed,
	EventTick: ActionEnded, EventEnd: ActionEnded, EventRatify: ActionRatified, EventReview: ActionReviewed,
}

// applyTx steps a grant and writes it with its entry. Nothing is written when
// nothing changed.
func applyTx(tx *store.Tx, g Grant, e Event) (Grant, []ledger.Entry, []Effect, error) {
	after, effects, err := Step(g, e, tx.Now())
	if err != nil || after.Version == g.Version {
		return g, nil, nil, err
	}
	if err := saveTx(tx, after); err != nil {
		return g, nil, nil, err
	}
	by := e.By
	if by == "" {
		by = ledger.System
	}
	action := actionOf[e.Kind]
	if e.Kind == EventEnd && after.State == Denied {
		action = ActionDenied
	}
	return after, []ledger.Entry{after.entry(action, by)}, effects, nil
}

// saveTx inserts version 1, and replaces exactly the version before otherwise.
func saveTx(tx *store.Tx, g Grant) error {
	body, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if g.Version == 1 {
		if _, err := tx.Exec(`INSERT INTO grants (id, person, state, body, request_id, requested, finished, next, review_by, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			g.ID, g.Person, string(g.State), string(body), g.RequestID, g.Requested, g.Finished, g.Next(), g.ReviewBy, g.Version); err != nil {
			return err
		}
		for _, t := range g.Targets {
			if _, err := tx.Exec(`INSERT INTO grant_targets (host, grant_id) VALUES ($1, $2)`, t.ID, g.ID); err != nil {
				return err
			}
		}
		return nil
	}
	n, err := tx.Exec(`UPDATE grants SET state = $1, body = $2, finished = $3, next = $4, review_by = $5, version = $6 WHERE id = $7 AND version = $8`,
		string(g.State), string(body), g.Finished, g.Next(), g.ReviewBy, g.Version, g.ID, g.Version-1)
	if err != nil {
		return err
	}
	if n != 1 {
		return fault.New(fault.Conflict, "cannot change grant %s: somebody changed it meanwhile", g.ID)
	}
	return nil
}

// find returns the grants that a WHERE clause chooses.
func find(q store.Queryer, where string, args ...any) ([]Grant, error) {
	bodies, err := store.All[string](q, `SELECT g.body FROM grants g `+where, args...)
	if err != nil {
		return nil, err
	}
	list := make([]Grant, len(bodies))
	for i, body := range bodies {
		if err := json.Unmarshal([]byte(body), &list[i]); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot read a grant")
		}
	}
	return list, nil
}

// getTx returns one grant by its id or a unique beginning of it.
func getTx(q store.Queryer, id string) (Grant, error) {
	missing := fault.New(fault.NotFound, "cannot find grant %.40q", id).WithHint("handrail grants")
	if len(id) < 4 || len(id) > 40 || !plain(id) {
		return Grant{}, missing
	}
	list, err := find(q, `WHERE g.id = $1 OR g.id LIKE $2 ORDER BY g.id LIMIT 2`, id, id+"%")
	switch {
	case err != nil:
		return Grant{}, err
	case len(list) == 0:
		return Grant{}, missing
	case len(list) == 2 && list[0].ID != id:
		return Grant{}, fault.New(fault.Invalid, "cannot choose a grant: %q fits more than one", id).WithHint("handrail grants")
	}
	return list[0], nil
}

// plain says whether the text is of the letters of an id, so that LIKE cannot
// read it otherwise.
func plain(id string) bool {
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

// Standing tells the doorway which grant is in force. It has no state: it reads
// the rows of the transaction it is asked in.
type Standing struct{}

// Active implements doorway.Grants. Of several grants the one that allows most
// counts: root, then sudo, then the latest end.
func (Standing) Active(q store.Queryer, person, host string, now time.Time) (doorway.GrantInForce, bool, error) {
	return inForce(q, person, host, now, func(Grant) bool { return true })
}

// Forwarding returns the grant in force that names this destination for
// forwarded ports.
func (Standing) Forwarding(q store.Queryer, person, host, destination string, now time.Time) (doorway.GrantInForce, bool, error) {
	return inForce(q, person, host, now, func(g Grant) bool { return wire.ForwardAllowed(g.Forwards, destination) })
}

func inForce(q store.Queryer, person, host string, now time.Time, fits func(Grant) bool) (doorway.GrantInForce, bool, error) {
	list, err := find(q, `JOIN grant_targets t ON t.grant_id = g.id WHERE g.person = $1 AND t.host = $2 AND g.state = $3`, person, host, string(Active))
	if err != nil {
		return doorway.GrantInForce{}, false, err
	}
	var best *Grant
	for i := range list {
		if g := &list[i]; g.InForce(now) && g.Person == person && g.Covers(host) && fits(*g) && (best == nil || stronger(*g, *best)) {
			best = g
		}
	}
	if best == nil {
		return doorway.GrantInForce{}, false, nil
	}
	force := doorway.GrantInForce{
		ID: best.ID, Kind: best.Kind, Account: best.Account, Sudo: best.Sudo, Root: best.Root, Forwards: best.Forwards,
		Expires: best.Expires, BuddyRequired: best.BuddyRequired, Reason: best.Reason,
	}
	if best.Approval != "" {
		a, err := approval.Lookup(q, best.Approval)
		if err != nil {
			return doorway.GrantInForce{}, false, fmt.Errorf("cannot read who agreed to grant %s: %w", best.ID, err)
		}
		force.Authority = a.Authority()
	}
	return force, true, nil
}

func stronger(a, b Grant) bool {
	if a.Root != b.Root {
		return a.Root
	}
	if a.Sudo != b.Sudo {
		return a.Sudo
	}
	return a.Expires > b.Expires
}

// Fold rebuilds the table of grants from ledger entries, in whatever order they
// come: the highest version of an object counts.
func Fold(entries []ledger.Recorded) (map[string]Grant, error) {
	table := map[string]Grant{}
	ours := map[ledger.Action]bool{}
	for _, a := range Actions() {
		ours[a] = true
	}
	for _, e := range entries {
		if !ours[e.Parsed.Action] || e.Payload == nil {
			continue
		}
		var p payload
		if err := json.Unmarshal(e.Payload, &p); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot read entry #%d", e.Seq)
		}
		if p.Grant.Version != e.Parsed.Version || p.Grant.ID != e.Parsed.Object {
			return nil, fault.New(fault.Internal, "cannot fold entry #%d: its leaf says %s version %d, its payload %s version %d",
				e.Seq, e.Parsed.Object, e.Parsed.Version, p.Grant.ID, p.Grant.Version)
		}
		if p.Grant.Version > table[p.Grant.ID].Version {
			table[p.Grant.ID] = p.Grant
		}
	}
	return table, nil
}

// CountTx is how many grants are in each state.
func CountTx(q store.Queryer) (map[string]int64, error) {
	type counted struct {
		State string `db:"state"`
		N     int64  `db:"n"`
	}
	rows, err := store.All[counted](q, `SELECT state, COUNT(*) AS n FROM grants GROUP BY state`)
	if err != nil {
		return nil, err
	}
	all := map[string]int64{}
	for _, r := range rows {
		all[r.State] = r.N
	}
	return all, nil
}
