package rpc

import (
	"context"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/fault"
)

type approvals struct{ d *Deps }

func (s approvals) List(ctx context.Context, r *handrailv1.ListApprovalsRequest) (*handrailv1.ListApprovalsResponse, error) {
	all, err := s.d.Access.ShowAll(ctx, r.OpenOnly)
	if err != nil {
		return nil, err
	}
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ListApprovalsResponse{
		Approvals: each(all, func(a approval.Shown) *handrailv1.Approval { return approvalMessage(a, names) }),
	}, nil
}

func (s approvals) show(ctx context.Context, idOrSubject string) (*handrailv1.Approval, error) {
	shown, err := s.d.Access.Show(ctx, idOrSubject)
	if err != nil {
		return nil, err
	}
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	return approvalMessage(shown, names), nil
}

func (s approvals) Get(ctx context.Context, r *handrailv1.GetApprovalRequest) (*handrailv1.GetApprovalResponse, error) {
	a, err := s.show(ctx, r.Id)
	return &handrailv1.GetApprovalResponse{Approval: a}, err
}

func (s approvals) Watch(ctx context.Context, _ *handrailv1.WatchApprovalsRequest, out *connect.ServerStream[handrailv1.WatchApprovalsResponse]) error {
	// Subscribed before the snapshot, so that nothing falls between them.
	changes, err := s.d.changes(ctx, notice.Approvals, notice.Grants)
	if err != nil {
		return err
	}
	first, err := s.List(ctx, &handrailv1.ListApprovalsRequest{OpenOnly: true})
	if err != nil {
		return err
	}
	for _, a := range first.Approvals {
		if err := out.Send(&handrailv1.WatchApprovalsResponse{Approval: a}); err != nil {
			return err
		}
	}
	for _, id := range changes {
		if id == "" {
			continue
		}
		a, err := s.show(ctx, id)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if err := out.Send(&handrailv1.WatchApprovalsResponse{Approval: a}); err != nil {
			return err
		}
	}
	return nil
}

func (s approvals) SignBegin(ctx context.Context, r *handrailv1.SignBeginRequest) (*handrailv1.SignBeginResponse, error) {
	a, err := s.d.Approvals.Get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	options, ceremony, err := s.d.People.ApprovalBegin(ctx, caller(ctx), a.Hash)
	return &handrailv1.SignBeginResponse{OptionsJson: options, Ceremony: ceremony}, err
}

func (s approvals) Approve(ctx context.Context, r *handrailv1.ApproveRequest) (*handrailv1.ApproveResponse, error) {
	a, err := s.d.Access.Approve(ctx, r.Id, r.SubjectHash, approval.Evidence{
		DeviceSignature: r.DeviceSignature, Ceremony: r.Ceremony, Response: r.ResponseJson,
	})
	if err != nil {
		return nil, err
	}
	shown, err := s.show(ctx, a.ID)
	return &handrailv1.ApproveResponse{Approval: shown}, err
}

func (s approvals) Deny(ctx context.Context, r *handrailv1.DenyRequest) (*handrailv1.DenyResponse, error) {
	a, err := s.d.Access.Deny(ctx, r.Id, r.Reason)
	if err != nil {
		return nil, err
	}
	shown, err := s.show(ctx, a.ID)
	return &handrailv1.DenyResponse{Approval: shown}, err
}

func approvalMessage(s approval.Shown, names *names) *handrailv1.Approval {
	a, d := s.Approval, s.Description
	out := &handrailv1.Approval{
		Id: a.ID, Kind: a.Kind, State: string(a.State), Requester: a.Requester, RequesterName: a.RequesterName,
		Requested: stamp(a.Requested), Lapses: stamp(a.Lapses), SubjectHash: a.Hash, Summary: d.Summary,
		GrantsLine: d.Grants, CannotContain: d.CannotContain, Needed: uint32(a.Rule.Needed), NeededGroups: a.Rule.Groups,
		Subject: a.Subject, PasskeyRequired: a.Rule.Passkey, MayDecide: s.MayNot == nil,
		Details:   each(d.Details, func(l approval.Detail) *handrailv1.Detail { return &handrailv1.Detail{Name: l.Name, Value: l.Value} }),
		Decisions: each(a.Decisions, decisionMessage), Agreed: uint32(len(a.Agreed())),
		Request: a.Request, RequesterSigned: a.Signed != nil,
		Ended: stamp(a.Decided), EndedByName: names.name(a.EndedBy), EndedWhy: a.EndedWhy,
	}
	if s.MayNot != nil {
		out.MayNotWhy = s.MayNot.Error()
	}
	return out
}

func decisionMessage(d approval.Decision) *handrailv1.Decision {
	return &handrailv1.Decision{
		Person: d.Person, PersonName: d.Name, Verdict: string(d.Verdict), Reason: d.Reason, At: stamp(d.At), SignedBy: d.SignedBy(), Void: d.Void, Counts: d.Counts(),
	}
}
