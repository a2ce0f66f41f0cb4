package cli_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type fakeLogins struct {
	handrailv1connect.UnimplementedLoginsHandler
	*fake
}

func (f *fakeLogins) Trust(context.Context, *v1.TrustRequest) (*v1.TrustResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &v1.TrustResponse{Bundle: f.signed}, nil
}

func (f *fakeLogins) Redeem(_ context.Context, r *v1.RedeemRequest) (*v1.RedeemResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	person := f.tokens[r.Token]
	delete(f.tokens, r.Token)
	if person == "" {
		return nil, wireFault(fault.New(fault.Unauthenticated, "cannot log in: the token was used before, or has expired").WithHint("ask for another: handrail login-link PERSON"))
	}
	f.devices[string(r.DeviceKey)] = person
	return f.open(person), nil
}

// open makes a login for a person.
func (f *fake) open(person string) *v1.RedeemResponse {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	bearer := hex.EncodeToString(b)
	f.logins[bearer] = person
	return &v1.RedeemResponse{
		LoginToken: bearer, Expires: timestamppb.New(time.Now().Add(f.lasting)), Person: f.person(person),
		SshCertificate: "ssh-ed25519-cert-v01@openssh.com AAAA test", Bundle: f.signed, SshAddress: "127.0.0.1:2222", Device: "d-00000001",
	}
}

func (f *fakeLogins) RenewBegin(context.Context, *v1.RenewBeginRequest) (*v1.RenewBeginResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nonce = make([]byte, 32)
	_, _ = rand.Read(f.nonce)
	return &v1.RenewBeginResponse{Nonce: f.nonce}, nil
}

func (f *fakeLogins) Renew(_ context.Context, r *v1.RenewRequest) (*v1.RedeemResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !signedBy(r.DeviceKey, append([]byte("handrail-login-v1\n"), f.nonce...), r.Signature) || f.devices[string(r.DeviceKey)] == "" {
		return nil, wireFault(fault.New(fault.Unauthenticated, "cannot renew: this device is not enrolled").WithHint("handrail login --token-file FILE"))
	}
	return f.open(f.devices[string(r.DeviceKey)]), nil
}

func signedBy(public, message, signature []byte) bool {
	key, err := ssh.ParsePublicKey(public)
	if err != nil {
		return false
	}
	var s ssh.Signature
	return ssh.Unmarshal(signature, &s) == nil && key.Verify(message, &s) == nil
}

func (f *fakeLogins) Whoami(ctx context.Context, _ *v1.WhoamiRequest) (*v1.WhoamiResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &v1.WhoamiResponse{Person: f.person(me(ctx)), Expires: timestamppb.New(time.Now().Add(time.Hour)), Via: "device"}, nil
}

func (f *fakeLogins) Logout(ctx context.Context, _ *v1.LogoutRequest) (*v1.LogoutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for bearer, person := range f.logins {
		if person == me(ctx) {
			delete(f.logins, bearer)
		}
	}
	return &v1.LogoutResponse{}, nil
}

// person finds somebody by name or id; nil when there is nobody.
func (f *fake) person(name string) *v1.Person {
	for _, p := range f.people {
		if p.Name == name || p.Id == name {
			return p
		}
	}
	return nil
}

type fakeEvents struct {
	handrailv1connect.UnimplementedEventsHandler
	*fake
}

func (f *fakeEvents) Status(context.Context, *v1.StatusRequest) (*v1.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &v1.StatusResponse{
		Installation: &v1.Installation{Mode: "user-namespace", Missing: []string{"no other accounts"}, Trial: true, Bootstrap: f.bootstrap, Version: "test", LedgerSize: uint64(len(f.leaves)), Url: "http://localhost:1"},
		HostsOnline:  2, HostsTotal: uint32(len(f.hosts)), SessionsLive: 1, People: uint32(len(f.people)), Attention: []string{"a request waits: handrail requests"},
	}, nil
}

type fakeHosts struct {
	handrailv1connect.UnimplementedHostsHandler
	*fake
}

func (f *fakeHosts) List(_ context.Context, r *v1.ListHostsRequest) (*v1.ListHostsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &v1.ListHostsResponse{}
	for _, h := range f.hosts {
		if prefix, pattern := strings.CutSuffix(r.Selector, "*"); r.Selector == "" || h.Name == r.Selector || (pattern && strings.HasPrefix(h.Name, prefix)) || r.Selector == "env:"+h.Environment {
			answer.Hosts = append(answer.Hosts, h)
		}
	}
	return answer, nil
}

