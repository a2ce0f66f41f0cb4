package attack

import (
	"fmt"
	"slices"

	"handrail.dev/handrail/internal/host/sandbox"
)

// leaves is what gets through where something is missing. Everything else is
// refused on every kernel by the mounts, the filter and the missing power.
type leaves struct {
	when  func(Result) bool
	why   string
	names []string
}

func landlockBefore(abi int, mode sandbox.Mode) func(Result) bool {
	return func(r Result) bool { return r.Ready.Landlock < abi && r.Mode == mode }
}

// floors lists what each older kernel leaves. The suite is stricter than a host:
// its victims have the very uid of the session, which nobody else has.
var floors = []leaves{
	{func(r Result) bool { return r.Ready.Landlock == 0 }, "no Landlock (Linux 5.13)",
		[]string{"write-fifo"}},
	{landlockBefore(1, sandbox.RootMode), "no Landlock (Linux 5.13): processes of the session's own uid are within reach",
		[]string{"harm-seen-from-outside", "victim-fd", "victim-root-write", "secret-victim-root", "secret-victim-cwd", "secret-map-files",
			"victim-environ", "victim-secret-fd", "victim-mem", "victim-maps"}},
	{landlockBefore(2, sandbox.RootMode), "Landlock 1 (before Linux 5.19) cannot part write sessions of one account",
		[]string{"session-ptrace", "session-vm-read", "session-vm-write", "session-proc-mem", "session-environ", "session-fd",
			"session-getfd", "session-stdin", "session-root"}},
	{landlockBefore(6, sandbox.RootMode), "Landlock before 6 (Linux 6.12) does not scope signals and sockets without a name",
		[]string{"kill", "tgkill", "sigqueue", "session-kill", "session-tgkill", "session-pidfd-signal", "session-socket"}},
	{func(r Result) bool { return r.Mode == sandbox.UserNamespaceMode && !r.OwnCount }, "before Linux 5.14 an account's processes cannot be counted apart",
		[]string{"fork-bomb"}},
}

// Residue is what this floor is known to leave: the names of the probes that get
// through, and why.
func (r Result) Residue() (names, why []string) {
	for _, f := range floors {
		if f.when(r) {
			names, why = append(names, f.names...), append(why, f.why)
		}
	}
	return names, why
}

// Astray says in what the result differs from what the floor is known to leave,
// one sentence each: what got through and should not have, and what was said to
// get through and did not.
func (r Result) Astray() (sentences []string) {
	known, _ := r.Residue()
	for _, row := range r.Rows {
		through, left := row.Sandbox == Succeeded, slices.Contains(known, row.Name)
		switch {
		case through && !left:
			sentences = append(sentences, fmt.Sprintf("%s got through: %s", row.Name, row.What))
		case left && !through && row.Sandbox != CannotRun:
			sentences = append(sentences, fmt.Sprintf("%s is said to get through here, and did not: %s", row.Name, row.Detail))
		}
	}
	return sentences
}
