package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// accessCommand says who can reach what, and by which rule.
func (t *tool) accessCommand() *cobra.Command {
	var host, selector string
	c := t.command("access [PERSON]", "Say who can reach what, at which level, and by which rule",
		"handrail access ada                           # what ada can reach\nhandrail access ada --on env:production       # there alone\nhandrail access --host web-1                  # who can reach web-1\nhandrail access --host web-1 -o json          # all of it, for a script",
		cobra.MaximumNArgs(1),
		func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (host != "") {
				return fault.New(fault.Invalid, "cannot say who can reach what: name a person, or a host with --host").WithHint("handrail access ada, or: handrail access --host web-1")
			}
			if host != "" && selector != "" {
				return fault.New(fault.Invalid, "cannot use --on together with --host").WithHint("handrail access --host %s", clean(host))
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if host != "" {
				answer, err := c.rights.OfHost(cmd.Context(), &v1.RightsOfHostRequest{Host: host})
				if err != nil {
					return err
				}
				return t.emit(answer, hostAccess(answer))
			}
			answer, err := c.rights.OfPerson(cmd.Context(), &v1.RightsOfPersonRequest{Person: args[0], Selector: selector})
			if err != nil {
				return err
			}
			return t.emit(answer, personAccess(answer))
		})
	c.Flags().StringVar(&host, "host", "", "who can reach this host")
	c.Flags().StringVar(&selector, "on", "", "only hosts that this selector fits")
	c.ValidArgsFunction = t.completePeople
	_ = c.RegisterFlagCompletionFunc("host", t.completeHosts)
	return c
}

func personAccess(a *v1.RightsOfPersonResponse) *table {
	tb := &table{head: []string{"HOSTS", "LEVEL", "ACCESS", "BY", "RULE", "WHY"}, wide: 5,
		empty: "No host yet. Invite one: handrail host invite"}
	for _, on := range a.Hosts {
		addRights(tb, some(on.Hosts), on.Rights)
	}
	return tb
}

func hostAccess(a *v1.RightsOfHostResponse) *table {
	tb := &table{head: []string{"PEOPLE", "LEVEL", "ACCESS", "BY", "RULE", "WHY"}, wide: 5,
		empty: "Nobody yet. Add somebody: handrail person add NAME"}
	for _, of := range a.People {
		addRights(tb, some(of.People), of.Rights)
	}
	return tb
}

func addRights(tb *table, who string, rights []*v1.Right) {
	for i, r := range rights {
		name := who
		if i > 0 {
			name = ""
		}
		row := cells(name, r.Level, accessWord(r), byWays(r), r.Rule, r.Text)
		row[2].tone = map[string]tone{"standing": good, "grant": warn, "no": dim}[r.How]
		tb.add(who, row)
	}
}

// accessWord says how somebody has a right.
func accessWord(r *v1.Right) string {
	switch r.How {
	case "standing":
		return "always"
	case "grant":
		return "now, by " + r.Grant
	case "ask":
		return "once others agree"
	}
	return "no"
}

// byWays says by which groups, and how those came.
func byWays(r *v1.Right) string {
	if r.How == "no" {
		return ""
	}
	if len(r.Ways) == 0 {
		return "everybody"
	}
	words := make([]string, len(r.Ways))
	for i, w := range r.Ways {
		words[i] = way(w)
	}
	return strings.Join(words, ", ")
}

func way(w *v1.GroupWay) string {
	if len(w.Path) == 0 {
		return w.Group
	}
	return w.Group + " (directory: " + strings.Join(w.Path, " ← ") + ")"
}

// some shortens a list of names that all fare alike.
func some(names []string) string {
	const shown = 4
	if len(names) <= shown+1 {
		return strings.Join(names, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ","), len(names)-shown)
}

func (t *tool) directoryCommand() *cobra.Command {
	return t.group("directory", "Look at the copy of the company's directory",
		"handrail directory status  # how old it is, what waits, who is not let in\nhandrail directory sync    # read it anew, now\nhandrail directory test    # what a configuration would bring about",
		t.directoryStatusCommand(), t.directorySyncCommand(), t.directoryTestCommand())
}

