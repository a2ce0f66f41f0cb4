package doorway

import (
	"context"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// How somebody has a right.
const (
	HowStanding = "standing" // always
	HowGrant    = "grant"    // now, by a grant in force
	HowAsk      = "ask"      // once others agree to a grant
	HowNo       = "no"
)

// Right is what a person may on a host at one level, and why.
type Right struct {
	Level   string // read, write, sudo, root
	How     string
	Rule    string   // the rule that decides
	Text    string   // its sentence
	Because []string // groups without which it would not be so; none: everybody has it
	Grant   string
}

// Reach is one person and one host.
type Reach struct {
	Person identity.Person
	Host   target.Host
	Rights []Right
}

// levels are what is asked about, the least first.
var levels = []struct {
	name       string
	sudo, root bool
}{{"read", false, false}, {"write", false, false}, {"sudo", true, false}, {"root", true, true}}

// Reach says who can reach what, at which level and by which rule, for every
// pair of the people and hosts. It does and counts nothing; the caller decides
// who may ask.
func (d *Door) Reach(ctx context.Context, people []identity.Person, hosts []target.Host) ([]Reach, error) {
	var all []Reach
	err := d.d.Store.View(ctx, func(v *store.View) error {
		engine, err := d.d.Policy.EngineTx(v)
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		state, err := d.d.People.BootstrapTx(v, now)
		if err != nil {
			return err
		}
		for i := range hosts {
			for _, p := range people {
				q := policy.Query{Principal: p.Principal(), Host: &hosts[i], Context: policy.Context{Bootstrap: state.Active}}
				g := GrantInForce{}
				if d.d.Grants != nil && !p.Locked() {
					held, ok, err := d.d.Grants.Active(v, p.ID, hosts[i].ID, now)
					if err != nil {
						return err
					}
					if ok {
						g = held
					}
				}
				all = append(all, Reach{Person: p, Host: hosts[i], Rights: rights(engine, q, g)})
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

func rights(e *policy.Engine, q policy.Query, g GrantInForce) []Right {
	out := make([]Right, 0, len(levels))
	for _, l := range levels {
		r := Right{Level: l.name, How: HowNo}
		open := q
		open.Action, open.Context.Level = "sessions.open", "write"
		if l.name == "read" {
			open.Context.Level = "read"
		}
		open.Context.Sudo, open.Context.Root = l.sudo, l.root
		var decided policy.Query
		var decision policy.Decision
		try := func(how string, asked policy.Query) bool {
			if r.How != HowNo {
				return true
			}
			got := e.Decide(asked)
			if decision.Text == "" || got.Allowed {
				decided, decision = asked, got
			}
			if got.Allowed {
				r.How = how
			}
			return got.Allowed
		}
		if !l.sudo {
			try(HowStanding, open)
		}
		if g.ID != "" && (!l.sudo || g.Sudo) && (!l.root || g.Root) {
			held := open
			held.Context.GrantActive, held.Context.GrantKind = true, g.Kind
			if try(HowGrant, held) && r.How == HowGrant {
				r.Grant = g.ID
			}
		}
		// Asking is worth something only where what is asked for could be used.
		ask, use := open, open
		ask.Action, ask.Context.Level = "grants.request", ""
		use.Context.GrantActive, use.Context.GrantKind = true, "routine"
		if l.sudo {
			use.Context.GrantKind = "elevated"
		}
		if r.How == HowNo && e.Decide(use).Allowed {
			try(HowAsk, ask)
		}
		if len(decision.Rules) > 0 {
			r.Rule = decision.Rules[0]
		}
		r.Text = decision.Text
		if decision.Allowed {
			r.Because = because(e, decided)
		}
		out = append(out, r)
	}
	return out
}

// because finds the groups that an answer hangs on: those without which it
// would be another, or, where several would do, each that would do alone.
func because(e *policy.Engine, q policy.Query) []string {
	groups := q.Principal.Groups
	with := func(some []string) bool {
		q.Principal.Groups = some
		return e.Decide(q).Allowed
	}
	if with(nil) {
		return nil
	}
	var needed, enough []string
	for i, g := range groups {
		if !with(slices.Concat(groups[:i], groups[i+1:])) {
			needed = append(needed, g)
		}
		if with([]string{g}) {
			enough = append(enough, g)
		}
	}
	if len(needed) > 0 {
		return needed
	}
	return enough
}
