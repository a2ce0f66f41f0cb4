package web

import (
	"net/http"
	"slices"
	"strings"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routeWebhooks(mux *http.ServeMux) {
	mux.HandleFunc("GET /webhooks", s.page(s.showWebhooks))
	mux.HandleFunc("GET /webhooks/{hook}", s.page(s.showWebhook))
	mux.HandleFunc("POST /webhooks/{hook}/test", s.page(s.testWebhook))
	mux.HandleFunc("POST /webhooks/{hook}/resume", s.page(s.resumeWebhook))
}

func (s *site) showWebhooks(v *visit) error {
	got, err := s.webhooks.List(v.ctx, &v1.ListWebhooksRequest{})
	if err != nil {
		return err
	}
	f := v.frame("Webhooks", "hosts")
	return v.show(f, webhooksPage(f, got.Webhooks))
}

func (s *site) showWebhook(v *visit) error {
	got, err := s.webhooks.List(v.ctx, &v1.ListWebhooksRequest{})
	if err != nil {
		return err
	}
	tried, err := s.webhooks.Deliveries(v.ctx, &v1.WebhookDeliveriesRequest{Webhook: v.r.PathValue("hook")})
	if err != nil {
		return err
	}
	for _, h := range got.Webhooks {
		if h.Id == v.r.PathValue("hook") || h.Name == v.r.PathValue("hook") {
			f := v.frame("Webhook "+h.Name, "hosts")
			return v.show(f, webhookPage(f, h, tried.Deliveries))
		}
	}
	return s.notFound(v)
}

func (s *site) testWebhook(v *visit) error {
	if _, err := s.webhooks.Test(v.ctx, &v1.TestWebhookRequest{Webhook: v.r.PathValue("hook")}); err != nil {
		return err
	}
	return v.goOn("/webhooks/"+v.r.PathValue("hook"), "tested")
}

func (s *site) resumeWebhook(v *visit) error {
	if _, err := s.webhooks.Resume(v.ctx, &v1.ResumeWebhookRequest{Webhook: v.r.PathValue("hook")}); err != nil {
		return err
	}
	return v.goOn("/webhooks/"+v.r.PathValue("hook"), "resumed")
}

// hookHost is where a webhook goes, without what may be secret behind it.
func hookHost(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// hookState is how a webhook goes, as the states of other things are called.
func hookState(h *v1.Webhook) string {
	switch h.State {
	case "active":
		return "told"
	case "asked":
		return "waits for a yes"
	}
	return h.State
}

// hookClass is the state of another thing that looks the same.
func hookClass(h *v1.Webhook) string {
	switch h.State {
	case "retrying":
		return "waiting"
	case "disabled":
		return "failed"
	}
	return h.State
}

// hookEntries says what of the ledger it is told.
func hookEntries(h *v1.Webhook) string {
	if slices.Contains(h.Actions, "*") {
		return "every entry"
	}
	return strings.Join(h.Actions, ", ")
}

// hookSigned says how the receiver knows that it was us.
func hookSigned(h *v1.Webhook) string {
	if h.Scheme == "v1a" {
		return "by a key (Ed25519)"
	}
	return "by a secret (HMAC-SHA256)"
}
