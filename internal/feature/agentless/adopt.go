package agentless

import (
	"context"
	"fmt"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What the carried program says, which this ring may not import from visit.
const (
	staySaid = "handrail-stay said "
	stayDone = "handrail-stay done"
)

const (
	settleTime  = 45 * time.Second
	maxStayLine = 32
)

// arriveWithin is how long a node that was started may take to come.
const arriveWithin = 25 * time.Second

// Adopt carries the node's program to the host, where it installs itself, joins
// with the secret (on its standard input, never among its arguments), and is
// started. A node that does not come is taken away, and the host is as it was.
func (r *Reach) Adopt(ctx context.Context, h target.Host, by, secret string) (said []string, err error) {
	said, err = r.settle(ctx, h, by, r.d.Visits.Token(secret), "stay")
	if err == nil {
		waiting, cancel := context.WithTimeout(ctx, arriveWithin)
		defer cancel()
		if err = r.d.Visits.Online(waiting, h.ID); err != nil {
			words, derr := r.Dismiss(ctx, h, by) // what cannot be reached is not left behind
			if derr != nil {
				words = append(words, "and it could not be taken away: "+fault.From(derr).Text)
			}
			err = fault.New(fault.Unavailable, "cannot adopt %s: its node was started, and does not come (%s)", h.Name, strings.Join(words, "; ")).
				WithHint("let %s reach this server's address, or: handrail up --url", h.Name)
		}
	}
	if err != nil {
		if berr := r.d.Visits.Back(ctx, h.ID); berr != nil {
			return said, berr
		}
	}
	return said, err
}

// Dismiss ends a node that Adopt brought and removes what it brought.
func (r *Reach) Dismiss(ctx context.Context, h target.Host, by string) (said []string, err error) {
	return r.settle(ctx, h, by, "", "stay --undo")
}

func (r *Reach) settle(ctx context.Context, h target.Host, by, token, what string) (said []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	p, err := r.programs.of(r.d.Visits.Program)
	if err != nil {
		return nil, err
	}
	c, err := r.connect(ctx, h, h.SSHUser, keyring.Hop{Session: h.ID, Person: by,
		Principals: []string{h.SSHUser, h.Principal(wire.LevelRead)}, ForceCommand: carrier(p, what)})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	ch, a, err := c.carry(h, p)
	if err != nil {
		return nil, err
	}
	if token != "" {
		if _, err := fmt.Fprintln(ch, token); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot adopt %s", h.Name)
		}
	}
	for range maxStayLine {
		line, err := a.line()
		switch text, ok := strings.CutPrefix(line, staySaid); {
		case line == stayDone:
			return said, nil
		case ok:
			said = append(said, wire.Plain(text, 300))
		case err != nil:
			why := a.errs.String()
			if why == "" {
				why = err.Error()
			}
			return said, fault.New(fault.Unavailable, "cannot adopt %s: %s", h.Name, wire.Plain(why, 600)).
				WithHint("handrail host show %s; it is reached over SSH as before", h.Name)
		}
	}
	return said, fault.New(fault.Unavailable, "cannot adopt %s: it does not come to the point", h.Name)
}
