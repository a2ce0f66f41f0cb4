package web

import (
	"context"
	"net/http"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routePeople(mux *http.ServeMux) {
	mux.HandleFunc("GET /people", s.page(s.showPeople))
	mux.HandleFunc("POST /people", s.page(s.addPerson))
	mux.HandleFunc("POST /people/{id}/link", s.page(s.personLink))
	mux.HandleFunc("POST /people/{id}/lock", s.open(s.lockPerson))
	mux.HandleFunc("POST /people/{id}/unlock", s.page(s.unlockPerson))
	mux.HandleFunc("POST /bootstrap/end", s.page(s.endBootstrap))
	mux.HandleFunc("GET /code", s.page(s.showCode))
	mux.HandleFunc("POST /code", s.page(s.lookUpCode))
	mux.HandleFunc("POST /code/confirm", s.page(s.confirmCode))
}

func (s *site) showPeople(v *visit) error {
	got, err := s.people.List(v.ctx, &v1.ListPeopleRequest{})
	if err != nil {
		return err
	}
	f := v.frame("People", "people")
	shown, x := s.peopleView(v, got.People)
	return v.show(f, peoplePage(f, shown, x))
}

// newLink is what the page that shows a login link once shows.
type newLink struct {
	Name    string
	Link    string
	Token   string
	Expires string
}

func (s *site) addPerson(v *visit) error {
	got, err := s.people.Add(v.ctx, &v1.AddPersonRequest{Name: v.form("name"), Groups: words(v.form("groups")), RequestId: v.form("request")})
	if err != nil {
		return err
	}
	if got.Approval != "" {
		return v.goOn("/approvals/"+got.Approval, "asked")
	}
	f := v.frame("A link for "+got.Person.GetName(), "people")
	x := newLink{Name: got.Person.GetName(), Link: got.Link, Token: got.Token}
	if set(got.TokenExpires) {
		x.Expires = ago(got.TokenExpires.AsTime(), s.now())
	}
	return v.secret(f, linkPage(f, x))
}

func (s *site) personLink(v *visit) error {
	got, err := s.people.LoginLink(v.ctx, &v1.LoginLinkRequest{Person: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	if got.Approval != "" {
		return v.goOn("/approvals/"+got.Approval, "asked")
	}
	f := v.frame("A link for "+v.form("name"), "people")
	x := newLink{Name: v.form("name"), Link: got.Link, Token: got.Token}
	if set(got.TokenExpires) {
		x.Expires = ago(got.TokenExpires.AsTime(), s.now())
	}
	return v.secret(f, linkPage(f, x))
}

func (s *site) lockPerson(v *visit) error {
	if _, err := s.people.Lock(v.ctx, &v1.LockRequest{Person: v.r.PathValue("id"), Reason: v.form("reason")}); err != nil {
		return err
	}
	if s.stillAgreed(v, v.r.PathValue("id")) {
		return v.goOn("/approvals", "locked-agreed")
	}
	return v.braked("/people", "locked")
}

// stillAgreed says whether a grant is in force that this person agreed to: a
// lock does not end it, so whoever locks is shown the grants.
func (s *site) stillAgreed(v *visit, person string) bool {
	ctx, cancel := context.WithTimeout(v.ctx, pagePatience)
	defer cancel()
	got, err := s.grants.List(ctx, &v1.ListGrantsRequest{InForce: true, AgreedBy: person})
	return err == nil && len(got.Grants) > 0
}

func (s *site) unlockPerson(v *visit) error {
	got, err := s.people.Unlock(v.ctx, &v1.UnlockRequest{Person: v.r.PathValue("id"), Reason: v.form("reason")})
	if err != nil {
		return err
	}
	if got.Approval != "" {
		return v.goOn("/approvals/"+got.Approval, "asked")
	}
	return v.goOn("/people", "unlocked")
}

func (s *site) endBootstrap(v *visit) error {
	if _, err := s.people.EndBootstrap(v.ctx, &v1.EndBootstrapRequest{}); err != nil {
		return err
	}
	return v.goOn("/people", "bootstrap")
}

func (s *site) showCode(v *visit) error {
	f := v.frame("Code from ssh", "code")
	return v.show(f, codePage(f, v.r.URL.Query().Get("code"), ""))
}

// lookUpCode shows what the code is for before anything is confirmed: a code
// sent by a stranger shows the stranger's address.
func (s *site) lookUpCode(v *visit) error {
	code := v.form("code")
	f := v.frame("Code from ssh", "code")
	got, err := s.logins.CodeShow(v.ctx, &v1.CodeShowRequest{Code: code})
	if err != nil {
		wrong := faultOf(err)
		if status := wrong.Kind.HTTPStatus(); status == http.StatusBadRequest || status == http.StatusNotFound {
			return v.render(status, layout(f, codePage(f, code, wrong.Text)))
		}
		return err
	}
	return v.secret(f, codeConfirmPage(f, code, got))
}

func (s *site) confirmCode(v *visit) error {
	if _, err := s.logins.CodeConfirm(v.ctx, &v1.CodeConfirmRequest{Code: v.form("code")}); err != nil {
		return err
	}
	return v.goOn("/", "confirmed")
}
