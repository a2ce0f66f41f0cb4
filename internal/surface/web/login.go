package web

import (
	"net/http"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// showLogin shows the way in. With a token it only offers the one click that
// uses it: programs that preview links fetch them, and must not use it up.
func (s *site) showLogin(v *visit) error {
	q := v.r.URL.Query()
	v.w.Header().Set("Cache-Control", "no-store")
	f := v.frame("Log in", "bare")
	f.Script = "passkey.js"
	if token := q.Get("t"); token != "" {
		return v.render(http.StatusOK, layout(f, loginLink(token, inside(q.Get("next")))))
	}
	return v.render(http.StatusOK, layout(f, loginPage(inside(q.Get("next")), f.Done, s.offer(v))))
}

// loginState answers whether this browser is logged in: a link followed from
// another site arrives without the cookie (SameSite=Strict), so the login page
// asks before it bothers anybody.
func (s *site) loginState(v *visit) error {
	return v.answer(map[string]bool{"in": v.identify() == nil})
}

func (s *site) redeem(v *visit) error {
	token := v.form("t")
	if token == "" {
		return fault.New(fault.Invalid, "cannot log in: the link has no token").WithHint("handrail login-link")
	}
	got, err := s.logins.Redeem(v.ctx, &v1.RedeemRequest{Token: token})
	if err != nil {
		f := faultOf(err)
		if f.Hint == "" {
			f.Hint = "handrail login-link"
		}
		return f
	}
	s.setLogin(v.w, v.r, got.LoginToken, got.Expires.AsTime())
	if !hasKind(got.Person, "passkey") {
		return v.goOn("/welcome", "")
	}
	return v.goOn(inside(v.form("next")), "")
}

// showWelcome asks the first person for a name, and everybody without one for
// a passkey. Nothing else.
func (s *site) showWelcome(v *visit) error {
	f := v.frame("Welcome", "bare")
	f.Script = "passkey.js"
	first := f.Inst.Bootstrap && f.Status.People <= 1 && v.r.URL.Query().Get("step") == "" && !hasKind(f.Me, "passkey")
	if first {
		return v.show(f, welcomeName(f))
	}
	return v.show(f, welcomePasskey(f))
}

func (s *site) setName(v *visit) error {
	if _, err := s.logins.SetName(v.ctx, &v1.SetNameRequest{Name: v.form("name")}); err != nil {
		f := faultOf(err)
		if f.Kind != fault.Invalid {
			return f
		}
		page := v.frame("Welcome", "bare")
		return v.render(http.StatusBadRequest, layout(page, welcomeNameAgain(page, v.form("name"), f.Text)))
	}
	return v.goOn("/welcome?step=passkey", "")
}

func (s *site) logout(v *visit) error {
	if _, err := s.logins.Logout(v.ctx, &v1.LogoutRequest{}); err != nil {
		return err
	}
	s.dropLogin(v.w, v.r)
	return v.goOn("/login", "loggedout")
}

func (s *site) showMe(v *visit) error {
	f := v.frame("Your login", "me")
	f.Script = "passkey.js"
	return v.show(f, mePage(f, v.me, s.offer(v)))
}

// ceremony is a WebAuthn exchange: what the browser is given, and what it
// sends back.
type ceremony struct {
	Options  string `json:"options,omitempty"`
	Ceremony string `json:"ceremony"`
	Response string `json:"response,omitempty"`
	Name     string `json:"name,omitempty"`
	Hash     string `json:"hash,omitempty"` // of the request, as the approver saw it
	Next     string `json:"next,omitempty"`
}

func (s *site) passkeyBegin(v *visit) error {
	got, err := s.logins.PasskeyBegin(v.ctx, &v1.PasskeyBeginRequest{})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Options: got.OptionsJson, Ceremony: got.Ceremony})
}

func (s *site) passkeyFinish(v *visit) error {
	var c ceremony
	if err := v.take(&c); err != nil {
		return err
	}
	if c.Name == "" {
		c.Name = "passkey of " + s.now().UTC().Format(time.DateOnly)
	}
	_, err := s.logins.PasskeyFinish(v.ctx, &v1.PasskeyFinishRequest{Ceremony: c.Ceremony, ResponseJson: c.Response, Name: c.Name})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Next: "/?ok=passkey"})
}

func (s *site) passkeyLoginBegin(v *visit) error {
	got, err := s.logins.PasskeyLoginBegin(v.ctx, &v1.PasskeyLoginBeginRequest{})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Options: got.OptionsJson, Ceremony: got.Ceremony})
}

func (s *site) passkeyLoginFinish(v *visit) error {
	var c ceremony
	if err := v.take(&c); err != nil {
		return err
	}
	got, err := s.logins.PasskeyLoginFinish(v.ctx, &v1.PasskeyLoginFinishRequest{Ceremony: c.Ceremony, ResponseJson: c.Response})
	if err != nil {
		return err
	}
	s.setLogin(v.w, v.r, got.LoginToken, got.Expires.AsTime())
	return v.answer(ceremony{Next: inside(c.Next)})
}
