package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

func (t *tool) jumpCommands() []*cobra.Command {
	return []*cobra.Command{
		t.elevateCommand(), t.breakGlassCommand(),
		t.requestsCommand(), t.grantsCommand(),
		t.group("request", "Show a request",
			"handrail request show -           # my latest\nhandrail request show a-7k3f9q2m  # what it grants, what it cannot contain, who decided",
			t.requestShowCommand()),
		t.approveCommand(), t.denyCommand(), t.revokeCommand(), t.doneCommand(), t.reviewCommand(),
	}
}

func targetNames(targets []*v1.GrantTarget) string {
	var names []string
	for _, x := range targets {
		names = append(names, x.Name)
	}
	return strings.Join(names, ", ")
}

// writeLines are the commands that use a grant, ready to copy.
func writeLines(targets []*v1.GrantTarget) []string {
	var lines []string
	for _, x := range targets {
		lines = append(lines, "handrail ssh --write "+quoteShell(clean(x.Name)))
	}
	return lines
}

func (t *tool) elevateCommand() *cobra.Command {
	r := &v1.ElevateRequest{}
	var span string
	var wait bool
	c := t.command("elevate HOST… --reason TEXT", "Ask for write access on hosts, for a while, for a reason",
		"handrail elevate web-1 --reason \"restart pay\" --ticket OPS-7 --for 30m --wait  # waits for the answer\nhandrail elevate 'env:staging service:pay' --reason \"new heap flags\"             # several at once",
		atLeast("the host"),
		func(cmd *cobra.Command, args []string) error {
			d, err := when.Duration(span)
			if err != nil {
				return err
			}
			if err := t.reason(cmd.Context(), &r.Reason, "elevate", `handrail elevate `+clean(args[0])+` --reason "…"`); err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			r.Hosts, r.For, r.RequestId = args, durationpb.New(d), requestID()
			answer, err := c.grants.Elevate(cmd.Context(), r)
			if err != nil {
				return err
			}
			return t.elevated(cmd.Context(), c, t.stand(cmd.Context(), c, r, answer), wait)
		})
	c.Long = `Ask for write access on hosts, for a while, for a reason.

Somebody else approves; never you, whoever you are. The grant does not change
the sessions that you have: it lets you open new ones with --write.`
	c.ValidArgsFunction = t.completeHosts
	c.Flags().StringVar(&r.Reason, "reason", "", "why; the approver reads it, the ledger keeps it")
	c.Flags().StringVar(&r.Ticket, "ticket", "", "the ticket that this belongs to")
	c.Flags().StringVar(&span, "for", "30m", "how long, from the approval on")
	c.Flags().BoolVar(&r.Sudo, "sudo", false, "ask for sudo too")
	c.Flags().BoolVar(&r.Root, "root", false, "ask to be root")
	c.Flags().StringSliceVar(&r.Forwards, "forward", nil, "a port to reach from the host: address:port, or address:* (may be repeated)")
	c.Flags().StringVar(&r.Account, "account", "", "the account to use, instead of the one that policy names")
	c.Flags().BoolVar(&wait, "wait", false, "wait until it is approved or denied")
	return c
}

// stand adds the person's own signature to a request: to exactly what the
// server made of it, which is known only now. A request without it is a request
// all the same, so what goes wrong here is said and not an error.
func (t *tool) stand(ctx context.Context, c *client, r *v1.ElevateRequest, answer *v1.ElevateResponse) *v1.ElevateResponse {
	if len(answer.SubjectHash) == 0 {
		return answer
	}
	key, err := c.folder.device(false)
	if err == nil {
		r.Signature, err = sign(key, requestDomain, answer.SubjectHash)
	}
	var signed *v1.ElevateResponse
	if err == nil {
		signed, err = c.grants.Elevate(ctx, r) // the same request_id: nothing is asked for twice
	}
	if err != nil {
		t.say("Your own signature is not on the request: %s", clean(understand(err).Text))
		return answer
	}
	return signed
}

// reason asks for a missing reason, if somebody is there to ask.
func (t *tool) reason(ctx context.Context, reason *string, what, hint string) error {
	*reason = strings.TrimSpace(*reason)
	if *reason == "" && t.interactive() {
		answer, err := t.ask(ctx, "Reason (others read it, the ledger keeps it): ")
		if err != nil {
			return err
		}
		*reason = answer
	}
	if *reason == "" {
		return missing(what, "--reason", hint)
	}
	return nil
}

