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
	var data string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can give, what is missing, and what is misconfigured",
		Example: `  handrail doctor               # layers of the sandbox, misconfigurations, and the next command for each
  handrail doctor --attack      # try to break out of the read-only sandbox, probe by probe`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if try {
				return runAttack(cmd)
			}
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			report, all, err := examine(cmd.Context(), dir)
			if err != nil {
				return err
			}
			return printReport(cmd, report, all)
		},
	}
	cmd.Flags().BoolVar(&try, "attack", false, "try to break out of the read-only sandbox")
	cmd.Flags().StringVar(&data, "data", "", "folder of the server that runs here")
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
	if astray := result.Astray(); len(astray) > 0 {
		return fault.New(fault.Partial, "cannot call this sandbox what its floor says: %d probes ended otherwise", len(astray)).
			WithHint("give no shells on this host until it is explained")
	}
	return nil
}

func printReport(cmd *cobra.Command, r sandbox.Report, all []finding) error {
	if !asJSON(cmd) {
		writeReport(cmd.OutOrStdout(), r)
		writeFindings(cmd.OutOrStdout(), all)
	} else if err := printJSON(cmd, struct {
		sandbox.Report
		Findings []finding `json:"findings"`
	}{r, all}); err != nil {
		return err
	}
	if r.Floor == sandbox.Brokered {
		return fault.New(fault.Partial, "cannot give shells on this machine").WithHint("the lines above say what is missing")
	}
	for _, f := range all {
		if f.Bad {
			return fault.New(fault.Partial, "cannot call this installation sound: %s", f.What).WithHint("%s", f.Fix)
		}
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
