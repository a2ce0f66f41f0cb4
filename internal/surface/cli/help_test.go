package cli_test

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/surface/cli"
)

func everyCommand(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		everyCommand(sub, visit)
	}
}

func TestEveryCommandOpensItsHelpWithTwoExamples(t *testing.T) {
	root := cli.New(cli.Deps{})
	comment := regexp.MustCompile(`\S\s+# \S|\S {2,}# \S`)
	everyCommand(root, func(c *cobra.Command) {
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Errorf("%s: %v", c.CommandPath(), err)
			return
		}
		first, rest, _ := strings.Cut(out.String(), "\n")
		examples, _, _ := strings.Cut(rest, "\n\n")
		lines := strings.Split(examples, "\n")
		if first != "Examples:" || len(lines) < 2 {
			t.Errorf("%s does not open with two examples:\n%s", c.CommandPath(), out.String())
		}
		for _, line := range lines {
			if !strings.Contains(line, "handrail") || !comment.MatchString(line) {
				t.Errorf("%s: example %q is not a command and what it does", c.CommandPath(), line)
			}
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short description is %q", c.CommandPath(), c.Short)
		}
	})
}

func TestExamplesNameCommandsAndFlagsThatExist(t *testing.T) {
	root := cli.New(cli.Deps{Stdout: io.Discard})
	everyCommand(root, func(c *cobra.Command) {
		for _, line := range strings.Split(c.Example, "\n") {
			line, _, _ = strings.Cut(line, "#")
			line, _, _ = strings.Cut(line, " | ")
			_, line, ok := strings.Cut(line, "handrail ")
			if !ok {
				continue
			}
			words := strings.Fields(strings.TrimRight(strings.TrimSpace(line), ")"))
			found, _, err := root.Find(words)
			if err != nil || (found == root && len(words) > 0 && !strings.HasPrefix(words[0], "-")) {
				t.Errorf("%s: its example %q names no command", c.CommandPath(), line)
				continue
			}
			for _, w := range words {
				name, isLong := strings.CutPrefix(w, "--")
				name, _, _ = strings.Cut(name, "=")
				if isLong && name != "" && found.Flags().Lookup(name) == nil && root.PersistentFlags().Lookup(name) == nil && name != "help" {
					t.Errorf("%s: its example %q uses --%s, which %s lacks", c.CommandPath(), line, name, found.CommandPath())
				}
			}
		}
	})
}

func TestEveryFlagSaysWhatItIs(t *testing.T) {
	everyCommand(cli.New(cli.Deps{}), func(c *cobra.Command) {
		for _, line := range strings.Split(c.LocalFlags().FlagUsages(), "\n") {
			if line != "" && len(strings.Fields(line)) < 3 {
				t.Errorf("%s: flag %q has no words", c.CommandPath(), strings.TrimSpace(line))
			}
		}
	})
}
