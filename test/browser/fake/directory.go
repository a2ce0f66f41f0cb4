package fake

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type provider struct {
	handrailv1connect.UnimplementedProviderHandler
}

func (provider) Offer(context.Context, *v1.OfferRequest) (*v1.OfferResponse, error) {
	return &v1.OfferResponse{Password: true}, nil
}

type directories struct {
	handrailv1connect.UnimplementedDirectoriesHandler
	a *API
}

func (d directories) Status(context.Context, *v1.DirectoryStatusRequest) (*v1.DirectoryStatusResponse, error) {
	if d.a.kind != Busy && d.a.kind != Hostile {
		return &v1.DirectoryStatusResponse{}, nil
	}
	out := &v1.DirectoryStatusResponse{
		Configured: true, Host: "ldap.example.com:636", Mode: "pushed", Version: 412, Read: d.a.at(-3 * time.Hour), Confirmed: d.a.at(-2 * time.Hour),
		Seen: d.a.at(-2 * time.Hour), StaleAfter: durationpb.New(time.Hour), Stale: true, Failing: "cannot reach the directory at ldap.example.com:636",
		FailingSince: d.a.at(-2 * time.Hour), People: 4980, Away: 31, OddCount: 2, Login: true,
		Held: []*v1.DirectoryHeld{{What: "losses", State: "asked", Approval: "a-6y1u8i4o", People: 417, Since: d.a.at(-4 * time.Hour)}},
		Odd:  []*v1.DirectoryOdd{{Id: "0f6a5c1e-0000-1000-8000-0123456789ab", Name: "ada", Why: "has the name of somebody who is known here already"}, {Id: "0f6a5c1e-0000-1000-8000-0123456789ac", Why: "has no login name"}},
	}
	if d.a.kind == Hostile {
		out.Odd[0].Name = "a\u202edna\u200b<script>alert(1)</script>"
	}
	return out, nil
}

func (d directories) Login(context.Context, *v1.DirectoryLoginRequest) (*v1.RedeemResponse, error) {
	return nil, wrong(fault.New(fault.Unauthenticated, "cannot log in: that name and password do not belong together here"))
}

type rights struct {
	handrailv1connect.UnimplementedRightsHandler
	a *API
}

func (r rights) list() []*v1.Right {
	path := []string{"ops", "sre", "oncall-of-the-night-shift"}
	if r.a.kind == Hostile {
		path[1] = "s\u202ere<b>"
	}
	return []*v1.Right{
		{Level: "read", How: "standing", Rule: "read-is-standing", Text: "Allowed: reading is standing: everybody who is logged in may open a read session on any host."},
		{Level: "write", How: "grant", Grant: "g-1a6s3d9f", Rule: "write-with-a-grant", Text: "Allowed: write sessions need a grant that is in force on that host.", Ways: []*v1.GroupWay{{Group: "operator", Path: path}}},
		{Level: "sudo", How: "ask", Rule: "ask-for-a-grant", Text: "Allowed: everybody who is logged in may ask for a grant; somebody else decides.", Ways: []*v1.GroupWay{{Group: "developer"}}},
		{Level: "root", How: "no", Rule: "root-owns-the-server", Text: "Refused: root or sudo where the server runs is the whole installation, its keys and its ledger, so nobody is granted it."},
	}
}

func (r rights) OfPerson(context.Context, *v1.RightsOfPersonRequest) (*v1.RightsOfPersonResponse, error) {
	return &v1.RightsOfPersonResponse{Person: "p-ada00000", Name: "ada", Manager: "linus", Groups: []*v1.GroupWay{r.list()[1].Ways[0], {Group: "developer"}},
		Hosts: []*v1.RightsOnHosts{{Hosts: []string{"db-1", "web-1", "web-2"}, Rights: r.list()}, {Hosts: []string{"build-1"}, Rights: r.list()[:1]}}}, nil
}

func (r rights) OfHost(context.Context, *v1.RightsOfHostRequest) (*v1.RightsOfHostResponse, error) {
	return &v1.RightsOfHostResponse{Host: "h-db100000", Name: "db-1", Environment: "production", Scope: "pci",
		People: []*v1.RightsOfPeople{{People: []string{"ada", "linus"}, Rights: r.list()}, {People: []string{"grace"}, Rights: r.list()[:1]}}}, nil
}
