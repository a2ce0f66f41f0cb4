package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) hostAddCommand() *cobra.Command {
	r := &v1.AddSSHHostRequest{}
	c := t.command("add NAME --ssh USER@ADDRESS", "Add a host that has no node; sessions go through its own sshd",
		"handrail host add db-7 --ssh reader@10.0.0.7 --ssh-write ops --env staging         # shows its key, asks, prints what to trust there\nhandrail host add db-7 --ssh reader@10.0.0.7 --host-key \"$(ssh-keyscan -t ed25519 …)\"  # a key that you compared yourself",
		exactly("the host's name"),
		func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			if r.Ssh == "" {
				return fault.New(fault.Invalid, "cannot add %s: how is it reached?", clean(args[0])).
					WithHint("handrail host add %s --ssh USER@ADDRESS; with a node instead: handrail host invite %s", clean(args[0]), clean(args[0]))
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if r.HostKey, err = t.comparedKey(cmd.Context(), c, r.Ssh, r.HostKey, "handrail host add "+args[0]+" --ssh "+r.Ssh); err != nil {
				return err
			}
			answer, err := c.sshHosts.Add(cmd.Context(), r)
			if err != nil {
				return err
			}
			h := answer.Host
			s := &sheet{id: h.GetName()}
			s.put("host", h.GetName()).put("environment", h.GetEnvironment()).put("scope", h.GetScope())
			t.sshRows(s, h)
			trustRows(s, answer.Trust)
			s.put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "the new host")
		})
	c.Flags().StringVar(&r.Ssh, "ssh", "", "user@address or user@address:port; the user is the unprivileged account that reads")
	c.Flags().StringVar(&r.Write, "ssh-write", "", "another account, for write sessions; without one nobody writes there")
	c.Flags().StringVar(&r.HostKey, "host-key", "", "the host's public key (\"ssh-ed25519 AAAA…\") or its fingerprint (SHA256:…), as you compared it")
	c.Flags().StringVar(&r.Source, "ssh-source", "", "networks from which certificates count; any, behind address translation; default: this server's address")
	c.Flags().BoolVar(&r.Node, "ssh-node", false, "the node's binary may run there for the length of a session or a look, so that the kernel keeps a session within bounds")
	c.Flags().StringVar(&r.Environment, "env", "", "environment of the host: dev, staging or production")
	c.Flags().StringVar(&r.Scope, "scope", "", "scope of the host: none, pci, sox or hipaa")
	c.Flags().StringArrayVar(&r.Services, "service", nil, "a service that runs there (repeatable)")
	c.Flags().StringArrayVar(&r.Labels, "label", nil, "a label (repeatable)")
	t.completeWords(c, "env", "dev", "staging", "production")
	t.completeWords(c, "scope", "none", "pci", "sox", "hipaa")
	return c
}

// comparedKey is the host key that a person vouches for: given as such, found
// by its fingerprint, or shown and confirmed. It is never just believed.
func (t *tool) comparedKey(ctx context.Context, c *client, where, given, command string) (string, error) {
	given = strings.TrimSpace(given)
	if strings.Contains(given, " ") {
		if fields := strings.Fields(given); len(fields) > 2 && !strings.HasPrefix(fields[0], "ssh-") && !strings.HasPrefix(fields[0], "ecdsa-") {
			given = strings.Join(fields[1:], " ") // a line of known_hosts or ssh-keyscan
		}
		return given, nil
	}
	shown, err := c.sshHosts.Look(ctx, &v1.LookRequest{Ssh: where})
	if err != nil {
		return "", err
	}
	if given != "" {
		if given != shown.Fingerprint {
			return "", fault.New(fault.Denied, "cannot trust %s: it shows %s, and you said %s", clean(shown.Address), clean(shown.Fingerprint), clean(given)).
				WithHint("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the host's console")
		}
		return shown.HostKey, nil
	}
	t.say("%s shows this host key:\n\n  %s  %s\n\nCompare it with what the host itself says, on its console:\n\n  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\n",
		clean(shown.Address), clean(shown.Fingerprint), clean(shown.Kind))
	err = t.confirm(ctx, "Is it the same? Type yes: ", "yes", command+" --host-key "+shown.Fingerprint+"  # once you have compared it")
	return shown.HostKey, err
}

func (t *tool) hostTrustCommand() *cobra.Command {
	c := t.command("trust HOST", "Say what a host without a node must be told, so that it takes our certificates",
		"handrail host trust db-7          # the line for each account's authorized_keys, and the other way\nhandrail host trust db-7 -o json  # for a tool that puts it there",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.sshHosts.Trust(cmd.Context(), &v1.HostTrustRequest{Host: args[0]})
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Host}
			trustRows(s, answer)
			return t.emit(answer, s)
		})
	c.ValidArgsFunction = t.completeHosts
	return c
}

func trustRows(s *sheet, trust *v1.HostTrustResponse) {
	if trust == nil {
		return
	}
	for _, l := range trust.Lines {
		s.put("to "+l.Level, fmt.Sprintf("in ~%s/.ssh/authorized_keys:", l.Account)).put("", l.Line)
	}
	s.put("or for all", "in sshd_config: TrustedUserCAKeys /etc/ssh/handrail_ca.pub").put("", "with, in that file: "+trust.Authority)
}

