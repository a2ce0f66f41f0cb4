package identity

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// robotActions is all that a robot can ever be allowed. To approve, to break
// glass and to change who may do what is not in it.
var robotActions = []string{
	"hosts.list", "people.list", "sessions.list", "approvals.list", "grants.list", "policies.list", "ledger.list", "ledger.verify",
	"sessions.open:read", "sessions.open:write", "inspect", "grants.request",
}

const (
	maxRobotFor = 366 * 24 * time.Hour
	maxProof    = 512
	maxClaims   = 8
)

// Robot is what a robot may do, where and until when, and how it proves that it
// is that robot. Its owner, name and locks are its Person.
type Robot struct {
	ID      string `db:"id" json:"-"`
	May     Groups `db:"may" json:"may"`         // of robotActions
	Hosts   string `db:"hosts" json:"hosts"`     // a selector
	Expires int64  `db:"expires" json:"expires"` // µs
	Proof   Proof  `db:"proof" json:"proof"`
	Removed int64  `db:"removed" json:"-"`
	Version int64  `db:"version" json:"-"`
}

// Proof is how a robot proves itself: what an issuer says of a workload, or a
// key that it holds. One of both.
type Proof struct {
	Issuer   string            `json:"issuer,omitempty"`
	Audience string            `json:"audience,omitempty"`
	Subject  string            `json:"subject,omitempty"`
	Claims   map[string]string `json:"claims,omitempty"` // further claims, exactly
	Key      string            `json:"key,omitempty"`    // SHA-256 of its public key (SPKI), hex
}

// Text is the row's form.
func (p Proof) Text() string {
	b, _ := json.Marshal(p) // strings always marshal
	return string(b)
}

// Scan reads the row's form.
func (p *Proof) Scan(from any) error {
	switch v := from.(type) {
	case string:
		return json.Unmarshal([]byte(v), p)
	case []byte:
		return json.Unmarshal(v, p)
	}
	return fault.New(fault.Internal, "cannot read a proof")
}

// key finds the robot of a proof: unique, so that no proof is of two robots.
func (p Proof) key() string {
	if p.Key != "" {
		return "key " + p.Key
	}
	return "workload " + hashOf(kindProof, p.Text())
}

// CheckRobot says what is wrong with what a robot shall be.
func CheckRobot(r Robot, now time.Time) error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "cannot make such a robot: "+format, args...).WithHint("handrail robot add --help")
	}
	if len(r.May) == 0 {
		return wrong("name what it may do: %s", strings.Join(robotActions, ", "))
	}
	for i, a := range r.May {
		if !slices.Contains(robotActions, a) {
			return wrong("%.40q is nothing that a robot may do; there is %s", a, strings.Join(robotActions, ", "))
		}
		if i > 0 && r.May[i-1] >= a {
			return wrong("what it may do is not sorted")
		}
	}
	switch left := fromMicros(r.Expires).Sub(now); {
	case strings.TrimSpace(r.Hosts) == "" || len(r.Hosts) > 2048:
		return wrong("name the hosts by a selector; host:* is all of them")
	case left <= 0 || left > maxRobotFor:
		return wrong("it must end, within a year from now")
	}
	p := r.Proof
	for _, s := range []string{p.Issuer, p.Audience, p.Subject, p.Key} {
		if len(s) > maxProof {
			return wrong("what proves it is longer than %d bytes", maxProof)
		}
	}
	workload := p.Issuer != "" || p.Audience != "" || p.Subject != "" || len(p.Claims) > 0
	switch {
	case workload && p.Key != "", !workload && p.Key == "":
		return wrong("it proves itself by an issuer's word on its workload or by a key of its own, one of both")
	case workload && (p.Issuer == "" || p.Audience == "" || p.Subject == ""):
		return wrong("an issuer, an audience and a subject belong together, each exactly")
	case strings.ContainsAny(p.Audience+p.Subject, "*"):
		return wrong("audience and subject are compared exactly: a star is a star")
	case p.Key != "" && (len(p.Key) != 64 || strings.Trim(p.Key, "0123456789abcdef") != ""):
		return wrong("a key is named by the SHA-256 of its public half, in hex")
	case len(p.Claims) > maxClaims:
		return wrong("at most %d further claims", maxClaims)
	}
	for name, value := range p.Claims {
		if name == "" || len(name) > maxProof || len(value) > maxProof || slices.Contains([]string{"iss", "aud", "sub", "exp", "iat", "nbf"}, name) {
			return wrong("%.40q is no further claim", name)
		}
	}
	return nil
}

// Has says whether an action is one that the robot has, at that level.
func (r Robot) Has(action, level string) bool {
	if action == "sessions.open" {
		action += ":" + level
	}
	return slices.Contains(r.May, action)
}

const selectRobot = `SELECT id, may, hosts, expires, proof, removed, version FROM robots `

// RobotTx is what a robot may do.
func (p *People) RobotTx(q store.Queryer, id string) (Robot, error) {
	rows, err := store.All[Robot](q, selectRobot+`WHERE id = $1`, id)
	if err != nil {
		return Robot{}, err
	}
	if len(rows) == 0 {
		return Robot{}, fault.New(fault.NotFound, "cannot find robot %.40q", id).WithHint("handrail robot list")
	}
	return rows[0], nil
}

