package rpc

import (
	"fmt"

	"handrail.dev/handrail/internal/foundation/target"
)

func hostAdded(s *said) string {
	h := read[hostPayload](s).Host
	return s.who() + " added " + h.Name + " as " + place(h.Environment, h.Scope) + ", without a node: its own sshd at " + h.SSHAddress + ", key " + target.Fingerprint(h.SSHKey)
}

func mismatched(s *said) string {
	p := read[struct{ Address, Pinned, Shown string }](s)
	return s.TargetName + " SHOWED ANOTHER HOST KEY at " + p.Address + ": " + p.Shown + ", pinned is " + p.Pinned + "; nothing was sent to it"
}

func sessionSwept(s *said) string {
	p := read[struct {
		Killed, Left int
		Error        string
	}](s)
	switch {
	case p.Error != "":
		return "nobody could look whether a session left something running on " + s.TargetName + because(p.Error)
	case p.Left > 0:
		return fmt.Sprintf("a session left processes on %s that could not be killed: %d", s.TargetName, p.Left)
	}
	return fmt.Sprintf("what a session left running on %s was killed: %s", s.TargetName, count(p.Killed, "process", "processes"))
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