func (t *tool) elevated(ctx context.Context, c *client, answer *v1.ElevateResponse, wait bool) error {
	if !wait || answer.Grant.GetState() == "active" {
		if err := t.emit(answer, t.grantView(answer.Grant)); err != nil {
			return err
		}
		t.sayNext(answer)
		return nil
	}
	t.sayNext(answer)
	g, err := t.awaitGrant(ctx, c, answer.Id)
	if err != nil {
		return err
	}
	answer.Grant = g
	if err := t.emit(answer, t.grantView(g)); err != nil {
		return err
	}
	t.sayNext(answer)
	return nil
}

// sayNext prints the line to use: by whom it can be approved, or what to run.
func (t *tool) sayNext(answer *v1.ElevateResponse) {
	g := answer.Grant
	if g.GetState() == "active" {
		for _, line := range writeLines(g.Targets) {
			t.say("%s", line)
		}
		return
	}
	who := "Somebody else"
	if len(answer.Approvers) > 0 {
		who = clean(strings.Join(answer.Approvers, ", "))
	}
	t.say("Write access to %s waits for approval by: %s\nThey run:   handrail approve %s\nThen you:   %s",
		count(len(g.GetTargets()), "host"), who, clean(orElse(answer.Approval, answer.Id)), strings.Join(writeLines(g.GetTargets()), "\n            "))
}

// awaitGrant follows a grant until somebody decides. A stream that breaks is
// taken up again: a server that restarts must not lose the waiting person.
func (t *tool) awaitGrant(ctx context.Context, c *client, id string) (*v1.Grant, error) {
	for broken := 0; ; broken++ {
		stream, err := c.grants.Watch(ctx, &v1.WatchGrantsRequest{Id: id})
		if err == nil {
			for stream.Receive() {
				broken = 0
				g := stream.Msg().Grant
				if g.GetId() != id {
					continue
				}
				if decided, err := t.verdict(ctx, c, g); decided {
					stream.Close()
					return g, err
				}
			}
			err = stream.Err()
			stream.Close()
		}
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable, "cannot wait any longer for %s: interrupted; the request stands", id).WithHint("handrail request show %s", id)
		}
		if f := understand(orEOF(err)); f.Kind != fault.Unavailable || broken >= 5 {
			return nil, f.WithHint("handrail request show %s", id)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(broken+1) * time.Second):
		}
	}
}

// orEOF makes an error of a stream that ended though nothing was decided.
func orEOF(err error) error {
	if err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "cannot wait any longer: the server ended the stream")
}

// verdict says whether a grant is decided, and the error if not as wished.
func (t *tool) verdict(ctx context.Context, c *client, g *v1.Grant) (bool, error) {
	switch g.State {
	case "requested", "approved", "paused":
		return false, nil
	case "active":
		return true, nil
	case "denied":
		why := ""
		if answer, err := c.approvals.Get(ctx, &v1.GetApprovalRequest{Id: g.Id}); err == nil {
			for _, d := range answer.Approval.GetDecisions() {
				if d.Verdict == "denied" {
					why = fmt.Sprintf(": %s said %q", d.PersonName, d.Reason)
				}
			}
		}
		return true, fault.New(fault.Denied, "cannot write on %s: the request was denied%s", clean(targetNames(g.Targets)), clean(why)).WithHint("handrail request show %s", g.Id)
	case "lapsed":
		return true, fault.New(fault.NeedsApproval, "cannot write on %s: nobody approved in time", clean(targetNames(g.Targets))).WithHint("handrail people")
	}
	return true, fault.New(fault.Conflict, "cannot write on %s: the grant has ended (%s)", clean(targetNames(g.Targets)), clean(orElse(g.EndedWhy, g.State))).WithHint("handrail request show %s", g.Id)
}

