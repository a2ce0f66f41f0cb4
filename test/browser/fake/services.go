package fake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type logins struct {
	handrailv1connect.UnimplementedLoginsHandler
	a *API
}

func (l logins) login(p *v1.Person) *v1.RedeemResponse {
	return &v1.RedeemResponse{LoginToken: Token(p.Name), Expires: l.a.at(8 * time.Hour), Person: copyOf(p), SshAddress: l.a.install.SshAddress}
}

func (l logins) Redeem(_ context.Context, r *v1.RedeemRequest) (*v1.RedeemResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	p := l.a.person(strings.TrimPrefix(r.Token, Link("")))
	if p == nil {
		return nil, wrong(fault.New(fault.Unauthenticated, "cannot log in: this link is wrong, or too old").WithHint("handrail login-link"))
	}
	if l.a.redeemed[r.Token] {
		return nil, wrong(fault.New(fault.Conflict, "cannot log in: this link was used already").WithHint("handrail login-link"))
	}
	l.a.redeemed[r.Token] = true
	return l.login(p), nil
}

func (l logins) Whoami(ctx context.Context, _ *v1.WhoamiRequest) (*v1.WhoamiResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	return &v1.WhoamiResponse{Person: copyOf(l.a.person(self(ctx))), Expires: l.a.at(7*time.Hour + 40*time.Minute), Installation: copyOf(l.a.install), Via: "browser"}, nil
}

func (l logins) Logout(context.Context, *v1.LogoutRequest) (*v1.LogoutResponse, error) {
	return &v1.LogoutResponse{}, nil
}

func (l logins) SetName(ctx context.Context, r *v1.SetNameRequest) (*v1.SetNameResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	if r.Name == "" || r.Name[0] < 'a' || r.Name[0] > 'z' {
		return nil, wrong(fault.New(fault.Invalid, "cannot take the name %q: a small letter must come first", r.Name))
	}
	// The story's bearer tokens name people, so this one keeps its name and
	// only the test sees the answer.
	p := l.a.person(self(ctx))
	return &v1.SetNameResponse{Person: &v1.Person{Id: p.Id, Name: r.Name, Groups: p.Groups}}, nil
}

const challenge = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k"

func (l logins) PasskeyBegin(ctx context.Context, _ *v1.PasskeyBeginRequest) (*v1.PasskeyBeginResponse, error) {
	return &v1.PasskeyBeginResponse{Ceremony: "c-1", OptionsJson: `{"publicKey":{"rp":{"id":"localhost","name":"handrail"},"user":{"id":"cC03azNmOXEybQ","name":"ada","displayName":"ada"},"challenge":"` + challenge + `","pubKeyCredParams":[{"type":"public-key","alg":-7},{"type":"public-key","alg":-257}],"authenticatorSelection":{"residentKey":"required","userVerification":"required"}}}`}, nil
}

func (l logins) PasskeyFinish(ctx context.Context, r *v1.PasskeyFinishRequest) (*v1.PasskeyFinishResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	if !strings.Contains(r.ResponseJson, "attestationObject") {
		return nil, wrong(fault.New(fault.Invalid, "cannot enrol the passkey: the browser's answer is not one"))
	}
	c := &v1.Credential{Id: "k-9", Kind: "passkey", Name: r.Name, Created: l.a.at(0), MayApproveFrom: l.a.at(0)}
	p := l.a.person(self(ctx))
	p.Credentials = append(p.Credentials, c)
	return &v1.PasskeyFinishResponse{Credential: copyOf(c)}, nil
}

func (l logins) PasskeyLoginBegin(context.Context, *v1.PasskeyLoginBeginRequest) (*v1.PasskeyLoginBeginResponse, error) {
	return &v1.PasskeyLoginBeginResponse{Ceremony: "c-2", OptionsJson: `{"publicKey":{"rpId":"localhost","challenge":"` + challenge + `","userVerification":"required"}}`}, nil
}

