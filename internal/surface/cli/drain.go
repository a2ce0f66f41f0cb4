package cli

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/when"
)

func (t *tool) hostDrainCommand() *cobra.Command {
	var long, why string
	c := t.command("drain HOST", "Keep a host to yourself: nobody else opens a new session there",
		"handrail host drain web-1 --for 2h --why \"core dump of the api\"  # again, for another time\nhandrail host undrain web-1                                     # lets everybody in",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			if long == "" || why == "" {
				return missing("drain "+clean(args[0]), "--for or --why", "handrail host drain "+quoteShell(clean(args[0]))+" --for 2h --why \"…\"")
			}
			d, err := when.Duration(long)
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.drains.Drain(cmd.Context(), &v1.DrainHostRequest{Host: args[0], For: durationpb.New(d), Why: why})
			if err != nil {
				return err
			}
			if answer.Sessions > 0 {
				t.say("%d sessions are open there and stay open: handrail sessions --live", answer.Sessions)
			}
			t.say("Handrail does not know whether requests of customers still go there: take it out of the load balancer yourself.")
			s := &sheet{id: args[0]}
			s.put("host", args[0]).put("drained until", t.full(answer.Until))
			return t.emit(answer, s)
		})
	c.Long = `Keep a host to yourself for a while: nobody else opens a new session there, but
whoever breaks the glass. Open sessions stay. It is what a host has to be before
the memory of one of its processes is dumped.`
	c.ValidArgsFunction = t.completeHosts
	c.Flags().StringVar(&long, "for", "", "how long: 30m, 2h; at most 12h")
	c.Flags().StringVar(&why, "why", "", "why, for everybody who wants to go there")
	return c
}

func (t *tool) hostUndrainCommand() *cobra.Command {
	c := t.command("undrain HOST", "Let everybody onto a host again that was drained",
		"handrail host undrain web-1  # your own, or as an operator\nhandrail host show web-1     # who drained it, and until when",
		exactly("the host"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if _, err := c.drains.Undrain(cmd.Context(), &v1.UndrainHostRequest{Host: args[0]}); err != nil {
				return err
			}
			t.say("%s is drained no more.", clean(args[0]))
			return nil
		})
	c.ValidArgsFunction = t.completeHosts
	return c
}