func (t *tool) breakGlassCommand() *cobra.Command {
	r := &v1.BreakGlassRequest{}
	c := t.command("break-glass HOST… --reason TEXT", "Take write access at once: loud, short, recorded, and it owes a review",
		"handrail break-glass web-1 --reason \"payments down, nobody awake\"  # active at once\nhandrail done                                                     # as soon as it is over",
		atLeast("the host"),
		func(cmd *cobra.Command, args []string) error {
			if err := t.reason(cmd.Context(), &r.Reason, "break glass", `handrail break-glass `+clean(args[0])+` --reason "…"`); err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			r.Hosts, r.RequestId = args, requestID()
			answer, err := c.grants.BreakGlass(cmd.Context(), r)
			if err != nil {
				return err
			}
			if err := t.emit(answer, t.grantView(answer.Grant)); err != nil {
				return err
			}
			g := answer.Grant
			t.say("Everybody sees that you broke the glass on %s.", clean(targetNames(g.Targets)))
			if g.RatifyBy != nil {
				t.say("Somebody must ratify it %s, or it is cut back to read.", t.at(g.RatifyBy))
			}
			if g.ReviewBy != nil {
				t.say("It owes a review, due %s.", t.at(g.ReviewBy))
			}
			for _, line := range writeLines(g.Targets) {
				t.say("%s", line)
			}
			return nil
		})
	c.ValidArgsFunction = t.completeHosts
	c.Flags().StringVar(&r.Reason, "reason", "", "why; everybody reads it, the ledger keeps it")
	c.Flags().BoolVar(&r.Sudo, "sudo", false, "with sudo")
	c.Flags().BoolVar(&r.Root, "root", false, "as root")
	c.Flags().StringSliceVar(&r.Forwards, "forward", nil, "a port to reach from the host: address:port, or address:*")
	return c
}

func (t *tool) revokeCommand() *cobra.Command {
	var reason string
	c := t.command("revoke ID", "End a grant now: every process of its sessions is dead",
		"handrail revoke g-7k3f9q2m --reason \"wrong host\"  # a grant, or the request it came from\nhandrail revoke - --reason \"not needed\"           # the latest one in force",
		exactly("the id of the grant"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.grantID(cmd.Context(), args[0], func(g *v1.Grant) bool { return g.State == "active" || g.State == "approved" || g.State == "paused" })
			if err != nil {
				return err
			}
			answer, err := c.grants.Revoke(cmd.Context(), &v1.RevokeRequest{Id: id, Reason: reason})
			if err != nil {
				return err
			}
			s := t.grantView(answer.Grant)
			if answer.Pending {
				s.toned("recorded", "not yet: the database does not answer now, the ledger entry follows", warn)
			}
			return t.emit(answer, s.put("killed", count(answer.SessionsKilled, "session")))
		})
	c.ValidArgsFunction = t.completeGrants(false, nil)
	c.Flags().StringVar(&reason, "reason", "", "why; kept in the ledger")
	return c
}

func (t *tool) doneCommand() *cobra.Command {
	c := t.command("done [ID]", "End my own grant early",
		"handrail done             # the latest one\nhandrail done g-7k3f9q2m  # that one",
		atMost("the id of the grant"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{latest}
			}
			id, err := c.grantID(cmd.Context(), args[0], func(g *v1.Grant) bool {
				return g.Person == c.login.Person && (g.State == "active" || g.State == "approved" || g.State == "paused")
			})
			if err != nil {
				return err
			}
			answer, err := c.grants.Done(cmd.Context(), &v1.DoneRequest{Id: id})
			if err != nil {
				return err
			}
			return t.emit(answer, t.grantView(answer.Grant))
		})
	c.ValidArgsFunction = t.completeGrants(true, nil)
	return c
}

func (t *tool) reviewCommand() *cobra.Command {
	r := &v1.ReviewRequest{}
	c := t.command("review ID --verdict VERDICT", "Close the review that a break-glass owes; never by who declared it",
		"handrail review g-7k3f9q2m --verdict justified --notes \"pager proves it\"  # closes it\nhandrail review - --verdict not-justified --notes \"a request would have done\"  # the latest that waits",
		exactly("the id of the grant"),
		func(cmd *cobra.Command, args []string) error {
			if r.Verdict != "justified" && r.Verdict != "not-justified" {
				return fault.New(fault.Invalid, "cannot review %s: --verdict is justified or not-justified, not %q", clean(args[0]), clean(r.Verdict)).
					WithHint("handrail review %s --verdict justified --notes \"…\"", clean(args[0]))
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			r.Id, err = c.grantID(cmd.Context(), args[0], func(g *v1.Grant) bool { return g.State == "in-review" && g.Person != c.login.Person })
			if err != nil {
				return err
			}
			answer, err := c.grants.Review(cmd.Context(), r)
			if err != nil {
				return err
			}
			return t.emit(answer, t.grantView(answer.Grant))
		})
	c.ValidArgsFunction = t.completeGrants(false, func(g *v1.Grant) bool { return g.State == "in-review" })
	c.Flags().StringVar(&r.Verdict, "verdict", "", "justified or not-justified")
	c.Flags().StringVar(&r.Notes, "notes", "", "what was learned; kept in the ledger")
	t.completeWords(c, "verdict", "justified", "not-justified")
	return c
}
