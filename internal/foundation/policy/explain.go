package policy

import (
	"slices"
	"strings"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/target"
)

// explain gives a decision its sentence, from the rules that made it or, when
// none did, from the rule that comes nearest.
func (r rules) explain(q Query, d Decision) Decision {
	switch {
	case d.Allowed:
		d.Text = r.find(d.Rules[0]).allows
	case len(d.Rules) > 0:
		by := r.find(d.Rules[0])
		d.Text, d.Next = by.denies, by.next
	default:
		near, ok := r.nearest()
		if !ok {
			d.Text = "Refused: no rule permits " + q.Action + "."
			break
		}
		d.Text, d.Next = near.denies, near.next
		d.Rules = append(d.Rules, string(near.id))
	}
	if d.Next != "" && q.Host != nil {
		d.Next = strings.ReplaceAll(d.Next, "HOST", q.Host.Name)
	}
	return d
}

func (r rules) find(id string) *rule {
	for i := range r {
		if string(r[i].id) == id {
			return &r[i]
		}
	}
	return &rule{allows: "Allowed: " + id + ".", denies: "Refused: " + id + "."}
}

// nearest is the permit that a person just misses: one that names a next
// command, else the first.
func (r rules) nearest() (first *rule, found bool) {
	for i := range r {
		switch {
		case !r[i].permit:
		case r[i].next != "":
			return &r[i], true
		case !found:
			first, found = &r[i], true
		}
	}
	return first, found
}

// Explain is Decide, and for a refusal also who could agree or do it instead.
func (e *Engine) Explain(q Query) Decision {
	d := e.Decide(q)
	if d.Allowed || len(d.Errors) > 0 || q.Principal.Locked {
		return d
	}
	with := q
	with.Context.GrantActive = true
	if !q.Context.GrantActive && e.Decide(with).Allowed {
		d.WhoCould = e.Approval("grant", hostsOf(q.Host)...).Groups
		return d
	}
	with = q
	with.Context.OwesReview = false
	if q.Context.OwesReview && e.Decide(with).Allowed {
		d.WhoCould = e.whoMay("grants.review")
		return d
	}
	d.WhoCould = e.whoCould(q)
	return d
}

func hostsOf(h *target.Host) []target.Host {
	if h == nil {
		return nil
	}
	return []target.Host{*h}
}

// whoMay lists the groups one of whose members may do the action to the
// installation, or to a plain host.
func (e *Engine) whoMay(action string) []string {
	q := Query{Action: action}
	if v, known := e.words.actions[action]; known && !v.installation {
		q.Host = &target.Host{ID: "h-00000000", Name: "any", Environment: "dev", Scope: "none"}
	}
	return e.whoCould(q)
}

func (e *Engine) whoCould(q Query) []string {
	var could []string
	q.Context.Self = false
	for _, group := range e.groups {
		q.Principal = identity.Principal{ID: "p-00000000", Name: "somebody", Kind: "person", Groups: []string{group}}
		if e.Decide(q).Allowed {
			could = append(could, group)
		}
	}
	return could
}

// Delta is one thing that a person gains or loses when one set replaces
// another.
type Delta struct {
	Person string `json:"person"`
	Action string `json:"action"`
	Target string `json:"target"` // a host's name, "every host" or "installation"
	Before string `json:"before"` // allow, deny
	After  string `json:"after"`
	Rule   string `json:"rule"`
}

// Gain says whether the person may more than before.
func (d Delta) Gain() bool { return d.After == "allow" }

// situation is one set of circumstances that Compare tries for an action.
type situation struct {
	label   string
	context Context
}

func situations(action string) []situation {
	switch action {
	case "sessions.open":
		var all []situation
		for _, level := range []string{"read", "write"} {
			all = append(all,
				situation{action + " " + level, Context{Level: level, FloorOK: true}},
				situation{action + " " + level + " with a grant", Context{Level: level, FloorOK: true, GrantActive: true, GrantKind: "elevated"}})
		}
		return all
	case "sessions.watch", "sessions.join", "sessions.control", "sessions.replay", "grants.revoke", "grants.review", "approvals.decide":
		return []situation{{action, Context{}}, {action + " of their own", Context{Self: true}}}
	case "inspect":
		var all []situation
		for _, what := range []string{"stacks", "top", "journal", "ports", "files", "env"} {
			all = append(all, situation{action + " " + what, Context{Inspect: what}})
		}
		return all
	case "grants.breakglass":
		return []situation{{action, Context{}}, {action + " with a review owed", Context{OwesReview: true}}}
	case "grants.request":
		return []situation{{action, Context{}}, {action + " with sudo", Context{Sudo: true}}, {action + " as root", Context{Root: true}}}
	}
	return []situation{{action, Context{}}}
}

// maxDeltas bounds what Compare returns.
const maxDeltas = 2000

// Compare says who would gain and who would lose, in the situations that
// matter, if the set of after replaced that of before. A change that is the same
// on every host is one line.
func Compare(before, after *Engine, people []identity.Person, hosts []target.Host) []Delta {
	var deltas []Delta
	for _, p := range people {
		who := identity.Principal{ID: p.ID, Name: p.Name, Kind: "person", Groups: p.Groups, Locked: p.LockedAt != 0}
		for _, action := range Verbs() {
			for _, s := range situations(action) {
				q := Query{Principal: who, Action: action, Context: s.context}
				if before.words.actions[action].installation {
					deltas = append(deltas, compareOne(before, after, q, s.label, nil)...)
					continue
				}
				deltas = append(deltas, compareOne(before, after, q, s.label, hosts)...)
			}
			if len(deltas) > maxDeltas {
				return deltas[:maxDeltas]
			}
		}
	}
	return deltas
}

func compareOne(before, after *Engine, q Query, label string, hosts []target.Host) []Delta {
	places := []*target.Host{nil}
	if hosts != nil {
		places = nil
		for i := range hosts {
			places = append(places, &hosts[i])
		}
	}
	var found []Delta
	for _, place := range places {
		q.Host = place
		old, new := before.Decide(q), after.Decide(q)
		if old.Allowed == new.Allowed {
			continue
		}
		d := Delta{Person: q.Principal.Name, Action: label, Target: "installation", Before: word(old), After: word(new), Rule: strings.Join(new.Rules, " ")}
		if place != nil {
			d.Target = place.Name
		}
		found = append(found, d)
	}
	same := func(d Delta) bool { return d.After != found[0].After }
	if len(found) > 1 && len(found) == len(places) && !slices.ContainsFunc(found, same) {
		found[0].Target = "every host"
		return found[:1]
	}
	return found
}

func word(d Decision) string {
	if d.Allowed {
		return "allow"
	}
	return "deny"
}
