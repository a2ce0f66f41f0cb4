package rpc

import (
	"context"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
)

type people struct{ d *Deps }

func (s people) List(ctx context.Context, _ *handrailv1.ListPeopleRequest) (*handrailv1.ListPeopleResponse, error) {
	all, err := s.d.People.List(ctx)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.ListPeopleResponse{}
	for _, p := range all {
		m, err := s.d.person(ctx, p, caller(ctx).ID)
		if err != nil {
			return nil, err
		}
		out.People = append(out.People, m)
	}
	return out, nil
}

func (s people) Get(ctx context.Context, r *handrailv1.GetPersonRequest) (*handrailv1.GetPersonResponse, error) {
	p, err := s.d.People.Get(ctx, r.Person)
	if err != nil {
		return nil, err
	}
	m, err := s.d.person(ctx, p, caller(ctx).ID)
	return &handrailv1.GetPersonResponse{Person: m}, err
}

func (s people) Add(ctx context.Context, r *handrailv1.AddPersonRequest) (*handrailv1.AddPersonResponse, error) {
	added, err := s.d.Roster.AddPerson(ctx, caller(ctx), r.Name, r.Groups, r.RequestId)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.AddPersonResponse{Approval: added.Approval, TokenExpires: stampTime(added.Expires)}
	if added.Person.ID != "" {
		if out.Person, err = s.d.person(ctx, added.Person, caller(ctx).ID); err != nil {
			return nil, err
		}
	}
	out.Token, out.Link = s.d.loginToken(added.Secret)
	return out, nil
}

func (s people) LoginLink(ctx context.Context, r *handrailv1.LoginLinkRequest) (*handrailv1.LoginLinkResponse, error) {
	added, err := s.d.Roster.LoginLink(ctx, caller(ctx), r.Person)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.LoginLinkResponse{Approval: added.Approval, TokenExpires: stampTime(added.Expires)}
	out.Token, out.Link = s.d.loginToken(added.Secret)
	return out, nil
}

// loginToken wraps a secret as the one word a command takes and as the link a
// browser opens.
func (d *Deps) loginToken(secret string) (token, link string) {
	if secret == "" {
		return "", ""
	}
	info := d.Info()
	return ledger.Token{Address: info.Address, RootHash: d.Ring.RootHash(), Secret: secret}.String(), info.URL + "/login?t=" + secret
}

func (s people) Lock(ctx context.Context, r *handrailv1.LockRequest) (*handrailv1.LockResponse, error) {
	locked, err := s.d.Roster.Lock(ctx, caller(ctx), r.Person, r.Reason)
	if err != nil {
		return nil, err
	}
	m, err := s.message(ctx, locked.Person)
	if err != nil && locked.Pending { // the database is away; the brake acts all the same
		m, err = &handrailv1.Person{Id: locked.Person.ID, Name: locked.Person.Name}, nil
	}
	return &handrailv1.LockResponse{Person: m, SessionsKilled: uint32(locked.Sessions), GrantsEnded: uint32(locked.Grants), Pending: locked.Pending}, err
}

func (s people) message(ctx context.Context, p identity.Person) (*handrailv1.Person, error) {
	return s.d.person(ctx, p, caller(ctx).ID)
}

func (s people) Unlock(ctx context.Context, r *handrailv1.UnlockRequest) (*handrailv1.UnlockResponse, error) {
	p, approval, err := s.d.Roster.Unlock(ctx, caller(ctx), r.Person, r.Reason)
	if err != nil {
		return nil, err
	}
	m, err := s.message(ctx, p)
	return &handrailv1.UnlockResponse{Person: m, Approval: approval}, err
}

func (s people) EndBootstrap(ctx context.Context, _ *handrailv1.EndBootstrapRequest) (*handrailv1.EndBootstrapResponse, error) {
	return &handrailv1.EndBootstrapResponse{}, s.d.Roster.EndBootstrap(ctx, caller(ctx))
}
