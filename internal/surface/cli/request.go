package cli

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) requestsCommand() *cobra.Command {
	var follow, all bool
	c := t.command("requests [ID]", "List what waits for a second person, or show one request",
		"handrail requests             # what is open\nhandrail requests a-7k3f9q2m  # what it grants, what it cannot contain, who decided",
		atMost("the id of the request"),
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (follow || all) {
				return fault.New(fault.Invalid, "cannot list and show at once: -f and --all take no id").WithHint("handrail requests %s", clean(args[0]))
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return t.showRequest(cmd.Context(), c, args[0])
			}
			if follow {
				return t.followRequests(cmd.Context(), c)
			}
			answer, err := c.approvals.List(cmd.Context(), &v1.ListApprovalsRequest{OpenOnly: !all})
			if err != nil {
				return err
			}
			return t.emit(answer, t.requestTable(answer.Approvals))
		})
	c.ValidArgsFunction = t.completeApprovals
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print each change")
	c.Flags().BoolVar(&all, "all", false, "also those that are decided")
	return c
}

func (t *tool) followRequests(ctx context.Context, c *client) error {
	stream, err := c.approvals.Watch(ctx, &v1.WatchApprovalsRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	first := true
	for stream.Receive() {
		tb := t.requestTable([]*v1.Approval{stream.Msg().Approval})
		tb.headless, first = !first, false
		if err := t.line(stream.Msg().Approval, tb); err != nil {
			return err
		}
	}
	return ended(ctx, stream.Err())
}

func (t *tool) requestTable(approvals []*v1.Approval) *table {
	tb := &table{
		head: []string{"ID", "STATE", "WHO", "WHAT", "ASKED", "LAPSES", "YOU", "KIND", "SUBJECT", "NEEDED", "GROUPS"},
		wide: 7, empty: "Nothing waits for a second person.",
	}
	for _, a := range approvals {
		you := "may decide"
		if a.State != "requested" {
			you = ""
		} else if !a.MayDecide {
			you = mayNot(a)
		}
		row := cells(a.Id, "", a.RequesterName, a.Summary, t.at(a.Requested), t.at(a.Lapses), you, a.Kind, a.Subject,
			fmt.Sprintf("%d of %d", a.Agreed, max(a.Needed, 1)), strings.Join(a.NeededGroups, ","))
		row[1] = state(a.State)
		tb.add(a.Id, row)
	}
	return tb
}

// requestView is all that an approver needs: what exactly, what it grants, and
// what it cannot contain.
func (t *tool) requestView(a *v1.Approval) *sheet {
	s := &sheet{id: a.GetId()}
	s.put("request", a.GetId()).put("kind", a.GetKind()).toned("state", a.GetState(), stateTone[a.GetState()])
	s.put("what", a.GetSummary())
	if !slices.ContainsFunc(a.GetDetails(), func(d *v1.Detail) bool { return d.Name == "who" }) {
		s.put("who", a.GetRequesterName())
	}
	for _, d := range a.GetDetails() {
		s.put(d.Name, d.Value)
	}
	s.list("grants", a.GetGrantsLine()).list("cannot contain", a.GetCannotContain())
	s.put("asked", t.full(a.GetRequested())).put("lapses", t.full(a.GetLapses()))
	needs := count(max(a.GetNeeded(), 1), "approval")
	if len(a.GetNeededGroups()) > 0 {
		needs += " from " + strings.Join(a.GetNeededGroups(), ", ")
	}
	if a.GetPasskeyRequired() {
		needs += ", by passkey"
	}
	s.put("needs", needs)
	if a.GetRequesterSigned() {
		s.put("signed", "by "+a.GetRequesterName()+", too")
	}
	t.putDecisions(s, a.GetDecisions())
	if a.GetState() == "lapsed" || a.GetState() == "withdrawn" {
		s.put("ended", byWhom(t.full(a.GetEnded()), a.GetEndedByName(), a.GetEndedWhy()))
	}
	if a.GetState() == "requested" {
		s.put("you", map[bool]string{true: "may decide", false: mayNot(a)}[a.GetMayDecide()])
	}
	s.wide("subject", a.GetSubject()).wide("hash", base64.StdEncoding.EncodeToString(a.GetSubjectHash()))
	return s
}

// putDecisions says who agreed or refused, when and with what words.
func (t *tool) putDecisions(s *sheet, decisions []*v1.Decision) {
	for _, d := range decisions {
		line := fmt.Sprintf("%s by %s, %s", d.Verdict, d.PersonName, t.at(d.At))
		switch d.SignedBy {
		case "":
		case "login":
			line += ", unsigned (bootstrap)"
		default:
			line += ", signed by " + d.SignedBy
		}
		if d.Reason != "" {
			line += ": " + d.Reason
		}
		if d.Void != "" {
			line += "; it counts no more: " + d.Void
		}
		s.toned("decision", line, stateTone[d.Verdict])
	}
}

func (t *tool) requestShowCommand() *cobra.Command {
	c := t.command("show ID", "Show a request: what it grants, what it cannot contain, who decided",
		"handrail request show a-7k3f9q2m  # a request, or the id of its grant\nhandrail request show -           # my latest",
		exactly("the id of the request"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			return t.showRequest(cmd.Context(), c, args[0])
		})
	c.ValidArgsFunction = t.completeApprovals
	return c
}

func (t *tool) showRequest(ctx context.Context, c *client, id string) error {
	id, err := c.approvalID(ctx, id, func(a *v1.Approval) bool { return a.Requester == c.login.Person })
	if err != nil {
		return err
	}
	answer, err := c.approvals.Get(ctx, &v1.GetApprovalRequest{Id: id})
	if err != nil {
		return err
	}
	return t.emit(answer, t.requestView(answer.Approval))
}

// mayNot says why the caller may not decide.
func mayNot(a *v1.Approval) string {
	return orElse(strings.TrimPrefix(a.GetMayNotWhy(), "cannot decide "+a.GetId()+": "), "may not decide this")
}

func mayDecide(a *v1.Approval) bool { return a.State == "requested" && a.MayDecide }

func (t *tool) approveCommand() *cobra.Command {
	var sure bool
	var hosts int
	c := t.command("approve ID", "Agree to a request, signed with this device's key",
		"handrail approve a-7k3f9q2m  # shows exactly what it grants, then asks\nhandrail approve -           # the latest that I may decide",
		exactly("the id of the request"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.approvalID(cmd.Context(), args[0], mayDecide)
			if err != nil {
				return err
			}
			if args[0] == latest && !sure && !t.interactive() {
				return fault.New(fault.Invalid, "cannot approve the latest request unseen: there is no terminal to ask at").WithHint("handrail approve %s", id)
			}
			return t.approve(cmd.Context(), c, id, sure, hosts)
		})
	c.Long = `Agree to a request, signed with this device's key.

It shows exactly what the request grants and what it cannot contain, and signs
the hash of that: a request that changes in between is refused. At a terminal
it asks first; a request for several hosts asks for their number. Without a
terminal, several hosts need --hosts N.`
	c.ValidArgsFunction = t.completeApprovals
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	c.Flags().IntVar(&hosts, "hosts", 0, "how many hosts you agree to, instead of being asked")
	return c
}

func (t *tool) approve(ctx context.Context, c *client, id string, sure bool, hosts int) error {
	answer, err := c.approvals.Get(ctx, &v1.GetApprovalRequest{Id: id})
	if err != nil {
		return err
	}
	a := answer.Approval
	t.requestView(a).text(t.Stderr, false, t.colour(t.Stderr))
	switch {
	case a.State != "requested":
		return fault.New(fault.Conflict, "cannot approve %s: it is %s", a.Id, clean(a.State)).WithHint("handrail requests")
	case !a.MayDecide:
		return fault.New(fault.Denied, "cannot approve %s: %s", a.Id, clean(mayNot(a))).WithHint("handrail people")
	case a.PasskeyRequired:
		return fault.New(fault.Denied, "cannot approve %s here: policy asks for a passkey", a.Id).WithHint("open the approvals page, shown by: handrail status")
	}
	what, err := signing(a)
	if err != nil {
		return err
	}
	t.say("you sign        %s", clean(what))
	targets, err := c.targets(ctx, a)
	if err != nil {
		return err
	}
	if err := t.agree(ctx, a, len(targets), sure, hosts); err != nil {
		return err
	}
	key, err := c.folder.device(false)
	if err != nil {
		return err
	}
	signature, err := sign(key, approveDomain, a.SubjectHash)
	if err != nil {
		return err
	}
	done, err := c.approvals.Approve(ctx, &v1.ApproveRequest{Id: a.Id, SubjectHash: a.SubjectHash, DeviceSignature: signature})
	if err != nil {
		return err
	}
	return t.emit(done, t.decided(done.Approval))
}

// targets are the hosts that a request is about, as far as it names any.
func (c *client) targets(ctx context.Context, a *v1.Approval) ([]*v1.GrantTarget, error) {
	if !strings.HasPrefix(a.Subject, "g-") {
		return nil, nil
	}
	answer, err := c.grants.Get(ctx, &v1.GetGrantRequest{Id: a.Subject})
	if err != nil {
		return nil, err
	}
	return answer.Grant.GetTargets(), nil
}

// agree makes sure that the person means it. More than one host takes typing
// their number: a habit of "y" must not open a fleet.
func (t *tool) agree(ctx context.Context, a *v1.Approval, n int, sure bool, hosts int) error {
	if hosts != 0 && hosts != n {
		return fault.New(fault.Conflict, "cannot approve %s: it is for %s, not %d", a.Id, count(n, "host"), hosts).WithHint("handrail request show %s", a.Id)
	}
	if n > 1 && hosts != n {
		want := strconv.Itoa(n)
		return t.confirm(ctx, fmt.Sprintf("This is for %d hosts. Type %d to approve: ", n, n), want, fmt.Sprintf("handrail approve %s --hosts %d", a.Id, n))
	}
	return t.unless(ctx, sure || hosts == n && n > 0, "Approve? [y/N] ")
}

// decided is what a decision leaves: short, since the rest was just shown.
func (t *tool) decided(a *v1.Approval) view {
	s := &sheet{id: a.GetId()}
	s.put("request", a.GetId()).toned("state", a.GetState(), stateTone[a.GetState()]).put("what", a.GetSummary())
	if a.GetState() == "requested" {
		s.put("approvals", fmt.Sprintf("%d of %d", a.GetAgreed(), max(a.GetNeeded(), 1)))
	}
	return s
}

func (t *tool) denyCommand() *cobra.Command {
	var reason string
	c := t.command("deny ID --reason TEXT", "Refuse a request",
		"handrail deny a-7k3f9q2m --reason \"wrong host\"  # the requester reads it\nhandrail deny - --reason \"use staging\"          # the latest that I may decide",
		exactly("the id of the request"),
		func(cmd *cobra.Command, args []string) error {
			if err := t.reason(cmd.Context(), &reason, "deny "+clean(args[0]), `handrail deny `+clean(args[0])+` --reason "…"`); err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			id, err := c.approvalID(cmd.Context(), args[0], mayDecide)
			if err != nil {
				return err
			}
			if id[0] == 'g' { // Deny takes the request's own id
				answer, err := c.approvals.Get(cmd.Context(), &v1.GetApprovalRequest{Id: id})
				if err != nil {
					return err
				}
				id = answer.Approval.GetId()
			}
			answer, err := c.approvals.Deny(cmd.Context(), &v1.DenyRequest{Id: id, Reason: reason})
			if err != nil {
				return err
			}
			return t.emit(answer, t.decided(answer.Approval))
		})
	c.ValidArgsFunction = t.completeApprovals
	c.Flags().StringVar(&reason, "reason", "", "why; the requester reads it, the ledger keeps it")
	return c
}
