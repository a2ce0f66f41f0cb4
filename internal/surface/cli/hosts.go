package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) lookCommands() []*cobra.Command {
	return []*cobra.Command{
		t.hostsCommand(),
		t.group("host", "Show, invite, add or describe a host",
			"handrail host show web-1           # facts, floor, what I may do there\nhandrail host invite --env staging  # the line to run on another machine",
			t.hostShowCommand(), t.hostInviteCommand(), t.hostSetCommand(), t.hostAddCommand(), t.hostTrustCommand(), t.hostAdoptCommand(), t.hostDrainCommand(), t.hostUndrainCommand(), t.hostAnsibleCommand()),
		t.sshCommand(),
		t.inspectCommand(),
	}
}

func (t *tool) hostsCommand() *cobra.Command {
	var follow bool
	c := t.command("hosts [SELECTOR]", "List hosts",
		"handrail hosts                             # all of them\nhandrail hosts 'env:production service:pay'  # space = and, comma = or, ! = not",
		nil,
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			selector := strings.Join(args, " ")
			if follow {
				return t.followHosts(cmd.Context(), c, selector)
			}
			answer, err := c.hosts.List(cmd.Context(), &v1.ListHostsRequest{Selector: selector})
			if err != nil {
				return err
			}
			return t.emit(answer, t.hostTable(answer.Hosts))
		})
	c.ValidArgsFunction = t.completeHosts
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print each change")
	return c
}

func (t *tool) followHosts(ctx context.Context, c *client, selector string) error {
	stream, err := c.hosts.Watch(ctx, &v1.WatchHostsRequest{Selector: selector})
	if err != nil {
		return err
	}
	defer stream.Close()
	first := true
	for stream.Receive() {
		tb := t.hostTable([]*v1.Host{stream.Msg().Host})
		tb.headless, first = !first, false
		if err := t.line(stream.Msg().Host, tb); err != nil {
			return err
		}
	}
	return ended(ctx, stream.Err())
}

// ended is the end of a live stream: a person who stops it has not failed.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

var stateTone = map[string]tone{
	"online": good, "stale": warn, "offline": bad, "never": dim, "mismatch": bad, "refused": bad,
	"live": good, "active": good, "paused": warn, "requested": warn, "approved": good, "denied": bad, "in-review": warn,
	"ok": good, "failed": bad, "lost": bad, "unknown": warn,
}

func environment(name string) cell {
	if name == "production" {
		return cell{name, bad}
	}
	return cell{name, calm}
}

func state(name string) cell { return cell{name, stateTone[name]} }

// hostState is how a host is, and that somebody keeps it to themselves.
func hostState(h *v1.Host) cell {
	if h.Drain != nil {
		return cell{h.State + ", drained", warn}
	}
	return state(h.State)
}

func (t *tool) hostTable(hosts []*v1.Host) *table {
	tb := &table{
		head: []string{"HOST", "STATE", "ENVIRONMENT", "SCOPE", "SERVICES", "SESSIONS", "LOAD", "UP", "ID", "FLOOR", "SEEN", "LABELS", "KERNEL", "VERSION"},
		wide: 8, empty: "No host matches. Add one: handrail host invite",
	}
	for _, h := range hosts {
		facts := factsOf(h)
		row := cells(h.Name, "", "", h.Scope, strings.Join(h.Services, ","), fmt.Sprint(h.Sessions), facts["load1"], uptime(facts["uptime_seconds"]),
			h.Id, h.Floor, t.at(h.Seen), strings.Join(h.Labels, ","), facts["kernel"], h.NodeVersion)
		row[1], row[2] = hostState(h), environment(h.Environment)
		tb.add(h.Name, row)
	}
	return tb
}

func factsOf(h *v1.Host) map[string]string {
	facts := map[string]string{}
	for _, f := range h.Facts {
		facts[f.Name] = f.Value
	}
	return facts
}

func (t *tool) hostShowCommand() *cobra.Command {
	c := t.command("show HOST", "Show one host: facts, floor, and what I may do there",
		"handrail host show web-1          # by name, id or the start of an id\nhandrail host show web-1 -o wide  # and where each fact came from",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.hosts.Get(cmd.Context(), &v1.GetHostRequest{Host: args[0]})
			if err != nil {
				return err
			}
			return t.emit(answer, t.hostView(answer))
		})
	c.ValidArgsFunction = t.completeHosts
	return c
}

