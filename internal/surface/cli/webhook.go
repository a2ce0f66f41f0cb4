package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) webhookCommand() *cobra.Command {
	return t.group("webhook", "Tell other systems what happens here",
		"handrail webhook add siem https://siem.example.org/in --actions 'grant.*,breakglass.*'  # a second person agrees\nhandrail webhook list                                                                    # how it goes",
		t.webhookListCommand(), t.webhookAddCommand(), t.webhookTestCommand(), t.webhookRotateCommand(), t.webhookResumeCommand(), t.webhookRemoveCommand(), t.webhookDeliveriesCommand())
}

func (t *tool) webhookListCommand() *cobra.Command {
	return t.command("list", "List the webhooks and how far each has got",
		"handrail webhook list          # who is told what\nhandrail webhook list -o wide  # with ids and addresses",
		exactly(),
		func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.webhooks.List(cmd.Context(), &v1.ListWebhooksRequest{})
			if err != nil {
				return err
			}
			tb := &table{
				head: []string{"WEBHOOK", "STATE", "TOLD OF", "DELIVERED", "IN VAIN", "BEHIND", "ID", "NAMES", "SIGNED", "ADDRESS"}, wide: 6,
				empty: "No webhook: nobody outside is told what happens here. Add one: handrail webhook add siem https://siem.example.org/in --actions 'grant.*'",
			}
			for _, h := range answer.Webhooks {
				names := "no"
				if h.Names {
					names = "yes"
				}
				row := cells(h.Name, "", strings.Join(h.Actions, ","), fmt.Sprint(h.Delivered), fmt.Sprint(h.Failed), fmt.Sprint(h.Behind), h.Id, names, h.Scheme, h.Url)
				row[1] = hookState(t, h)
				tb.add(h.Name, row)
			}
			if err := t.emit(answer, tb); err != nil {
				return err
			}
			for _, h := range answer.Webhooks {
				if h.Why != "" {
					t.say("%s: %s. Next: handrail webhook resume %s", clean(h.Name), cleanText(h.Why), clean(h.Name))
				}
			}
			return nil
		})
}

func hookState(t *tool, h *v1.Webhook) cell {
	switch h.State {
	case "active":
		return cell{"told", good}
	case "retrying":
		return cell{"again " + t.at(h.Next), warn}
	case "asked":
		return cell{"waits for a yes", warn}
	}
	return cell{h.State, bad}
}

func (t *tool) webhookAddCommand() *cobra.Command {
	var actions []string
	var names, key bool
	c := t.command("add NAME URL", "Ask that another system be told; a second person agrees",
		"handrail webhook add siem https://siem.example.org/in --actions 'grant.*,breakglass.*'  # ids and times, no names\nhandrail webhook add audit https://a.example.org/hook --actions '*' --names --ed25519  # everything, signed by a key",
		exactly("its name", "its address"),
		func(cmd *cobra.Command, args []string) error {
			if len(actions) == 0 {
				return missing("add webhook "+clean(args[0]), "--actions", "handrail webhook add "+quoteShell(clean(args[0]))+" "+quoteShell(clean(args[1]))+" --actions 'grant.*'")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			r := &v1.AddWebhookRequest{Name: args[0], Url: args[1], Actions: actions, Names: names, Scheme: "v1"}
			if key {
				r.Scheme = "v1a"
			}
			answer, err := c.webhooks.Add(cmd.Context(), r)
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Id}
			s.put("webhook", args[0]).put("id", answer.Id).put("secret", answer.Secret).put("approval", answer.Approval)
			t.say("The secret is shown this once. Give it to the receiver, which checks each message with it.")
			return t.awaiting(answer, s, answer.Approval, "webhook "+clean(args[0]))
		})
	c.Long = `Ask that another system be told what the ledger says, by HTTPS.

Each entry that fits --actions is sent in order, signed as the Standard Webhooks
specification has it (headers webhook-id, webhook-timestamp, webhook-signature),
until it is answered with 2xx; it may come more than once, then with the same id.
After three days in vain the webhook is disabled, and an entry says so.

Without --names only ids, times and outcomes are sent. Redirects are not
followed. Addresses of this machine, its link and its cloud are refused, unless
the configuration allows them; http is for this machine alone.`
	c.Flags().StringSliceVar(&actions, "actions", nil, "which entries, as 'grant.requested', 'grant.*' or '*' (may be given more than once)")
	c.Flags().BoolVar(&names, "names", false, "send what the ledger keeps sealed too: names, reasons, addresses")
	c.Flags().BoolVar(&key, "ed25519", false, "sign by a key (v1a), so that the receiver holds no secret")
	return c
}

// testPatience is how long `webhook test` waits for the receiver.
const testPatience = 30 * time.Second

