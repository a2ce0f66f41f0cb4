package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// ownFailure is what ssh exits with when it is handrail that failed, not the
// command on the other side.
const ownFailure = 255

func (t *tool) sshCommand() *cobra.Command {
	var write, forcePTY, noPTY, quiet bool
	c := t.command("ssh [--write] HOST [-- COMMAND…]", "Open a shell on a host, read-only unless --write",
		"handrail ssh web-1                                    # a read-only shell\nhandrail ssh --write web-1 -- systemctl restart pay    # needs a grant: handrail elevate web-1 …",
		func(cmd *cobra.Command, args []string) error {
			if err := atLeast("the host")(cmd, args); err != nil {
				return err
			}
			if len(args) > 1 && args[1] != "--" && strings.HasPrefix(args[1], "-") {
				return fault.New(fault.Invalid, "cannot read %q: flags come before the host", clean(args[1])).
					WithHint("handrail ssh %s %s", clean(args[1]), clean(args[0]))
			}
			if forcePTY && noPTY {
				return fault.New(fault.Invalid, "cannot open a session: -t and -T exclude each other").WithHint("handrail ssh --help")
			}
			return nil
		},
		func(cmd *cobra.Command, args []string) error {
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			_, tty := terminal(t.Stdin)
			pty := forcePTY || (tty && len(command) == 0 && !noPTY)
			status, err := t.ssh(cmd, args[0], command, write, pty, quiet)
			if err != nil {
				return &exit{ownFailure, err}
			}
			if status != 0 {
				return &exit{code: status}
			}
			return nil
		})
	c.Long = `Open a shell on a host, or run one command there.

Without --write the session is read-only, and the kernel of the host keeps it
so. With --write it needs a grant that is in force; the level is always chosen,
never inherited. The exit status is that of the remote command; 255 means that
handrail itself failed, and stderr says how.

In a terminal, at the start of a line: ~. leaves, ~? lists these, ~~ is one ~.`
	// A word behind the host belongs to the remote command, flags included.
	c.Flags().SetInterspersed(false)
	c.Flags().BoolVar(&write, "write", false, "a session that may change things; needs a grant")
	c.Flags().BoolVarP(&forcePTY, "tty", "t", false, "a terminal on the host even for a command")
	c.Flags().BoolVarP(&noPTY, "no-tty", "T", false, "no terminal on the host")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not print the banner")
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return t.completeHosts(cmd, args, prefix)
	}
	return c
}

func (t *tool) ssh(cmd *cobra.Command, host string, command []string, write, pty, quiet bool) (int, error) {
	c, err := t.client()
	if err != nil {
		return 0, err
	}
	r := &v1.OpenSessionRequest{Host: host, Level: "read", Command: command, Pty: pty}
	if write {
		r.Level = "write"
	}
	if pty {
		r.Term = orElse(t.Env("TERM"), "xterm-256color")
		r.Columns, r.Rows = t.windowSize()
	}
	answer, err := c.sessions.Open(cmd.Context(), r)
	if err != nil {
		return 0, unreachable(c.login.Address, err)
	}
	a := &attachment{tool: t, client: c, session: answer.Session, ticket: answer.Ticket, input: true, pty: pty, quiet: quiet}
	return a.run(cmd.Context())
}

// windowSize is the size of the person's terminal, or of an old one.
func (t *tool) windowSize() (columns, rows uint32) {
	for _, v := range []any{t.Stdout, t.Stdin, t.Stderr} {
		if fd, tty := terminal(v); tty {
			if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 {
				return uint32(w), uint32(h)
			}
		}
	}
	return 80, 24
}

// target is a session in words.
func target(s *v1.Session) string {
	return fmt.Sprintf("%s (%s, %s)", clean(s.GetHostName()), clean(s.GetEnvironment()), clean(s.GetLevel()))
}