func (f *fakeHosts) Watch(ctx context.Context, r *v1.WatchHostsRequest, s *connect.ServerStream[v1.WatchHostsResponse]) error {
	all, _ := f.List(ctx, &v1.ListHostsRequest{Selector: r.Selector})
	for _, h := range all.Hosts {
		if err := s.Send(&v1.WatchHostsResponse{Host: h}); err != nil {
			return err
		}
	}
	return nil // a real server stays; the test would wait for ever
}

func (f *fake) host(name string) *v1.Host {
	for _, h := range f.hosts {
		if h.Name == name || h.Id == name {
			return h
		}
	}
	return nil
}

func (f *fakeHosts) Get(_ context.Context, r *v1.GetHostRequest) (*v1.GetHostResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.host(r.Host)
	if h == nil {
		return nil, notFound("host", r.Host)
	}
	return &v1.GetHostResponse{Host: h, MayRead: true, MayReadWhy: "read-standing"}, nil
}

func (f *fakeHosts) Invite(_ context.Context, r *v1.InviteRequest) (*v1.InviteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Environment == "production" {
		return &v1.InviteResponse{Approval: "a-00000077"}, nil
	}
	return &v1.InviteResponse{Token: "hr1.test.join", Command: "handrail join --token-file -", Expires: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

func (f *fakeHosts) Set(_ context.Context, r *v1.SetHostRequest) (*v1.SetHostResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.host(r.Host)
	if h == nil {
		return nil, notFound("host", r.Host)
	}
	if r.Environment != nil {
		return &v1.SetHostResponse{Host: h, Approval: "a-00000078"}, nil
	}
	if r.SetLabels {
		h.Labels = r.Labels
	}
	return &v1.SetHostResponse{Host: h}, nil
}

type fakePeople struct {
	handrailv1connect.UnimplementedPeopleHandler
	*fake
}

func (f *fakePeople) List(context.Context, *v1.ListPeopleRequest) (*v1.ListPeopleResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &v1.ListPeopleResponse{People: f.people}, nil
}

func (f *fakePeople) Get(_ context.Context, r *v1.GetPersonRequest) (*v1.GetPersonResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.person(r.Person)
	if p == nil {
		return nil, wireFault(fault.New(fault.NotFound, "cannot find person %q", r.Person).WithHint("handrail people"))
	}
	return &v1.GetPersonResponse{Person: p}, nil
}

func (f *fakePeople) Add(_ context.Context, r *v1.AddPersonRequest) (*v1.AddPersonResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.person(r.Name) != nil {
		return nil, wireFault(fault.New(fault.Conflict, "cannot add %q: there is such a person", r.Name).WithHint("handrail login-link %s", r.Name))
	}
	if !f.bootstrap {
		return &v1.AddPersonResponse{Approval: "a-00000079"}, nil
	}
	p := &v1.Person{Id: newID("p", len(f.people)), Name: r.Name, Groups: r.Groups}
	f.people = append(f.people, p)
	word := f.tokenLocked(r.Name)
	return &v1.AddPersonResponse{Person: p, Token: word, Link: f.url + "/login#" + word, TokenExpires: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

func (f *fakePeople) LoginLink(_ context.Context, r *v1.LoginLinkRequest) (*v1.LoginLinkResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	word := f.tokenLocked(r.Person)
	return &v1.LoginLinkResponse{Token: word, Link: f.url + "/login#" + word}, nil
}

func (f *fakePeople) Lock(_ context.Context, r *v1.LockRequest) (*v1.LockResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.person(r.Person)
	if p == nil {
		return nil, wireFault(fault.New(fault.NotFound, "cannot find person %q", r.Person).WithHint("handrail people"))
	}
	p.Locked, p.LockedReason = timestamppb.Now(), r.Reason
	for bearer, name := range f.logins {
		if name == p.Name {
			delete(f.logins, bearer)
		}
	}
	return &v1.LockResponse{Person: p, SessionsKilled: 1}, nil
}

func (f *fakePeople) Unlock(_ context.Context, r *v1.UnlockRequest) (*v1.UnlockResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &v1.UnlockResponse{Person: f.person(r.Person), Approval: "a-00000080"}, nil
}

func (f *fakePeople) EndBootstrap(context.Context, *v1.EndBootstrapRequest) (*v1.EndBootstrapResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bootstrap = false
	return &v1.EndBootstrapResponse{}, nil
}
