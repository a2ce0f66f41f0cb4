package app

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
)

func storeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "store", Short: "Work on the database itself, while no server runs",
		Example: `  handrail store move --database postgres://handrail@db/handrail   # from SQLite to PostgreSQL
  handrail store move --help`,
	}
	cmd.AddCommand(storeMoveCommand())
	return cmd
}

func storeMoveCommand() *cobra.Command {
	var data, database string
	cmd := &cobra.Command{
		Use:   "move",
		Short: "Move the database from SQLite to an empty PostgreSQL",
		Long: `Copies every row, entry, proof and id as it is, verifies the copy, and closes the
old database for good: no server starts on it any more. Stop the server first.
If it is interrupted, run it again: it goes on where nothing can be lost.`,
		Example: `  handrail store move --database postgres://handrail@db/handrail
  HANDRAIL_DATABASE=postgres://… handrail store move --data ./data   # a password that nobody sees`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if database == "" {
				database = os.Getenv(databaseEnv)
			}
			if database == "" {
				return fault.New(fault.Invalid, "cannot move the store: no database is named").WithHint("--database postgres://…, or HANDRAIL_DATABASE")
			}
			return offline(cmd, data, database, func(ctx context.Context, p place) error {
				return moveStore(ctx, cmd, p, database)
			})
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder of the server's data")
	cmd.Flags().StringVar(&database, "database", "", "URL of the empty PostgreSQL database")
	return cmd
}

func moveStore(ctx context.Context, cmd *cobra.Command, p place, database string) error {
	c, _, err := storeOf(p, "")
	if err != nil {
		return err
	}
	did, err := store.Move(ctx, c, database, func(table string, rows int64) {
		fmt.Fprintf(cmd.ErrOrStderr(), "copied %s: %d rows\n", table, rows)
	})
	if err != nil {
		return err
	}
	if asJSON(cmd) {
		return printJSON(cmd, did)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "moved %d entries to %s, root %s\n", did.Entries, did.To, did.Root)
	fmt.Fprintln(cmd.ErrOrStderr(), "start the server with --database and that URL; the old database takes nothing any more")
	return nil
}
