package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

type fakeGrants struct {
	handrailv1connect.UnimplementedGrantsHandler
	*fake
}

func (f *fakeGrants) List(ctx context.Context, r *v1.ListGrantsRequest) (*v1.ListGrantsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &v1.ListGrantsResponse{}
	for _, g := range f.grants {
		if !r.Mine || g.PersonName == me(ctx) {
			answer.Grants = append(answer.Grants, g)
		}
	}
	return answer, nil
}

func (f *fake) grant(id string) *v1.Grant {
	for _, g := range f.grants {
		if g.Id == id {
			return g
		}
	}
	return nil
}

func (f *fakeGrants) Get(_ context.Context, r *v1.GetGrantRequest) (*v1.GetGrantResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.grant(r.Id); g != nil {
		return &v1.GetGrantResponse{Grant: g}, nil
	}
	return nil, wireFault(fault.New(fault.NotFound, "cannot find grant %q", r.Id))
}

func (f *fakeGrants) Watch(ctx context.Context, r *v1.WatchGrantsRequest, s *connect.ServerStream[v1.WatchGrantsResponse]) error {
	for {
		_, changed := f.wait(ctx)
		f.mu.Lock()
		g := f.grant(r.Id)
		f.mu.Unlock()
		if err := s.Send(&v1.WatchGrantsResponse{Grant: g}); err != nil {
			return err
		}
		if !changed() {
			return nil
		}
	}
}

func (f *fakeGrants) Elevate(ctx context.Context, r *v1.ElevateRequest) (*v1.ElevateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.asked[r.RequestId]; g != nil && r.RequestId != "" { // the second call brings the signature
		a := f.approval(g.Approval)
		for device, person := range f.devices {
			a.RequesterSigned = a.RequesterSigned || person == me(ctx) && signedBy([]byte(device), append([]byte("handrail-request-v1\n"), a.SubjectHash...), r.Signature)
		}
		return &v1.ElevateResponse{Id: g.Id, Grant: g, Approval: g.Approval, Approvers: []string{"bob"}, SubjectHash: a.SubjectHash}, nil
	}
	g := &v1.Grant{
		Id: newID("g", len(f.grants)+1), Person: f.person(me(ctx)).Id, PersonName: me(ctx), Kind: "elevated", State: "requested", Reason: r.Reason, Ticket: r.Ticket,
		AskedFor: r.For, Requested: timestamppb.Now(), Account: "app", Sudo: r.Sudo, Root: r.Root, Approval: newID("a", len(f.approvals)+1),
	}
	var names []string
	for _, name := range r.Hosts {
		h := f.host(name)
		if h == nil {
			return nil, notFound("host", name)
		}
		g.Targets = append(g.Targets, &v1.GrantTarget{Id: h.Id, Name: h.Name, Environment: h.Environment, Scope: h.Scope})
		names = append(names, h.Name)
	}
	request := []byte(`{"grant":"` + g.Id + `","person_name":"` + g.PersonName + `","account":"app","for_ms":1800000,"targets":[{"name":"` + strings.Join(names, `","environment":"production"},{"name":"`) + `","environment":"production"}]}`)
	hash := sha256.Sum256(append([]byte("handrail-approval-v1\ngrant\n"), request...))
	if f.lies {
		request = bytes.Replace(request, []byte("1800000"), []byte("9900000"), 1)
	}
	if f.asked == nil {
		f.asked = map[string]*v1.Grant{}
	}
	f.asked[r.RequestId] = g
	f.grants = append([]*v1.Grant{g}, f.grants...)
	f.approvals = append([]*v1.Approval{{
		Id: g.Approval, Kind: "grant", State: "requested", Requester: g.Person, RequesterName: g.PersonName, Requested: g.Requested,
		Lapses: timestamppb.New(time.Now().Add(time.Hour)), SubjectHash: hash[:], Request: request, Summary: "write on " + strings.Join(names, ", ") + ": " + r.Reason,
		Details:    []*v1.Detail{{Name: "reason", Value: r.Reason}, {Name: "ticket", Value: r.Ticket}, {Name: "hosts", Value: strings.Join(names, ", ")}},
		GrantsLine: []string{"a shell as app on " + strings.Join(names, ", ")}, CannotContain: []string{"what app starts through another daemon"},
		Needed: 1, Subject: g.Id,
	}}, f.approvals...)
	f.changedLocked()
	return &v1.ElevateResponse{Id: g.Id, Grant: g, Approval: g.Approval, Approvers: []string{"bob"}, SubjectHash: hash[:]}, nil
}

