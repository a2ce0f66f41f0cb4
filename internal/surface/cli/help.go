package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
)

// The examples come first: most who ask for help want a line to copy.
const helpTemplate = `{{with .Example}}Examples:
{{.}}

{{end}}{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

const usageTemplate = `Usage:{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND{{else}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show the help of a command",
		Example: "  handrail help ssh           # as handrail ssh --help\n  handrail help ledger verify  # of a command inside a group",
		GroupID: "start",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(found, rest)
			}
			return found.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			found, _, err := root.Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, c := range found.Commands() {
				if c.IsAvailableCommand() {
					names = append(names, c.Name()+"\t"+c.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func (t *tool) completionCommand(root *cobra.Command) *cobra.Command {
	c := t.command("completion bash|zsh|fish", "Print the completion script of a shell",
		"source <(handrail completion bash)                                        # this shell, now\nhandrail completion fish > ~/.config/fish/completions/handrail.fish  # every fish shell from now on",
		exactly("the name of the shell (bash, zsh or fish)"),
		func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(t.out(), true)
			case "zsh":
				return root.GenZshCompletion(t.out())
			case "fish":
				return root.GenFishCompletion(t.out(), true)
			}
			return fault.New(fault.Invalid, "cannot complete in %q: known are bash, zsh and fish", clean(args[0])).WithHint("handrail completion bash")
		})
	c.ValidArgsFunction = cobra.FixedCompletions([]string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp)
	return c
}

func (t *tool) versionCommand() *cobra.Command {
	return t.command("version", "Print the version of this program",
		"handrail version          # this program's version\nhandrail version -o json  # the same for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			if t.format == "json" || t.format == "yaml" {
				return t.structured([]byte(fmt.Sprintf(`{"version":%q}`, t.Version)))
			}
			fmt.Fprintln(t.out(), t.Version)
			return nil
		})
}
