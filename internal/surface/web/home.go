package web

import (
	"net/http"
	"sort"
	"strings"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// home is what the first page shows.
type home struct {
	Hosts     []*v1.Host
	Live      []*v1.Session
	Approvals []*v1.Approval // open
	Mine      []*v1.Grant    // the visitor's, open
	Glass     []*v1.Grant    // break-glass in force, anybody's
	Reviews   []*v1.Grant    // owed
	Shells    bool           // some host can give a shell
	First     *v1.Host       // the host that the tiles use
}

func (s *site) showHome(v *visit) error {
	hosts, err := s.hosts.List(v.ctx, &v1.ListHostsRequest{})
	if err != nil {
		return err
	}
	live, err := s.sessions.List(v.ctx, &v1.ListSessionsRequest{LiveOnly: true})
	if err != nil {
		return err
	}
	h := home{Hosts: hosts.Hosts, Live: live.Sessions}
	// What follows may be refused to some; the page then shows the rest.
	if open, err := s.approvals.List(v.ctx, &v1.ListApprovalsRequest{OpenOnly: true}); err == nil {
		h.Approvals = open.Approvals
	}
	if grants, err := s.grants.List(v.ctx, &v1.ListGrantsRequest{OpenOnly: true}); err == nil {
		h.sort(grants.Grants, v.me.Person.GetId())
	}
	sortHosts(h.Hosts)
	for _, host := range h.Hosts {
		if host.State == "online" && host.Mode != "no-shells" {
			h.Shells = true
			h.First = host // the last is the least dangerous to try things on
		}
	}
	if h.First == nil && len(h.Hosts) > 0 {
		h.First = h.Hosts[0]
	}
	f := v.frame("Home", "home")
	return v.show(f, homePage(f, h))
}

func (h *home) sort(grants []*v1.Grant, me string) {
	for _, g := range grants {
		switch {
		case g.State == "in-review":
			h.Reviews = append(h.Reviews, g)
		case g.Kind == "break-glass":
			h.Glass = append(h.Glass, g)
		}
		if g.Person == me && g.State != "in-review" {
			h.Mine = append(h.Mine, g)
		}
	}
}

// decidable is the approvals that wait for this visitor.
func (h home) decidable() []*v1.Approval {
	var mine []*v1.Approval
	for _, a := range h.Approvals {
		if a.MayDecide {
			mine = append(mine, a)
		}
	}
	return mine
}

func (h home) calm() bool {
	return len(h.decidable()) == 0 && len(h.Glass) == 0 && len(h.Reviews) == 0 && len(h.Mine) == 0
}

// sortHosts puts production first, then by name: that is where care is needed.
func sortHosts(hosts []*v1.Host) {
	rank := map[string]int{"production": 0, "staging": 1, "dev": 2}
	sort.SliceStable(hosts, func(i, j int) bool {
		a, b := rank[hosts[i].Environment], rank[hosts[j].Environment]
		if a != b {
			return a < b
		}
		return hosts[i].Name < hosts[j].Name
	})
}

// hit is one line of the palette.
type hit struct{ Icon, Title, Sub, Href string }

// find answers the palette: pages, hosts, sessions and people whose name
// contains what was typed.
func (s *site) find(v *visit) error {
	q := strings.ToLower(strings.TrimSpace(v.r.URL.Query().Get("q")))
	var hits []hit
	add := func(h hit) {
		if len(hits) < 12 && strings.Contains(strings.ToLower(h.Title+" "+h.Sub), q) {
			hits = append(hits, h)
		}
	}
	if hosts, err := s.hosts.List(v.ctx, &v1.ListHostsRequest{}); err == nil && q != "" {
		sortHosts(hosts.Hosts)
		for _, h := range hosts.Hosts {
			add(hit{"hosts", h.Name, h.Environment + ", " + stateWord(h.State), "/hosts/" + h.Name})
		}
	}
	for _, p := range []hit{
		{"home", "Home", "", "/"}, {"hosts", "Hosts", "", "/hosts"}, {"sessions", "Sessions", "", "/sessions"},
		{"approvals", "Approvals", "", "/approvals"}, {"people", "People", "", "/people"}, {"policy", "Policy", "who may do what, and why", "/policy"},
		{"ledger", "Ledger", "verify, export", "/ledger"}, {"code", "Code from ssh", "", "/code"}, {"key", "Your login and passkeys", "", "/me"},
	} {
		add(p)
	}
	if q != "" {
		if live, err := s.sessions.List(v.ctx, &v1.ListSessionsRequest{Limit: 50}); err == nil {
			for _, x := range live.Sessions {
				add(hit{"sessions", x.PersonName + " on " + x.HostName, x.Id + ", " + x.State, "/sessions/" + x.Id})
			}
		}
		if people, err := s.people.List(v.ctx, &v1.ListPeopleRequest{}); err == nil {
			for _, p := range people.People {
				add(hit{"people", p.Name, groupsOf(p), "/people#" + p.Id})
			}
		}
	}
	return v.render(http.StatusOK, paletteHits(hits))
}
