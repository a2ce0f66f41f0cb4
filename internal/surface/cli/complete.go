package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// completing is how long a person waits behind a Tab.
const completing = 2 * time.Second

// offer is one completion and what it is.
type offer struct{ word, what string }

// complete asks the server for words. A shell that completes must stay quiet:
// whatever fails offers nothing.
func (t *tool) complete(prefix string, ask func(ctx context.Context, c *client) ([]offer, error)) ([]string, cobra.ShellCompDirective) {
	none := cobra.ShellCompDirectiveNoFileComp
	c, err := t.client()
	if err != nil {
		return nil, none
	}
	ctx, cancel := context.WithTimeout(context.Background(), completing)
	defer cancel()
	offers, err := ask(ctx, c)
	if err != nil {
		return nil, none
	}
	var words []string
	for _, o := range offers {
		if strings.HasPrefix(o.word, prefix) {
			words = append(words, clean(o.word)+"\t"+clean(o.what))
		}
	}
	return words, none
}

func (t *tool) completeHosts(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
		answer, err := c.hosts.List(ctx, &v1.ListHostsRequest{})
		var offers []offer
		for _, h := range answer.GetHosts() {
			offers = append(offers, offer{h.Name, strings.TrimSpace(h.Environment + " " + h.State + " " + strings.Join(h.Services, ","))})
		}
		return offers, err
	})
}

func (t *tool) completePeople(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
		answer, err := c.people.List(ctx, &v1.ListPeopleRequest{})
		var offers []offer
		for _, p := range answer.GetPeople() {
			offers = append(offers, offer{p.Name, strings.Join(p.Groups, ", ")})
		}
		return offers, err
	})
}

func (t *tool) completeApprovals(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
		answer, err := c.approvals.List(ctx, &v1.ListApprovalsRequest{OpenOnly: true})
		var offers []offer
		for _, a := range answer.GetApprovals() {
			offers = append(offers, offer{a.Id, a.RequesterName + ": " + a.Summary})
		}
		return offers, err
	})
}

// completeGrants offers grants; keep chooses among them.
func (t *tool) completeGrants(mine bool, keep func(*v1.Grant) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
			answer, err := c.grants.List(ctx, &v1.ListGrantsRequest{OpenOnly: true, Mine: mine})
			var offers []offer
			for _, g := range answer.GetGrants() {
				if keep == nil || keep(g) {
					offers = append(offers, offer{g.Id, fmt.Sprintf("%s on %s, %s: %s", g.PersonName, targetNames(g.Targets), g.State, g.Reason)})
				}
			}
			return offers, err
		})
	}
}

func (t *tool) completeSessions(live bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
			answer, err := c.sessions.List(ctx, &v1.ListSessionsRequest{LiveOnly: live})
			var offers []offer
			for _, s := range answer.GetSessions() {
				offers = append(offers, offer{s.Id, fmt.Sprintf("%s on %s, %s, %s", s.PersonName, s.HostName, s.Level, t.at(s.Started))})
			}
			return offers, err
		})
	}
}

func (t *tool) completeWords(c *cobra.Command, flag string, words ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}