func (l logins) PasskeyLoginFinish(_ context.Context, r *v1.PasskeyLoginFinishRequest) (*v1.RedeemResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	if !strings.Contains(r.ResponseJson, "signature") {
		return nil, wrong(fault.New(fault.Unauthenticated, "cannot log in: the passkey did not sign"))
	}
	return l.login(l.a.people[0]), nil
}

func (l logins) CodeShow(_ context.Context, r *v1.CodeShowRequest) (*v1.CodeShowResponse, error) {
	if strings.ToUpper(r.Code) != "7K3F-9Q2M" {
		return nil, wrong(fault.New(fault.NotFound, "cannot find the code %q: it is wrong, used or older than five minutes", r.Code))
	}
	return &v1.CodeShowResponse{SourceAddress: "10.9.0.31", Target: "web-1", Level: "read", KeyFingerprint: "SHA256:kq0n8h2Jc1xk9VfTn3Pz7Qm4aB2c", Expires: l.a.at(4 * time.Minute)}, nil
}

func (l logins) CodeConfirm(context.Context, *v1.CodeConfirmRequest) (*v1.CodeConfirmResponse, error) {
	return &v1.CodeConfirmResponse{}, nil
}

type hosts struct {
	handrailv1connect.UnimplementedHostsHandler
	a *API
}

func (h hosts) List(_ context.Context, r *v1.ListHostsRequest) (*v1.ListHostsResponse, error) {
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	out := &v1.ListHostsResponse{}
	for _, x := range h.a.hosts {
		if strings.Contains(x.Name, strings.Trim(r.Selector, "*")) {
			out.Hosts = append(out.Hosts, copyOf(x))
		}
	}
	return out, nil
}

func (h hosts) Get(_ context.Context, r *v1.GetHostRequest) (*v1.GetHostResponse, error) {
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	x := h.a.host(r.Host)
	if x == nil {
		return nil, notFound("host", r.Host, "handrail hosts")
	}
	out := &v1.GetHostResponse{Host: copyOf(x), MayRead: true, MayReadWhy: "read is standing"}
	if x.Name == "staging-1" {
		out.MayWrite, out.Grant = true, "g-1a6s3d9f"
	}
	return out, nil
}

func (h hosts) Invite(_ context.Context, r *v1.InviteRequest) (*v1.InviteResponse, error) {
	return &v1.InviteResponse{Token: "hr1.bG9jYWxob3N0.sha256x.secret", Command: "handrail join", Expires: h.a.at(time.Hour)}, nil
}

func (h hosts) Set(_ context.Context, r *v1.SetHostRequest) (*v1.SetHostResponse, error) {
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	x := h.a.host(r.Host)
	x.Environment, x.Scope, x.Services, x.Labels = r.GetEnvironment(), r.GetScope(), r.Services, r.Labels
	h.a.changed("hosts")
	return &v1.SetHostResponse{Host: copyOf(x)}, nil
}

type grants struct {
	handrailv1connect.UnimplementedGrantsHandler
	a *API
}

func (g grants) List(_ context.Context, r *v1.ListGrantsRequest) (*v1.ListGrantsResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	return &v1.ListGrantsResponse{Grants: slices.DeleteFunc(copies(g.a.grants), func(x *v1.Grant) bool {
		agreed := r.AgreedBy == "" || slices.ContainsFunc(x.Decisions, func(d *v1.Decision) bool {
			return d.Counts && (d.Person == r.AgreedBy || d.PersonName == r.AgreedBy)
		})
		return !agreed || r.InForce && x.State != "active" && x.State != "paused"
	})}, nil
}

func (g grants) one(id string) *v1.Grant {
	for _, x := range g.a.grants {
		if x.Id == id {
			return x
		}
	}
	return nil
}

func (g grants) Get(_ context.Context, r *v1.GetGrantRequest) (*v1.GetGrantResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	x := g.one(r.Id)
	if x == nil {
		return nil, notFound("grant", r.Id, "handrail requests")
	}
	return &v1.GetGrantResponse{Grant: copyOf(x)}, nil
}