func (f *fakeGrants) BreakGlass(ctx context.Context, r *v1.BreakGlassRequest) (*v1.BreakGlassResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.person(me(ctx)).OwesReview {
		return nil, wireFault(fault.New(fault.Denied, "cannot break glass: a review is owed and past its date").WithHint("handrail requests"))
	}
	g := &v1.Grant{Id: newID("g", len(f.grants)+1), Person: f.person(me(ctx)).Id, PersonName: me(ctx), Kind: "break-glass", State: "active", Reason: r.Reason,
		Expires: timestamppb.New(time.Now().Add(30 * time.Minute)), RatifyBy: timestamppb.New(time.Now().Add(10 * time.Minute)), ReviewBy: timestamppb.New(time.Now().Add(48 * time.Hour))}
	for _, name := range r.Hosts {
		g.Targets = append(g.Targets, &v1.GrantTarget{Name: name, Environment: "production"})
	}
	f.grants = append([]*v1.Grant{g}, f.grants...)
	return &v1.BreakGlassResponse{Id: g.Id, Grant: g}, nil
}

// end moves a grant to a state.
func (f *fakeGrants) end(id, state, why string) (*v1.Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.grant(id)
	if g == nil {
		return nil, wireFault(fault.New(fault.NotFound, "cannot find grant %q", id))
	}
	g.State, g.EndedWhy = state, why
	f.changedLocked()
	return g, nil
}

func (f *fakeGrants) Revoke(_ context.Context, r *v1.RevokeRequest) (*v1.RevokeResponse, error) {
	g, err := f.end(r.Id, "ended", "revoked")
	return &v1.RevokeResponse{Grant: g, SessionsKilled: 1}, err
}

func (f *fakeGrants) Done(_ context.Context, r *v1.DoneRequest) (*v1.DoneResponse, error) {
	g, err := f.end(r.Id, "ended", "done")
	return &v1.DoneResponse{Grant: g}, err
}

func (f *fakeGrants) Review(_ context.Context, r *v1.ReviewRequest) (*v1.ReviewResponse, error) {
	g, err := f.end(r.Id, "closed", "done")
	return &v1.ReviewResponse{Grant: g}, err
}

type fakeApprovals struct {
	handrailv1connect.UnimplementedApprovalsHandler
	*fake
}

// seen is an approval as one person sees it.
func seen(a *v1.Approval, who string) *v1.Approval {
	a.MayDecide = a.RequesterName != who
	a.MayNotWhy = ""
	if !a.MayDecide {
		a.MayNotWhy = "nobody approves their own request"
	}
	return a
}

func (f *fakeApprovals) List(ctx context.Context, r *v1.ListApprovalsRequest) (*v1.ListApprovalsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &v1.ListApprovalsResponse{}
	for _, a := range f.approvals {
		if !r.OpenOnly || a.State == "requested" {
			answer.Approvals = append(answer.Approvals, seen(a, me(ctx)))
		}
	}
	return answer, nil
}

func (f *fake) approval(id string) *v1.Approval {
	for _, a := range f.approvals {
		if a.Id == id || a.Subject == id {
			return a
		}
	}
	return nil
}

func (f *fakeApprovals) Get(ctx context.Context, r *v1.GetApprovalRequest) (*v1.GetApprovalResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.approval(r.Id); a != nil {
		return &v1.GetApprovalResponse{Approval: seen(a, me(ctx))}, nil
	}
	return nil, notFound("request", r.Id)
}

