package rpc

import (
	"context"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"

	"golang.org/x/crypto/ssh"
)

type logins struct{ d *Deps }

func (s logins) Trust(context.Context, *handrailv1.TrustRequest) (*handrailv1.TrustResponse, error) {
	_, signed := s.d.Ring.Bundle()
	return &handrailv1.TrustResponse{Bundle: signed}, nil
}

func (s logins) Redeem(ctx context.Context, r *handrailv1.RedeemRequest) (*handrailv1.RedeemResponse, error) {
	secret := r.Token
	if t, err := ledger.ParseToken(r.Token); err == nil {
		if t.RootHash != s.d.Ring.RootHash() {
			return nil, fault.New(fault.Invalid, "cannot log in: this token is for another installation").
				WithHint("ask for a token of this one: handrail login-link")
		}
		secret = t.Secret
	}
	via := "browser"
	if len(r.DeviceKey) > 0 {
		via = "device"
	}
	login, person, cert, err := s.d.People.Redeem(ctx, secret, r.DeviceKey, r.DeviceName, via, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, login, person, cert)
}

func (s logins) answer(ctx context.Context, login identity.Login, person identity.Person, cert *ssh.Certificate) (*handrailv1.RedeemResponse, error) {
	p, err := s.d.person(ctx, person, person.ID)
	if err != nil {
		return nil, err
	}
	_, signed := s.d.Ring.Bundle()
	out := &handrailv1.RedeemResponse{
		LoginToken: login.Bearer, Expires: stampTime(login.Expires), Person: p,
		Bundle: signed, SshAddress: s.d.Info().SSHAddress, Device: login.Device,
	}
	if cert != nil {
		out.SshCertificate = string(ssh.MarshalAuthorizedKey(cert))
	}
	return out, nil
}

func (s logins) RenewBegin(ctx context.Context, r *handrailv1.RenewBeginRequest) (*handrailv1.RenewBeginResponse, error) {
	nonce, err := s.d.People.RenewBegin(ctx, r.DeviceKey)
	return &handrailv1.RenewBeginResponse{Nonce: nonce}, err
}

func (s logins) Renew(ctx context.Context, r *handrailv1.RenewRequest) (*handrailv1.RedeemResponse, error) {
	login, person, cert, err := s.d.People.Renew(ctx, r.DeviceKey, r.Nonce, r.Signature, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, login, person, cert)
}

func (s logins) Whoami(ctx context.Context, _ *handrailv1.WhoamiRequest) (*handrailv1.WhoamiResponse, error) {
	by := caller(ctx)
	person, err := s.d.People.Get(ctx, by.ID)
	if err != nil {
		return nil, err
	}
	p, err := s.d.person(ctx, person, by.ID)
	if err != nil {
		return nil, err
	}
	login, err := s.d.People.LoginOf(ctx, by)
	if err != nil {
		return nil, err
	}
	installation, err := s.d.installation(ctx)
	return &handrailv1.WhoamiResponse{Person: p, Expires: stampTime(login.Expires), Installation: installation, Via: by.Via}, err
}

func (s logins) Logout(ctx context.Context, _ *handrailv1.LogoutRequest) (*handrailv1.LogoutResponse, error) {
	return &handrailv1.LogoutResponse{}, s.d.People.Logout(ctx, caller(ctx))
}

func (s logins) SetName(ctx context.Context, r *handrailv1.SetNameRequest) (*handrailv1.SetNameResponse, error) {
	person, err := s.d.People.SetName(ctx, caller(ctx), r.Name)
	if err != nil {
		return nil, err
	}
	p, err := s.d.person(ctx, person, person.ID)
	return &handrailv1.SetNameResponse{Person: p}, err
}

func (s logins) PasskeyBegin(ctx context.Context, _ *handrailv1.PasskeyBeginRequest) (*handrailv1.PasskeyBeginResponse, error) {
	options, ceremony, err := s.d.People.PasskeyBegin(ctx, caller(ctx))
	return &handrailv1.PasskeyBeginResponse{OptionsJson: options, Ceremony: ceremony}, err
}

func (s logins) PasskeyFinish(ctx context.Context, r *handrailv1.PasskeyFinishRequest) (*handrailv1.PasskeyFinishResponse, error) {
	c, err := s.d.People.PasskeyFinish(ctx, caller(ctx), r.Ceremony, r.ResponseJson, r.Name)
	if err != nil {
		return nil, err
	}
	return &handrailv1.PasskeyFinishResponse{Credential: credential(c)}, nil
}

func (s logins) PasskeyLoginBegin(ctx context.Context, _ *handrailv1.PasskeyLoginBeginRequest) (*handrailv1.PasskeyLoginBeginResponse, error) {
	options, ceremony, err := s.d.People.PasskeyLoginBegin(ctx)
	return &handrailv1.PasskeyLoginBeginResponse{OptionsJson: options, Ceremony: ceremony}, err
}

func (s logins) PasskeyLoginFinish(ctx context.Context, r *handrailv1.PasskeyLoginFinishRequest) (*handrailv1.RedeemResponse, error) {
	login, person, err := s.d.People.PasskeyLoginFinish(ctx, r.Ceremony, r.ResponseJson, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, login, person, nil)
}

func (s logins) CodeShow(ctx context.Context, r *handrailv1.CodeShowRequest) (*handrailv1.CodeShowResponse, error) {
	c, err := s.d.People.ShowCode(ctx, caller(ctx), r.Code)
	return &handrailv1.CodeShowResponse{
		SourceAddress: c.Source, Target: c.Target, Level: c.Level, KeyFingerprint: c.Fingerprint, Expires: stampTime(c.Expires),
	}, err
}

func (s logins) CodeConfirm(ctx context.Context, r *handrailv1.CodeConfirmRequest) (*handrailv1.CodeConfirmResponse, error) {
	return &handrailv1.CodeConfirmResponse{}, s.d.People.ConfirmCode(ctx, caller(ctx), r.Code)
}

// person converts a person for whoever looks.
func (d *Deps) person(ctx context.Context, p identity.Person, viewer string) (*handrailv1.Person, error) {
	out := &handrailv1.Person{
		Id: p.ID, Name: p.Name, Groups: p.Groups, Created: stamp(p.Created),
		Locked: stamp(p.LockedAt), LockedReason: p.LockedReason, IsSelf: p.ID == viewer,
	}
	err := d.Store.View(ctx, func(v *store.View) error {
		creds, err := d.People.Credentials(v, p.ID)
		if err != nil {
			return err
		}
		out.Credentials = each(creds, credential)
		if p.Kind == identity.KindRobot {
			owner, err := d.People.GetTx(v, p.Owner)
			if err != nil {
				return err
			}
			out.RobotOf = owner.Name
		}
		out.OwesReview, err = access.OwesReview(v, p.ID)
		return err
	})
	return out, err
}

func credential(c identity.Credential) *handrailv1.Credential {
	out := &handrailv1.Credential{
		Id: c.ID, Kind: c.Kind, Name: c.Name, Created: stamp(c.Created), Fingerprint: c.Fingerprint, NeverApproves: c.NeverApproves(),
	}
	if !out.NeverApproves {
		out.MayApproveFrom = stamp(c.MayApproveFrom)
	}
	return out
}
