package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) grantsCommand() *cobra.Command {
	var all, mine bool
	var by string
	c := t.command("grants [ID]", "List who may write where, or show one grant: who agreed, who ended it and why",
		"handrail grants                  # what is asked for, in force, or owes a review\nhandrail grants g-7k3f9q2m       # one of them, with all that was said\nhandrail grants --agreed-by bob  # what stands on the word of one person",
		atMost("the id of the grant"),
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (all || mine || by != "") {
				return fault.New(fault.Invalid, "cannot list and show at once: --all, --mine and --agreed-by take no id").WithHint("handrail grants %s", clean(args[0]))
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return t.showGrant(cmd.Context(), c, args[0])
			}
			answer, err := c.grants.List(cmd.Context(), &v1.ListGrantsRequest{OpenOnly: !all, Mine: mine, AgreedBy: by})
			if err != nil {
				return err
			}
			return t.emit(answer, t.grantTable(answer.Grants))
		})
	c.ValidArgsFunction = t.completeGrants(false, nil)
	c.Flags().BoolVar(&all, "all", false, "also those that have ended")
	c.Flags().BoolVar(&mine, "mine", false, "only mine")
	c.Flags().StringVar(&by, "agreed-by", "", "only those that this person, by name or id, agreed to")
	return c
}

func (t *tool) showGrant(ctx context.Context, c *client, id string) error {
	id, err := c.grantID(ctx, id, func(g *v1.Grant) bool { return g.Person == c.login.Person })
	if err != nil {
		return err
	}
	answer, err := c.grants.Get(ctx, &v1.GetGrantRequest{Id: id})
	if err != nil {
		return err
	}
	return t.emit(answer, t.grantView(answer.Grant))
}

func (t *tool) grantTable(grants []*v1.Grant) *table {
	tb := &table{
		head: []string{"ID", "STATE", "WHO", "HOSTS", "AS", "ENDS", "AGREED", "REASON", "KIND", "TICKET", "REQUEST", "ENDED"},
		wide: 8, empty: "Nobody may write anywhere.",
	}
	for _, g := range grants {
		ends := t.at(g.Expires)
		if g.Ended != nil {
			ends = t.at(g.Ended)
		}
		row := cells(g.Id, "", g.PersonName, targetNames(g.Targets), accountOf(g), ends, agreed(g), g.Reason, g.Kind, g.Ticket, g.Approval,
			byWhom(orElse(g.EndedWhy, strings.TrimSpace(g.EndedNote)), g.EndedByName, ""))
		row[1] = state(g.State)
		tb.add(g.Id, row)
	}
	return tb
}

// agreed is who agreed to a grant.
func agreed(g *v1.Grant) string {
	var names []string
	for _, d := range g.Decisions {
		if d.Counts {
			names = append(names, d.PersonName)
		}
	}
	return strings.Join(names, ", ")
}

// onWordOf are the grants in force that somebody who is locked now agreed to:
// a lock does not end them, so whoever locks looks at them.
func (c *client) onWordOf(ctx context.Context, person string) ([]string, error) {
	answer, err := c.grants.List(ctx, &v1.ListGrantsRequest{InForce: true, AgreedBy: person})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, g := range answer.Grants {
		ids = append(ids, g.Id)
	}
	return ids, nil
}

func (t *tool) grantView(g *v1.Grant) *sheet {
	s := &sheet{id: g.GetId()}
	s.put("grant", g.GetId()).put("kind", g.GetKind())
	s.toned("state", strings.TrimSpace(g.GetState()+" "+g.GetEndedWhy()), stateTone[g.GetState()])
	s.put("person", g.GetPersonName())
	s.put("hosts", fmt.Sprintf("%d: %s", len(g.GetTargets()), hostList(g.GetTargets())))
	s.put("forwards", strings.Join(g.GetForwards(), ", "))
	s.put("as", accountOf(g)).put("reason", g.GetReason()).put("ticket", g.GetTicket())
	s.put("for", lasting(g.GetAskedFor())).put("asked", t.full(g.GetRequested()))
	s.wide("starts", t.full(g.GetStarts()))
	s.put(map[bool]string{true: "ends", false: "would end"}[g.GetEnded() == nil], t.full(g.GetExpires())).put("approval", g.GetApproval())
	t.putDecisions(s, g.GetDecisions())
	s.put("ratified", byWhom(t.full(g.GetRatified()), g.GetRatifiedByName(), ""))
	s.put("paused", g.GetPausedWhy())
	s.put("ended", byWhom(t.full(g.GetEnded()), g.GetEndedByName(), g.GetEndedNote()))
	s.put("reviewed", byWhom(t.full(g.GetReviewed()), g.GetReviewedByName(), strings.TrimSuffix(g.GetVerdict()+": "+g.GetNotes(), ": ")))
	if g.GetBuddyRequired() {
		s.put("buddy", "required: the session pauses when nobody watches")
	}
	if g.GetRatified() == nil && g.GetEnded() == nil {
		s.toned("ratify by", t.full(g.GetRatifyBy()), warn)
	}
	if g.GetReviewed() == nil {
		s.toned("review by", t.full(g.GetReviewBy()), warn)
	}
	s.list("cannot contain", g.GetCannotContain())
	return s
}

// byWhom is a moment with who brought it about, and what they said.
func byWhom(moment, name, said string) string {
	if moment == "" {
		return ""
	}
	if name != "" {
		moment += " by " + name
	}
	if said != "" {
		moment += ": " + said
	}
	return moment
}

func hostList(targets []*v1.GrantTarget) string {
	var names []string
	for _, x := range targets {
		marks := strings.Trim(x.Environment+", "+x.Scope, ", ")
		if x.Server {
			marks += ", the server runs there"
		}
		if marks != "" {
			marks = " (" + marks + ")"
		}
		names = append(names, x.Name+marks)
	}
	return strings.Join(names, ", ")
}

func accountOf(g *v1.Grant) string {
	account := g.GetAccount()
	if g.GetRoot() {
		account = "root"
	}
	if g.GetSudo() {
		account += " with sudo"
	}
	return strings.TrimSpace(account)
}