// sshRows says how a host without a node is reached, and what that means.
func (t *tool) sshRows(s *sheet, h *v1.Host) {
	if h.GetSshAddress() == "" {
		return
	}
	if h.GetMode() == "agentless" {
		s.toned("node", "none: sessions go through its own sshd", warn)
		if h.GetSshNode() {
			s.put("sandbox", "a node comes with each session, and goes with it")
		} else {
			s.toned("sandbox", "none: NOT kernel-enforced, only the rights of the account limit a session", warn)
		}
	}
	s.put("ssh", h.GetSshUser()+"@"+h.GetSshAddress()).put("writes as", orElse(h.GetSshWrite(), "nobody; handrail host set "+h.GetName()+" --ssh-write ACCOUNT"))
	s.put("host key", h.GetSshFingerprint()).put("certificates count from", orElse(h.GetSshSource(), "the server's own address"))
	if h.GetSshTrouble() != "" {
		s.toned("trouble", h.GetSshTrouble(), bad)
	}
	if h.GetMode() == "agentless" {
		s.put("next", "handrail host adopt "+h.GetName()+"  # gives it a node")
	}
}

// sshChange is what `host set` may change of how a host is reached.
type sshChange struct {
	ssh, write, key, source string
	node                    bool
}

var sshFlags = []string{"ssh", "ssh-write", "host-key", "ssh-source", "ssh-node"}

func (s *sshChange) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.ssh, "ssh", "", "without a node: user@address[:port]")
	c.Flags().StringVar(&s.write, "ssh-write", "", "without a node: the account of write sessions; \"\" is none")
	c.Flags().StringVar(&s.key, "host-key", "", "without a node: another host key (\"ssh-ed25519 AAAA…\"), compared by you")
	c.Flags().StringVar(&s.source, "ssh-source", "", "without a node: networks from which certificates count, or any")
	c.Flags().BoolVar(&s.node, "ssh-node", false, "without a node: the node's binary may run there for the length of a session or a look")
}

// named says whether any of them was given.
func (s *sshChange) named(c *cobra.Command) bool {
	for _, name := range sshFlags {
		if c.Flags().Changed(name) {
			return true
		}
	}
	return false
}

func (t *tool) setSSH(cmd *cobra.Command, host string, change sshChange) error {
	for _, other := range []string{"env", "scope", "service", "label"} {
		if cmd.Flags().Changed(other) {
			return fault.New(fault.Invalid, "cannot set --%s together with how the host is reached: each is agreed to by itself", other).
				WithHint("two commands")
		}
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	r := &v1.SetSSHHostRequest{Host: host}
	for name, at := range map[string]struct {
		to   **string
		from *string
	}{"ssh": {&r.Ssh, &change.ssh}, "ssh-write": {&r.Write, &change.write}, "host-key": {&r.HostKey, &change.key}, "ssh-source": {&r.Source, &change.source}} {
		if cmd.Flags().Changed(name) {
			*at.to = at.from
		}
	}
	if cmd.Flags().Changed("ssh-node") {
		r.Node = &change.node
	}
	if strings.HasPrefix(change.key, "SHA256:") {
		return fault.New(fault.Invalid, "cannot pin a fingerprint alone: give the key itself").
			WithHint("handrail host set %s --host-key \"$(cat ssh_host_ed25519_key.pub)\"", clean(host))
	}
	answer, err := c.sshHosts.Set(cmd.Context(), r)
	if err != nil {
		return err
	}
	s := &sheet{id: answer.Host.GetName()}
	s.put("host", answer.Host.GetName())
	t.sshRows(s, answer.Host)
	s.put("approval", answer.Approval)
	return t.awaiting(answer, s, answer.Approval, "the change")
}

func (t *tool) hostAdoptCommand() *cobra.Command {
	var undo bool
	c := t.command("adopt HOST", "Give a host without a node one that stays, over the same SSH",
		"handrail host adopt db-7         # program, join, start, floor; sessions go on\nhandrail host adopt --undo db-7  # end the node, reach it over SSH again",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if undo {
				answer, err := c.sshHosts.Dismiss(cmd.Context(), &v1.DismissRequest{Host: args[0]})
				if err != nil {
					return err
				}
				s := adoptSheet(answer.Host, answer.Said)
				s.put("approval", answer.Approval)
				return t.awaiting(answer, s, answer.Approval, "reaching it over SSH again; then run this once more")
			}
			answer, err := c.sshHosts.Adopt(cmd.Context(), &v1.AdoptRequest{Host: args[0]})
			if err != nil {
				return err
			}
			s := adoptSheet(answer.Host, answer.Said)
			s.put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "the node; then run this once more")
		})
	c.ValidArgsFunction = t.completeHosts
	c.Flags().BoolVar(&undo, "undo", false, "end the node that was brought, and reach the host over SSH again")
	return c
}

func adoptSheet(h *v1.Host, said []string) *sheet {
	s := &sheet{id: h.GetName()}
	s.put("host", h.GetName())
	for _, line := range said {
		s.put("there", line)
	}
	s.toned("node", map[bool]string{true: "none: reached over SSH", false: h.GetState()}[h.GetMode() == "agentless"], stateTone[h.GetState()])
	s.put("floor", h.GetFloor()).list("missing", h.GetFloorMissing())
	return s
}
