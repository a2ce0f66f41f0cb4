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
	"handrail.dev/handrail/internal/foundation/store"
)

type grants struct{ d *Deps }

func (s grants) List(ctx context.Context, r *handrailv1.ListGrantsRequest) (*handrailv1.ListGrantsResponse, error) {
	all, err := s.d.Access.List(ctx, access.Filter{Open: r.OpenOnly, InForce: r.InForce, Mine: r.Mine, AgreedBy: r.AgreedBy})
	if err != nil {
		return nil, err
	}
	grants, err := s.messages(ctx, all)
	return &handrailv1.ListGrantsResponse{Grants: grants}, err
}

func (s grants) Get(ctx context.Context, r *handrailv1.GetGrantRequest) (*handrailv1.GetGrantResponse, error) {
	g, err := s.get(ctx, r.Id)
	return &handrailv1.GetGrantResponse{Grant: g}, err
}

func (s grants) Watch(ctx context.Context, r *handrailv1.WatchGrantsRequest, out *connect.ServerStream[handrailv1.WatchGrantsResponse]) error {
	changes, err := s.d.changes(ctx, notice.Grants)
	if err != nil {
		return err
	}
	send := func(g *handrailv1.Grant) error { return out.Send(&handrailv1.WatchGrantsResponse{Grant: g}) }
	var first []*handrailv1.Grant
	if r.Id != "" {
		g, err := s.get(ctx, r.Id)
		if err != nil {
			return err
		}
		r.Id, first = g.Id, []*handrailv1.Grant{g}
	} else {
		all, err := s.List(ctx, &handrailv1.ListGrantsRequest{OpenOnly: true})
		if err != nil {
			return err
		}
		first = all.Grants
	}
	for _, g := range first {
		if err := send(g); err != nil {
			return err
		}
	}
	for _, id := range changes {
		if id == "" || r.Id != "" && id != r.Id {
			continue
		}
		g, err := s.get(ctx, id)
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

func (s grants) get(ctx context.Context, id string) (*handrailv1.Grant, error) {
	g, err := s.d.Access.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.message(ctx, g)
}

func (s grants) Elevate(ctx context.Context, r *handrailv1.ElevateRequest) (*handrailv1.ElevateResponse, error) {
	asked, err := s.d.Access.Elevate(ctx, access.Ask{
		Hosts: r.Hosts, Reason: r.Reason, Ticket: r.Ticket, For: r.For.AsDuration(), Sudo: r.Sudo, Root: r.Root, Forwards: r.Forwards,
		Account: r.Account, RequestID: r.RequestId, Signature: approval.Evidence{DeviceSignature: r.Signature},
	})
	if err != nil {
		return nil, err
	}
	g, err := s.message(ctx, asked.Grant)
	return &handrailv1.ElevateResponse{
		Id: asked.Grant.ID, Grant: g, Approval: asked.Approval.ID, Approvers: asked.Approvers, SubjectHash: asked.Approval.Hash,
	}, err
}

func (s grants) BreakGlass(ctx context.Context, r *handrailv1.BreakGlassRequest) (*handrailv1.BreakGlassResponse, error) {
	asked, err := s.d.Access.BreakGlass(ctx, access.Ask{
		Hosts: r.Hosts, Reason: r.Reason, RequestID: r.RequestId, Sudo: r.Sudo, Root: r.Root, Forwards: r.Forwards,
	})
	if err != nil {
		return nil, err
	}
	g, err := s.message(ctx, asked.Grant)
	return &handrailv1.BreakGlassResponse{Id: asked.Grant.ID, Grant: g, Approval: asked.Approval.ID, Approvers: asked.Approvers}, err
}

func (s grants) Revoke(ctx context.Context, r *handrailv1.RevokeRequest) (*handrailv1.RevokeResponse, error) {
	over, err := s.d.Access.Revoke(ctx, r.Id, r.Reason)
	if err != nil {
		return nil, err
	}
	g, err := s.message(ctx, over.Grant)
	if err != nil && over.Pending { // the database is away; the brake acts all the same
		g, err = &handrailv1.Grant{Id: over.Grant.ID, Reason: over.Grant.Reason}, nil
	}
	return &handrailv1.RevokeResponse{Grant: g, SessionsKilled: uint32(over.Killed), Pending: over.Pending}, err
}

func (s grants) Done(ctx context.Context, r *handrailv1.DoneRequest) (*handrailv1.DoneResponse, error) {
	over, err := s.d.Access.Done(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	g, err := s.message(ctx, over.Grant)
	return &handrailv1.DoneResponse{Grant: g}, err
}

func (s grants) Review(ctx context.Context, r *handrailv1.ReviewRequest) (*handrailv1.ReviewResponse, error) {
	reviewed, err := s.d.Access.Review(ctx, r.Id, r.Verdict, r.Notes)
	if err != nil {
		return nil, err
	}
	g, err := s.message(ctx, reviewed)
	return &handrailv1.ReviewResponse{Grant: g}, err
}

func (s grants) message(ctx context.Context, g access.Grant) (*handrailv1.Grant, error) {
	all, err := s.messages(ctx, []access.Grant{g})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// messages joins grants with who agreed to them, and what people are called.
func (s grants) messages(ctx context.Context, all []access.Grant) ([]*handrailv1.Grant, error) {
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	out := each(all, func(g access.Grant) *handrailv1.Grant { return grantMessage(g, names) })
	err = s.d.Store.View(ctx, func(v *store.View) error {
		for i, g := range all {
			if g.Approval == "" {
				continue
			}
			a, err := s.d.Approvals.GetTx(v, g.Approval)
			if err != nil {
				return err
			}
			if a, err = s.d.Approvals.NowTx(v, a); err != nil {
				return err
			}
			out[i].Decisions = each(a.Decisions, decisionMessage)
		}
		return nil
	})
	return out, err
}

func grantMessage(g access.Grant, names *names) *handrailv1.Grant {
	return &handrailv1.Grant{
		Id: g.ID, Person: g.Person, PersonName: g.PersonName, Kind: g.Kind, State: string(g.State), EndedWhy: g.EndedWhy,
		Targets: each(g.Targets, func(t access.Target) *handrailv1.GrantTarget {
			return &handrailv1.GrantTarget{Id: t.ID, Name: t.Name, Environment: t.Environment, Scope: t.Scope, Server: t.Server}
		}),
		Account: g.Account, Sudo: g.Sudo, Root: g.Root, Forwards: g.Forwards, Reason: g.Reason, Ticket: g.Ticket,
		AskedFor: durationpb.New(g.AskedFor.Round(time.Second)), Requested: stamp(g.Requested), Starts: stamp(g.Starts),
		Expires: stamp(g.Expires), Approval: g.Approval, BuddyRequired: g.BuddyRequired, RatifyBy: stamp(g.RatifyBy),
		ReviewBy: stamp(g.ReviewBy), CannotContain: g.CannotContain(),
		Ended: stamp(g.Finished), EndedBy: g.EndedBy, EndedByName: names.name(g.EndedBy), EndedNote: g.EndedNote, PausedWhy: g.PausedWhy,
		Ratified: stamp(g.Ratified), RatifiedByName: names.name(g.RatifiedBy),
		Reviewed: stamp(g.Reviewed), ReviewedBy: g.ReviewedBy, ReviewedByName: names.name(g.ReviewedBy), Verdict: g.Verdict, Notes: g.Notes,
	}
}
