package fake

import (
	"context"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type drains struct {
	handrailv1connect.UnimplementedDrainsHandler
	a *API
}

func (d drains) Drain(ctx context.Context, r *v1.DrainHostRequest) (*v1.DrainHostResponse, error) {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	h := d.a.host(r.Host)
	if h == nil || r.Why == "" {
		return nil, wrong(fault.New(fault.Invalid, "cannot drain %s: say why", r.Host).WithHint("handrail host drain %s --for 2h --why \"…\"", r.Host))
	}
	h.Drain = &v1.Drain{PersonName: d.a.person(self(ctx)).Name, Why: r.Why, Since: d.a.at(0), Until: d.a.at(r.For.AsDuration().Round(time.Second))}
	return &v1.DrainHostResponse{Until: h.Drain.Until}, nil
}

func (d drains) Undrain(_ context.Context, r *v1.UndrainHostRequest) (*v1.UndrainHostResponse, error) {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	if h := d.a.host(r.Host); h != nil {
		h.Drain = nil
	}
	return &v1.UndrainHostResponse{}, nil
}
