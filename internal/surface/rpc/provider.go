package rpc

import (
	"context"
	"time"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/oidc"
)

type provider struct{ d *Deps }

func (s provider) Offer(context.Context, *handrailv1.OfferRequest) (*handrailv1.OfferResponse, error) {
	if s.d.Provider == nil {
		return &handrailv1.OfferResponse{Password: s.d.Directory.OffersLogin()}, nil
	}
	c := s.d.Provider.Config()
	return &handrailv1.OfferResponse{Offered: true, Name: c.Name, DeviceCode: c.DeviceCode, Password: s.d.Directory.OffersLogin()}, nil
}

func (s provider) offered() error {
	if s.d.Provider == nil {
		return fault.New(fault.Unavailable, "cannot log in at a provider: this installation has none").
			WithHint("handrail login, with a token of handrail login-link; an admin sets a provider up in [oidc] of handrail.toml")
	}
	return nil
}

func (s provider) Begin(ctx context.Context, r *handrailv1.ProviderBeginRequest) (*handrailv1.ProviderBeginResponse, error) {
	if err := s.offered(); err != nil {
		return nil, err
	}
	way := map[handrailv1.Way]oidc.Way{handrailv1.Way_WAY_PAGE: oidc.ToPage, handrailv1.Way_WAY_PASTE: oidc.ToPaste, handrailv1.Way_WAY_LOOP: oidc.ToLoop}[r.Way]
	asked, err := s.d.Provider.Begin(ctx, way, r.Redirect, r.DeviceKey)
	if err != nil {
		return nil, err
	}
	return &handrailv1.ProviderBeginResponse{Url: asked.URL, Ticket: asked.Ticket, Expires: stampTime(time.Unix(asked.Expires, 0))}, nil
}

func (s provider) Finish(ctx context.Context, r *handrailv1.ProviderFinishRequest) (*handrailv1.RedeemResponse, error) {
	if err := s.offered(); err != nil {
		return nil, err
	}
	who, err := s.d.Provider.Finish(ctx, oidc.Answer{
		Ticket: r.Ticket, Device: r.DeviceKey, State: r.State, Code: r.Code, Issuer: r.Issuer, Error: r.Error,
	})
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	return s.login(ctx, who, r.DeviceKey, r.DeviceName)
}

func (s provider) DeviceBegin(ctx context.Context, r *handrailv1.DeviceBeginRequest) (*handrailv1.DeviceBeginResponse, error) {
	if err := s.offered(); err != nil {
		return nil, err
	}
	asked, err := s.d.Provider.DeviceBegin(ctx, r.DeviceKey)
	if err != nil {
		return nil, err
	}
	return &handrailv1.DeviceBeginResponse{
		UserCode: asked.UserCode, Url: asked.URL, FullUrl: asked.FullURL, Ticket: asked.Ticket,
		IntervalSeconds: seconds(asked.Interval), Expires: stampTime(time.Unix(asked.Expires, 0)),
	}, nil
}

func (s provider) DevicePoll(ctx context.Context, r *handrailv1.DevicePollRequest) (*handrailv1.DevicePollResponse, error) {
	if err := s.offered(); err != nil {
		return nil, err
	}
	who, pending, err := s.d.Provider.DevicePoll(ctx, r.Ticket, r.DeviceKey)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	if pending > 0 {
		return &handrailv1.DevicePollResponse{WaitSeconds: seconds(pending)}, nil
	}
	login, err := s.login(ctx, who, r.DeviceKey, r.DeviceName)
	return &handrailv1.DevicePollResponse{Login: login}, err
}

// seconds rounds up, so that nobody asks too early.
func seconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// failed counts the failure of a stranger.
func (s provider) failed(ctx context.Context, err error) error {
	if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Denied {
		s.d.People.FailedLogin(caller(ctx).Source, "provider refused")
	}
	return err
}

func (s provider) login(ctx context.Context, who oidc.Subject, key []byte, device string) (*handrailv1.RedeemResponse, error) {
	login, person, cert, err := s.d.People.LoginOutside(ctx, identity.Outside{
		Issuer: who.Issuer, Subject: who.ID, Value: who.Value, Lasting: who.Kind == oidc.Directory, Claim: who.Claim,
		NewName: who.NewName, Groups: who.Groups, Question: who.Question,
	}, key, device, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return logins(s).answer(ctx, login, person, cert)
}
