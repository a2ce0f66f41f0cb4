package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (t *tool) ledgerEraseCommand() *cobra.Command {
	var ground string
	var sure bool
	c := t.command("erase PERSON", "Ask to make what is kept of a person unreadable for good; a second person agrees",
		"handrail ledger erase bob --ground \"left, request 12\"        # asks first; somebody else approves\nhandrail ledger erase bob --ground \"left, request 12\" --yes  # does not ask",
		exactly("the person"),
		func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(ground) == "" {
				return missing("erase "+clean(args[0]), "--ground", "handrail ledger erase "+quoteShell(clean(args[0]))+` --ground "…"`)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := t.unless(cmd.Context(), sure, fmt.Sprintf("Ask to erase %s? What the ledger says about them, and their recordings, will be unreadable for everybody. [y/N] ", clean(args[0]))); err != nil {
				return err
			}
			answer, err := c.erasures.Ask(cmd.Context(), &v1.AskErasureRequest{Person: args[0], Ground: ground})
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Approval}
			s.put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "erasing "+clean(args[0]))
		})
	c.Long = `Ask to make what is kept of a person unreadable for good.

They must be locked, and nothing may be owed: no open grant, session or review.
When a second person has agreed, the key that seals their entries is destroyed:
names, reasons, addresses, commands and recordings are gone, for everybody. Who
did what by its id, every proof, and that they were erased, by whom and on what
ground, stay.`
	c.ValidArgsFunction = t.completePeople
	c.Flags().StringVar(&ground, "ground", "", "why; kept in the ledger, so it names nobody")
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return c
}
