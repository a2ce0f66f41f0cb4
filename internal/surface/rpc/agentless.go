package rpc

import (
	"context"

	"golang.org/x/crypto/ssh"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

type sshHosts struct{ d *Deps }

func (s sshHosts) Look(ctx context.Context, r *handrailv1.LookRequest) (*handrailv1.LookResponse, error) {
	user, address, err := target.ParseSSH(r.Ssh)
	if err != nil {
		return nil, err
	}
	key, err := s.d.Agentless.Look(ctx, address)
	if err != nil {
		return nil, err
	}
	line, _, err := target.HostKey(string(ssh.MarshalAuthorizedKey(key)))
	if err != nil {
		return nil, err
	}
	return &handrailv1.LookResponse{User: user, Address: address, HostKey: line, Kind: key.Type(), Fingerprint: ssh.FingerprintSHA256(key)}, nil
}

func (s sshHosts) Add(ctx context.Context, r *handrailv1.AddSSHHostRequest) (*handrailv1.AddSSHHostResponse, error) {
	user, address, err := target.ParseSSH(r.Ssh)
	if err != nil {
		return nil, err
	}
	key, _, err := target.HostKey(r.HostKey)
	if err != nil {
		return nil, err
	}
	h, approval, err := s.d.Roster.AddHost(ctx, caller(ctx), target.Host{
		Name: r.Name, Environment: r.Environment, Scope: r.Scope, Services: r.Services, Labels: r.Labels,
		SSHAddress: address, SSHUser: user, SSHWrite: r.Write, SSHKey: key, SSHSource: r.Source, SSHNode: r.Node,
	})
	if err != nil {
		return nil, err
	}
	out := &handrailv1.AddSSHHostResponse{Host: hosts(s).message(h), Approval: approval}
	if approval == "" {
		out.Trust = s.trust(h)
	}
	return out, nil
}

func (s sshHosts) Set(ctx context.Context, r *handrailv1.SetSSHHostRequest) (*handrailv1.SetSSHHostResponse, error) {
	h, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	if h.SSHAddress == "" {
		return nil, fault.New(fault.Conflict, "cannot set how %s is reached over SSH: it has a node", h.Name).WithHint("handrail host show %s", h.Name)
	}
	change := roster.SSHChange{Write: r.Write, Source: r.Source, Node: r.Node}
	if r.Ssh != nil {
		user, address, err := target.ParseSSH(*r.Ssh)
		if err != nil {
			return nil, err
		}
		change.User, change.Address = &user, &address
	}
	if r.HostKey != nil {
		key, _, err := target.HostKey(*r.HostKey)
		if err != nil {
			return nil, err
		}
		change.Key = &key
	}
	set, approval, err := s.d.Roster.SetHost(ctx, caller(ctx), h.ID, roster.HostChange{SSH: change})
	if err != nil {
		return nil, err
	}
	return &handrailv1.SetSSHHostResponse{Host: hosts(s).message(set), Approval: approval}, nil
}

func (s sshHosts) Trust(ctx context.Context, r *handrailv1.HostTrustRequest) (*handrailv1.HostTrustResponse, error) {
	h, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	if h.SSHAddress == "" {
		return nil, fault.New(fault.Conflict, "cannot say what %s must trust: it has a node, which keeps the pinned root key", h.Name)
	}
	return s.trust(h), nil
}

// trust is what the host must be told. A certificate names the account and
// the host's own principal; a line for authorized_keys asks for the second, so
// that what another host's line lets in is not let in here.
func (s sshHosts) trust(h target.Host) *handrailv1.HostTrustResponse {
	out := &handrailv1.HostTrustResponse{Host: h.Name, Authority: s.d.Ring.SSHUserAuthority()}
	for _, l := range []struct{ account, level string }{{h.SSHUser, wire.LevelRead}, {h.SSHWrite, wire.LevelWrite}} {
		if l.account != "" {
			out.Lines = append(out.Lines, &handrailv1.HostTrustLine{Account: l.account, Level: l.level,
				Line: `cert-authority,restrict,pty,principals="` + h.Principal(l.level) + `" ` + out.Authority + " handrail"})
		}
	}
	return out
}

// overSSH completes the message of a host that is reached through its sshd.
func (s hosts) overSSH(h target.Host, out *handrailv1.Host) {
	out.SshAddress, out.SshUser, out.SshWrite, out.SshSource, out.SshNode = h.SSHAddress, h.SSHUser, h.SSHWrite, h.SSHSource, h.SSHNode
	out.SshFingerprint = target.Fingerprint(h.SSHKey)
	if !h.Agentless() || s.d.Agentless == nil {
		return
	}
	seen := s.d.Agentless.Seen(h.ID)
	out.Mode, out.State, out.Seen, out.SshTrouble = target.ModeAgentless, seen.State, stampTime(seen.At), seen.Why
	if !h.SSHNode {
		out.Floor, out.FloorMissing = wire.FloorAccount, agentless.Residue()
	}
}

func (s sshHosts) Adopt(ctx context.Context, r *handrailv1.AdoptRequest) (*handrailv1.AdoptResponse, error) {
	by := caller(ctx)
	h, secret, approval, err := s.d.Roster.Adopt(ctx, by, r.Host)
	if err != nil {
		return nil, err
	}
	if approval != "" {
		return &handrailv1.AdoptResponse{Host: hosts(s).message(h), Approval: approval}, nil
	}
	ctx = context.WithoutCancel(ctx) // half an adoption helps nobody, whoever goes away
	said, err := s.d.Agentless.Adopt(ctx, h, by.ID, secret)
	if err != nil {
		return nil, err
	}
	if h, err = s.d.Hosts.Get(ctx, h.ID); err != nil {
		return nil, err
	}
	return &handrailv1.AdoptResponse{Host: hosts(s).message(h), Said: said}, nil
}

func (s sshHosts) Dismiss(ctx context.Context, r *handrailv1.DismissRequest) (*handrailv1.DismissResponse, error) {
	by := caller(ctx)
	h, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	if h.SSHAddress == "" {
		return nil, fault.New(fault.Conflict, "cannot take the node from %s: it joined by itself and is reached in no other way", h.Name)
	}
	mode := target.ModeAgentless
	if h.Mode != mode {
		set, approval, err := s.d.Roster.SetHost(ctx, by, h.ID, roster.HostChange{SSH: roster.SSHChange{Mode: &mode}})
		if err != nil || approval != "" {
			return &handrailv1.DismissResponse{Host: hosts(s).message(h), Approval: approval}, err
		}
		h = set
	} else if err := s.d.Door.Read(ctx, doorway.Act{Action: "hosts.set", By: by, Host: &h}); err != nil {
		return nil, err
	}
	said, err := s.d.Agentless.Dismiss(context.WithoutCancel(ctx), h, by.ID)
	if err != nil {
		return nil, err
	}
	return &handrailv1.DismissResponse{Host: hosts(s).message(h), Said: said}, nil
}
