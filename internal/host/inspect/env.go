package inspect

import (
	"slices"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/mask"
)

const maxEnviron = 1 << 20

// environment shows the names of a process's variables, and the values of
// those that are known to be harmless.
func (p *plan) environment(a *answer) error {
	if p.Process.Kernel {
		return fault.New(fault.Invalid, "cannot look at the environment of %s: it is a part of the kernel", p.Process.Name)
	}
	a.end.Method = "the environment with which it was started, as the kernel keeps it; what it set later is not seen"
	b, err := readSome(procPath(p.Process.PID, "environ"), maxEnviron)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot read the environment of process %d", p.Process.PID)
	}
	if err := p.still(); err != nil {
		return err
	}
	if len(b) == maxEnviron {
		a.end.Cut = true
	}
	if p.Spec.Unmask != nil {
		return p.unmask(a, string(b))
	}
	words := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	slices.Sort(words)
	odd := 0
	for _, w := range words {
		if w == "" {
			continue
		}
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t\n") || len(name) > 256 {
			odd++ // not a variable: a process may write there what it wants
			continue
		}
		v := wire.InspectVariable{Name: name}
		v.Value, v.Masked = mask.Variable(name, value)
		cut(&v.Value, 4096)
		if !a.put(wire.InspectRecord{Variable: &v}) {
			break
		}
	}
	if odd > 0 {
		a.note("Words there that are no variables are left out.")
	}
	return nil
}
