package rpc

import (
	"context"
	"slices"
	"strings"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/target"
)

type policies struct{ d *Deps }

func (s policies) Get(ctx context.Context, _ *handrailv1.GetPolicyRequest) (*handrailv1.GetPolicyResponse, error) {
	engine, err := s.d.Force.Engine(ctx)
	if err != nil {
		return nil, err
	}
	row, err := s.d.Force.Current(ctx)
	if err != nil {
		return nil, err
	}
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	return &handrailv1.GetPolicyResponse{
		Version: uint64(row.Version), Files: each(engine.Set().Files, fileMessage), Applied: stamp(row.Applied),
		AppliedBy: names.name(row.AppliedBy), Hash: engine.Hash(),
	}, nil
}

func fileMessage(f policy.File) *handrailv1.PolicyFile {
	return &handrailv1.PolicyFile{Name: f.Name, Text: f.Text}
}

func setOf(files []*handrailv1.PolicyFile) policy.Set {
	return policy.Set{Files: each(files, func(f *handrailv1.PolicyFile) policy.File {
		return policy.File{Name: f.Name, Text: f.Text}
	})}
}

func (s policies) Test(ctx context.Context, r *handrailv1.TestPolicyRequest) (*handrailv1.TestPolicyResponse, error) {
	set := setOf(r.Files)
	engine, problems := policy.Parse(set)
	out := &handrailv1.TestPolicyResponse{Problems: each(problems, policy.Problem.String), Hash: set.Hash()}
	if engine == nil {
		return out, nil
	}
	now, err := s.d.Force.Engine(ctx)
	if err != nil {
		return nil, err
	}
	people, err := s.d.People.List(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := s.d.Hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, delta := range policy.Compare(now, engine, people, hosts) {
		m := &handrailv1.PolicyDelta{
			Person: delta.Person, Action: delta.Action, Target: delta.Target, Before: delta.Before, After: delta.After, Rule: delta.Rule,
		}
		if delta.Gain() {
			out.Gains = append(out.Gains, m)
		} else {
			out.Losses = append(out.Losses, m)
		}
	}
	return out, nil
}

func (s policies) Apply(ctx context.Context, r *handrailv1.ApplyPolicyRequest) (*handrailv1.ApplyPolicyResponse, error) {
	test, err := s.Test(ctx, &handrailv1.TestPolicyRequest{Files: r.Files})
	if err != nil {
		return nil, err
	}
	if len(test.Problems) > 0 {
		return nil, fault.New(fault.Invalid, "cannot apply this policy: %s", test.Problems[0]).WithHint("handrail policy test DIR")
	}
	version, approval, err := s.d.Roster.ApplyPolicy(ctx, caller(ctx), setOf(r.Files))
	if err != nil {
		return nil, err
	}
	return &handrailv1.ApplyPolicyResponse{Approval: approval, Version: uint64(version), Test: test}, nil
}

func (s policies) Explain(ctx context.Context, r *handrailv1.ExplainRequest) (*handrailv1.ExplainResponse, error) {
	person, err := s.d.People.Get(ctx, r.Person)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(policy.Verbs(), r.Action) {
		unknown := fault.New(fault.Invalid, "cannot explain action %q: no rule knows it", r.Action)
		if near := fault.Nearest(r.Action, policy.Verbs()); near != "" {
			return nil, unknown.WithHint("handrail policy explain %s %s", person.Name, near)
		}
		return nil, unknown.WithHint("one of %s", strings.Join(policy.Verbs(), ", "))
	}
	act := doorway.Act{
		Action: r.Action, Context: policy.Context{Level: r.Level},
		By: identity.Principal{ID: person.ID, Name: person.Name, Kind: person.Kind, Groups: person.Groups, Epoch: person.Epoch},
	}
	if r.Host != "" {
		var host target.Host
		if host, err = s.d.Hosts.Get(ctx, r.Host); err != nil {
			return nil, err
		}
		act.Host = &host
	}
	d, err := s.d.Door.Explain(ctx, act)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ExplainResponse{Allowed: d.Allowed, Rules: d.Rules, Text: d.Text, Errors: d.Errors}, nil
}
