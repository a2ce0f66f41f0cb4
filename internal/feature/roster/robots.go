package roster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// The kinds of request about robots.
const (
	KindRobotAdd = "robot.add"
	KindRobotSet = "robot.set"
)

type (
	robotAdd struct {
		V     int            `json:"v"`
		Name  string         `json:"name"`
		Owner string         `json:"owner"` // id
		Robot identity.Robot `json:"robot"`
	}
	robotSet struct {
		V     int            `json:"v"`
		ID    string         `json:"id"`
		Was   int64          `json:"was"` // the version that is changed
		Robot identity.Robot `json:"robot"`
	}
)

func robotKinds(people *identity.People) []approval.Kind {
	return []approval.Kind{
		kind[robotAdd]{KindRobotAdd, describeRobotAdd(people), func(tx *store.Tx, a approval.Approval, q robotAdd) ([]ledger.Entry, error) {
			_, entries, err := people.MakeRobotTx(tx, requester(a), q.Name, q.Owner, q.Robot)
			return entries, err
		}},
		kind[robotSet]{KindRobotSet, describeRobotSet(people), func(tx *store.Tx, a approval.Approval, q robotSet) ([]ledger.Entry, error) {
			_, entries, err := people.SetRobotTx(tx, requester(a), q.ID, q.Was, q.Robot)
			return entries, err
		}},
	}
}

// checked is a robot in its one form, or what is wrong with it.
func checkedRobot(r identity.Robot) (identity.Robot, error) {
	slices.Sort(r.May)
	r.May = slices.Compact(r.May)
	hosts, err := target.ParseSelector(r.Hosts)
	if err != nil {
		return r, err
	}
	if r.Hosts = hosts.String(); r.Hosts == "" {
		return r, fault.New(fault.Invalid, "cannot make a robot for every host by saying nothing").WithHint("name the hosts by a selector: env:dev; host:* is all of them")
	}
	return r, identity.CheckRobot(r, time.Now())
}

// AddRobot makes a robot that owner answers for.
func (r *Roster) AddRobot(ctx context.Context, by identity.Principal, name, owner string, robot identity.Robot) (who identity.Person, approvalID string, err error) {
	if err := identity.CheckName(name); err != nil {
		return who, "", err
	}
	if robot, err = checkedRobot(robot); err != nil {
		return who, "", err
	}
	answers, err := r.People.Get(ctx, owner)
	if err != nil {
		return who, "", err
	}
	if answers.Kind != identity.KindPerson || answers.Locked() {
		return who, "", fault.New(fault.Invalid, "cannot make robot %s: %s cannot answer for it", name, answers.Name).WithHint("name a person who is not locked: --owner NAME")
	}
	approvalID, err = r.do(ctx, by, change{
		action: "people.add", kind: KindRobotAdd, request: robotAdd{V: 1, Name: name, Owner: answers.ID, Robot: robot},
		now: func(tx *store.Tx) (entries []ledger.Entry, err error) {
			who, entries, err = r.People.MakeRobotTx(tx, by, name, answers.ID, robot)
			return entries, err
		},
		check: func(q store.Queryer) error {
			if there, err := r.People.GetTx(q, name); err == nil {
				return fault.New(fault.Conflict, "cannot add %s: there is one, %s", name, there.ID).WithHint("handrail robot rotate %s", name)
			}
			return nil
		},
	})
	return who, approvalID, err
}

// SetRobot changes a robot: what it may do, where, until when, how it proves
// itself. Its logins end with the change.
func (r *Roster) SetRobot(ctx context.Context, by identity.Principal, name string, with func(identity.Robot) identity.Robot) (approvalID string, err error) {
	who, was, err := r.Robot(ctx, name)
	if err != nil {
		return "", err
	}
	robot, err := checkedRobot(with(was))
	if err != nil {
		return "", err
	}
	return r.do(ctx, by, change{
		action: "people.add", kind: KindRobotSet, request: robotSet{V: 1, ID: who.ID, Was: was.Version, Robot: robot},
		now: func(tx *store.Tx) ([]ledger.Entry, error) {
			_, entries, err := r.People.SetRobotTx(tx, by, who.ID, was.Version, robot)
			return entries, err
		},
	})
}

