package oidc_test

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/oidc"
	"handrail.dev/handrail/test/provider"
)

const (
	page   = "http://localhost:4747"
	client = "handrail"
	secret = "a secret of the client, with / + : in it"
)

var key = []byte("a device key")

func seals(t *testing.T) *keyring.Subjects {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "handrail/test"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return ring.Subjects()
}

func ada(more map[string]any) map[string]any {
	claims := map[string]any{"email": "Ada@example.com", "email_verified": true, "preferred_username": "ada"}
	for k, v := range more {
		claims[k] = v
	}
	return claims
}

func start(t *testing.T) *provider.Provider {
	return provider.Start(t, provider.Plan{
		Client: client, Secret: secret, Redirects: []string{page + oidc.PagePath, page + oidc.PastePath, "http://127.0.0.1/handrail"},
		People: provider.People{"1815": ada(nil)},
	})
}

func config(issuer string) oidc.Config {
	return oidc.Config{
		Issuer: issuer, Name: "Example ID", ClientID: client, Secret: keyring.NewSecret([]byte(secret)),
		MailDomains: []string{"example.com"}, GroupsClaim: "groups", Groups: map[string]string{"sre-team": "operator"}, DeviceCode: true,
	}
}

func party(t *testing.T, c oidc.Config) *oidc.Provider {
	t.Helper()
	c, err := c.Complete()
	if err != nil {
		t.Fatal(err)
	}
	return oidc.New(c, oidc.Deps{Seals: seals(t), Page: page})
}

// answer is what the browser brought back.
func answer(ticket string, key []byte, back *url.URL) oidc.Answer {
	q := back.Query()
	return oidc.Answer{Ticket: ticket, Device: key, State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error")}
}

func refused(t *testing.T, err error, kind fault.Kind, what string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: it was taken", what)
		return
	}
	if fault.KindOf(err) != kind || fault.From(err).Hint == "" {
		t.Errorf("%s: %v (%v), hint %q", what, err, fault.KindOf(err), fault.From(err).Hint)
	}
}

func TestARealProviderSaysWhoSomebodyIs(t *testing.T) {
	real := start(t)
	p := party(t, config(real.Issuer))
	real.Set(t, provider.People{"1815": ada(map[string]any{"groups": []string{"sre-team", "admin", "sre-team"}})})
	for name, way := range map[string]struct {
		way      oidc.Way
		redirect string
		key      []byte
	}{
		"page":  {oidc.ToPage, "", nil},
		"loop":  {oidc.ToLoop, "http://127.0.0.1:40404/handrail", key},
		"paste": {oidc.ToPaste, "", key},
	} {
		t.Run(name, func(t *testing.T) {
			asked, err := p.Begin(t.Context(), way.way, way.redirect, way.key)
			if err != nil {
				t.Fatal(err)
			}
			if u, _ := url.Parse(asked.URL); u.Query().Get("code_challenge_method") != "S256" || strings.Contains(asked.URL, "verifier") {
				t.Errorf("asked without PKCE: %s", asked.URL)
			}
			back := provider.NewBrowser(t).Back(asked.URL, "1815")
			who, err := p.Finish(t.Context(), answer(asked.Ticket, way.key, back))
			if err != nil {
				t.Fatal(err)
			}
			if who.Issuer != real.Issuer || who.ID != "1815" || who.Value != "ada" || who.Kind != oidc.Mail || len(who.Groups) != 1 || who.Groups[0] != "operator" || who.Question == "" {
				t.Errorf("%+v", who)
			}
			_, err = p.Finish(t.Context(), answer(asked.Ticket, way.key, back))
			refused(t, err, fault.Unauthenticated, "the same answer again")
		})
	}
}

func TestARealProviderTakesADeviceCode(t *testing.T) {
	real := start(t)
	c, err := config(real.Issuer).Complete()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p := oidc.New(c, oidc.Deps{Seals: seals(t), Page: page, Now: func() time.Time { return now }})
	asked, err := p.DeviceBegin(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, pending, err := p.DevicePoll(t.Context(), asked.Ticket, key); err != nil || pending == 0 {
		t.Fatalf("before it is typed: %v %v", pending, err)
	}
	_, _, err = p.DevicePoll(t.Context(), asked.Ticket, []byte("another key"))
	refused(t, err, fault.Unauthenticated, "another device polls")
	provider.NewBrowser(t).Type(asked.URL, asked.UserCode, "1815", true)
	if _, pending, err := p.DevicePoll(t.Context(), asked.Ticket, key); err != nil || pending == 0 {
		t.Errorf("whoever asks too early asks the provider nothing: %v %v", pending, err)
	}
	now = now.Add(asked.Interval)
	who, _, err := p.DevicePoll(t.Context(), asked.Ticket, key)
	if err != nil || who.ID != "1815" || who.Value != "ada" {
		t.Errorf("%+v %v", who, err)
	}
	now = now.Add(asked.Interval)
	_, _, err = p.DevicePoll(t.Context(), asked.Ticket, key)
	refused(t, err, fault.Unauthenticated, "the same code again")

	if asked, err = p.DeviceBegin(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	provider.NewBrowser(t).Type(asked.URL, asked.UserCode, "1815", false)
	_, _, err = p.DevicePoll(t.Context(), asked.Ticket, key)
	refused(t, err, fault.Unauthenticated, "a code that its person refused")
	if asked, err = p.DeviceBegin(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	_, _, err = p.DevicePoll(t.Context(), asked.Ticket, key)
	refused(t, err, fault.Unauthenticated, "an hour later")
}

func TestWhoCancelsAtTheProviderIsTold(t *testing.T) {
	real := start(t)
	p := party(t, config(real.Issuer))
	asked, err := p.Begin(t.Context(), oidc.ToPage, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	back := provider.NewBrowser(t).Back(asked.URL, "")
	_, err = p.Finish(t.Context(), answer(asked.Ticket, nil, back))
	refused(t, err, fault.Unauthenticated, "a login that was cancelled")
	if strings.Contains(err.Error(), "<b>") {
		t.Errorf("the provider's words are repeated: %v", err)
	}
	real.Stop()
	_, err = p.Finish(t.Context(), oidc.Answer{Ticket: asked.Ticket, State: back.Query().Get("state"), Code: "x", Issuer: real.Issuer})
	refused(t, err, fault.Unavailable, "while it is down")
}
