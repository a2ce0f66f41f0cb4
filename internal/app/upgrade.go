package app

import (
	"fmt"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/host/role"
)

// nodeUpgradeCommand has a node become what is installed now.
func nodeUpgradeCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Run the installed program in the node's place; sessions go on",
		Long: "Put the newer program where the one that runs was started from, then run this on the host.\n" +
			"The root half of the node becomes the newer program at once, with its sessions. What carries\n" +
			"their bytes, and the server where `handrail up` runs one, stay as they are until their next start.",
		Example: `  install -m 755 handrail /usr/local/bin/handrail && handrail node upgrade
  handrail node upgrade --data /var/lib/handrail     # of a node in another folder`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			version, err := role.AskUpgrade(cmd.Context(), dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the node runs %s; its sessions go on\n", version)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder of the node's data")
	return cmd
}
