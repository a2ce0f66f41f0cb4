package wire

import (
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/seal"
)

// InspectCore is a dump of a process's memory. It is no brokered read like the
// others: without a key it only says what it would be, with one it carries what
// people agreed to.
const InspectCore = "core"

// Bounds of a core dump.
const (
	MaxCoreTime  = 10 * 60_000 // ms from the start to the end
	MaxCorePause = 120_000     // ms that the process is held at most
	MaxCoreBytes = 16 << 30
)

// CoreSpec is a core dump that somebody agreed to. Zero is the question of what
// it would be.
type CoreSpec struct {
	Process ProcessID `json:"process"`
	Most    int64     `json:"most,omitempty"` // bytes; more is refused
	Key     []byte    `json:"key,omitempty"`  // whom it is sealed to; see package seal
}

// UnmaskSpec is one value that somebody agreed to have shown.
type UnmaskSpec struct {
	Process ProcessID `json:"process"`
	Name    string    `json:"name"` // of the variable
	Key     []byte    `json:"key"`
}

// ProcessID is one process and no later one of the same number.
type ProcessID struct {
	PID     int64 `json:"pid,omitempty"`
	Started int64 `json:"started,omitempty"` // ticks since the host's boot
}

func (p ProcessID) ok() bool { return p.PID > 0 && p.Started > 0 }

// MaxVariable is the longest name of a variable.
const MaxVariable = 256

// Agreed says whether the look is one that a second person must agree to.
func (s InspectSpec) Agreed() bool { return s.Core != nil && s.Core.Key != nil || s.Unmask != nil }

// SealInfo is what an answer of that inspection is sealed as.
func (s InspectSpec) SealInfo() string { return "handrail " + s.What + " " + s.ID }

// checkAgreed checks what only agreed looks have, and their wider bounds.
func (s InspectSpec) checkAgreed(bad func(string) error) error {
	pause, time := int64(MaxInspectPause), int64(MaxInspectTime)
	if s.What == InspectCore {
		pause, time = MaxCorePause, MaxCoreTime
	}
	switch {
	case s.PauseMS < 0 || s.PauseMS > pause:
		return bad("bad pause")
	case s.TimeMS <= 0 || s.TimeMS > time:
		return bad("bad time")
	case (s.What == InspectCore) != (s.Core != nil):
		return bad("a core dump without its terms, or terms without one")
	case s.Unmask != nil && s.What != InspectEnv:
		return bad("only a variable of an environment is unmasked")
	}
	if c := s.Core; c != nil && c.Key != nil && (!c.Process.ok() || c.Most <= 0 || c.Most > MaxCoreBytes) {
		return bad("bad terms of a core dump")
	}
	if u := s.Unmask; u != nil && (!u.Process.ok() || !VariableName(u.Name) || u.Key == nil) {
		return bad("bad terms of unmasking")
	}
	for _, key := range s.keys() {
		if err := seal.CheckKey(key); err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read inspection %s", s.ID)
		}
	}
	return nil
}

func (s InspectSpec) keys() (all [][]byte) {
	if s.Core != nil && s.Core.Key != nil {
		all = append(all, s.Core.Key)
	}
	if s.Unmask != nil {
		all = append(all, s.Unmask.Key)
	}
	return all
}

// VariableName says whether a variable may be asked for by that name.
func VariableName(s string) bool {
	return s != "" && len(s) <= MaxVariable && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '=' || r == 0x7f })
}

// AgreedLook is what of an approved request the host compares with the order
// that carries it, where the host's own policy wants to see who agreed.
type AgreedLook struct {
	Person  string    `json:"person"`
	Host    string    `json:"host"`
	Process ProcessID `json:"process"`
	Most    int64     `json:"most"`
	PauseMS int64     `json:"pause_ms"`
	Name    string    `json:"name"`
	Key     []byte    `json:"key"` // of whom an unmasked value is for
}

// Covers says whether what was agreed to is what the order does.
func (r AgreedLook) Covers(p OrderPayload) bool {
	s := p.Inspect
	if s == nil || r.Person != s.Person || r.Host != p.Node {
		return false
	}
	if u := s.Unmask; u != nil {
		return r.Process == u.Process && r.Name == u.Name && string(r.Key) == string(u.Key)
	}
	c := s.Core
	return c != nil && r.Process == c.Process && c.Most <= r.Most && s.PauseMS <= r.PauseMS && r.Name == ""
}
