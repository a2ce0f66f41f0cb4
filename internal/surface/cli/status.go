package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (t *tool) statusCommand() *cobra.Command {
	return t.command("status", "Say who I am here, what the server says, and what needs me",
		"handrail status          # me, the server, what needs me\nhandrail status -o json  # the server's answer, for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.events.Status(cmd.Context(), &v1.StatusRequest{})
			if err != nil {
				return unreachable(c.login.Address, err)
			}
			return t.emit(answer, t.statusView(c, answer))
		})
}

func (t *tool) statusView(c *client, answer *v1.StatusResponse) view {
	in := answer.GetInstallation()
	s := &sheet{id: c.login.PersonName}
	left := ""
	if !c.login.Expires.IsZero() {
		left = ", " + length(c.login.Expires.Sub(t.Now())) + " left"
	}
	s.put("person", c.login.PersonName+left)
	s.put("server", fmt.Sprintf("%s %s", c.login.Address, orElse(in.GetVersion(), "")))
	if in.GetBanner() != "" {
		s.toned("now", in.GetBanner(), bad)
	}
	var marks []string
	for mark, on := range map[string]bool{"trial": in.GetTrial(), "demo": in.GetDemo()} {
		if on {
			marks = append(marks, mark)
		}
	}
	s.put("mode", strings.Join(append([]string{in.GetMode()}, marks...), ", "))
	s.list("missing", in.GetMissing())
	if in.GetBootstrap() {
		until := "until you run: handrail bootstrap end"
		if in.BootstrapEnds != nil {
			until = "ends " + t.at(in.BootstrapEnds)
		}
		s.toned("bootstrap", "one person may add people, who may approve at once; "+until, warn)
	}
	s.put("hosts", fmt.Sprintf("%d of %d online", answer.HostsOnline, answer.HostsTotal))
	s.put("people", fmt.Sprint(answer.People))
	s.put("sessions", fmt.Sprintf("%d live", answer.SessionsLive))
	s.put("requests", fmt.Sprintf("%d open", answer.ApprovalsOpen))
	s.put("ledger", count(in.GetLedgerSize(), "entry"))
	s.put("page", in.GetUrl())
	s.wide("gateway", in.GetSshAddress())
	s.wide("root key", c.login.RootHash)
	s.wide("trust", fmt.Sprintf("bundle %d, epoch %d", c.bundle().Version, c.bundle().Epoch))
	s.wide("data", in.GetDataDir())
	s.wide("folder", c.folder.dir)
	s.list("needs you", answer.Attention)
	return s
}

func (t *tool) whoamiCommand() *cobra.Command {
	return t.command("whoami", "Say who I am logged in as, and what signs for me",
		"handrail whoami          # name, groups, credentials\nhandrail whoami -o name  # the bare name, for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.logins.Whoami(cmd.Context(), &v1.WhoamiRequest{})
			if err != nil {
				return err
			}
			s := t.personView(answer.Person)
			s.put("login ends", t.full(answer.Expires)).put("via", answer.Via)
			return t.emit(answer, s)
		})
}
