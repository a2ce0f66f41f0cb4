package cli

import (
	"cmp"
	_ "embed" // completion.bash
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
)

// help is written by functions: a template would make the linker keep every
// method of every type, an eighth of the program.

// showHelp prints the help of a command. The examples come first: most who ask
// for help want a line to copy.
func showHelp(c *cobra.Command, _ []string) {
	w := c.OutOrStdout()
	if c.Example != "" {
		fmt.Fprintf(w, "Examples:\n%s\n\n", c.Example)
	}
	if about := strings.TrimSpace(cmp.Or(c.Long, c.Short)); about != "" {
		fmt.Fprintf(w, "%s\n\n", about)
	}
	fmt.Fprint(w, c.UsageString())
}

// showUsage prints how a command is called.
func showUsage(c *cobra.Command) error {
	w := c.OutOrStderr()
	line := c.UseLine()
	if c.HasAvailableSubCommands() {
		line = c.CommandPath() + " COMMAND"
	}
	fmt.Fprintf(w, "Usage:\n  %s", line)
	if groups := c.Groups(); len(groups) > 0 {
		for _, g := range groups {
			showCommands(w, g.Title, c, g.ID)
		}
	} else if c.HasAvailableSubCommands() {
		showCommands(w, "Commands:", c, "")
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(w, "\n\nFlags:\n%s", strings.TrimRight(c.LocalFlags().FlagUsages(), " \n"))
	}
	if c.HasAvailableInheritedFlags() {
		fmt.Fprintf(w, "\n\nFlags of every command:\n%s", strings.TrimRight(c.InheritedFlags().FlagUsages(), " \n"))
	}
	fmt.Fprintln(w)
	return nil
}

// showCommands lists the verbs of a group, or all where there is none.
func showCommands(w io.Writer, title string, of *cobra.Command, group string) {
	fmt.Fprintf(w, "\n\n%s", title)
	for _, c := range of.Commands() {
		if c.IsAvailableCommand() && (group == "" || c.GroupID == group) {
			fmt.Fprintf(w, "\n  %-*s %s", c.NamePadding(), c.Name(), c.Short)
		}
	}
}

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

// bashAlone makes the script for bash work without the package bash-completion,
// which servers seldom have.
//
//go:embed completion.bash
var bashAlone string

func (t *tool) completionCommand(root *cobra.Command) *cobra.Command {
	c := t.command("completion bash|zsh|fish", "Print the completion script of a shell",
		"source <(handrail completion bash)                                        # this shell, now\nhandrail completion fish > ~/.config/fish/completions/handrail.fish  # every fish shell from now on",
		exactly("the name of the shell (bash, zsh or fish)"),
		func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				if err := root.GenBashCompletionV2(t.out(), true); err != nil {
					return err
				}
				_, err := io.WriteString(t.out(), bashAlone)
				return err
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
