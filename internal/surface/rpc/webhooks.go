package rpc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/webhook"
)

type webhooks struct{ d *Deps }

func (s webhooks) List(ctx context.Context, _ *handrailv1.ListWebhooksRequest) (*handrailv1.ListWebhooksResponse, error) {
	all, err := s.d.Webhooks.List(ctx)
	return &handrailv1.ListWebhooksResponse{Webhooks: each(all, webhookMessage)}, err
}

func webhookMessage(l webhook.Listed) *handrailv1.Webhook {
	out := &handrailv1.Webhook{
		Id: l.ID, Name: l.Name, Url: l.URL, Actions: strings.Fields(l.Actions), Names: l.Names, Scheme: l.Scheme, State: l.State, Why: l.Why,
		Since: stamp(l.Since), Behind: uint64(l.Behind), Delivered: uint64(l.Delivered), Failed: uint64(l.Failed), Attempts: uint32(l.Attempts),
	}
	if l.Old != "" {
		out.OldUntil = stamp(l.OldUntil)
	}
	if l.State == webhook.StateActive && l.Attempts > 0 {
		out.State, out.Next = "retrying", stamp(l.Next)
	}
	return out
}

func (s webhooks) Add(ctx context.Context, r *handrailv1.AddWebhookRequest) (*handrailv1.AddWebhookResponse, error) {
	a, err := s.d.Webhooks.Add(ctx, caller(ctx), webhook.Wanted{Name: r.Name, URL: r.Url, Actions: r.Actions, Names: r.Names, Scheme: r.Scheme})
	if err != nil {
		return nil, err
	}
	return &handrailv1.AddWebhookResponse{Id: a.ID, Approval: a.Approval, Secret: a.Given}, nil
}

func (s webhooks) Test(ctx context.Context, r *handrailv1.TestWebhookRequest) (*handrailv1.TestWebhookResponse, error) {
	h, seq, err := s.d.Webhooks.Test(ctx, caller(ctx), r.Webhook)
	return &handrailv1.TestWebhookResponse{Id: h.ID, Seq: uint64(seq)}, err
}

func (s webhooks) Rotate(ctx context.Context, r *handrailv1.RotateWebhookRequest) (*handrailv1.RotateWebhookResponse, error) {
	h, given, err := s.d.Webhooks.Rotate(ctx, caller(ctx), r.Webhook)
	if err != nil {
		return nil, err
	}
	return &handrailv1.RotateWebhookResponse{Id: h.ID, Secret: given, OldUntil: stamp(h.OldUntil)}, nil
}

func (s webhooks) Resume(ctx context.Context, r *handrailv1.ResumeWebhookRequest) (*handrailv1.ResumeWebhookResponse, error) {
	_, err := s.d.Webhooks.Resume(ctx, caller(ctx), r.Webhook)
	return &handrailv1.ResumeWebhookResponse{}, err
}

func (s webhooks) Remove(ctx context.Context, r *handrailv1.RemoveWebhookRequest) (*handrailv1.RemoveWebhookResponse, error) {
	_, err := s.d.Webhooks.Remove(ctx, caller(ctx), r.Webhook)
	return &handrailv1.RemoveWebhookResponse{}, err
}

func (s webhooks) Deliveries(ctx context.Context, r *handrailv1.WebhookDeliveriesRequest) (*handrailv1.WebhookDeliveriesResponse, error) {
	_, all, err := s.d.Webhooks.Deliveries(ctx, r.Webhook)
	return &handrailv1.WebhookDeliveriesResponse{Deliveries: each(all, func(a webhook.Attempt) *handrailv1.WebhookDelivery {
		return &handrailv1.WebhookDelivery{
			At: stamp(a.At), Seq: uint64(a.Seq), Action: a.Action, Attempt: uint32(a.Attempt), Took: durationpb.New(time.Duration(a.Took) * time.Microsecond),
			Status: uint32(a.Status), Failure: a.Failure,
		}
	})}, err
}

// webhookPayload is of the entries about webhooks.
type webhookPayload struct {
	Name, URL, Actions, Why string
	Names                   bool
	Delivered, Failed       int64
}

func (p webhookPayload) what() string {
	text := p.Actions + " to " + p.URL
	if p.Names {
		text += ", with names"
	}
	return text
}

var webhookSentences = map[string]func(*said) string{
	"webhook.asked": func(s *said) string {
		p := read[webhookPayload](s)
		return s.who() + " asked for webhook " + p.Name + ": " + p.what()
	},
	"webhook.added": func(s *said) string {
		p := read[webhookPayload](s)
		return "webhook " + p.Name + " is told from now on: " + p.what()
	},
	"webhook.refused": func(s *said) string { return "nobody agreed to webhook " + read[webhookPayload](s).Name },
	"webhook.rotated": func(s *said) string {
		return s.who() + " gave webhook " + read[webhookPayload](s).Name + " another secret"
	},
	"webhook.tested": func(s *said) string { return s.who() + " tests webhook " + read[webhookPayload](s).Name },
	"webhook.resumed": func(s *said) string {
		return s.who() + " has webhook " + read[webhookPayload](s).Name + " told again"
	},
	"webhook.removed": func(s *said) string { return s.who() + " removed webhook " + read[webhookPayload](s).Name },
	"webhook.disabled": func(s *said) string {
		p := read[webhookPayload](s)
		return "webhook " + p.Name + " is DISABLED" + because(p.Why)
	},
	"webhook.delivered": func(s *said) string {
		p := read[webhookPayload](s)
		text := fmt.Sprintf("webhook %s was told of %d entries", p.Name, p.Delivered)
		if p.Failed > 0 {
			text += fmt.Sprintf("; %d attempts were in vain", p.Failed)
		}
		return text
	},
}
