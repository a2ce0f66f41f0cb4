package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeHosts(mux *http.ServeMux) {
	mux.HandleFunc("GET /hosts", s.page(s.showHosts))
	mux.HandleFunc("POST /hosts/invite", s.page(s.invite))
	mux.HandleFunc("GET /hosts/{host}", s.page(s.showHost))
	mux.HandleFunc("POST /hosts/{host}/open", s.page(s.openSession))
	mux.HandleFunc("POST /hosts/{host}/elevate", s.page(s.elevate))
	mux.HandleFunc("POST /hosts/{host}/break-glass", s.page(s.breakGlass))
	mux.HandleFunc("POST /hosts/{host}/set", s.page(s.setHost))
	mux.HandleFunc("GET /palette", s.page(s.find))
}

func (s *site) showHosts(v *visit) error {
	selector := strings.TrimSpace(v.r.URL.Query().Get("q"))
	f := v.frame("Hosts", "hosts")
	got, err := s.hosts.List(v.ctx, &v1.ListHostsRequest{Selector: selector})
	if err != nil {
		if faultOf(err).Kind != fault.Invalid {
			return err
		}
		return v.show(f, hostsPage(f, nil, selector, faultOf(err).Text)) // half a selector, while typing
	}
	sortHosts(got.Hosts)
	return v.show(f, hostsPage(f, got.Hosts, selector, ""))
}

// hostView is what the page of one host shows.
type hostView struct {
	Get      *v1.GetHostResponse
	Host     *v1.Host
	Facts    []*v1.Fact // those that people look for
	Rest     []*v1.Fact
	Sessions []*v1.Session
	Grants   []*v1.Grant // open ones that name this host
	Grant    *v1.Grant   // the visitor's, in force
}

func (s *site) showHost(v *visit) error {
	name := v.r.PathValue("host")
	got, err := s.hosts.Get(v.ctx, &v1.GetHostRequest{Host: name})
	if err != nil {
		f := faultOf(err)
		if f.Kind == fault.NotFound && f.Hint == "" {
			f.Hint = "handrail hosts"
		}
		return f
	}
	x := hostView{Get: got, Host: got.Host}
	x.Facts, x.Rest = sortFacts(together(got.Host.Facts))
	if list, err := s.sessions.List(v.ctx, &v1.ListSessionsRequest{Host: got.Host.Id, Limit: 12}); err == nil {
		x.Sessions = list.Sessions
	}
	if list, err := s.grants.List(v.ctx, &v1.ListGrantsRequest{OpenOnly: true}); err == nil {
		for _, g := range list.Grants {
			for _, t := range g.Targets {
				if t.Id == got.Host.Id {
					x.Grants = append(x.Grants, g)
				}
			}
			if g.Id == got.Grant && got.Grant != "" {
				x.Grant = g
			}
		}
	}
	f := v.frame(got.Host.Name, "hosts")
	return v.show(f, hostPage(f, x))
}

// openSession starts a session and shows its page at once, with the one-use
// ticket in it; the script then gives the page its own address.
func (s *site) openSession(v *visit) error {
	lvl := v.form("level")
	if lvl != "write" {
		lvl = "read" // the level is always chosen, and less is the default
	}
	got, err := s.sessions.Open(v.ctx, &v1.OpenSessionRequest{
		Host: v.r.PathValue("host"), Level: lvl, Pty: true, Term: "xterm-256color",
		Columns: cells(v.form("columns"), 100), Rows: cells(v.form("rows"), 30),
	})
	if err != nil {
		f := faultOf(err)
		if f.Hint == "" && lvl == "write" && f.Kind == fault.Denied {
			f.Hint = fmt.Sprintf("handrail elevate %s --reason \"…\" --for 30m", v.r.PathValue("host"))
		}
		return f
	}
	return s.terminal(v, &v1.GetSessionResponse{Session: got.Session, MayControl: true, MayReplay: true}, "own", got.Ticket)
}

func cells(s string, otherwise uint32) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 2 || n > 1000 {
		return otherwise
	}
	return uint32(n)
}

func (s *site) elevate(v *visit) error {
	host := v.r.PathValue("host")
	length, err := time.ParseDuration(v.form("for"))
	if err != nil || length <= 0 {
		return fault.New(fault.Invalid, "cannot ask for %q: not a length of time such as 30m", v.form("for"))
	}
	got, err := s.grants.Elevate(v.ctx, &v1.ElevateRequest{
		Hosts: []string{host}, Reason: v.form("reason"), Ticket: v.form("ticket"), For: durationpb.New(length),
		Sudo: v.form("power") == "sudo", Root: v.form("power") == "root", Forwards: words(v.form("forwards")), RequestId: v.form("request"),
	})
	if err != nil {
		return err
	}
	if got.Approval == "" {
		return v.goOn("/grants/"+got.Id, "")
	}
	return v.goOn("/approvals/"+got.Approval, "")
}

func (s *site) breakGlass(v *visit) error {
	host := v.r.PathValue("host")
	if v.form("sure") != host {
		return fault.New(fault.Invalid, "cannot break the glass on %s: the name typed to confirm was %q", host, v.form("sure"))
	}
	got, err := s.grants.BreakGlass(v.ctx, &v1.BreakGlassRequest{
		Hosts: []string{host}, Reason: v.form("reason"), RequestId: v.form("request"),
		Sudo: v.form("power") == "sudo", Root: v.form("power") == "root",
	})
	if err != nil {
		return err
	}
	return v.goOn("/grants/"+got.Id, "broken")
}

func (s *site) setHost(v *visit) error {
	host, env, scope := v.r.PathValue("host"), v.form("environment"), v.form("scope")
	got, err := s.hosts.Set(v.ctx, &v1.SetHostRequest{
		Host: host, Environment: &env, Scope: &scope,
		Services: words(v.form("services")), SetServices: true, Labels: words(v.form("labels")), SetLabels: true,
	})
	if err != nil {
		return err
	}
	if got.Approval != "" {
		return v.goOn("/approvals/"+got.Approval, "host-asked")
	}
	return v.goOn("/hosts/"+url.PathEscape(host), "set")
}

func (s *site) invite(v *visit) error {
	got, err := s.hosts.Invite(v.ctx, &v1.InviteRequest{
		Name: v.form("name"), Environment: v.form("environment"), Scope: v.form("scope"), Services: words(v.form("services")),
	})
	if err != nil {
		return err
	}
	if got.Approval != "" {
		return v.goOn("/approvals/"+got.Approval, "asked")
	}
	f := v.frame("Invite a host", "hosts")
	return v.secret(f, invitePage(f, got))
}
