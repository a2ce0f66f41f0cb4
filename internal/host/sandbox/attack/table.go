package attack

import (
	"fmt"
	"io"
	"slices"

	"handrail.dev/handrail/internal/host/sandbox"
)

// Write prints the result for a person: one line a probe, then the sum.
func (r Result) Write(w io.Writer) {
	known, why := r.Residue()
	group := ""
	for _, row := range r.Rows {
		if row.Group != group {
			group = row.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		mark := "  "
		if row.Sandbox == Succeeded {
			mark = "! "
			if slices.Contains(known, row.Name) {
				mark = "~ "
			}
		}
		fmt.Fprintf(w, "%s%-22s %-10s  without: %-10s  %s\n", mark, row.Name, row.Sandbox, row.Plain, row.What)
	}
	plain, unintended := r.Count()
	fmt.Fprintf(w, "\n%d probes (%s, floor %s): %d got through. Without a sandbox %d get through.\n",
		len(r.Rows), modeText(r.Mode), r.Ready.Floor, len(unintended), plain)
	for _, reason := range why {
		fmt.Fprintf(w, "Known to get through here (~): %s.\n", reason)
	}
	for _, s := range r.Astray() {
		fmt.Fprintf(w, "Not as expected: %s\n", s)
	}
	for _, m := range r.Ready.Missing {
		fmt.Fprintf(w, "Missing: %s\n", m)
	}
}

func modeText(m sandbox.Mode) string {
	if m == sandbox.UserNamespaceMode {
		return "without root"
	}
	return "as root"
}
