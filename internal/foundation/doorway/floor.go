package doorway

import (
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// On a host without a node no kernel of ours holds anybody back: there is an
// account, and what that account may do. What follows from it is decided here,
// so that no set of rules can forget it.

// reachesFloor says whether a read session on the host can have the floor that
// policy asks for there. A node says so itself when it starts the session.
func reachesFloor(e *policy.Engine, h *target.Host) bool {
	if h == nil || !h.Agentless() || h.SSHNode {
		return true
	}
	least := e.LeastFloor(h.Environment)
	return least == wire.FloorAccount || least == wire.FloorBrokered
}

// withoutNode is what no policy can lift on a host that has no node.
func withoutNode(q policy.Query) policy.Decision {
	h := q.Host
	if h == nil || !h.Agentless() {
		return policy.Decision{}
	}
	refused := func(rule, text, next string) policy.Decision {
		return policy.Decision{Rules: []string{rule}, Text: "Refused: " + text, Next: next}
	}
	adopt := "handrail host adopt " + h.Name
	opens := q.Action == "sessions.open"
	looks := q.Action == "inspect" || q.Context.Inspect != "" && (q.Action == "inspect.core" || q.Action == "inspect.unmask")
	asks := q.Action == "grants.request" || q.Action == "grants.breakglass"
	switch {
	case opens && q.Context.Level == wire.LevelRead && !q.Context.FloorOK:
		return refused("least-floor", "this host has no node, so only the rights of the account "+h.SSHUser+
			" would keep a read session from writing, and policy asks for more in "+h.Environment+".", adopt)
	case (asks || opens && q.Context.Level == wire.LevelWrite) && (q.Context.Root || q.Context.Sudo) && !h.SSHNode:
		return refused("no-root-without-a-node", "this host has no node, so nothing there could end what root or sudo started.", adopt)
	case looks && !h.SSHNode:
		return refused("no-look-without-a-node", "this host has no node to look and to mask what it sees, and none may come for the length of a look.",
			"handrail host set "+h.Name+" --ssh-node")
	case (asks || opens && q.Context.Level == wire.LevelWrite) && h.SSHWrite == "":
		return refused("no-write-account", "this host has no node and no account to write as.",
			"handrail host set "+h.Name+" --ssh-write ACCOUNT")
	}
	return policy.Decision{}
}
