package cli

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) proveCommands() []*cobra.Command {
	return append(append(t.peopleCommands(), t.robotCommands()...),
		t.group("policy", "Show, test, apply and explain the rules",
			"handrail policy explain bob sessions.open web-1 --level write  # may bob, and by which rule\nhandrail policy test ./policy                                  # who would gain, who would lose",
			t.policyShowCommand(), t.policyTestCommand(), t.policyApplyCommand(), t.policyExplainCommand()),
		t.ledgerCommand())
}

func (t *tool) policyShowCommand() *cobra.Command {
	var dir string
	c := t.command("show", "Show the rules in force",
		"handrail policy show               # the text\nhandrail policy show --dir ./policy  # write its files, to edit and apply",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.policies.Get(cmd.Context(), &v1.GetPolicyRequest{})
			if err != nil {
				return err
			}
			if dir != "" {
				return t.writePolicy(dir, answer)
			}
			s := &sheet{id: fmt.Sprint(answer.Version)}
			s.put("policy", fmt.Sprintf("version %d", answer.Version)).put("applied", strings.TrimSpace(t.full(answer.Applied)+" by "+answer.AppliedBy)).put("hash", hex.EncodeToString(answer.Hash))
			for _, file := range answer.Files {
				s.below += "==> " + file.Name + " <==\n" + file.Text + "\n"
			}
			return t.emit(answer, s)
		})
	c.Flags().StringVar(&dir, "dir", "", "write the files into this folder instead")
	_ = c.MarkFlagDirname("dir")
	return c
}

// writePolicy writes the files of the rules; nothing that is there is replaced.
func (t *tool) writePolicy(dir string, answer *v1.GetPolicyResponse) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot write the policy")
	}
	for _, file := range answer.Files {
		if file.Name != filepath.Base(file.Name) || strings.HasPrefix(file.Name, ".") {
			return fault.New(fault.Invalid, "cannot write the policy: the server named a file %q", clean(file.Name))
		}
		out, err := os.OpenFile(filepath.Join(dir, file.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = out.WriteString(file.Text)
			if closing := out.Close(); err == nil {
				err = closing
			}
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot write the policy").WithHint("handrail policy show --dir NEW-FOLDER")
		}
		fmt.Fprintln(t.out(), filepath.Join(dir, file.Name))
	}
	return nil
}

const (
	maxPolicyFiles = 64
	maxPolicy      = 1 << 20
)

// readPolicy reads the policy files of a folder.
func readPolicy(dir string) ([]*v1.PolicyFile, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the policy").WithHint("handrail policy show --dir ./policy")
	}
	var files []*v1.PolicyFile
	total := int64(0)
	for _, entry := range list {
		ext := filepath.Ext(entry.Name())
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") || (ext != ".cedar" && ext != ".toml") {
			continue
		}
		if info, err := entry.Info(); err == nil {
			total += info.Size()
		}
		if len(files) == maxPolicyFiles || total > maxPolicy {
			return nil, fault.New(fault.Invalid, "cannot read the policy: %s holds more than %d files or %s", clean(dir), maxPolicyFiles, size(maxPolicy))
		}
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the policy")
		}
		files = append(files, &v1.PolicyFile{Name: entry.Name(), Text: string(text)})
	}
	if len(files) == 0 {
		return nil, fault.New(fault.Invalid, "cannot read the policy: no .cedar or .toml file in %s", clean(dir)).WithHint("handrail policy show --dir ./policy")
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Name < files[j].Name })
	return files, nil
}

func dirArgument(c *cobra.Command) *cobra.Command {
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return c
}

func (t *tool) policyTestCommand() *cobra.Command {
	return dirArgument(t.command("test DIR", "Validate a folder of rules, and say who would gain and who would lose",
		"handrail policy test ./policy          # nothing is changed\nhandrail policy test ./policy -o json  # for a pipeline; problems exit with 2",
		exactly("the folder"),
		func(cmd *cobra.Command, args []string) error {
			files, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.policies.Test(cmd.Context(), &v1.TestPolicyRequest{Files: files})
			if err != nil {
				return err
			}
			if err := t.emit(answer, deltas(answer)); err != nil {
				return err
			}
			return problems(args[0], answer)
		}))
}

