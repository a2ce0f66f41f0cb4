package doorway

import (
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// robot is what two people agreed that a robot may do. It bounds whatever the
// rules would allow; the zero robot may do nothing.
type robot struct {
	identity.Robot
	hosts target.Selector
	owner bool // somebody answers for it at this moment
}

// robot reads a robot anew, and whether its owner stands.
func (d *Door) robot(q store.Queryer, by identity.Principal) (robot, error) {
	if by.Kind != identity.KindRobot {
		return robot{}, nil
	}
	row, err := d.d.People.RobotTx(q, by.ID)
	if fault.KindOf(err) == fault.NotFound {
		return robot{}, nil
	}
	if err != nil {
		return robot{}, err
	}
	owner, err := d.d.People.GetTx(q, by.Owner)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return robot{}, err
	}
	r := robot{Robot: row, owner: err == nil && owner.ID == by.Owner && owner.Kind == identity.KindPerson && !owner.Locked()}
	r.hosts, err = target.ParseSelector(row.Hosts)
	return r, err
}

// may says whether what a robot asks for is within what was agreed. Its own
// login it may always end.
func (r robot) may(q policy.Query, now time.Time) bool {
	if q.Principal.Kind != identity.KindRobot {
		return false
	}
	if q.Action == "logins.self" {
		return true
	}
	if r.Removed != 0 || !r.owner || now.UnixMicro() >= r.Expires || !r.Has(q.Action, q.Context.Level) {
		return false
	}
	return q.Host == nil || r.hosts.Match(*q.Host)
}
