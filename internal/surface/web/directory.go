package web

import (
	"net/http"
	"net/url"
	"strings"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeDirectory(mux *http.ServeMux) {
	mux.HandleFunc("POST /login/password", s.open(s.passwordLogin))
	mux.HandleFunc("GET /people/{id}/access", s.page(s.personAccess))
	mux.HandleFunc("GET /hosts/{host}/access", s.page(s.hostAccess))
	mux.HandleFunc("POST /directory/sync", s.page(s.directorySync))
}

// passwordLogin logs in with the password that the company's directory knows.
// It goes into one call and is kept nowhere.
func (s *site) passwordLogin(v *visit) error {
	name := v.form("name")
	got, err := s.directory.Login(v.ctx, &v1.DirectoryLoginRequest{Name: name, Password: v.r.PostFormValue("password")})
	if err != nil {
		f := faultOf(err)
		if f.Kind != fault.Unauthenticated && f.Kind != fault.Exhausted {
			return notGet(err)
		}
		page := v.frame("Log in", "bare")
		page.Script = "passkey.js"
		return v.render(f.Kind.HTTPStatus(), layout(page, passwordPage(inside(v.form("next")), name, f.Text)))
	}
	s.setLogin(v.w, v.r, got.LoginToken, got.Expires.AsTime())
	return v.goOn(inside(v.form("next")), "")
}

// mostPeople bounds the page: a company is searched, not scrolled.
const mostPeople = 200

// peopleView is what the page People shows beside the people.
type peopleView struct {
	Directory *v1.DirectoryStatusResponse
	Search    string
	All, Left int // how many there are, and how many of those found are not shown
}

func (s *site) peopleView(v *visit, all []*v1.Person) ([]*v1.Person, peopleView) {
	x := peopleView{All: len(all), Search: strings.TrimSpace(v.r.URL.Query().Get("q"))}
	if got, err := s.directory.Status(v.ctx, &v1.DirectoryStatusRequest{}); err == nil {
		x.Directory = got
	}
	var found []*v1.Person
	word := strings.ToLower(x.Search)
	for _, p := range all {
		if word == "" || strings.Contains(p.Name, word) || p.Id == word || strings.Contains(" "+strings.Join(p.Groups, " ")+" ", " "+word+" ") {
			found = append(found, p)
		}
	}
	if x.Left = len(found) - mostPeople; x.Left > 0 {
		found = found[:mostPeople]
	}
	return found, x
}

func (s *site) directorySync(v *visit) error {
	if _, err := s.directory.Sync(v.ctx, &v1.DirectorySyncRequest{}); err != nil {
		return err
	}
	return v.goOn("/people", "synced")
}

func (s *site) personAccess(v *visit) error {
	selector := strings.TrimSpace(v.r.URL.Query().Get("q"))
	got, err := s.rights.OfPerson(v.ctx, &v1.RightsOfPersonRequest{Person: v.r.PathValue("id"), Selector: selector})
	if err != nil {
		return err
	}
	f := v.frame("What "+got.Name+" can reach", "people")
	return v.show(f, personAccessPage(f, got, selector))
}

func (s *site) hostAccess(v *visit) error {
	got, err := s.rights.OfHost(v.ctx, &v1.RightsOfHostRequest{Host: v.r.PathValue("host")})
	if err != nil {
		return err
	}
	f := v.frame("Who can reach "+got.Name, "hosts")
	return v.show(f, hostAccessPage(f, got))
}

// howWord says how somebody has a right.
func howWord(r *v1.Right) string {
	switch r.How {
	case "standing":
		return "always"
	case "grant":
		return "now, by a grant"
	case "ask":
		return "once others agree"
	}
	return "no"
}

// wayWords is one group and how somebody came into it.
func wayWords(w *v1.GroupWay) string {
	if len(w.Path) == 0 {
		return w.Group
	}
	return w.Group + ", by the directory's " + strings.Join(w.Path, " ← ")
}

// mostNames bounds how many names stand in one cell.
const mostNames = 12

func someNames(names []string) string {
	if len(names) <= mostNames {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:mostNames], ", ") + " and " + itoa(len(names)-mostNames) + " more"
}

// directoryWord says in one line how it stands with the directory.
func directoryWord(d *v1.DirectoryStatusResponse) string {
	switch {
	case d.Version == 0 && d.Failing != "":
		return "It was not read yet: " + d.Failing
	case d.Version == 0:
		return "It is being read for the first time."
	case d.Stale:
		return "The copy is too old to know who left: a grant needs one approver more."
	case d.Failing != "":
		return "It cannot be read now: " + d.Failing
	case d.Mode == "paged":
		return "It is read every so often, as it pushes no changes."
	}
	return "It is followed: a change there is a change here."
}

func heldWords(h *v1.DirectoryHeld) string {
	if h.What == "gains" {
		return itoa(int(h.People)) + " people enter a group that the directory does not give alone"
	}
	return itoa(int(h.People)) + " people are gone or lose groups, too many at once to be believed"
}

func approvalURL(id string) string { return "/approvals/" + url.PathEscape(id) }

func oddName(o *v1.DirectoryOdd) string {
	if o.Name == "" {
		return o.Id
	}
	return o.Name
}