// directoryTestCommand tries a configuration on the server's own machine.
func (t *tool) directoryTestCommand() *cobra.Command {
	var dataDir string
	c := t.command("test", "Say what the configured directory would bring about, before it is in force",
		"handrail directory test                                  # on the server's machine, as the owner of its data\nHANDRAIL_CONFIG=./new.toml handrail directory test        # another configuration",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			if t.LocalDirectory == nil {
				return fault.New(fault.Invalid, "cannot try a directory: this program holds no server").WithHint("run it on the server's machine")
			}
			answer, err := t.LocalDirectory(cmd.Context(), dataDir)
			if err != nil {
				return err
			}
			tb := &table{head: []string{"PERSON", "WOULD BE"}, empty: "Nothing would change."}
			for _, l := range answer.Lines {
				tb.add(l.Person, cells(l.Person, l.What))
			}
			for _, o := range answer.Odd {
				tb.add(orElse(o.Name, o.Id), []cell{{orElse(o.Name, o.Id), calm}, {"not let in: " + o.Why, warn}})
			}
			if err := t.emit(answer, tb); err != nil || t.format == "json" || t.format == "yaml" {
				return err
			}
			t.say("%d people and %d groups were read. %d more lines, %d not let in.", answer.People, answer.Groups, answer.More, answer.OddCount)
			if answer.Waits {
				t.say("What waits would wait until somebody agrees: handrail requests")
			}
			return nil
		})
	c.Flags().StringVar(&dataDir, "data", "", "the server's data folder")
	return c
}

func (t *tool) directoryStatusCommand() *cobra.Command {
	return t.command("status", "Say how old the copy of the directory is, what waits, and who is not let in",
		"handrail directory status          # in words\nhandrail directory status -o json  # for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.directory.Status(cmd.Context(), &v1.DirectoryStatusRequest{})
			if err != nil {
				return err
			}
			return t.emit(answer, t.directoryView(answer))
		})
}

func (t *tool) directorySyncCommand() *cobra.Command {
	return t.command("sync", "Read the directory anew, now",
		"handrail directory sync          # waits until it was read\nhandrail directory sync -o json  # for a script",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.directory.Sync(cmd.Context(), &v1.DirectorySyncRequest{})
			if err != nil {
				return err
			}
			return t.emit(answer, t.directoryView(answer))
		})
}

func (t *tool) directoryView(a *v1.DirectoryStatusResponse) *sheet {
	s := &sheet{id: a.Host}
	if !a.Configured {
		s.put("directory", "none; people are added here")
		s.below = "To have the company's directory say who is who, set [directory] in handrail.toml: handrail config explain"
		return s
	}
	reads := map[string]string{"pushed": "changes come at once", "paged": "read every so often, as it pushes no changes", "never": "not read yet"}[a.Mode]
	s.put("directory", a.Host).put("reads", reads)
	if a.Version > 0 {
		state := tone(good)
		text := "version " + fmt.Sprint(a.Version) + ", confirmed " + t.at(a.Confirmed)
		if a.Stale {
			state, text = bad, text+"; too old: a grant needs one approver more"
		}
		s.toned("copy", text, state)
	}
	if a.Seen != nil {
		s.put("answered", t.at(a.Seen))
	}
	if a.Failing != "" {
		s.toned("failing", "since "+t.at(a.FailingSince)+": "+a.Failing, bad)
	}
	s.put("people", fmt.Sprintf("%d, and %d who left", a.People, a.Away))
	if a.Login {
		s.put("login", "with its password: handrail login --user NAME")
	}
	for _, h := range a.Held {
		s.toned("waits", heldText(h), warn)
	}
	for i, o := range a.Odd {
		name := ""
		if i == 0 {
			name = "not let in"
		}
		s.lines = append(s.lines, sheetLine{name: name, cell: cell{orElse(o.Name, o.Id) + " " + o.Why, warn}})
	}
	if more := int(a.OddCount) - len(a.Odd); more > 0 {
		s.put("", fmt.Sprintf("and %d more", more))
	}
	s.wide("hash", a.Hash)
	s.wide("changed", t.full(a.Read))
	s.wide("stale after", length(a.StaleAfter.AsDuration()))
	return s
}

func heldText(h *v1.DirectoryHeld) string {
	what := map[string]string{"losses": "are gone or lose groups, too many at once", "gains": "enter a group that the directory does not give alone"}[h.What]
	text := fmt.Sprintf("%d people %s: ", h.People, what)
	switch h.State {
	case "asked":
		return text + "handrail approve " + h.Approval
	case "denied":
		return text + "denied; handrail directory sync asks once more"
	}
	return text + "agreed, and on its way"
}

// logInByPassword logs in under a name with the password that the directory
// knows. It is never an argument, and nothing of it is kept.
func (t *tool) logInByPassword(ctx context.Context, f folder, tr *trust, l login, user string, key ssh.Signer) error {
	password, err := t.askPassword(ctx, "Password of "+clean(user)+" (not shown): ")
	if err != nil {
		return err
	}
	answer, err := newClient(f, l, tr).directory.Login(ctx, &v1.DirectoryLoginRequest{
		Name: user, Password: password, DeviceKey: key.PublicKey().Marshal(), DeviceName: t.deviceName(),
	})
	if err != nil {
		return err
	}
	l.Provider, l.User = true, user
	return t.keep(f, tr, l, answer)
}

func (t *tool) askPassword(ctx context.Context, question string) (string, error) {
	if fd, tty := terminal(t.Stdin); tty {
		return t.askSecret(ctx, fd, question)
	}
	return t.readLine(), nil
}
