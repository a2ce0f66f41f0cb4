package web

import v1 "handrail.dev/handrail/api/handrail/v1"

// agentless says that a host is reached through its own sshd.
func agentless(h *v1.Host) bool { return h.GetMode() == "agentless" }

// bare says that nothing of handrail is around a session there.
func bare(h *v1.Host) bool { return agentless(h) && !h.GetSshNode() }

// whoLooks is what a brokered read of the host goes through.
func whoLooks(h *v1.Host) string {
	if agentless(h) {
		return "A node that comes over SSH for it"
	}
	return "The host's own node"
}

// sshStateWord is how a host without a node was last met.
func sshStateWord(h *v1.Host) string {
	switch h.GetState() {
	case "never":
		return "not tried yet"
	case "mismatch":
		return "other host key"
	case "refused":
		return "refuses us"
	case "offline":
		return "not reached"
	}
	return "reached"
}
