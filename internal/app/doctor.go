package app

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/sandbox/attack"
)

func doctorCommand() *cobra.Command {
	var try bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can give and what is missing",
		Example: `  handrail doctor               # layers of the sandbox, and what to do about the missing
  handrail doctor --attack      # try to break out of the read-only sandbox, probe by probe`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if try {
				return runAttack(cmd)
			}
			return printReport(cmd, sandbox.Probe(cmd.Context(), nil))
		},
	}
	cmd.Flags().BoolVar(&try, "attack", false, "try to break out of the read-only sandbox")
	return cmd
}

// runAttack runs the attack suite in the mode that sessions on this machine
// would have.
func runAttack(cmd *cobra.Command) error {
	mode := sandbox.RootMode
	if os.Geteuid() != 0 {
		mode = sandbox.UserNamespaceMode
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "attacking the sandbox on this kernel; nothing of this machine is harmed …")
	result, err := attack.Run(cmd.Context(), mode)
	if err != nil {
		return err
	}
	if !asJSON(cmd) {
		result.Write(cmd.OutOrStdout())
	} else if err := printJSON(cmd, result); err != nil {
		return err
	}
	if _, unintended := result.Count(); len(unintended) > 0 {
		return fault.New(fault.Partial, "cannot call this sandbox whole: %d probes got out that should not", len(unintended)).
			WithHint("give no shells on this host until it is explained")
	}
	return nil
}

func printReport(cmd *cobra.Command, r sandbox.Report) error {
	if !asJSON(cmd) {
		writeReport(cmd.OutOrStdout(), r)
	} else if err := printJSON(cmd, r); err != nil {
		return err
	}
	if r.Floor == sandbox.Brokered {
		return fault.New(fault.Partial, "cannot give shells on this machine").WithHint("the lines above say what is missing")
	}
	return nil
}

func writeReport(w io.Writer, r sandbox.Report) {
	fmt.Fprintf(w, "kernel    %s\nmode      %s\nfloor     %s\nlandlock  ABI %d\ncgroups   %s\n", r.Kernel, r.Mode, r.Floor, r.Landlock, r.Cgroup)
	for _, l := range r.Layers {
		state := "in force"
		if !l.InForce {
			state = "MISSING"
		}
		fmt.Fprintf(w, "  %-39s %-9s %s\n", l.Name, state, l.Detail)
	}
	for _, m := range r.Missing {
		fmt.Fprintln(w, "lacking:", m)
	}
}
