package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) peopleCommands() []*cobra.Command {
	return []*cobra.Command{
		t.peopleCommand(),
		t.group("person", "Show or add a person",
			"handrail person show ada                 # groups, credentials, lock\nhandrail person add bob --group developers  # and a token to log in with",
			t.personShowCommand(), t.personAddCommand()),
		t.loginLinkCommand(), t.lockCommand(), t.unlockCommand(), t.bootstrapCommand(),
	}
}

func (t *tool) peopleCommand() *cobra.Command {
	return t.command("people", "List the people who may log in",
		"handrail people          # names, groups, locks\nhandrail people -o name  # bare names, for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.List(cmd.Context(), &v1.ListPeopleRequest{})
			if err != nil {
				return err
			}
			tb := &table{head: []string{"PERSON", "GROUPS", "STATE", "ID", "CREATED", "CREDENTIALS"}, wide: 3, empty: "Nobody yet. Add somebody: handrail person add NAME"}
			for _, p := range answer.People {
				row := cells(p.Name, strings.Join(p.Groups, ","), "", p.Id, t.at(p.Created), fmt.Sprint(len(p.Credentials)))
				row[2] = personState(p)
				tb.add(p.Name, row)
			}
			return t.emit(answer, tb)
		})
}

func personState(p *v1.Person) cell {
	switch {
	case p.Locked != nil:
		return cell{"locked", bad}
	case p.OwesReview:
		return cell{"owes a review", warn}
	case p.RobotOf != "":
		return cell{"robot of " + p.RobotOf, calm}
	case p.IsSelf:
		return cell{"you", good}
	}
	return cell{"", calm}
}

func (t *tool) personView(p *v1.Person) *sheet {
	s := &sheet{id: p.GetName()}
	s.put("person", p.GetName()).put("id", p.GetId()).put("groups", strings.Join(p.GetGroups(), ", "))
	if p.GetLocked() != nil {
		s.toned("locked", t.full(p.Locked)+": "+orElse(p.LockedReason, "no reason given"), bad)
	}
	if p.GetOwesReview() {
		s.toned("owes", "a review of a break-glass", warn)
	}
	s.wide("created", t.full(p.GetCreated()))
	for _, k := range p.GetCredentials() {
		line := fmt.Sprintf("%s %q", k.Id, k.Name)
		if k.NeverApproves {
			line += ", logs in only"
		} else if k.MayApproveFrom != nil && k.MayApproveFrom.AsTime().After(t.Now()) {
			line += ", may approve " + t.at(k.MayApproveFrom)
		}
		s.put(k.Kind, line)
		s.wide("", fmt.Sprintf("%s, made %s", orElse(k.Fingerprint, "no fingerprint"), t.at(k.Created)))
	}
	return s
}

func (t *tool) personShowCommand() *cobra.Command {
	c := t.command("show PERSON", "Show one person",
		"handrail person show ada          # by name, id or the start of an id\nhandrail person show ada -o json  # for a script",
		exactly("the person"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.Get(cmd.Context(), &v1.GetPersonRequest{Person: args[0]})
			if err != nil {
				return err
			}
			return t.emit(answer, t.personView(answer.Person))
		})
	c.ValidArgsFunction = t.completePeople
	return c
}

func (t *tool) personAddCommand() *cobra.Command {
	var groups []string
	c := t.command("add NAME", "Add a person and make their first login token",
		"handrail person add bob --group developers --group oncall  # prints a token and a link\nhandrail person add bob -o json                            # with \"token\", for a script",
		exactly("the name"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.Add(cmd.Context(), &v1.AddPersonRequest{Name: args[0], Groups: groups, RequestId: requestID()})
			if err != nil {
				return err
			}
			s := &sheet{id: args[0]}
			s.put("person", args[0]).put("token", answer.Token).put("link", answer.Link).put("ends", t.full(answer.TokenExpires)).put("approval", answer.Approval)
			return t.handOver(s, answer.Token, func() error { return t.awaiting(answer, s, answer.Approval, "adding "+clean(args[0])) })
		})
	c.Flags().StringArrayVar(&groups, "group", nil, "a group (repeatable)")
	return c
}

