package roster

import (
	"context"
	"crypto/rand"
	"reflect"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// inviteFor is how long an invitation of a host lives.
const inviteFor = time.Hour

func newID() string { return "roster-" + rand.Text() }

// Invited is the secret of an invitation, or the approval that it waits for.
type Invited struct {
	Secret   string
	Expires  time.Time
	Approval string
}

// Invite makes a secret with which one host joins.
func (r *Roster) Invite(ctx context.Context, by identity.Principal, spec target.Invite) (Invited, error) {
	spec.For = inviteFor
	var out Invited
	invite := func(tx *store.Tx) ([]ledger.Entry, error) {
		secret, entry, err := r.Hosts.InviteTx(tx, by.ID, spec)
		if err != nil {
			return nil, err
		}
		out.Secret, out.Expires = secret, tx.Now().Add(inviteFor)
		return []ledger.Entry{entry}, nil
	}
	var err error
	out.Approval, err = r.do(ctx, by, change{
		action: "hosts.invite", kind: KindHostInvite, now: invite,
		request: hostInvite{V: 1, Name: spec.Name, Environment: spec.Environment, Scope: spec.Scope, Services: spec.Services, Labels: spec.Labels},
		collect: func(tx *store.Tx, _ right) ([]ledger.Entry, error) { return invite(tx) },
	})
	return out, err
}

// Join exchanges an invitation for a node certificate. A request for a
// certificate that is refused does not use up the invitation.
func (r *Roster) Join(ctx context.Context, secret, hostname string, csr []byte, source string) (target.Host, []byte, error) {
	var host target.Host
	var der []byte
	err := r.Hosts.KnowsInvite(ctx, secret, time.Now())
	if err == nil {
		_, err = r.Store.Record(ctx, newID(), func(tx *store.Tx) (entries []ledger.Entry, err error) {
			var entry ledger.Entry
			if host, entry, err = r.Hosts.RedeemInviteTx(tx, secret, hostname, r.Here != nil && r.Here(source)); err != nil {
				return nil, err
			}
			if der, err = r.issue(csr, host); err != nil {
				return nil, err
			}
			return []ledger.Entry{entry}, nil
		})
	}
	if fault.KindOf(err) == fault.Unauthenticated && err != nil {
		r.People.FailedLogin(source, "join refused")
	}
	return host, der, err
}

// HostChange is what somebody wants to set; nil leaves it as it is.
type HostChange struct {
	Environment *string
	Scope       *string
	Services    *[]string
	Labels      *[]string
	SSH         SSHChange
}

func (c HostChange) apply(h target.Host) target.Host {
	if c.Environment != nil {
		h.Environment = *c.Environment
	}
	if c.Scope != nil {
		h.Scope = *c.Scope
	}
	if c.Services != nil {
		h.Services = *c.Services
	}
	if c.Labels != nil {
		h.Labels = *c.Labels
	}
	return c.SSH.apply(h)
}

// SetHost sets what people say of a host. An approval is for the host as it was
// when it was asked for: if somebody changes it in between, it is a conflict.
func (r *Roster) SetHost(ctx context.Context, by identity.Principal, name string, c HostChange) (host target.Host, approvalID string, err error) {
	if host, err = r.Hosts.Get(ctx, name); err != nil {
		return host, "", err
	}
	wanted := c.apply(host)
	if err := wanted.Validate(); err != nil {
		return host, "", err
	}
	if reflect.DeepEqual(wanted, host) {
		return host, "", fault.New(fault.Invalid, "cannot set host %s: that is how it is already", host.Name)
	}
	approvalID, err = r.do(ctx, by, change{
		action: "hosts.set", kind: KindHostSet, host: &host, request: hostSet{V: 1, Was: host, Host: wanted},
		now: func(tx *store.Tx) ([]ledger.Entry, error) {
			entry, err := r.Hosts.SetByTx(tx, by.ID, wanted)
			return []ledger.Entry{entry}, err
		},
	})
	if err != nil || approvalID != "" {
		return host, approvalID, err
	}
	host, err = r.Hosts.Get(ctx, host.ID)
	return host, "", err
}

// ApplyPolicy puts a set in force, or asks for approval of exactly that set,
// compared with the version that is in force now.
func (r *Roster) ApplyPolicy(ctx context.Context, by identity.Principal, set policy.Set) (version int64, approvalID string, err error) {
	if _, problems := policy.Parse(set); len(problems) > 0 {
		return 0, "", fault.New(fault.Invalid, "cannot apply policy: %s", problems[0]).WithHint("handrail policy test DIR")
	}
	base, err := r.Policy.Current(ctx)
	if err != nil {
		return 0, "", err
	}
	approvalID, err = r.do(ctx, by, change{
		action: "policies.apply", kind: KindPolicyApply, request: policyApply{V: 1, Base: base.Version, Files: set.Files},
		now: func(tx *store.Tx) ([]ledger.Entry, error) {
			var entry ledger.Entry
			var err error
			version, entry, err = r.Policy.ApplyTx(tx, by.ID, set, base.Version)
			return []ledger.Entry{entry}, err
		},
	})
	return version, approvalID, err
}