func problems(dir string, answer *v1.TestPolicyResponse) error {
	if len(answer.GetProblems()) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "cannot use the policy in %s: %s", clean(dir), count(len(answer.Problems), "problem")).WithHint("handrail policy test %s", quoteShell(clean(dir)))
}

// deltas is who gains and who loses by a policy, and what is wrong with it.
func deltas(answer *v1.TestPolicyResponse) *table {
	tb := &table{head: []string{"", "PERSON", "ACTION", "TARGET", "BEFORE", "AFTER", "RULE"}, empty: "Nobody gains and nobody loses."}
	for _, p := range answer.GetProblems() {
		tb.add(p, []cell{{"problem", bad}, {p, calm}, {}, {}, {}, {}, {}})
	}
	add := func(mark cell, d *v1.PolicyDelta) {
		row := append([]cell{mark}, cells(d.Person, d.Action, d.Target, d.Before, d.After, d.Rule)...)
		tb.add(strings.Join([]string{mark.value, d.Person, d.Action, d.Target}, " "), row)
	}
	for _, d := range answer.GetGains() {
		add(cell{"gains", warn}, d)
	}
	for _, d := range answer.GetLosses() {
		add(cell{"loses", good}, d)
	}
	return tb
}

func (t *tool) policyApplyCommand() *cobra.Command {
	var sure bool
	c := dirArgument(t.command("apply DIR", "Ask to put a folder of rules in force; a second person agrees",
		"handrail policy apply ./policy        # shows who gains and loses; asks, at a terminal\nhandrail policy apply ./policy --yes  # does not ask",
		exactly("the folder"),
		func(cmd *cobra.Command, args []string) error {
			files, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			test, err := c.policies.Test(cmd.Context(), &v1.TestPolicyRequest{Files: files})
			if err != nil {
				return err
			}
			deltas(test).text(t.Stderr, false, t.colour(t.Stderr))
			if err := problems(args[0], test); err != nil {
				return err
			}
			t.say("%s, %s.", count(len(test.Gains), "gain"), count(len(test.Losses), "loss"))
			if err := t.unless(cmd.Context(), sure, "Ask to put this in force? [y/N] "); err != nil {
				return err
			}
			answer, err := c.policies.Apply(cmd.Context(), &v1.ApplyPolicyRequest{Files: files})
			if err != nil {
				return err
			}
			s := &sheet{id: orElse(answer.Approval, fmt.Sprint(answer.Version))}
			if answer.Approval == "" {
				s.put("in force", fmt.Sprintf("version %d", answer.Version))
			}
			return t.awaiting(answer, s.put("approval", answer.Approval), answer.Approval, "the policy")
		}))
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return c
}

func (t *tool) policyExplainCommand() *cobra.Command {
	var lvl string
	c := t.command("explain PERSON ACTION [HOST]", "Say whether somebody may do something, and by which rule",
		"handrail policy explain bob sessions.open web-1                # may bob look at web-1\nhandrail policy explain bob sessions.open web-1 --level write  # and write",
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 3 {
				return nil
			}
			return exactly("the person", "the action")(cmd, args)
		},
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			r := &v1.ExplainRequest{Person: args[0], Action: args[1], Level: lvl}
			if len(args) == 3 {
				r.Host = args[2]
			}
			answer, err := c.policies.Explain(cmd.Context(), r)
			if err != nil {
				return err
			}
			s := &sheet{id: yes(answer.Allowed)}
			s.toned("allowed", yes(answer.Allowed), map[bool]tone{true: good, false: bad}[answer.Allowed])
			s.put("why", answer.Text).list("rule", answer.Rules).list("error", answer.Errors)
			return t.emit(answer, s)
		})
	c.Flags().StringVar(&lvl, "level", "read", "read or write")
	t.completeWords(c, "level", "read", "write")
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return t.completePeople(cmd, args, prefix)
		case 2:
			return t.completeHosts(cmd, args, prefix)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}
