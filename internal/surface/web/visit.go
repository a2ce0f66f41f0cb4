package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/a-h/templ"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// visit is one request by one visitor.
type visit struct {
	site *site
	w    http.ResponseWriter
	r    *http.Request
	ctx  context.Context // carries the login to the API

	me     *v1.WhoamiResponse // nil before the login
	status *v1.StatusResponse
	nonce  string // set: this page may have one kind of inline style
}

// open wraps a handler that needs no login.
func (s *site) open(h func(*visit) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := s.visit(w, r)
		if err := h(v); err != nil {
			v.fail(err)
		}
	}
}

// page wraps a handler that needs a login. Who is not logged in is sent to
// log in and back.
func (s *site) page(h func(*visit) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := s.visit(w, r)
		err := v.identify()
		if err == nil {
			err = h(v)
		}
		if err != nil {
			v.fail(err)
		}
	}
}

func (s *site) visit(w http.ResponseWriter, r *http.Request) *visit {
	c := carried{source: r.RemoteAddr}
	if cookie, err := r.Cookie(cookieName); err == nil {
		c.login = cookie.Value
	}
	if host, _, err := net.SplitHostPort(c.source); err == nil {
		c.source = host
	}
	return &visit{site: s, w: w, r: r, ctx: context.WithValue(r.Context(), carriedKey{}, c)}
}

func (v *visit) identify() error {
	if c, _ := v.ctx.Value(carriedKey{}).(carried); c.login == "" {
		return fault.New(fault.Unauthenticated, "cannot show this page: nobody is logged in")
	}
	me, err := v.site.logins.Whoami(v.ctx, &v1.WhoamiRequest{})
	if err != nil {
		return err
	}
	status, err := v.site.events.Status(v.ctx, &v1.StatusRequest{})
	if err != nil {
		return err
	}
	v.me, v.status = me, status
	if me.Installation == nil {
		me.Installation = status.GetInstallation()
	}
	return nil
}

// frame is what the layout shows around every page.
type frame struct {
	Title  string
	Nav    string // which entry of the navigation is this page's
	Path   string
	Static string // where the files of this binary are
	Script string // one more module, for pages with an island
	Nonce  string
	Now    time.Time
	Done   string // what the form before did, in words
	Me     *v1.Person
	Inst   *v1.Installation
	Status *v1.StatusResponse
}

func (v *visit) frame(title, nav string) frame {
	f := frame{
		Title: title, Nav: nav, Path: v.r.URL.RequestURI(), Static: v.site.files.path(""),
		Nonce: v.nonce, Now: v.site.now(), Done: doneWords[v.r.URL.Query().Get("ok")],
		Inst: &v1.Installation{Demo: v.site.demo}, Status: &v1.StatusResponse{}, Me: &v1.Person{},
	}
	if v.me != nil {
		f.Me, f.Inst, f.Status = v.me.Person, v.me.Installation, v.status
		if f.Inst == nil {
			f.Inst = &v1.Installation{}
		}
	}
	return f
}

// show renders a whole page.
func (v *visit) show(f frame, body templ.Component) error {
	return v.render(http.StatusOK, layout(f, body))
}

// secret renders a page that shows a secret once: nothing may keep it, and it
// is not compressed, so that its length says nothing.
func (v *visit) secret(f frame, body templ.Component) error {
	v.w.Header().Set("Cache-Control", "no-store")
	return v.render(http.StatusOK, layout(f, body))
}

func (v *visit) render(status int, c templ.Component) error {
	var buf bytes.Buffer
	if err := c.Render(v.ctx, &buf); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot make the page")
	}
	h := v.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Add("Vary", "Accept-Encoding, HX-Request")
	out := visible(buf.Bytes())
	if h.Get("Cache-Control") != "no-store" && len(out) > 1400 && strings.Contains(v.r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		out = pack(out, gzip.BestSpeed)
	}
	v.w.WriteHeader(status)
	_, _ = v.w.Write(out)
	return nil
}

// goOn answers a form: the browser goes to a page, which says what was done.
func (v *visit) goOn(to, done string) error {
	if done != "" {
		u, err := url.Parse(to)
		if err != nil {
			return err
		}
		q := u.Query()
		q.Set("ok", done)
		u.RawQuery = q.Encode()
		to = u.String()
	}
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

// answer writes JSON for a script of ours.
func (v *visit) answer(value any) error {
	v.w.Header().Set("Content-Type", "application/json")
	v.w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(v.w).Encode(value)
}

// take reads JSON from a script of ours.
func (v *visit) take(value any) error {
	if err := json.NewDecoder(v.r.Body).Decode(value); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read what the page sent")
	}
	return nil
}

func (v *visit) form(name string) string { return strings.TrimSpace(v.r.PostFormValue(name)) }

// words splits a field of several words, by space or comma.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' || r == '\r' })
}

// doneWords is what the page after a form says. The URL names the line, so
// that nobody can make a link that puts words into our mouth.
var doneWords = map[string]string{
	"named":         "You have a name. Welcome.",
	"passkey":       "Passkey saved.",
	"approved":      "Approved, and signed with your passkey.",
	"denied":        "Denied. The requester sees your reason.",
	"revoked":       "Revoked. Every process of that grant's sessions is dead.",
	"ended":         "Ended.",
	"reviewed":      "Review closed.",
	"stopped":       "Stopped. Every process of the session is dead.",
	"paused":        "Paused. Nothing in the session runs until somebody resumes it.",
	"resumed":       "Resumed.",
	"locked":        "Locked, everywhere, at once.",
	"locked-agreed": "Locked, everywhere, at once. Grants that they agreed to are still in force: look at them below.",
	"drained":       "Drained: yours until its time is over.",
	"undrained":     "Everybody may open sessions here again.",
	"unlocked":      "Unlocked.",
	"asked":         "Asked. A second person must approve before it takes effect.",
	"set":           "Saved.",
	"bootstrap":     "Bootstrap is over, for good.",
	"broken":        "Break-glass is in force. Everybody sees it, and a review is owed.",
	"confirmed":     "Confirmed. Your terminal goes on now.",
	"synced":        "Read. What the directory says now holds here.",
	"applied":       "In force.",
	"keyed":         "Named. Now, in your terminal: handrail voucher fetch --key FILE.pub",
	"tested":        "Sent, after whatever waits before it. What came back is below.",
	"loggedout":     "Logged out.",
	"host-asked":    "Asked. A second person must approve the host's new settings.",
}