func (t *tool) webhookTestCommand() *cobra.Command {
	c := t.command("test WEBHOOK", "Send a webhook an entry of its own, and see whether it arrives",
		"handrail webhook test siem            # says what the receiver answered\nhandrail webhook test siem -o json    # for a program",
		exactly("the webhook"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			sent, err := c.webhooks.Test(cmd.Context(), &v1.TestWebhookRequest{Webhook: args[0]})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), testPatience)
			defer cancel()
			d, err := awaitDelivery(ctx, c, sent)
			if err != nil {
				return err
			}
			if d == nil {
				return fault.New(fault.Unavailable, "cannot say whether entry #%d arrives at webhook %s: other entries wait before it", sent.Seq, clean(args[0])).
					WithHint("handrail webhook deliveries %s", clean(args[0]))
			}
			if d.Failure != "" {
				return fault.New(fault.Unavailable, "cannot deliver entry #%d to webhook %s: %s", d.Seq, clean(args[0]), cleanText(d.Failure)).
					WithHint("handrail webhook deliveries %s; it is tried again by itself", clean(args[0]))
			}
			s := &sheet{id: sent.Id}
			s.put("webhook", args[0]).put("entry", fmt.Sprintf("#%d", d.Seq)).put("answered", fmt.Sprint(d.Status)).put("took", length(d.Took.AsDuration()))
			return t.emit(d, s)
		})
	c.ValidArgsFunction = t.completeWebhooks
	return c
}

// awaitDelivery asks until the entry was tried; nil is never, within ctx.
func awaitDelivery(ctx context.Context, c *client, sent *v1.TestWebhookResponse) (*v1.WebhookDelivery, error) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		answer, err := c.webhooks.Deliveries(ctx, &v1.WebhookDeliveriesRequest{Webhook: sent.Id})
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		for _, d := range answer.GetDeliveries() {
			if d.Seq == sent.Seq {
				return d, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-again.C:
		}
	}
}

func (t *tool) webhookRotateCommand() *cobra.Command {
	c := t.command("rotate WEBHOOK", "Give a webhook another secret; for a day the old one signs too",
		"handrail webhook rotate siem            # shows the new one, once\nhandrail webhook rotate siem -o json    # for a program",
		exactly("the webhook"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.webhooks.Rotate(cmd.Context(), &v1.RotateWebhookRequest{Webhook: args[0]})
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Id}
			s.put("webhook", args[0]).put("secret", answer.Secret).put("old until", t.at(answer.OldUntil))
			t.say("The secret is shown this once. Until then messages carry both signatures.")
			return t.emit(answer, s)
		})
	c.ValidArgsFunction = t.completeWebhooks
	return c
}

func (t *tool) webhookResumeCommand() *cobra.Command {
	c := t.command("resume WEBHOOK", "Tell a webhook again that was disabled, from where it stood",
		"handrail webhook resume siem  # once its receiver answers again\nhandrail webhook list         # how far behind it is",
		exactly("the webhook"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if _, err := c.webhooks.Resume(cmd.Context(), &v1.ResumeWebhookRequest{Webhook: args[0]}); err != nil {
				return err
			}
			t.say("Webhook %s is told again, from where it stood.", clean(args[0]))
			return nil
		})
	c.ValidArgsFunction = t.completeWebhooks
	return c
}

func (t *tool) webhookRemoveCommand() *cobra.Command {
	var sure bool
	c := t.command("remove WEBHOOK", "Tell a webhook nothing more, for good",
		"handrail webhook remove siem        # asks first\nhandrail webhook remove siem --yes  # does not ask",
		exactly("the webhook"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := t.unless(cmd.Context(), sure, fmt.Sprintf("Remove webhook %s? What waits for it is not sent any more. [y/N] ", clean(args[0]))); err != nil {
				return err
			}
			if _, err := c.webhooks.Remove(cmd.Context(), &v1.RemoveWebhookRequest{Webhook: args[0]}); err != nil {
				return err
			}
			t.say("Webhook %s is removed.", clean(args[0]))
			return nil
		})
	c.ValidArgsFunction = t.completeWebhooks
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return c
}

func (t *tool) webhookDeliveriesCommand() *cobra.Command {
	c := t.command("deliveries WEBHOOK", "List the last attempts of a webhook, newest first",
		"handrail webhook deliveries siem            # what was sent, and what came back\nhandrail webhook deliveries siem -o json    # for a program",
		exactly("the webhook"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.webhooks.Deliveries(cmd.Context(), &v1.WebhookDeliveriesRequest{Webhook: args[0]})
			if err != nil {
				return err
			}
			tb := &table{head: []string{"ENTRY", "AT", "ACTION", "ATTEMPT", "ANSWER", "TOOK"}, empty: "Nothing was sent yet. Try: handrail webhook test " + clean(args[0])}
			for _, d := range answer.Deliveries {
				row := cells(fmt.Sprintf("#%d", d.Seq), t.at(d.At), d.Action, fmt.Sprint(d.Attempt), "", length(d.Took.AsDuration()))
				row[4] = cell{fmt.Sprint(d.Status), good}
				if d.Failure != "" {
					row[4] = cell{d.Failure, bad}
				}
				tb.add(fmt.Sprint(d.Seq), row)
			}
			return t.emit(answer, tb)
		})
	c.ValidArgsFunction = t.completeWebhooks
	return c
}

func (t *tool) completeWebhooks(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return t.complete(prefix, func(ctx context.Context, c *client) ([]offer, error) {
		answer, err := c.webhooks.List(ctx, &v1.ListWebhooksRequest{})
		var offers []offer
		for _, h := range answer.GetWebhooks() {
			offers = append(offers, offer{h.Name, h.State + ", " + strings.Join(h.Actions, " ")})
		}
		return offers, err
	})
}
