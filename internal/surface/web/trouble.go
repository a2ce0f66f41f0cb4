package web

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"connectrpc.com/connect"

	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

// faultOf makes a fault of what the API answered. What is not for people
// becomes Internal, without its text.
func faultOf(err error) *fault.Error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return fault.New(fault.Invalid, "cannot take this form: it is larger than %d bytes", tooLarge.Limit)
	}
	var c *connect.Error
	if !errors.As(err, &c) {
		return internal()
	}
	w := handrailv1connect.FaultOf(err)
	f = &fault.Error{Kind: fault.ParseKind(w.GetKind()), Text: w.GetText(), Hint: w.GetHint(), Rule: w.GetRule(), Entry: w.GetEntry()}
	if !connect.IsWireError(err) && f.Kind == fault.Internal || f.Text == "" {
		return internal()
	}
	return f
}

func internal() *fault.Error {
	return fault.New(fault.Internal, "cannot do this: something went wrong inside handrail").
		WithHint("handrail status")
}

// fail answers an error: to a script as JSON, to a part of a page as a bare
// status, to a person as a page that says what, why and what next.
func (v *visit) fail(err error) {
	f := faultOf(err)
	if v.ctx.Err() != nil {
		return // the visitor has left
	}
	if f.Kind == fault.Internal {
		v.site.log.Error("cannot serve a page", "path", v.r.URL.Path, "error", err)
	}
	status := f.Kind.HTTPStatus()
	if status < 400 {
		status = http.StatusInternalServerError
	}
	h := v.w.Header()
	switch {
	case f.Kind == fault.Unauthenticated && v.r.Header.Get("HX-Request") != "":
		h.Set("HX-Refresh", "true") // the whole page goes to the login
		v.w.WriteHeader(http.StatusOK)
	case strings.Contains(v.r.Header.Get("Accept"), "application/json"), strings.Contains(v.r.Header.Get("Accept"), "text/event-stream"):
		h.Set("Content-Type", "application/json")
		v.w.WriteHeader(status)
		_ = v.answer(map[string]string{"kind": f.Kind.String(), "text": f.Text, "hint": f.Hint, "rule": f.Rule, "entry": f.Entry})
	case f.Kind == fault.Unauthenticated && (v.r.Method == http.MethodGet || v.r.Method == http.MethodHead):
		v.dropStale()
		http.Redirect(v.w, v.r, "/login?next="+url.QueryEscape(v.r.URL.RequestURI()), http.StatusSeeOther)
	default:
		h.Set("Cache-Control", "no-store")
		page := v.frame(troubleTitle(f.Kind), "")
		if v.me == nil {
			page.Nav = "bare" // nobody is logged in: nothing to navigate to
		}
		if err := v.render(status, layout(page, troublePage(f, v.back(), v.again(f), cutOff(err)))); err != nil {
			http.Error(v.w, f.Text, status)
		}
	}
}

// dropStale forgets a login that the API no longer knows.
func (v *visit) dropStale() {
	if c, _ := v.ctx.Value(carriedKey{}).(carried); c.login != "" {
		v.site.dropLogin(v.w, v.r)
	}
}

// again is where the same can be tried once more, after what passes by itself;
// what was sent is not sent again.
func (v *visit) again(f *fault.Error) string {
	if f.Kind != fault.Unavailable || v.r.Method != http.MethodGet {
		return ""
	}
	return inside(v.r.URL.RequestURI())
}

// back is where the visitor can go from an error: up one step.
func (v *visit) back() string {
	parts := strings.Split(strings.Trim(v.r.URL.Path, "/"), "/")
	if len(parts) > 1 {
		return "/" + strings.Join(parts[:len(parts)-1], "/")
	}
	return "/"
}

// hostToAsk is the host that a hint would ask for write on: the same can be done
// on its page.
func hostToAsk(hint string) string {
	rest, ok := strings.CutPrefix(hint, "handrail elevate ")
	host, _, _ := strings.Cut(rest, " ")
	if !ok || strings.HasPrefix(host, "-") || host == "HOST" {
		return ""
	}
	return host
}

func troubleTitle(k fault.Kind) string {
	switch k {
	case fault.Invalid:
		return "That cannot be right"
	case fault.Unauthenticated:
		return "Not logged in"
	case fault.Denied:
		return "Refused"
	case fault.NeedsApproval:
		return "A second person must agree"
	case fault.NotFound:
		return "Not found"
	case fault.Conflict:
		return "Something changed in between"
	case fault.Exhausted:
		return "A bound is reached"
	case fault.Unavailable:
		return "Something needed is away"
	}
	return "Something went wrong"
}

func (s *site) notFound(v *visit) error {
	return fault.New(fault.NotFound, "cannot find %s: there is no such page", v.r.URL.EscapedPath())
}
