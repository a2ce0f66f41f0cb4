package cli

import (
	"context"
	"regexp"
	"strings"
	"sync"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// latest stands for "my latest" where an id is wanted.
const latest = "-"

// wholeID is an id that needs no looking up.
var wholeID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z]-[0-9a-z]{8}$`) })

// oneOf finds the one id that begins with a prefix.
func oneOf(what, prefix, list string, ids []string) (string, error) {
	var found []string
	for _, id := range ids {
		if id == prefix {
			return id, nil
		}
		if strings.HasPrefix(id, prefix) && (len(found) == 0 || found[len(found)-1] != id) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", fault.New(fault.NotFound, "cannot find %s %q", what, clean(prefix)).WithHint("%s", list)
	case 1:
		return found[0], nil
	}
	return "", fault.New(fault.Invalid, "cannot choose a %s: %q is the start of %s", what, clean(prefix), clean(strings.Join(found, ", "))).WithHint("%s", list)
}

func nothingLatest(what, list string) error {
	return fault.New(fault.NotFound, "cannot take the latest %s: there is none", what).WithHint("%s", list)
}

// approvalID resolves the id of a request: its own, that of its subject, the
// start of either, or - for the newest one that keep wants.
func (c *client) approvalID(ctx context.Context, id string, keep func(*v1.Approval) bool) (string, error) {
	if wholeID().MatchString(id) {
		return id, nil
	}
	answer, err := c.approvals.List(ctx, &v1.ListApprovalsRequest{})
	if err != nil {
		return "", err
	}
	if id == latest {
		var best *v1.Approval
		for _, a := range answer.Approvals {
			if keep(a) && (best == nil || a.Requested.AsTime().After(best.Requested.AsTime())) {
				best = a
			}
		}
		if best == nil {
			return "", nothingLatest("request", "handrail requests")
		}
		return best.Id, nil
	}
	var ids []string
	for _, a := range answer.Approvals {
		ids = append(ids, a.Id)
		if strings.HasPrefix(a.Subject, "g-") {
			ids = append(ids, a.Subject)
		}
	}
	return oneOf("request", id, "handrail requests --all", ids)
}

// grantID resolves the id of a grant, or that of the request it came from.
func (c *client) grantID(ctx context.Context, id string, keep func(*v1.Grant) bool) (string, error) {
	if wholeID().MatchString(id) && id[0] == 'g' {
		return id, nil
	}
	answer, err := c.grants.List(ctx, &v1.ListGrantsRequest{})
	if err != nil {
		return "", err
	}
	if id == latest {
		var best *v1.Grant
		for _, g := range answer.Grants {
			if keep(g) && (best == nil || g.Requested.AsTime().After(best.Requested.AsTime())) {
				best = g
			}
		}
		if best == nil {
			return "", nothingLatest("grant", "handrail grants --all")
		}
		return best.Id, nil
	}
	var ids []string
	for _, g := range answer.Grants {
		if g.Approval != "" && g.Approval == id {
			return g.Id, nil
		}
		ids = append(ids, g.Id)
	}
	return oneOf("grant", id, "handrail grants --all", ids)
}

// sessionID resolves the id of a session. The latest is one's own; of those to
// watch or join, it is the newest live one of somebody else.
func (c *client) sessionID(ctx context.Context, id string, live bool) (string, error) {
	if wholeID().MatchString(id) {
		return id, nil
	}
	r := &v1.ListSessionsRequest{LiveOnly: live, Limit: 200}
	if id == latest && !live {
		r.Person, r.Limit = c.login.Person, 1
	}
	answer, err := c.sessions.List(ctx, r)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, s := range answer.Sessions { // newest first
		if id == latest && (!live || s.Person != c.login.Person) {
			return s.Id, nil
		}
		ids = append(ids, s.Id)
	}
	if id == latest {
		return "", nothingLatest("session", "handrail sessions")
	}
	return oneOf("session", id, "handrail sessions", ids)
}
