package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// Deps is what the command line needs from the program around it. Zero fields
// take the process's own.
type Deps struct {
	Roles   []*cobra.Command // commands that run a part of handrail on this machine
	Version string
	// Ceremony are the verbs of `handrail voucher` that need no server.
	Ceremony []*cobra.Command
	Manual   Manual

	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Env    func(string) string
	Now    func() time.Time

	// LocalToken fetches a single-use login token from the server that runs on
	// this machine with that data folder. It works for the folder's owner only.
	LocalToken func(ctx context.Context, dataDir string) (string, error)
	// LocalVerify has the same server verify its ledger, for its owner.
	LocalVerify func(ctx context.Context, dataDir string) (*v1.VerifyResponse, error)
	// LocalDirectory reads the directory by this machine's configuration, and has
	// that server say what it would bring about.
	LocalDirectory func(ctx context.Context, dataDir string) (*v1.DirectoryTestResponse, error)
}

// tool is one run of the command line.
type tool struct {
	Deps
	format   string // -o
	absolute bool   // --absolute
}

// Groups of commands, in the order the help lists them.
var groups = []*cobra.Group{
	{ID: "start", Title: "Start:"},
	{ID: "look", Title: "Look:"},
	{ID: "jump", Title: "Jump to write access:"},
	{ID: "watch", Title: "Watch and replay:"},
	{ID: "prove", Title: "People, policy and proof:"},
	{ID: "machine", Title: "Run a part of handrail on this machine:"},
}

// New returns the root command with every verb, and the roles beside them.
func New(d Deps) *cobra.Command {
	t := &tool{Deps: d.filled()}
	root := &cobra.Command{
		Use:   "handrail",
		Short: "Share production safely: read-only by default, write by agreement, all of it recorded",
		Example: "  handrail ssh web-1                                   # a read-only shell\n" +
			"  handrail elevate web-1 --reason \"restart pay\" --wait  # ask for the jump to write",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, args []string) error { return cmd.Help() },
		Args:          unknownCommand,
	}
	root.Version = t.Version
	root.SetIn(t.Stdin)
	root.SetOut(t.Stdout)
	root.SetErr(t.Stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpFunc(showHelp)
	root.SetUsageFunc(showUsage)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fault.New(fault.Invalid, "cannot read the flags of %q: %v%s", cmd.CommandPath(), err, nearFlag(cmd, err)).WithHint("%s --help", cmd.CommandPath())
	})
	root.PersistentFlags().StringVarP(&t.format, "output", "o", "table", "how to print data: table, wide, json, yaml or name")
	root.PersistentFlags().BoolVar(&t.absolute, "absolute", false, "print times in full instead of relative")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(groups...)
	t.add(root, "start", t.loginCommands()...)
	t.add(root, "look", t.lookCommands()...)
	t.add(root, "jump", t.jumpCommands()...)
	t.add(root, "watch", t.watchCommands()...)
	t.add(root, "prove", t.proveCommands()...)
	t.add(root, "machine", d.Roles...)
	t.add(root, "look", t.serversCommand())
	t.add(root, "prove", t.accessCommand(), t.directoryCommand(), t.webhookCommand())
	t.addServerVerbs(root)
	t.add(root, "prove", t.keysCommand())
	t.add(root, "jump", t.voucherCommand(d.Ceremony), t.drillCommand())
	t.add(root, "start", t.completionCommand(root), t.versionCommand(), t.apiCommand(), t.manCommand(root))
	root.SetHelpCommand(helpCommand(root))
	usageFaults(root)
	return root
}

func (d Deps) filled() Deps {
	if d.Stdin == nil {
		d.Stdin = os.Stdin
	}
	if d.Stdout == nil {
		d.Stdout = os.Stdout
	}
	if d.Stderr == nil {
		d.Stderr = os.Stderr
	}
	if d.Env == nil {
		d.Env = os.Getenv
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Version == "" {
		d.Version = "devel"
	}
	return d
}

func (t *tool) add(parent *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		if c.GroupID == "" {
			c.GroupID = group
		}
		parent.AddCommand(c)
	}
}

// command is one verb. Its examples are two lines, each "command  # what".
func (t *tool) command(use, short, examples string, args cobra.PositionalArgs, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: indent(examples), Args: args,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.checkFormat(); err != nil {
				return err
			}
			if err := run(cmd, args); err != nil {
				return t.better(cmd.Context(), err)
			}
			t.keepVoucher(cmd)
			return nil
		},
	}
}

// group is a word that only holds other commands.
func (t *tool) group(use, short, examples string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: indent(examples), Args: unknownCommand,
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	c.AddCommand(cmds...)
	return c
}

func indent(examples string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(examples), "\n", "\n  ")
}

