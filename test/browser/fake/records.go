package fake

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

type policies struct {
	handrailv1connect.UnimplementedPoliciesHandler
	a *API
}

const rules = `// Reading: everybody who is logged in looks at everything, but for regulated hosts.

@id("read-is-standing")
@says("everybody who is logged in may open a read-only session on a host without a scope")
permit (principal is Person, action == Action::"sessions.open", resource is Host)
when { context.level == "read" && resource.scope == "none" };

@id("regulated-reads-need-a-grant")
@says("on pci and hipaa hosts even a read-only shell needs a grant")
@next("handrail elevate HOST --reason \"why\" --for 30m")
forbid (principal, action == Action::"sessions.open", resource is Host)
when { ["pci", "hipaa"].contains(resource.scope) && !context.grant };
`

func (p policies) Get(context.Context, *v1.GetPolicyRequest) (*v1.GetPolicyResponse, error) {
	hash := sha256.Sum256([]byte(rules))
	return &v1.GetPolicyResponse{Version: 3, Applied: p.a.at(-12 * 24 * time.Hour), AppliedBy: "ada", Hash: hash[:], Files: []*v1.PolicyFile{
		{Name: "1-read.cedar", Text: rules},
		{Name: "settings.toml", Text: "# Numbers that go with the rules.\n[break_glass]\nfor = \"30m\"\nratify_within = \"10m\"\n"},
	}}, nil
}

func (p policies) Explain(_ context.Context, r *v1.ExplainRequest) (*v1.ExplainResponse, error) {
	if r.Level == "write" {
		return &v1.ExplainResponse{Text: r.Person + " may not open a write session on " + r.Host + ": no grant is in force there. An operator or admin can approve one.", Rules: []string{"write-with-a-grant"}}, nil
	}
	return &v1.ExplainResponse{Allowed: true, Text: r.Person + " may open a read-only session on " + r.Host + ".", Rules: []string{"read-is-standing"}}, nil
}

type entries struct {
	handrailv1connect.UnimplementedLedgerHandler
	a *API
}

func (l entries) List(_ context.Context, r *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	out := &v1.ListEntriesResponse{Size: uint64(len(l.a.entries))}
	for i := len(l.a.entries) - 1; i >= 0 && len(out.Entries) < 100; i-- {
		e := l.a.entries[i]
		if r.Before > 0 && e.Number >= r.Before || !strings.HasPrefix(e.Action, r.Action) || !strings.Contains(e.ActorName, r.Person) ||
			r.Session != "" && e.Session != r.Session || !strings.Contains(e.TargetName, r.Target) {
			continue
		}
		out.Entries = append(out.Entries, copyOf(e))
	}
	return out, nil
}

func (l entries) Get(_ context.Context, r *v1.GetEntryRequest) (*v1.GetEntryResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	if r.Number >= uint64(len(l.a.entries)) {
		return nil, notFound("entry", strconv.FormatUint(r.Number, 10), "handrail ledger list")
	}
	return &v1.GetEntryResponse{Entry: copyOf(l.a.entries[r.Number])}, nil
}

func (l entries) Proof(_ context.Context, r *v1.ProofRequest) (*v1.ProofResponse, error) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	return &v1.ProofResponse{Leaf: []byte(l.a.entries[r.Number].LeafJson), Inclusion: l.a.tree.proof(int64(r.Number)), Checkpoint: l.a.tree.checkpoint()}, nil
}

func (l entries) Verify(_ context.Context, _ *v1.VerifyRequest, out *connect.ServerStream[v1.VerifyResponse]) error {
	l.a.mu.Lock()
	total, note := uint64(len(l.a.entries)), l.a.tree.checkpoint()
	l.a.mu.Unlock()
	for checked := uint64(0); checked < total; checked += 32 {
		if err := out.Send(&v1.VerifyResponse{Checked: checked, Total: total}); err != nil {
			return err
		}
	}
	return out.Send(&v1.VerifyResponse{Checked: total, Total: total, Done: true, Ok: true, Checkpoint: note, Recordings: 3, Payloads: total - 1})
}

func (l entries) Export(_ context.Context, _ *v1.ExportRequest, out *connect.ServerStream[v1.ExportResponse]) error {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	w, _ := z.Create("checkpoint")
	_, _ = w.Write([]byte("acme\n"))
	if err := z.Close(); err != nil {
		return err
	}
	return out.Send(&v1.ExportResponse{Data: buf.Bytes()})
}
