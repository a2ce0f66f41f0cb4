package app

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/surface/cli"
)

// hintText is where the source tells people a next command.
var (
	hintText = regexp.MustCompile("(?:WithHint\\(|Next: +|@next\\(|Hint = |Hint: +)[\"`]([^`\n]*)")
	hinted   = regexp.MustCompile(`handrail ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?`)
)

// spared are words after "handrail" that are no command: prose, and the one that
// docs/known-gaps.md owes.
var spared = map[string]bool{"and": true, "as": true, "inspect": true}

func TestEveryHintIsACommand(t *testing.T) {
	root := cli.New(cli.Deps{Roles: Commands("test"), Ceremony: VoucherCommands()})
	count := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".cedar") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, line := range hintText.FindAllStringSubmatch(string(text), -1) {
			for _, m := range hinted.FindAllStringSubmatch(line[1], -1) {
				count++
				if spared[m[1]] {
					continue
				}
				c := child(root, m[1])
				if c == nil {
					t.Errorf("%s: handrail %s is no command, in the hint %q", path, m[1], line[1])
					continue
				}
				if c.HasSubCommands() && m[2] != "" && child(c, m[2]) == nil {
					t.Errorf("%s: handrail %s %s is no command, in the hint %q", path, m[1], m[2], line[1])
				}
			}
		}
		return nil
	})
	if err != nil || count < 50 {
		t.Errorf("looked at %d hints: %v", count, err)
	}
}

func child(c *cobra.Command, name string) *cobra.Command {
	for _, sub := range c.Commands() {
		if sub.Name() == name {
			return sub
		}
	}
	return nil
}
