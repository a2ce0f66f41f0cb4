package session

import (
	"strings"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// bare says that a session there has nothing of ours around it.
func bare(h target.Host) bool { return h.Agentless() && !h.SSHNode }

// validFor is how long an order may be on its way, in milliseconds. A node that
// comes for it over SSH is on its way itself.
func (s *Sessions) validFor(host target.Host) int64 {
	if host.Agentless() {
		return wire.MaxOrderAge
	}
	return s.b.ValidFor.Milliseconds()
}

// accountThere makes a grant speak of the one account in which the host can be
// written. What was approved for another account is not silently used for it.
func accountThere(host target.Host, info Info, grant doorway.GrantInForce) (doorway.GrantInForce, error) {
	if !host.Agentless() || info.Level != wire.LevelWrite {
		return grant, nil
	}
	if grant.Account != "" && grant.Account != host.SSHWrite {
		return grant, fault.New(fault.Denied, "cannot open a write session on %s: grant %s is for the account %s, and this host, which has no node, is written as %s",
			host.Name, grant.ID, grant.Account, host.SSHWrite).WithHint("handrail elevate %s --reason \"…\"", host.Name)
	}
	grant.Account = host.SSHWrite
	return grant, nil
}

// withoutNode makes the order for a host that has no node: what no kernel of
// ours would keep there is not asked for, and the person reads that first. The
// doorway has refused what such a host cannot give.
func withoutNode(spec wire.SessionSpec, host target.Host) wire.SessionSpec {
	if !bare(host) {
		if spec.LeastFloor == wire.FloorAccount {
			spec.LeastFloor = wire.FloorReduced // the least that a node gives
		}
		return spec
	}
	spec.Sudo, spec.Root, spec.Groups, spec.Secrets = false, false, nil, nil
	account := host.SSHWrite
	if spec.Level == wire.LevelRead {
		account, spec.LeastFloor = host.SSHUser, wire.FloorAccount
	}
	if len(spec.Banner) > 0 {
		spec.Banner[0] = strings.Replace(spec.Banner[0], " · read-only · ", " · to read, as "+account+" · ", 1)
	}
	spec.Banner = append(spec.Banner, "NOT KERNEL-ENFORCED: "+host.Name+" has no node. Only the rights of the account "+account+
		" limit this session. handrail host adopt "+host.Name+" gives it a node.")
	return spec
}