// Robot finds a robot by name or id.
func (r *Roster) Robot(ctx context.Context, name string) (who identity.Person, robot identity.Robot, err error) {
	err = r.Store.View(ctx, func(v *store.View) error {
		if who, err = r.People.GetTx(v, name); err != nil {
			return err
		}
		if who.Kind != identity.KindRobot {
			return fault.New(fault.NotFound, "cannot find robot %s: that is a person", who.Name).WithHint("handrail robot list")
		}
		robot, err = r.People.RobotTx(v, who.ID)
		return err
	})
	return who, robot, err
}

// RemoveRobot ends a robot for good, at once: it only takes power away.
func (r *Roster) RemoveRobot(ctx context.Context, by identity.Principal, name, reason string) (identity.Person, error) {
	who, _, err := r.Robot(ctx, name)
	if err != nil {
		return who, err
	}
	if reason == "" {
		reason = "removed"
	}
	if err := r.mayLock(ctx, by, who); err != nil {
		return who, err
	}
	r.People.Brake(who.ID)
	defer r.People.Release(who.ID)
	r.brake(ctx, who.ID, reason)
	_, err = r.Door.Do(ctx, doorway.Act{Action: "people.lock", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		_, entries, err := r.People.RemoveRobotTx(tx, by.ID, who.ID, reason)
		return entries, err
	}}, nil)
	if err == nil {
		r.brake(ctx, who.ID, reason)
	}
	return who, err
}

func describeRobotAdd(people *identity.People) func(store.Queryer, robotAdd) (approval.Description, error) {
	return func(q store.Queryer, r robotAdd) (approval.Description, error) {
		owner, err := people.GetTx(q, r.Owner)
		if err != nil {
			return approval.Description{}, err
		}
		d := approval.Description{
			Subject: "robot/" + r.Name, Summary: fmt.Sprintf("add robot %s of %s: %s on %s", r.Name, owner.Name, list(r.Robot.May), r.Robot.Hosts),
			Details: append([]approval.Detail{{Name: "name", Value: r.Name}, {Name: "owner", Value: owner.Name}}, robotDetails(r.Robot)...),
		}
		return grantsOfRobot(d, r.Name, r.Robot), nil
	}
}

func describeRobotSet(people *identity.People) func(store.Queryer, robotSet) (approval.Description, error) {
	return func(q store.Queryer, r robotSet) (approval.Description, error) {
		who, err := people.GetTx(q, r.ID)
		if err != nil {
			return approval.Description{}, err
		}
		was, err := people.RobotTx(q, r.ID)
		if err != nil {
			return approval.Description{}, err
		}
		d := approval.Description{Subject: who.ID, Summary: "change robot " + who.Name, Details: []approval.Detail{{Name: "robot", Value: who.Name}}}
		before, after := robotDetails(was), robotDetails(r.Robot)
		for i, now := range after {
			if now != before[i] {
				now.Value = before[i].Value + " → " + now.Value
				d.Summary += ", " + now.Name
			}
			d.Details = append(d.Details, now)
		}
		return grantsOfRobot(d, who.Name, r.Robot), nil
	}
}

func grantsOfRobot(d approval.Description, name string, r identity.Robot) approval.Description {
	d.Grants = []string{"whoever proves themselves as shown logs in as " + name + " for an hour at a time, and does what is listed, with nobody asked"}
	if slices.Contains(r.May, "sessions.open:read") {
		d.Grants = append(d.Grants, "a read-only shell on those hosts")
	}
	if slices.Contains(r.May, "sessions.open:write") {
		d.Grants = append(d.Grants, "a write shell on those hosts while a grant of its own is in force; it may not approve one")
	}
	if r.Proof.Issuer != "" {
		d.CannotContain = append(d.CannotContain, "whoever runs "+r.Proof.Issuer+", or the workload itself, is this robot")
	}
	return d
}

// robotDetails always has the same lines, so that two of them compare.
func robotDetails(r identity.Robot) []approval.Detail {
	proof := "its key, SHA-256 " + r.Proof.Key
	if r.Proof.Issuer != "" {
		proof = fmt.Sprintf("%s says to %s that it is %s", r.Proof.Issuer, r.Proof.Audience, r.Proof.Subject)
		for _, name := range sortedKeys(r.Proof.Claims) {
			proof += fmt.Sprintf(", %s = %s", name, r.Proof.Claims[name])
		}
	}
	return []approval.Detail{
		{Name: "may", Value: strings.Join(r.May, ", ")}, {Name: "hosts", Value: r.Hosts},
		{Name: "until", Value: time.UnixMicro(r.Expires).UTC().Format("2006-01-02 15:04 UTC")}, {Name: "proves itself", Value: proof},
	}
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