// unknownCommand refuses a word that is no subcommand, and says which are near.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := fault.New(fault.Invalid, "cannot run %q: %q has no such command", clean(args[0]), cmd.CommandPath())
	if near := nearest(cmd, args[0]); near != "" {
		return e.WithHint("%s %s", cmd.CommandPath(), near)
	}
	return e.WithHint("%s --help", cmd.CommandPath())
}

// nearest is the subcommand that a misspelt word was likely meant to be.
func nearest(cmd *cobra.Command, word string) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return fault.Nearest(word, names)
}

// exactly asks for the arguments that are named.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(args) < len(names) {
			return fault.New(fault.Invalid, "cannot run %q: %s is missing", cmd.CommandPath(), names[len(args)]).
				WithHint("%s --help", cmd.CommandPath())
		}
		return fault.New(fault.Invalid, "cannot run %q: %q is one argument too many", cmd.CommandPath(), clean(args[len(names)])).
			WithHint("%s --help", cmd.CommandPath())
	}
}

var longFlag = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^ +(?:-., )?--([a-z-]+)`) })

// nearFlag says which flag a misspelt one was likely meant to be.
func nearFlag(cmd *cobra.Command, err error) string {
	_, word, unknown := strings.Cut(err.Error(), "unknown flag: --")
	if !unknown {
		return ""
	}
	var names []string
	for _, m := range longFlag().FindAllStringSubmatch(cmd.Flags().FlagUsages(), -1) {
		names = append(names, m[1])
	}
	if near := fault.Nearest(word, names); near != "" {
		return ": did you mean --" + near + "?"
	}
	return ""
}

// atLeast asks for one argument or more.
func atLeast(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return exactly(name)(cmd, args)
		}
		return nil
	}
}

// atMost takes one argument or none.
func atMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return exactly(name)(cmd, args)
		}
		return nil
	}
}

// usageFaults makes wrong arguments exit with 2 whoever wrote the command.
func usageFaults(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var f *fault.Error
			if err == nil || errors.As(err, &f) {
				return err
			}
			return fault.New(fault.Invalid, "cannot run %q: %v", c.CommandPath(), err).WithHint("%s --help", c.CommandPath())
		}
	}
	for _, c := range cmd.Commands() {
		usageFaults(c)
	}
}

// exit ends the command with a status that is not a fault's: the status of a
// remote command, or 255 for handrail's own failure beside one.
type exit struct {
	code int
	err  error // printed when set
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Execute runs the command line and returns the exit code. An error is printed
// as what, why and the next command.
func Execute(ctx context.Context, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var status *exit
	if errors.As(err, &status) {
		if status.err != nil {
			complain(root.ErrOrStderr(), status.err, true)
		}
		return status.code
	}
	complain(root.ErrOrStderr(), err, false)
	var help *fault.Error
	if !errors.As(err, &help) && strings.HasPrefix(err.Error(), "unknown command ") {
		return fault.Invalid.ExitCode()
	}
	return understand(err).Kind.ExitCode()
}

// complain prints an error for a person.
func complain(w io.Writer, err error, withKind bool) {
	f := understand(err)
	kind := ""
	if withKind {
		kind = f.Kind.String() + ": "
	}
	fmt.Fprintf(w, "handrail: %s%s\n", kind, cleanText(f.Text))
	var why []string
	if f.Rule != "" {
		why = append(why, "rule "+clean(f.Rule))
	}
	if f.Entry != "" {
		why = append(why, "recorded as "+clean(f.Entry))
	}
	if len(why) > 0 {
		fmt.Fprintf(w, "  why:  %s\n", strings.Join(why, ", "))
	}
	if f.Hint != "" {
		fmt.Fprintf(w, "  next: %s\n", clean(f.Hint))
	}
}

func (t *tool) out() io.Writer { return t.Stdout }

// say writes words for the person, on stderr.
func (t *tool) say(format string, args ...any) {
	fmt.Fprintf(t.Stderr, format+"\n", args...)
}

// terminal returns the descriptor of v when v is a terminal.
func terminal(v any) (int, bool) {
	f, ok := v.(interface{ Fd() uintptr })
	if !ok {
		return 0, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

// interactive says whether somebody is there to answer a question.
func (t *tool) interactive() bool {
	_, in := terminal(t.Stdin)
	return in
}

// home is the person's client folder.
func (t *tool) home() (string, error) {
	if dir := t.Env("HANDRAIL_HOME"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := t.Env("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "handrail"), nil
	}
	if dir := t.Env("HOME"); dir != "" {
		return filepath.Join(dir, ".config", "handrail"), nil
	}
	return "", fault.New(fault.Invalid, "cannot find the client folder: neither HANDRAIL_HOME nor HOME is set").
		WithHint("export HANDRAIL_HOME=DIR")
}
