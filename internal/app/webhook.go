package app

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// webhookSection is the [webhooks] of the configuration: where hooks may go
// beyond what is always so, and who vouches for receivers.
type webhookSection struct {
	Allow  []string `toml:"allow" json:"allow,omitempty"`
	CAFile string   `toml:"ca-file" json:"-"`

	CA []byte `toml:"-" json:"ca,omitempty"` // what that file held
}

// networks are those that hooks may reach although nobody runs receivers there.
func (w *webhookSection) networks() (all []netip.Prefix, err error) {
	if w == nil {
		return nil, nil
	}
	for _, text := range w.Allow {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "cannot read %q in [webhooks] allow: a network is 169.254.7.0/24", text)
		}
		all = append(all, p)
	}
	return all, nil
}

// roots are the authorities of receivers; nil is the system's.
func (w *webhookSection) roots() (*x509.CertPool, error) {
	if w == nil || len(w.CA) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(w.CA) {
		return nil, fault.New(fault.Invalid, "cannot use [webhooks] ca-file: it holds no certificate (PEM)")
	}
	return pool, nil
}

// complete reads the file that the section names.
func (w *webhookSection) complete(config string) error {
	if w == nil || w.CAFile == "" {
		return nil
	}
	name := w.CAFile
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(config), name)
	}
	f, err := os.Open(name)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read [webhooks] ca-file")
	}
	defer f.Close()
	if w.CA, err = io.ReadAll(io.LimitReader(f, maxCA+1)); err == nil && len(w.CA) > maxCA {
		err = errors.New("it is too large")
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read [webhooks] ca-file")
	}
	_, err = w.roots()
	return err
}

func (s *Server) openWebhooks(context.Context) error {
	allow, err := s.c.sections.Webhooks.networks()
	if err != nil {
		return err
	}
	roots, err := s.c.sections.Webhooks.roots()
	if err != nil {
		return err
	}
	s.webhooks = webhook.New(webhook.Deps{
		Store: s.store, Door: s.door, Approvals: s.approvals, People: s.people, Policy: s.force, Seals: s.ring.Subjects(),
		Ledger: s.ring.Origin(), Allow: allow, Roots: roots, Log: s.c.Log,
	})
	return nil
}

// webhookBanners say which systems are told nothing any more.
func (s *Server) webhookBanners(ctx context.Context) (out []notice.Banner, err error) {
	if s.webhooks == nil {
		return nil, nil
	}
	all, err := s.webhooks.List(ctx)
	for _, h := range all {
		if h.State == webhook.StateDisabled {
			out = append(out, notice.Banner{Text: fmt.Sprintf("webhook %s is told nothing any more: %s (handrail webhook resume %s)", h.Name, h.Why, h.Name)})
		}
	}
	return out, err
}

// webhookAlarm is the page that an entry of a webhook causes, if it does: what
// watches this installation from outside may be blind.
func webhookAlarm(e ledger.Recorded) (notice.Event, bool) {
	text := map[ledger.Action]string{
		webhook.ActionDisabled: "a webhook is disabled: it failed for too long", webhook.ActionRemoved: "a webhook was removed",
	}[e.Parsed.Action]
	return notice.Event{Topic: notice.Installation, Group: "admin", Urgency: notice.Paged, Text: text}, text != ""
}