// handOver prints an answer that holds a token, and says what it is worth.
func (t *tool) handOver(s *sheet, token string, print func() error) error {
	err := print()
	if err == nil && token != "" && t.interactive() {
		t.say("Give them the token or the link over a channel that you trust: whoever uses it first is %s.", clean(s.id))
	}
	return err
}

func (t *tool) loginLinkCommand() *cobra.Command {
	c := t.command("login-link PERSON", "Make another single-use login token and link for a person",
		"handrail login-link bob                           # token and link\nhandrail login-link bob -o json | jq -r .token      # the token alone",
		exactly("the person"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.LoginLink(cmd.Context(), &v1.LoginLinkRequest{Person: args[0]})
			if err != nil {
				return err
			}
			s := &sheet{id: args[0]}
			s.put("token", answer.Token).put("link", answer.Link).put("ends", t.full(answer.TokenExpires)).put("approval", answer.Approval)
			return t.handOver(s, answer.Token, func() error { return t.awaiting(answer, s, answer.Approval, "the login link") })
		})
	c.ValidArgsFunction = t.completePeople
	return c
}

func (t *tool) lockCommand() *cobra.Command {
	var reason string
	c := t.command("lock PERSON", "Lock a person out, everywhere, at once",
		"handrail lock bob --reason \"laptop stolen\"          # every session of theirs is dead\nhandrail lock bob --reason \"left the team\" -o json  # with what was ended, for a script",
		exactly("the person"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.Lock(cmd.Context(), &v1.LockRequest{Person: args[0], Reason: reason})
			if err != nil {
				return err
			}
			s := t.personView(answer.Person)
			if answer.Pending {
				s.toned("locked", "at once, everywhere; the database does not answer now, the ledger entry follows", warn)
			}
			s.put("killed", count(answer.SessionsKilled, "session")).put("ended", count(answer.GrantsEnded, "grant"))
			// What they agreed to stands until somebody ends it; not to know of it is no failure of the lock.
			if ids, err := c.onWordOf(cmd.Context(), answer.Person.GetId()); err == nil && len(ids) > 0 {
				s.toned("agreed to", strings.Join(ids, ", ")+" in force: handrail revoke "+ids[0], warn)
			}
			return t.emit(answer, s)
		})
	c.ValidArgsFunction = t.completePeople
	c.Flags().StringVar(&reason, "reason", "", "why; kept in the ledger")
	return c
}

func (t *tool) unlockCommand() *cobra.Command {
	var reason string
	c := t.command("unlock PERSON", "Ask to unlock a person; a second person agrees",
		"handrail unlock bob --reason \"laptop found\"  # somebody else approves\nhandrail requests                           # how it stands",
		exactly("the person"),
		func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return missing("unlock "+clean(args[0]), "--reason", "handrail unlock "+quoteShell(clean(args[0]))+` --reason "…"`)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.people.Unlock(cmd.Context(), &v1.UnlockRequest{Person: args[0], Reason: reason})
			if err != nil {
				return err
			}
			s := t.personView(answer.Person)
			s.put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "unlocking "+clean(args[0]))
		})
	c.ValidArgsFunction = t.completePeople
	c.Flags().StringVar(&reason, "reason", "", "why; kept in the ledger")
	return c
}

// missing is the error for a flag that a command cannot do without.
func missing(what, flag, hint string) *fault.Error {
	return fault.New(fault.Invalid, "cannot %s: %s is missing", what, flag).WithHint("%s", hint)
}

func (t *tool) bootstrapCommand() *cobra.Command {
	var sure bool
	end := t.command("end", "End bootstrap for good: from now on two people agree",
		"handrail bootstrap end        # asks first, at a terminal\nhandrail bootstrap end --yes  # does not ask",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := t.unless(cmd.Context(), sure, "End bootstrap? From then on every person, group and policy needs a second person. This cannot be undone. [y/N] "); err != nil {
				return err
			}
			answer, err := c.people.EndBootstrap(cmd.Context(), &v1.EndBootstrapRequest{})
			if err != nil {
				return err
			}
			s := &sheet{id: "bootstrap"}
			return t.emit(answer, s.put("bootstrap", "has ended"))
		})
	end.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return t.group("bootstrap", "End the time in which one person may do it alone",
		"handrail bootstrap end  # for good\nhandrail status         # says whether it is on", end)
}
