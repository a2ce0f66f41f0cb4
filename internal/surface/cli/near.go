package cli

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// better says an error with what this device knows: the address of a server that
// does not answer, the names that are near to one that is not there.
func (t *tool) better(ctx context.Context, err error) error {
	var status *exit
	var f *fault.Error
	if c := (*connect.Error)(nil); !errors.As(err, &status) && !errors.As(err, &f) && errors.As(err, &c) && !connect.IsWireError(err) {
		if folder, ferr := t.folder(); ferr == nil {
			if l, lerr := folder.login(); lerr == nil && l.Address != "" {
				return unreachable(l.Address, err)
			}
		}
	}
	return t.suggest(ctx, err)
}

// missingName is how the server says that something named is not there.
var missingName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^cannot find (host|person|request|grant|session) "([^"]+)"$`)
})

// suggestWithin bounds looking for what a person may have meant.
const suggestWithin = 5 * time.Second

// suggest adds what a person may have meant to an error that says that
// something is not there. It asks the server as that person, so nobody learns a
// name that they could not list.
func (t *tool) suggest(ctx context.Context, err error) error {
	f := understand(err)
	m := missingName().FindStringSubmatch(f.Text)
	if f.Kind != fault.NotFound || m == nil {
		return err
	}
	c, cerr := t.client()
	if cerr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, suggestWithin)
	defer cancel()
	near := fault.Near(m[2], c.known(ctx, m[1]))
	if len(near) == 0 {
		return err
	}
	told := *f
	told.Text += ": did you mean " + strings.Join(near, " or ") + "?"
	var status *exit
	if errors.As(err, &status) {
		return &exit{code: status.code, err: &told}
	}
	return &told
}

// known is what there is of a kind of thing, as this person may list it.
func (c *client) known(ctx context.Context, kind string) (names []string) {
	switch kind {
	case "host":
		answer, err := c.hosts.List(ctx, &v1.ListHostsRequest{})
		if err != nil {
			return nil
		}
		for _, h := range answer.Hosts {
			names = append(names, h.Name)
		}
	case "person":
		answer, err := c.people.List(ctx, &v1.ListPeopleRequest{})
		if err != nil {
			return nil
		}
		for _, p := range answer.People {
			names = append(names, p.Name)
		}
	case "request":
		answer, err := c.approvals.List(ctx, &v1.ListApprovalsRequest{})
		if err != nil {
			return nil
		}
		for _, a := range answer.Approvals {
			names = append(names, a.Id)
			if strings.HasPrefix(a.Subject, "g-") {
				names = append(names, a.Subject)
			}
		}
	case "grant":
		answer, err := c.grants.List(ctx, &v1.ListGrantsRequest{})
		if err != nil {
			return nil
		}
		for _, g := range answer.Grants {
			names = append(names, g.Id)
		}
	case "session":
		answer, err := c.sessions.List(ctx, &v1.ListSessionsRequest{Limit: 200})
		if err != nil {
			return nil
		}
		for _, s := range answer.Sessions {
			names = append(names, s.Id)
		}
	}
	return names
}