func (g grants) Elevate(ctx context.Context, r *v1.ElevateRequest) (*v1.ElevateResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	if len(strings.Fields(r.Reason)) == 0 {
		return nil, wrong(fault.New(fault.Invalid, "cannot ask without a reason: say what is wrong").WithHint("handrail elevate %s --reason \"…\"", r.Hosts[0]))
	}
	return &v1.ElevateResponse{Id: "g-5v2b7n3m", Approval: "a-6y1u8i4o", Approvers: []string{"grace"}}, nil
}

func (g grants) BreakGlass(context.Context, *v1.BreakGlassRequest) (*v1.BreakGlassResponse, error) {
	return &v1.BreakGlassResponse{Id: "g-8d3f1k6q"}, nil
}

func (g grants) Revoke(_ context.Context, r *v1.RevokeRequest) (*v1.RevokeResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	x := g.one(r.Id)
	x.State, x.EndedWhy = "ended", "revoked"
	g.a.changed("grants")
	return &v1.RevokeResponse{Grant: copyOf(x), SessionsKilled: 1}, nil
}

func (g grants) Done(_ context.Context, r *v1.DoneRequest) (*v1.DoneResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	g.one(r.Id).State = "ended"
	return &v1.DoneResponse{}, nil
}

func (g grants) Review(_ context.Context, r *v1.ReviewRequest) (*v1.ReviewResponse, error) {
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	g.one(r.Id).State = "closed"
	return &v1.ReviewResponse{}, nil
}

type approvals struct {
	handrailv1connect.UnimplementedApprovalsHandler
	a *API
}

func (p approvals) one(id string) *v1.Approval {
	for _, x := range p.a.approvals {
		if x.Id == id || x.Subject == id {
			return x
		}
	}
	return nil
}

func (p approvals) List(_ context.Context, r *v1.ListApprovalsRequest) (*v1.ListApprovalsResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	out := &v1.ListApprovalsResponse{}
	for _, x := range p.a.approvals {
		if !r.OpenOnly || x.State == "requested" {
			out.Approvals = append(out.Approvals, copyOf(x))
		}
	}
	return out, nil
}

func (p approvals) Get(_ context.Context, r *v1.GetApprovalRequest) (*v1.GetApprovalResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	x := p.one(r.Id)
	if x == nil {
		return nil, notFound("request", r.Id, "handrail requests")
	}
	return &v1.GetApprovalResponse{Approval: copyOf(x)}, nil
}

func (p approvals) SignBegin(_ context.Context, r *v1.SignBeginRequest) (*v1.SignBeginResponse, error) {
	return &v1.SignBeginResponse{Ceremony: "c-3", OptionsJson: `{"publicKey":{"rpId":"localhost","challenge":"` + challenge + `","userVerification":"required"}}`}, nil
}

func (p approvals) Approve(ctx context.Context, r *v1.ApproveRequest) (*v1.ApproveResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	x := p.one(r.Id)
	if string(x.SubjectHash) != string(r.SubjectHash) {
		return nil, wrong(fault.New(fault.Conflict, "cannot approve %s: the request changed since you looked", r.Id).WithHint("handrail requests"))
	}
	if !strings.Contains(r.ResponseJson, "signature") {
		return nil, wrong(fault.New(fault.Denied, "cannot approve %s: nobody signed", r.Id))
	}
	me := p.a.person(self(ctx))
	x.State, x.MayDecide, x.Agreed = "approved", false, x.Agreed+1
	x.Decisions = append(x.Decisions, &v1.Decision{Person: me.Id, PersonName: me.Name, Verdict: "approved", At: p.a.at(0), SignedBy: "passkey", Counts: true})
	p.a.changed("approvals")
	return &v1.ApproveResponse{Approval: copyOf(x)}, nil
}

