package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
)

type grants struct{ d *Deps }

func (s grants) List(ctx context.Context, r *handrailv1.ListGrantsRequest) (*handrailv1.ListGrantsResponse, error) {
	all, err := s.d.Access.List(ctx, r.OpenOnly, r.Mine)
	return &handrailv1.ListGrantsResponse{Grants: each(all, grantMessage)}, err
}

func (s grants) Get(ctx context.Context, r *handrailv1.GetGrantRequest) (*handrailv1.GetGrantResponse, error) {
	g, err := s.d.Access.Get(ctx, r.Id)
	return &handrailv1.GetGrantResponse{Grant: grantMessage(g)}, err
}

func (s grants) Watch(ctx context.Context, r *handrailv1.WatchGrantsRequest, out *connect.ServerStream[handrailv1.WatchGrantsResponse]) error {
	changes, err := s.d.changes(ctx, notice.Grants)
	if err != nil {
		return err
	}
	send := func(g access.Grant) error { return out.Send(&handrailv1.WatchGrantsResponse{Grant: grantMessage(g)}) }
	if r.Id != "" {
		g, err := s.d.Access.Get(ctx, r.Id)
		if err != nil {
			return err
		}
		r.Id = g.ID
		if err := send(g); err != nil {
			return err
		}
	} else {
		all, err := s.d.Access.List(ctx, true, false)
		if err != nil {
			return err
		}
		for _, g := range all {
			if err := send(g); err != nil {
				return err
			}
		}
	}
	for _, id := range changes {
		if id == "" || r.Id != "" && id != r.Id {
			continue
		}
		g, err := s.d.Access.Get(ctx, id)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if err := send(g); err != nil {
			return err
		}
	}
	return nil
}

func (s grants) Elevate(ctx context.Context, r *handrailv1.ElevateRequest) (*handrailv1.ElevateResponse, error) {
	asked, err := s.d.Access.Elevate(ctx, access.Ask{
		Hosts: r.Hosts, Reason: r.Reason, Ticket: r.Ticket, For: r.For.AsDuration(), Sudo: r.Sudo, Root: r.Root,
		Account: r.Account, RequestID: r.RequestId, Signature: approval.Evidence{DeviceSignature: r.Signature},
	})
	if err != nil {
		return nil, err
	}
	return &handrailv1.ElevateResponse{
		Id: asked.Grant.ID, Grant: grantMessage(asked.Grant), Approval: asked.Approval.ID, Approvers: asked.Approvers,
	}, nil
}

func (s grants) BreakGlass(ctx context.Context, r *handrailv1.BreakGlassRequest) (*handrailv1.BreakGlassResponse, error) {
	asked, err := s.d.Access.BreakGlass(ctx, access.Ask{
		Hosts: r.Hosts, Reason: r.Reason, RequestID: r.RequestId, Sudo: r.Sudo, Root: r.Root,
	})
	if err != nil {
		return nil, err
	}
	return &handrailv1.BreakGlassResponse{Id: asked.Grant.ID, Grant: grantMessage(asked.Grant)}, nil
}

func (s grants) Revoke(ctx context.Context, r *handrailv1.RevokeRequest) (*handrailv1.RevokeResponse, error) {
	g, killed, err := s.d.Access.Revoke(ctx, r.Id, r.Reason)
	if err != nil {
		return nil, err
	}
	return &handrailv1.RevokeResponse{Grant: grantMessage(g), SessionsKilled: uint32(killed)}, nil
}

func (s grants) Done(ctx context.Context, r *handrailv1.DoneRequest) (*handrailv1.DoneResponse, error) {
	g, _, err := s.d.Access.Done(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return &handrailv1.DoneResponse{Grant: grantMessage(g)}, nil
}

func (s grants) Review(ctx context.Context, r *handrailv1.ReviewRequest) (*handrailv1.ReviewResponse, error) {
	g, err := s.d.Access.Review(ctx, r.Id, r.Verdict, r.Notes)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ReviewResponse{Grant: grantMessage(g)}, nil
}

func grantMessage(g access.Grant) *handrailv1.Grant {
	return &handrailv1.Grant{
		Id: g.ID, Person: g.Person, PersonName: g.PersonName, Kind: g.Kind, State: string(g.State), EndedWhy: g.EndedWhy,
		Targets: each(g.Targets, func(t access.Target) *handrailv1.GrantTarget {
			return &handrailv1.GrantTarget{Id: t.ID, Name: t.Name, Environment: t.Environment, Scope: t.Scope}
		}),
		Account: g.Account, Sudo: g.Sudo, Root: g.Root, Reason: g.Reason, Ticket: g.Ticket,
		AskedFor: durationpb.New(g.AskedFor.Round(time.Second)), Requested: stamp(g.Requested), Starts: stamp(g.Starts),
		Expires: stamp(g.Expires), Approval: g.Approval, BuddyRequired: g.BuddyRequired, RatifyBy: stamp(g.RatifyBy),
		ReviewBy: stamp(g.ReviewBy), CannotContain: g.CannotContain(),
	}
}
