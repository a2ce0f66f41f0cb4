package warden

import (
	"encoding/json"

	"handrail.dev/handrail/internal/foundation/wire"
)

// The kinds of request that a look at what is else hidden carries.
const (
	kindCore   = "inspect.core"
	kindUnmask = "inspect.unmask"
)

// checkAgreed is checkAuthority for a core dump or an unmasked value: where the
// host knows its approvers, the order key alone reads no process's memory here.
func (h hostPolicy) checkAgreed(p wire.OrderPayload) error {
	a := p.Authority
	if a == nil {
		return refuse(RuleAuthority, "cannot accept order %s: this host wants the approvers' own signatures", p.Order)
	}
	kind := kindCore
	if p.Inspect.Unmask != nil {
		kind = kindUnmask
	}
	var r wire.AgreedLook
	if err := json.Unmarshal(a.Request, &r); err != nil || a.Kind != kind || !r.Covers(p) {
		return refuse(RuleAuthority, "cannot accept order %s: what was approved is not this, for this person on this host", p.Order)
	}
	return h.checkSigners(p, p.Inspect.Person)
}
