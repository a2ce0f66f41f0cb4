package web

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// ticketCookie holds what finishes a login at the provider, for one attempt. It
// is Lax, unlike the login itself: the browser comes back from another site.
const (
	ticketCookie = "handrail_provider"
	ticketPath   = "/login/provider"
	ticketFor    = 600 // seconds
)

func (s *site) routeProvider(mux *http.ServeMux) {
	mux.HandleFunc("GET /login/provider", s.open(s.providerBegin))
	mux.HandleFunc("GET /login/provider/back", s.open(s.providerBack))
	mux.HandleFunc("GET /login/provider/paste", s.open(s.providerPaste))
}

// offer is what the login page says of the provider. An installation whose
// provider cannot even be named still shows the other ways in.
func (s *site) offer(v *visit) *v1.OfferResponse {
	offer, err := s.provider.Offer(v.ctx, &v1.OfferRequest{})
	if err != nil {
		return nil
	}
	return offer
}

func (s *site) setTicket(v *visit, value string, age int) {
	http.SetCookie(v.w, &http.Cookie{
		Name: ticketCookie, Value: value, Path: ticketPath, MaxAge: age,
		HttpOnly: true, Secure: s.secure(v.r), SameSite: http.SameSiteLaxMode,
	})
}

// providerBegin sends the browser to the provider.
func (s *site) providerBegin(v *visit) error {
	asked, err := s.provider.Begin(v.ctx, &v1.ProviderBeginRequest{Way: v1.Way_WAY_PAGE})
	if err != nil {
		return err
	}
	next := base64.RawURLEncoding.EncodeToString([]byte(inside(v.r.URL.Query().Get("next"))))
	if len(next) > 1024 {
		next = ""
	}
	s.setTicket(v, asked.Ticket+"."+next, ticketFor)
	v.w.Header().Set("Cache-Control", "no-store")
	http.Redirect(v.w, v.r, asked.Url, http.StatusSeeOther)
	return nil
}

// providerBack takes the browser back. Whatever it brings, the ticket is spent.
func (s *site) providerBack(v *visit) error {
	v.w.Header().Set("Cache-Control", "no-store")
	var ticket, next string
	if c, err := v.r.Cookie(ticketCookie); err == nil {
		ticket, next, _ = strings.Cut(c.Value, ".")
		s.setTicket(v, "", -1)
	}
	q := v.r.URL.Query()
	got, err := s.provider.Finish(v.ctx, &v1.ProviderFinishRequest{
		Ticket: ticket, State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error"),
	})
	if err != nil {
		return notGet(err)
	}
	s.setLogin(v.w, v.r, got.LoginToken, got.Expires.AsTime())
	to := "/"
	if raw, err := base64.RawURLEncoding.DecodeString(next); err == nil {
		to = inside(string(raw))
	}
	// A redirect would still be the provider's navigation, and go without the
	// login's strict cookie: the next page is asked for by this one.
	v.w.Header().Set("Refresh", "0; url="+to)
	return v.render(http.StatusOK, layout(v.frame("Logged in", "bare"), providerIn(got.Person.GetName(), to)))
}

// notGet keeps an error from being answered by the login page without a word:
// who came from there wants to know why.
func notGet(err error) error {
	f := faultOf(err)
	if f.Kind == fault.Unauthenticated {
		f = fault.New(fault.Denied, "%s", f.Text).WithHint("%s", f.Hint)
	}
	return f
}

// pasted is what the page shows and a terminal takes.
const pasted = "hrp_"

// providerPaste shows what goes into a terminal on another machine. It is worth
// nothing without the ticket that is there.
func (s *site) providerPaste(v *visit) error {
	q := v.r.URL.Query()
	text := pasted + base64.RawURLEncoding.EncodeToString([]byte(url.Values{
		"state": {q.Get("state")}, "code": {q.Get("code")}, "iss": {q.Get("iss")}, "error": {q.Get("error")},
	}.Encode()))
	return v.secret(v.frame("Paste into your terminal", "bare"), providerPastePage(text, len(text) <= 8<<10))
}

// serverOf is host:port of a page's address, as commands dial it.
func serverOf(page string) string {
	_, rest, ok := strings.Cut(page, "://")
	if !ok {
		return page
	}
	return strings.TrimSuffix(rest, "/")
}
