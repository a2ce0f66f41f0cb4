package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (t *tool) ledgerRetainCommand() *cobra.Command {
	c := t.command("retain", "Show which payloads are let go, when, and what is due now; it changes nothing",
		"handrail ledger retain          # what is due, how old, how much\nhandrail ledger retain -o json  # the same for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.retention.Show(cmd.Context(), &v1.ShowRetentionRequest{})
			if err != nil {
				return err
			}
			if err := t.emit(answer, t.dueTable(answer)); err != nil {
				return err
			}
			t.sayRetention(answer)
			return nil
		})
	c.Long = `Show which payloads are let go, when, and what is due now. It changes nothing.

An entry of the ledger is a leaf, which every proof rests on, and a payload,
which says more. Leaves are kept for ever, and so are payloads unless the
server's configuration names their action and how long they are kept. What is
due is let go without anybody asking, and an entry (ledger.pruned) says so.`
	return c
}

// dueTable has a line for each action of which something is due, and one for
// each rule by which nothing is.
func (t *tool) dueTable(r *v1.ShowRetentionResponse) *table {
	tb := &table{head: []string{"ACTION", "KEPT", "DUE", "OLDEST", "SIZE", "RULE"}, wide: 5, empty: "Every payload is kept for ever."}
	line := func(action string, rule *v1.RetentionRule, n, bytes uint64, oldest *timestamppb.Timestamp) {
		row := cells(action, lasting(rule.GetKeep()), fmt.Sprint(n), "", "", rule.GetAction())
		if n > 0 {
			row[2].tone, row[3].value, row[4].value = warn, t.at(oldest), size(bytes)
		}
		tb.add(action, row)
	}
	used := map[*v1.RetentionRule]bool{}
	for _, d := range r.Due {
		rule := ruleOf(r.Rules, d)
		used[rule] = true
		line(d.Action, rule, d.Count, d.Bytes, d.Oldest)
	}
	for _, rule := range r.Rules {
		if !used[rule] {
			line(rule.Action, rule, 0, 0, nil)
		}
	}
	return tb
}

// covers says whether a rule names an action: itself, or its noun.
func covers(rule, action string) bool {
	noun, all := strings.CutSuffix(rule, "*")
	return rule == action || all && strings.HasPrefix(action, noun)
}

// ruleOf is the rule with the shortest time among those that name the action:
// it is the one by which a payload goes.
func ruleOf(rules []*v1.RetentionRule, d *v1.DuePayloads) *v1.RetentionRule {
	var best *v1.RetentionRule
	for _, r := range rules {
		if covers(r.Action, d.Action) && (best == nil || r.Keep.AsDuration() < best.Keep.AsDuration()) {
			best = r
		}
	}
	return best
}

func (t *tool) sayRetention(r *v1.ShowRetentionResponse) {
	if len(r.Rules) == 0 {
		t.say("Nothing is let go: the configuration names no payloads. To let some go, add to %s on %s, then restart the server:", cleanText(orElse(r.File, "the server's configuration")), clean(r.Server))
		t.say("\n  [retention]\n  \"node.reported\" = \"90d\"\n  \"inspection.*\" = \"400d\"\n")
	} else {
		var n, bytes uint64
		for _, d := range r.Due {
			n, bytes = n+d.Count, bytes+d.Bytes
		}
		t.say("Due now: %s, %s. Leaves and proofs stay.", count(n, "payload"), size(bytes))
		looked := "it has not since it started"
		if r.LookedAt != nil {
			looked = "last " + t.at(r.LookedAt)
		}
		t.say("By [retention] in %s on %s, as whoever may write that file wants it; the server that leads looks every %s, this one %s.", clean(r.File), clean(r.Server), lasting(r.Every), looked)
		if r.Failed != "" {
			t.say("The last look let go of nothing: %s", cleanText(r.Failed))
		}
	}
	if r.PrunedAt != nil {
		t.say("Last let go: %s, %s: handrail ledger show %d", count(r.PrunedCount, "payload"), t.at(r.PrunedAt), r.PrunedNumber)
	}
}
