package cli

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) voucherKeyCommand() *cobra.Command {
	c := t.command("key [FILE.pub]", "Name a key for vouchers, with your passkey",
		"handrail voucher key                              # the key that fetch would use\nhandrail voucher key ~/.ssh/id_ed25519_sk.pub     # prints the page to open, and what it must show",
		atMost("the file of the public key"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			named := ""
			if len(args) > 0 {
				named = args[0]
			}
			line, _, err := t.voucherKey(c.folder, named)
			if err != nil {
				return err
			}
			key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "cannot read the key").WithHint("name the file that ends in .pub")
			}
			status, err := c.events.Status(cmd.Context(), &v1.StatusRequest{})
			if err != nil {
				return err
			}
			print := ssh.FingerprintSHA256(key)
			bare := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
			fmt.Fprintf(t.out(), "%s/vouchers/key?key=%s\n", clean(status.Installation.GetUrl()), url.QueryEscape(bare))
			t.say("Open it where your passkey is. It must show this key, and nothing else:\n  %s\nThen: handrail voucher fetch --key …", print)
			return nil
		})
	c.Long = `Name a key for vouchers, with your passkey.

A voucher goes only onto a key that you have stood for: a device that you logged
in on with a link at least a day ago, or one that you named on the page with a
passkey. So whoever steals a login gets no voucher for a key of their own.`
	c.ValidArgsFunction = nil
	return c
}

func (t *tool) voucherRevokeCommand() *cobra.Command {
	var reason string
	c := t.command("revoke SERIAL", "Make a voucher void before its time, also one of a ceremony",
		"handrail voucher revoke 1767225600000000 --reason \"laptop lost\"  # serials: handrail voucher list\nhandrail voucher revoke 77 --reason \"ceremony over\"             # one that officers made",
		exactly("its serial"),
		func(cmd *cobra.Command, args []string) error {
			serial, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil {
				return fault.New(fault.Invalid, "cannot revoke voucher %q: a serial is a number", clean(args[0])).WithHint("handrail voucher list")
			}
			if reason == "" {
				return missing("revoke voucher "+args[0], "--reason", "handrail voucher revoke "+args[0]+` --reason "…"`)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if _, err := c.vouchers.Revoke(cmd.Context(), &v1.RevokeVoucherRequest{Serial: serial, Reason: reason}); err != nil {
				return err
			}
			t.say("Voucher %d is void; hosts hear of it with their next lease.", serial)
			return nil
		})
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}