// RobotPayload is the payload of the robot.* entries.
type RobotPayload struct {
	V      int    `json:"v"`
	Person string `json:"person"`
	Name   string `json:"name"`
	Owner  string `json:"owner"`
	Robot  Robot  `json:"robot,omitzero"`
	Before *Robot `json:"before,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (r Robot) entry(action ledger.Action, by string, who Person, payload RobotPayload) ledger.Entry {
	payload.V, payload.Person, payload.Name, payload.Owner, payload.Robot = 1, who.ID, who.Name, who.Owner, r
	return ledger.Entry{
		Action: action, Subjects: subjects(by, who.ID, who.Owner), Object: who.ID, Version: r.Version, Payload: payload, SealTo: who.ID,
	}
}

// MakeRobotTx adds a robot that owner answers for.
func (p *People) MakeRobotTx(tx *store.Tx, by Principal, name, owner string, r Robot) (Person, []ledger.Entry, error) {
	if err := CheckRobot(r, tx.Now()); err != nil {
		return Person{}, nil, err
	}
	answers, err := p.GetTx(tx, owner)
	if err == nil {
		err = p.admit(answers)
	}
	if err != nil {
		return Person{}, nil, err
	}
	who, entries, err := p.AddRobotTx(tx, by, name, answers.ID, nil)
	if err != nil {
		return Person{}, nil, err
	}
	r.ID, r.Version = who.ID, 1
	if err := proofFree(tx, r); err != nil {
		return Person{}, nil, err
	}
	_, err = tx.Exec(`INSERT INTO robots (id, may, hosts, expires, proof, proof_key, removed, version) VALUES ($1, $2, $3, $4, $5, $6, 0, 1)`,
		r.ID, r.May.Text(), r.Hosts, r.Expires, r.Proof.Text(), r.Proof.key())
	return who, append(entries, r.entry(RobotSet, by.ID, who, RobotPayload{})), err
}

func proofFree(q store.Queryer, r Robot) error {
	n, err := store.One[int64](q, `SELECT COUNT(*) FROM robots WHERE proof_key = $1 AND removed = 0 AND id <> $2`, r.Proof.key(), r.ID)
	if err == nil && n > 0 {
		err = fault.New(fault.Conflict, "cannot use this proof: another robot proves itself by it").WithHint("handrail robot list -o wide")
	}
	return err
}

// SetRobotTx changes what a robot may do or how it proves itself. was is the
// version that people looked at. Its logins end: they were of what it was.
func (p *People) SetRobotTx(tx *store.Tx, by Principal, id string, was int64, r Robot) (Person, []ledger.Entry, error) {
	if err := CheckRobot(r, tx.Now()); err != nil {
		return Person{}, nil, err
	}
	before, err := p.RobotTx(tx, id)
	if err != nil {
		return Person{}, nil, err
	}
	who, err := byID(tx, id)
	if err != nil {
		return Person{}, nil, err
	}
	if before.Removed != 0 || before.Version != was {
		return Person{}, nil, fault.New(fault.Conflict, "cannot change robot %s: it changed meanwhile", who.Name).WithHint("handrail robot show %s", who.Name)
	}
	r.ID, r.Version = id, before.Version+1
	if err := proofFree(tx, r); err != nil {
		return Person{}, nil, err
	}
	n, err := tx.Exec(`UPDATE robots SET may = $1, hosts = $2, expires = $3, proof = $4, proof_key = $5, version = $6 WHERE id = $7 AND version = $8`,
		r.May.Text(), r.Hosts, r.Expires, r.Proof.Text(), r.Proof.key(), r.Version, id, before.Version)
	if err == nil && n != 1 {
		err = fault.New(fault.Conflict, "cannot change robot %s: it changed meanwhile", who.Name).WithHint("try again")
	}
	if err != nil {
		return Person{}, nil, err
	}
	if _, err := tx.Exec(`UPDATE logins SET ended = $1 WHERE person = $2 AND ended = 0`, micros(tx.Now()), id); err != nil {
		return Person{}, nil, err
	}
	p.cache.disturb()
	return who, []ledger.Entry{r.entry(RobotSet, by.ID, who, RobotPayload{Before: &before})}, nil
}

// RemoveRobotTx ends a robot for good: it is locked, and is not unlocked again.
func (p *People) RemoveRobotTx(tx *store.Tx, by, id, reason string) (Person, []ledger.Entry, error) {
	r, err := p.RobotTx(tx, id)
	if err != nil {
		return Person{}, nil, err
	}
	if _, err := tx.Exec(`UPDATE robots SET removed = $1, version = $2 WHERE id = $3 AND version = $4`, micros(tx.Now()), r.Version+1, id, r.Version); err != nil {
		return Person{}, nil, err
	}
	who, entries, err := p.LockTx(tx, by, id, reason)
	if err != nil {
		return Person{}, nil, err
	}
	r.Version++
	return who, append(entries, r.entry(RobotRemoved, by, who, RobotPayload{Reason: label(reason, maxReason)})), nil
}

// RobotsOf are the robots that somebody answers for and that are not locked.
func (p *People) RobotsOf(q store.Queryer, owner string) ([]Person, error) {
	return store.All[Person](q, selectPerson+`WHERE owner = $1 AND kind = $2 AND locked_at = 0 ORDER BY id`, owner, KindRobot)
}

// RobotIDs is all robots that somebody answers for, locked or not, for a brake:
// while the database is away, those that were logged in when it last answered.
func (p *People) RobotIDs(ctx context.Context, owner string) (ids []string) {
	err := p.store.View(ctx, func(v *store.View) error {
		robots, err := store.All[Person](v, selectPerson+`WHERE owner = $1 AND kind = $2 ORDER BY id`, owner, KindRobot)
		for _, r := range robots {
			ids = append(ids, r.ID)
		}
		return err
	})
	if err != nil {
		ids = p.standing.robotsOf(owner)
	}
	return ids
}

// ListRobots returns every robot that was not removed, by name.
func (p *People) ListRobots(ctx context.Context) (people []Person, robots []Robot, err error) {
	err = p.store.View(ctx, func(v *store.View) error {
		all, err := p.ListTx(v)
		if err != nil {
			return err
		}
		for _, who := range all {
			if who.Kind != KindRobot {
				continue
			}
			r, err := p.RobotTx(v, who.ID)
			if fault.KindOf(err) == fault.NotFound || err == nil && r.Removed != 0 {
				continue
			}
			if err != nil {
				return err
			}
			people, robots = append(people, who), append(robots, r)
		}
		return nil
	})
	return people, robots, err
}

// Workload is what an issuer says of a workload; oidc verified it.
type Workload struct {
	Issuer, Subject string
	Audience        []string
	Claims          map[string]string // that are texts
	Once            string            // the same of a token, however it is written: it opens one login
	Expires         time.Time
}

// fits says whether a workload is exactly the one that a robot is.
func (p Proof) fits(w Workload) bool {
	if p.Key != "" || p.Issuer != w.Issuer || p.Subject != w.Subject || len(w.Audience) != 1 || w.Audience[0] != p.Audience {
		return false
	}
	for name, value := range p.Claims {
		if got, ok := w.Claims[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// EnterWorkload lets the robot in that a workload is.
func (p *People) EnterWorkload(ctx context.Context, robot string, w Workload, source string) (Login, Person, error) {
	return p.enter(ctx, robot, func(r Robot) bool { return r.Proof.fits(w) }, "workload\n"+w.Issuer+"\n"+w.Once, source)
}

// EnterKey lets the robot in that a key is of. The key was proved by the TLS
// connection; once is what makes this login another than the one before.
func (p *People) EnterKey(ctx context.Context, robot, key, once, source string) (Login, Person, error) {
	return p.enter(ctx, robot, func(r Robot) bool { return r.Proof.Key != "" && sameHash(r.Proof.Key, key) }, "key\n"+key+"\n"+once, source)
}

func (p *People) enter(ctx context.Context, robot string, proves func(Robot) bool, question, source string) (Login, Person, error) {
	refused := fault.New(fault.Unauthenticated, "cannot let a robot in: none of that name proves itself so").WithHint("handrail robot show NAME says what it must prove")
	var login Login
	var who Person
	find := func(q store.Queryer) (Robot, error) {
		people, err := store.All[Person](q, selectPerson+`WHERE (name = $1 OR id = $1) AND kind = $2`, robot, KindRobot)
		if err != nil {
			return Robot{}, err
		}
		if len(people) != 1 {
			return Robot{}, refused
		}
		who = people[0]
		r, err := p.RobotTx(q, who.ID)
		if err != nil {
			return Robot{}, err
		}
		if r.Removed != 0 || !proves(r) {
			return Robot{}, refused
		}
		owner, err := byID(q, who.Owner)
		if err == nil {
			err = p.admit(who)
		}
		if err == nil {
			err = p.admit(owner)
		}
		if err == nil && micros(time.Now()) >= r.Expires {
			err = fault.New(fault.Denied, "cannot let %s in: it expired at %s UTC", who.Name, fromMicros(r.Expires).Format("15:04 on 2006-01-02")).
				WithRule("robot-expired").WithHint("handrail robot rotate %s --for 90d", who.Name)
		}
		return r, err
	}
	err := p.store.View(ctx, func(v *store.View) error { _, err := find(v); return err }) // guesses do not take the writer
	if err == nil {
		err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
			r, err := find(tx)
			if err != nil {
				return nil, err
			}
			login, who, entries, err = p.open(tx, opening{
				who: who, via: ViaRobot, born: bornRobot, source: source, proof: hashOf(kindProof, question), until: fromMicros(r.Expires),
			})
			return entries, err
		})
	}
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Denied || k == fault.NotFound {
			p.FailedLogin(source, "robot refused")
			if k == fault.NotFound {
				err = refused
			}
		}
		return Login{}, Person{}, err
	}
	return login, who, nil
}