func (p approvals) Deny(ctx context.Context, r *v1.DenyRequest) (*v1.DenyResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	x, me := p.one(r.Id), p.a.person(self(ctx))
	x.State, x.MayDecide = "denied", false
	x.Decisions = append(x.Decisions, &v1.Decision{Person: me.Id, PersonName: me.Name, Verdict: "denied", Reason: r.Reason, At: p.a.at(0)})
	p.a.changed("approvals")
	return &v1.DenyResponse{}, nil
}

type people struct {
	handrailv1connect.UnimplementedPeopleHandler
	a *API
}

func (p people) List(ctx context.Context, _ *v1.ListPeopleRequest) (*v1.ListPeopleResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	return &v1.ListPeopleResponse{People: copies(p.a.people)}, nil
}

func (p people) Add(_ context.Context, r *v1.AddPersonRequest) (*v1.AddPersonResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if p.a.person(r.Name) != nil {
		return nil, wrong(fault.New(fault.Conflict, "cannot add %s: there is somebody of that name", r.Name).WithHint("handrail people"))
	}
	x := &v1.Person{Id: fmt.Sprintf("p-new%05d", len(p.a.people)), Name: r.Name, Groups: r.Groups, Created: p.a.at(0)}
	p.a.people = append(p.a.people, x)
	p.a.changed("people")
	return &v1.AddPersonResponse{Person: copyOf(x), Token: "hr1.bG9jYWxob3N0.Vf3kq0n8.secret", Link: "http://localhost:8080/login?t=" + Link(r.Name), TokenExpires: p.a.at(time.Hour)}, nil
}

func (p people) LoginLink(_ context.Context, r *v1.LoginLinkRequest) (*v1.LoginLinkResponse, error) {
	return &v1.LoginLinkResponse{Token: "hr1.bG9jYWxob3N0.Vf3kq0n8.secret", Link: "http://localhost:8080/login?t=other", TokenExpires: p.a.at(time.Hour)}, nil
}

func (p people) Lock(_ context.Context, r *v1.LockRequest) (*v1.LockResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	x := p.a.person(r.Person)
	x.Locked, x.LockedReason = p.a.at(0), r.Reason
	p.a.changed("people")
	return &v1.LockResponse{Person: copyOf(x)}, nil
}

func (p people) Unlock(context.Context, *v1.UnlockRequest) (*v1.UnlockResponse, error) {
	return &v1.UnlockResponse{Approval: "a-2q9w4e1r"}, nil
}

func (p people) EndBootstrap(context.Context, *v1.EndBootstrapRequest) (*v1.EndBootstrapResponse, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	p.a.install.Bootstrap = false
	p.a.changed("installation")
	return &v1.EndBootstrapResponse{}, nil
}

type events struct {
	handrailv1connect.UnimplementedEventsHandler
	a *API
}

func (e events) Status(context.Context, *v1.StatusRequest) (*v1.StatusResponse, error) {
	e.a.mu.Lock()
	defer e.a.mu.Unlock()
	out := &v1.StatusResponse{Installation: copyOf(e.a.install), HostsTotal: uint32(len(e.a.hosts)), People: uint32(len(e.a.people))}
	for _, s := range e.a.sessions {
		if s.State != "ended" {
			out.SessionsLive++
		}
	}
	for _, x := range e.a.approvals {
		if x.State == "requested" {
			out.ApprovalsOpen++
		}
	}
	return out, nil
}

func (e events) Watch(ctx context.Context, _ *v1.WatchEventsRequest, out *connect.ServerStream[v1.WatchEventsResponse]) error {
	c := make(chan string, 32)
	e.a.mu.Lock()
	e.a.watchers[c] = true
	e.a.mu.Unlock()
	defer func() {
		e.a.mu.Lock()
		delete(e.a.watchers, c)
		e.a.mu.Unlock()
	}()
	if err := out.Send(nil); err != nil { // sends the header
		return err
	}
	for {
		select {
		case topic := <-c:
			if err := out.Send(&v1.WatchEventsResponse{Topic: topic}); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Watching is how many pages follow events.
func (a *API) Watching() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.watchers)
}