func (f *fakeApprovals) Watch(ctx context.Context, _ *v1.WatchApprovalsRequest, s *connect.ServerStream[v1.WatchApprovalsResponse]) error {
	all, _ := f.List(ctx, &v1.ListApprovalsRequest{OpenOnly: true})
	for _, a := range all.Approvals {
		if err := s.Send(&v1.WatchApprovalsResponse{Approval: a}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeApprovals) Approve(ctx context.Context, r *v1.ApproveRequest) (*v1.ApproveResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.approval(r.Id)
	if a == nil || string(a.SubjectHash) != string(r.SubjectHash) {
		return nil, wireFault(fault.New(fault.Conflict, "cannot approve %s: the request has changed", r.Id).WithHint("handrail request show %s", r.Id))
	}
	signed := false
	for device, person := range f.devices {
		signed = signed || (person == me(ctx) && signedBy([]byte(device), append([]byte("handrail-approve-v1\n"), r.SubjectHash...), r.DeviceSignature))
	}
	if !signed || a.RequesterName == me(ctx) {
		return nil, deniedHere("approve " + r.Id)
	}
	a.State, a.Agreed = "approved", a.Agreed+1
	a.Decisions = append(a.Decisions, &v1.Decision{PersonName: me(ctx), Verdict: "approved", At: timestamppb.Now(), SignedBy: "device", Counts: true})
	if g := f.grant(a.Subject); g != nil {
		g.State, g.Starts, g.Expires = "active", timestamppb.Now(), timestamppb.New(time.Now().Add(30*time.Minute))
	}
	f.changedLocked()
	return &v1.ApproveResponse{Approval: a}, nil
}

func (f *fakeApprovals) Deny(ctx context.Context, r *v1.DenyRequest) (*v1.DenyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.approval(r.Id)
	if a == nil {
		return nil, notFound("request", r.Id)
	}
	a.State = "denied"
	a.Decisions = append(a.Decisions, &v1.Decision{PersonName: me(ctx), Verdict: "denied", Reason: r.Reason, At: timestamppb.Now()})
	if g := f.grant(a.Subject); g != nil {
		g.State = "denied"
	}
	f.changedLocked()
	return &v1.DenyResponse{Approval: a}, nil
}

type fakeLedger struct {
	handrailv1connect.UnimplementedLedgerHandler
	*fake
}

func (f *fakeLedger) entry(i int) *v1.Entry {
	leaf, _ := ledger.ParseLeaf(f.leaves[i])
	return &v1.Entry{Number: uint64(i), At: timestamppb.New(time.UnixMicro(leaf.Time)), Action: string(leaf.Action), Outcome: string(leaf.Outcome), Subjects: leaf.Subjects,
		ActorName: "ada", Summary: "ada logged in", PayloadJson: "{}", LeafJson: string(f.leaves[i])}
}

func (f *fakeLedger) List(_ context.Context, r *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &v1.ListEntriesResponse{Size: uint64(len(f.leaves))}
	for i := len(f.leaves) - 1; i >= 0 && (r.Limit == 0 || len(answer.Entries) < int(r.Limit)); i-- {
		answer.Entries = append(answer.Entries, f.entry(i))
	}
	return answer, nil
}

func (f *fakeLedger) Get(_ context.Context, r *v1.GetEntryRequest) (*v1.GetEntryResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Number >= uint64(len(f.leaves)) {
		return nil, wireFault(fault.New(fault.NotFound, "cannot find entry #%d", r.Number).WithHint("handrail ledger list"))
	}
	return &v1.GetEntryResponse{Entry: f.entry(int(r.Number))}, nil
}

// hashes is a tile-less tree, good enough for a handful of leaves.
func (f *fake) hashes() (tlog.HashReaderFunc, tlog.Hash) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, leaf := range f.leaves {
		more, _ := tlog.StoredHashes(int64(i), leaf, reader)
		stored = append(stored, more...)
	}
	root, _ := tlog.TreeHash(int64(len(f.leaves)), reader)
	return reader, root
}

func (f *fake) checkpoint() string {
	_, root := f.hashes()
	signed, err := ledger.SignCheckpoint(origin, tlog.Tree{N: int64(len(f.leaves)), Hash: root}, f.log)
	if err != nil {
		panic(err)
	}
	return string(signed)
}

func (f *fakeLedger) Verify(_ context.Context, _ *v1.VerifyRequest, s *connect.ServerStream[v1.VerifyResponse]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := uint64(len(f.leaves))
	_ = s.Send(&v1.VerifyResponse{Checked: 1, Total: n})
	last := &v1.VerifyResponse{Checked: n, Total: n, Done: true, Ok: !f.touched, Checkpoint: "5 hash", Payloads: n, Recordings: 2}
	if f.touched {
		last.Findings = []string{"entry #3: its leaf was changed"}
	}
	return s.Send(last)
}

func (f *fakeLedger) Proof(_ context.Context, r *v1.ProofRequest) (*v1.ProofResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reader, _ := f.hashes()
	proof, err := tlog.ProveRecord(int64(len(f.leaves)), int64(r.Number), reader)
	if err != nil {
		return nil, wireFault(fault.New(fault.NotFound, "cannot find entry #%d", r.Number))
	}
	answer := &v1.ProofResponse{Leaf: f.leaves[r.Number], Checkpoint: f.checkpoint()}
	for _, h := range proof {
		answer.Inclusion = append(answer.Inclusion, h[:])
	}
	if f.touched {
		answer.Leaf = append([]byte(nil), answer.Leaf...)
		answer.Leaf[10] ^= 1
	}
	return answer, nil
}

// Export sends a real export in small pieces.
func (f *fakeLedger) Export(_ context.Context, _ *v1.ExportRequest, s *connect.ServerStream[v1.ExportResponse]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var zip bytes.Buffer
	w := ledger.NewExport(&zip, f.signed, "")
	for _, leaf := range f.leaves {
		if err := w.Entry(leaf, make([]byte, 32), []byte("{}")); err != nil {
			return err
		}
	}
	if err := w.Close([]byte(f.checkpoint())); err != nil {
		return err
	}
	for zip.Len() > 0 {
		if err := s.Send(&v1.ExportResponse{Data: bytes.Clone(zip.Next(500))}); err != nil {
			return err
		}
		if f.touched {
			return wireFault(fault.New(fault.Unavailable, "cannot export: the disk is gone"))
		}
	}
	return nil
}

type fakePolicies struct {
	handrailv1connect.UnimplementedPoliciesHandler
	*fake
}

func (f *fakePolicies) Get(context.Context, *v1.GetPolicyRequest) (*v1.GetPolicyResponse, error) {
	return &v1.GetPolicyResponse{Version: 3, AppliedBy: "ada", Applied: timestamppb.Now(), Hash: []byte{1, 2}, Files: []*v1.PolicyFile{{Name: "default.cedar", Text: "permit(principal, action, resource);\n"}}}, nil
}

func (f *fakePolicies) Test(_ context.Context, r *v1.TestPolicyRequest) (*v1.TestPolicyResponse, error) {
	answer := &v1.TestPolicyResponse{Hash: []byte{3}}
	for _, file := range r.Files {
		if strings.Contains(file.Text, "nonsense") {
			answer.Problems = append(answer.Problems, file.Name+":1: cannot read nonsense")
		}
	}
	if len(answer.Problems) == 0 {
		answer.Gains = []*v1.PolicyDelta{{Person: "bob", Action: "sessions.open", Target: "web-1", Before: "deny", After: "allow", Rule: "new-rule"}}
	}
	return answer, nil
}

func (f *fakePolicies) Apply(ctx context.Context, r *v1.ApplyPolicyRequest) (*v1.ApplyPolicyResponse, error) {
	test, _ := f.Test(ctx, &v1.TestPolicyRequest{Files: r.Files})
	if f.bootstrap {
		return &v1.ApplyPolicyResponse{Version: 4, Test: test}, nil
	}
	return &v1.ApplyPolicyResponse{Approval: "a-00000081", Test: test}, nil
}

func (f *fakePolicies) Explain(_ context.Context, r *v1.ExplainRequest) (*v1.ExplainResponse, error) {
	if r.Level == "write" {
		return &v1.ExplainResponse{Text: "nobody writes without a grant", Rules: []string{"write-needs-grant"}}, nil
	}
	return &v1.ExplainResponse{Allowed: true, Text: "everybody entitled reads", Rules: []string{"read-standing"}}, nil
}