func (t *tool) hostView(answer *v1.GetHostResponse) view {
	h := answer.Host
	s := &sheet{id: h.GetName()}
	s.put("host", h.GetName()).put("id", h.GetId())
	s.toned("state", h.GetState(), stateTone[h.GetState()]).put("seen", t.full(h.GetSeen()))
	s.toned("environment", h.GetEnvironment(), environment(h.GetEnvironment()).tone).put("scope", h.GetScope())
	s.put("services", strings.Join(h.GetServices(), ", ")).put("labels", strings.Join(h.GetLabels(), ", "))
	s.put("sessions", fmt.Sprintf("%d live", h.GetSessions()))
	if d := h.GetDrain(); d != nil {
		s.toned("drained", fmt.Sprintf("by %s until %s: %s", d.PersonName, t.at(d.Until), d.Why), warn)
	}
	s.put("floor", h.GetFloor()).list("missing", h.GetFloorMissing())
	s.put("mode", h.GetMode())
	t.sshRows(s, h)
	if h.GetTrial() {
		s.put("trial", "yes: cannot be production")
	}
	if h.GetServer() {
		s.toned("server", "runs on this host: root here is the whole installation", warn)
	}
	s.put("read", may(answer.MayRead, answer.MayReadWhy))
	if answer.MayWrite {
		s.put("write", "yes, by grant "+answer.Grant)
	} else {
		s.put("write", fmt.Sprintf("no; ask: handrail elevate %s --reason \"…\"", h.GetName()))
	}
	s.wide("created", t.full(h.GetCreated())).wide("node version", h.GetNodeVersion())
	for _, f := range h.GetFacts() {
		s.put(f.Name, factValue(f.Name, f.Value))
		s.wide("", fmt.Sprintf("%s, %s", orElse(f.Source, "source not said"), t.at(f.At)))
	}
	return s
}

func may(allowed bool, why string) string {
	if why == "" {
		return yes(allowed)
	}
	return yes(allowed) + ": " + why
}

func (t *tool) hostInviteCommand() *cobra.Command {
	r := &v1.InviteRequest{}
	c := t.command("invite [NAME]", "Make a single-use token with which another machine joins",
		"handrail host invite web-2 --env staging --service pay  # prints the line to run there\nhandrail host invite -o json                            # with the token alone",
		func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly("the host's name")(cmd, args)
			}
			return nil
		},
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				r.Name = args[0]
			}
			answer, err := c.hosts.Invite(cmd.Context(), r)
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Token}
			s.put("run there", answer.Command).put("token", answer.Token).put("ends", t.full(answer.Expires)).put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "the invitation")
		})
	c.Flags().StringVar(&r.Environment, "env", "", "environment of the host: dev, staging or production")
	c.Flags().StringVar(&r.Scope, "scope", "", "scope of the host: none, pci, sox or hipaa")
	c.Flags().StringArrayVar(&r.Services, "service", nil, "a service that runs there (repeatable)")
	t.completeWords(c, "env", "dev", "staging", "production")
	t.completeWords(c, "scope", "none", "pci", "sox", "hipaa")
	return c
}

func (t *tool) hostSetCommand() *cobra.Command {
	var env, scope string
	var services, labels []string
	var ssh sshChange
	c := t.command("set HOST", "Change what people say of a host; a second person agrees",
		"handrail host set web-1 --env production                # set by people, never claimed by the host\nhandrail host set web-1 --service pay --label team=core  # replaces its services and labels",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			if ssh.named(cmd) {
				return t.setSSH(cmd, args[0], ssh)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			r := &v1.SetHostRequest{Host: args[0], Services: services, Labels: labels}
			r.SetServices, r.SetLabels = cmd.Flags().Changed("service"), cmd.Flags().Changed("label")
			if cmd.Flags().Changed("env") {
				r.Environment = &env
			}
			if cmd.Flags().Changed("scope") {
				r.Scope = &scope
			}
			if r.Environment == nil && r.Scope == nil && !r.SetServices && !r.SetLabels {
				return fault.New(fault.Invalid, "cannot set %s: nothing to set was named", clean(args[0])).WithHint("handrail host set --help")
			}
			answer, err := c.hosts.Set(cmd.Context(), r)
			if err != nil {
				return err
			}
			h := answer.Host
			s := &sheet{id: h.GetName()}
			s.put("host", h.GetName()).put("environment", h.GetEnvironment()).put("scope", h.GetScope()).
				put("services", strings.Join(h.GetServices(), ", ")).put("labels", strings.Join(h.GetLabels(), ", ")).
				put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "the change")
		})
	c.ValidArgsFunction = t.completeHosts
	c.Flags().StringVar(&env, "env", "", "environment: dev, staging or production")
	c.Flags().StringVar(&scope, "scope", "", "scope: none, pci, sox or hipaa")
	c.Flags().StringArrayVar(&services, "service", nil, "a service that runs there (repeatable; replaces all)")
	c.Flags().StringArrayVar(&labels, "label", nil, "a label (repeatable; replaces all)")
	ssh.flags(c)
	t.completeWords(c, "env", "dev", "staging", "production")
	t.completeWords(c, "scope", "none", "pci", "sox", "hipaa")
	return c
}
