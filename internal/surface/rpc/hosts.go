package rpc

import (
	"context"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

type hosts struct{ d *Deps }

func (s hosts) List(ctx context.Context, r *handrailv1.ListHostsRequest) (*handrailv1.ListHostsResponse, error) {
	found, err := s.d.Hosts.List(ctx, r.Selector)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ListHostsResponse{Hosts: each(found, s.message)}, nil
}

func (s hosts) Get(ctx context.Context, r *handrailv1.GetHostRequest) (*handrailv1.GetHostResponse, error) {
	h, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.GetHostResponse{Host: s.message(h)}
	by := caller(ctx)
	read, err := s.d.Door.Explain(ctx, doorway.Act{Action: "sessions.open", By: by, Host: &h, Context: policy.Context{Level: "read", FloorOK: true}})
	if err != nil {
		return nil, err
	}
	write, err := s.d.Door.Explain(ctx, doorway.Act{Action: "sessions.open", By: by, Host: &h, Context: policy.Context{Level: "write", FloorOK: true}})
	if err != nil {
		return nil, err
	}
	out.MayRead, out.MayReadWhy, out.MayWrite = read.Allowed, read.Text, write.Allowed
	return out, s.d.Store.View(ctx, func(v *store.View) error {
		out.Grant, err = access.ActiveGrant(v, by.ID, h.ID, s.d.Now())
		return err
	})
}

func (s hosts) Watch(ctx context.Context, r *handrailv1.WatchHostsRequest, out *connect.ServerStream[handrailv1.WatchHostsResponse]) error {
	selector, err := target.ParseSelector(r.Selector)
	if err != nil {
		return err
	}
	changes, err := s.d.changes(ctx, notice.Hosts)
	if err != nil {
		return err
	}
	found, err := s.d.Hosts.List(ctx, r.Selector)
	if err != nil {
		return err
	}
	for _, h := range found {
		if err := out.Send(&handrailv1.WatchHostsResponse{Host: s.message(h)}); err != nil {
			return err
		}
	}
	for _, id := range changes {
		h, err := s.d.Hosts.Get(ctx, id)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if selector.Match(h) {
			if err := out.Send(&handrailv1.WatchHostsResponse{Host: s.message(h)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Join is called by a machine that has nothing but a token.
func (s hosts) Join(ctx context.Context, r *handrailv1.JoinRequest) (*handrailv1.JoinResponse, error) {
	secret := r.Token
	if t, err := ledger.ParseToken(r.Token); err == nil {
		secret = t.Secret
	}
	host, certificate, err := s.d.Roster.Join(ctx, secret, r.Hostname, r.Csr, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	_, signed := s.d.Ring.Bundle()
	return &handrailv1.JoinResponse{
		Host: host.ID, Name: host.Name, Certificate: certificate, Bundle: signed, Address: s.d.Info().Address,
	}, nil
}

func (s hosts) Invite(ctx context.Context, r *handrailv1.InviteRequest) (*handrailv1.InviteResponse, error) {
	invited, err := s.d.Roster.Invite(ctx, caller(ctx), target.Invite{
		Name: r.Name, Environment: r.Environment, Scope: r.Scope, Services: r.Services,
	})
	if err != nil {
		return nil, err
	}
	out := &handrailv1.InviteResponse{Expires: stampTime(invited.Expires), Approval: invited.Approval}
	if invited.Secret != "" {
		out.Token = ledger.Token{Address: s.d.Info().Address, RootHash: s.d.Ring.RootHash(), Secret: invited.Secret}.String()
		out.Command = "handrail join"
	}
	return out, nil
}

func (s hosts) Set(ctx context.Context, r *handrailv1.SetHostRequest) (*handrailv1.SetHostResponse, error) {
	change := roster.HostChange{Environment: r.Environment, Scope: r.Scope}
	if r.SetServices {
		change.Services = &r.Services
	}
	if r.SetLabels {
		change.Labels = &r.Labels
	}
	h, approval, err := s.d.Roster.SetHost(ctx, caller(ctx), r.Host, change)
	if err != nil {
		return nil, err
	}
	return &handrailv1.SetHostResponse{Host: s.message(h), Approval: approval}, nil
}

// message joins what people decided about a host with what its node reports.
func (s hosts) message(h target.Host) *handrailv1.Host {
	n := s.d.Fleet.Node(h.ID)
	out := &handrailv1.Host{
		Id: h.ID, Name: h.Name, Environment: h.Environment, Scope: h.Scope, Services: h.Services, Labels: h.Labels,
		State: string(n.State), Seen: stampTime(n.Seen), Floor: n.Floor, FloorMissing: n.Missing, Created: stamp(h.Created),
		NodeVersion: n.Version, Mode: n.Mode, Trial: n.Trial || h.Trial, Server: h.Server,
		Facts: each(n.Facts, func(f fleet.Fact) *handrailv1.Fact {
			return &handrailv1.Fact{Name: f.Name, Value: f.Value, At: stampTime(f.At), Source: f.Source}
		}),
	}
	if n.Refused != "" {
		out.Facts = append([]*handrailv1.Fact{{Name: "node_refused", Value: n.Refused, Source: "server"}}, out.Facts...)
	}
	if h.SSHAddress != "" {
		s.overSSH(h, out)
	}
	out.Sessions = uint32(s.d.Sessions.LiveOn(h.ID))
	out.Drain = s.d.drainOf(h.ID)
	return out
}
