package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/wire"
)

type drains struct{ d *Deps }

func (s drains) Drain(ctx context.Context, r *handrailv1.DrainHostRequest) (*handrailv1.DrainHostResponse, error) {
	d, err := s.d.Drains.Drain(ctx, caller(ctx), r.Host, r.For.AsDuration(), r.Why)
	if err != nil {
		return nil, err
	}
	return &handrailv1.DrainHostResponse{Until: stamp(d.Until), Sessions: uint32(s.d.Sessions.LiveOn(d.Host))}, nil
}

func (s drains) Undrain(ctx context.Context, r *handrailv1.UndrainHostRequest) (*handrailv1.UndrainHostResponse, error) {
	return &handrailv1.UndrainHostResponse{}, s.d.Drains.Undrain(ctx, caller(ctx), r.Host)
}

// drainOf is the drain of a host, as people see it.
func (d *Deps) drainOf(host string) *handrailv1.Drain {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	got, ok, err := d.Drains.Of(ctx, host)
	if err != nil || !ok {
		return nil
	}
	return &handrailv1.Drain{Person: got.Person, PersonName: d.nameOf(ctx, got.Person), Why: got.Why, Since: stamp(got.Since), Until: stamp(got.Until)}
}

func (d *Deps) nameOf(ctx context.Context, person string) string {
	if p, err := d.People.Get(ctx, person); err == nil {
		return p.Name
	}
	return person
}

type cores struct{ d *Deps }

func (s cores) Ask(ctx context.Context, r *handrailv1.AskCoreRequest) (*handrailv1.AskCoreResponse, error) {
	a, said, err := s.d.Inspect.Ask(ctx, caller(ctx), inspect.Wanted{Kind: inspect.KindCore, Host: r.Host, Target: r.Target, Why: r.Why,
		Most: int64(min(r.Most, wire.MaxCoreBytes+1)), Pause: r.Pause.AsDuration(), Keep: r.Keep.AsDuration()})
	if err != nil {
		return nil, err
	}
	return &handrailv1.AskCoreResponse{Id: a.ID, Approval: a.Approval, Summary: said.Summary, Details: details(said)}, nil
}

func details(d approval.Description) []string {
	return each(d.Details, func(x approval.Detail) string { return x.Name + ": " + x.Value })
}

func (s cores) Take(ctx context.Context, r *handrailv1.TakeCoreRequest, out *connect.ServerStream[handrailv1.TakeCoreResponse]) error {
	send := func(m *handrailv1.InspectResponse) error {
		if m == nil {
			return nil
		}
		return out.Send(&handrailv1.TakeCoreResponse{Record: &handrailv1.TakeCoreResponse_Heard{Heard: m}})
	}
	a, err := s.d.Inspect.Take(ctx, caller(ctx), r.Id, func(a inspect.Asked) error { return send(beganMessage(a)) },
		func(record wire.InspectRecord) error { return send(lookMessage(record)) })
	if err != nil {
		return err
	}
	return out.Send(&handrailv1.TakeCoreResponse{Record: &handrailv1.TakeCoreResponse_Core{Core: s.message(ctx, inspect.Shown{Agreed: a, Mine: true})}})
}

func (s cores) message(ctx context.Context, c inspect.Shown) *handrailv1.Core {
	return &handrailv1.Core{
		Id: c.ID, State: c.State, Host: c.Host, HostName: c.HostName, Person: c.Person, PersonName: s.d.nameOf(ctx, c.Person), Process: c.Terms.Is, Why: c.Terms.Why,
		Approval: c.Approval, Bytes: uint64(c.Bytes), Sealed: uint64(c.Sealed), Asked: stamp(c.Asked), Taken: stamp(c.Taken), Until: stamp(c.Until), Mine: c.Mine, Home: c.Home,
	}
}

func (s cores) List(ctx context.Context, _ *handrailv1.ListCoresRequest) (*handrailv1.ListCoresResponse, error) {
	all, err := s.d.Inspect.List(ctx, caller(ctx), inspect.KindCore)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ListCoresResponse{Cores: each(all, func(c inspect.Shown) *handrailv1.Core { return s.message(ctx, c) })}, nil
}

func (s cores) Download(ctx context.Context, r *handrailv1.DownloadCoreRequest, out *connect.ServerStream[handrailv1.DownloadCoreResponse]) error {
	return s.d.Inspect.Download(ctx, caller(ctx), r.Id,
		func(a inspect.Agreed) error {
			return out.Send(&handrailv1.DownloadCoreResponse{Core: s.message(ctx, inspect.Shown{Agreed: a, Mine: true})})
		},
		func(b []byte) error { return out.Send(&handrailv1.DownloadCoreResponse{Part: b}) })
}

func (s cores) Remove(ctx context.Context, r *handrailv1.RemoveCoreRequest) (*handrailv1.RemoveCoreResponse, error) {
	_, err := s.d.Inspect.Remove(ctx, caller(ctx), r.Id)
	return &handrailv1.RemoveCoreResponse{}, err
}

type unmaskings struct{ d *Deps }

func (s unmaskings) Ask(ctx context.Context, r *handrailv1.AskUnmaskRequest) (*handrailv1.AskUnmaskResponse, error) {
	a, said, err := s.d.Inspect.Ask(ctx, caller(ctx), inspect.Wanted{Kind: inspect.KindUnmask, Host: r.Host, Target: r.Target, Why: r.Why, Name: r.Name, Key: r.Key})
	if err != nil {
		return nil, err
	}
	return &handrailv1.AskUnmaskResponse{Id: a.ID, Approval: a.Approval, Summary: said.Summary, Details: details(said)}, nil
}

func (s unmaskings) Show(ctx context.Context, r *handrailv1.ShowUnmaskedRequest) (*handrailv1.ShowUnmaskedResponse, error) {
	box, info, err := s.d.Inspect.Unmask(ctx, caller(ctx), r.Id)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ShowUnmaskedResponse{Sealed: box, Info: info}, nil
}

type answers struct{ d *Deps }

func (s answers) Show(ctx context.Context, r *handrailv1.ShowAnswerRequest, out *connect.ServerStream[handrailv1.ShowAnswerResponse]) error {
	return s.d.Inspect.Show(ctx, caller(ctx), r.Entry,
		func(a inspect.Again) error {
			return out.Send(&handrailv1.ShowAnswerResponse{Record: &handrailv1.ShowAnswerResponse_Answer{Answer: &handrailv1.ShownAnswer{
				Id: a.ID, Seq: uint64(a.Seq), HostName: a.HostName, PersonName: s.d.nameOf(ctx, a.Person), What: a.What, Target: a.Target, Error: a.Error, Cut: a.Cut, At: stamp(a.At),
			}}})
		},
		func(record wire.InspectRecord) error {
			m := lookMessage(record)
			if m == nil {
				return nil
			}
			return out.Send(&handrailv1.ShowAnswerResponse{Record: &handrailv1.ShowAnswerResponse_Heard{Heard: m}})
		})
}
