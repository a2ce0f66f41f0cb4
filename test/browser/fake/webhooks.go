package fake

import (
	"context"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

type webhooks struct {
	handrailv1connect.UnimplementedWebhooksHandler
	a *API
}

// List is a webhook in each state; nobody is told in minute one.
func (w webhooks) List(context.Context, *v1.ListWebhooksRequest) (*v1.ListWebhooksResponse, error) {
	if w.a.kind != Busy && w.a.kind != Hostile {
		return &v1.ListWebhooksResponse{}, nil
	}
	why := "404 Not Found, 24 times in a row"
	if w.a.kind == Hostile {
		why += Poison
	}
	return &v1.ListWebhooksResponse{Webhooks: []*v1.Webhook{
		{Id: "w-4f9k2m7x", Name: "siem", Url: "https://siem.example.org/in/handrail", Actions: []string{"*"}, Names: true, Scheme: "v1a", State: "active", Delivered: 48211, Failed: 3, OldUntil: w.a.at(20 * time.Hour)},
		{Id: "w-2m4x8c1d", Name: "chat", Url: "https://chat.example.org/hooks/T0/B1/secret-in-the-path", Actions: []string{"grant.*", "breakglass.*"}, Scheme: "v1", State: "retrying", Next: w.a.at(4 * time.Minute), Delivered: 812, Failed: 17, Behind: 31, Attempts: 5},
		{Id: "w-1t5y9u3i", Name: "tickets-of-the-operations-department", Url: "https://a-host-with-a-name-that-is-long-enough-to-break-a-row.example.org/api/v2/handrail", Actions: []string{"grant.requested", "grant.approved", "grant.denied", "grant.ended", "session.opened", "session.ended"}, Scheme: "v1", State: "disabled", Why: why, Delivered: 9, Failed: 24, Behind: 4102, Attempts: 24},
		{Id: "w-6n0m4b8k", Name: "pager", Url: "https://pager.example.org/v1", Actions: []string{"breakglass.*"}, Scheme: "v1", State: "asked"},
	}}, nil
}

func (w webhooks) Deliveries(_ context.Context, r *v1.WebhookDeliveriesRequest) (*v1.WebhookDeliveriesResponse, error) {
	switch r.Webhook {
	case "siem", "chat", "tickets-of-the-operations-department":
	case "pager":
		return &v1.WebhookDeliveriesResponse{}, nil
	default:
		return nil, notFound("webhook", r.Webhook, "handrail webhook list")
	}
	failure := "no answer within 10 s"
	if w.a.kind == Hostile {
		failure += Poison
	}
	return &v1.WebhookDeliveriesResponse{Deliveries: []*v1.WebhookDelivery{
		{At: w.a.at(-50 * time.Second), Seq: 137, Action: "grant.requested", Attempt: 2, Took: lasting(10 * time.Second), Failure: failure},
		{At: w.a.at(-80 * time.Second), Seq: 137, Action: "grant.requested", Attempt: 1, Took: lasting(212 * time.Millisecond), Status: 503, Failure: "503 Service Unavailable"},
		{At: w.a.at(-8 * time.Minute), Seq: 135, Action: "grant.broken", Attempt: 1, Took: lasting(94 * time.Millisecond), Status: 204},
	}}, nil
}

func (webhooks) Test(context.Context, *v1.TestWebhookRequest) (*v1.TestWebhookResponse, error) {
	return &v1.TestWebhookResponse{Seq: 138}, nil
}

func (webhooks) Resume(context.Context, *v1.ResumeWebhookRequest) (*v1.ResumeWebhookResponse, error) {
	return &v1.ResumeWebhookResponse{}, nil
}
