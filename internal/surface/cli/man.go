package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Setting is one line of what can be configured, for handrail.toml(5).
type Setting struct{ Name, About string }

// Manual is what the program knows and the commands do not: its configuration.
type Manual struct {
	Settings []Setting
	About    string // of the file, in the form of a command's long help
}

func (t *tool) manCommand(root *cobra.Command) *cobra.Command {
	return t.command("man DIR", "Write the manual pages into a folder",
		"handrail man ./man && man -l ./man/handrail.1          # read them here\nsudo handrail man /usr/local/share/man/man1            # for everybody",
		exactly("the folder"),
		func(_ *cobra.Command, args []string) error {
			pages := manPages(root, t.Version, t.Manual)
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fault.Wrap(fault.Invalid, err, "cannot write the manual")
			}
			for name, text := range pages {
				if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
					return fault.Wrap(fault.Invalid, err, "cannot write the manual")
				}
			}
			t.say("%d pages. Next: man -l %s", len(pages), quoteShell(filepath.Join(args[0], "handrail.1")))
			return nil
		})
}

// manPages is every page by the name of its file: one for each command that
// help shows, and one for the configuration.
func manPages(root *cobra.Command, version string, m Manual) map[string]string {
	pages := map[string]string{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		pages[manName(c)+".1"] = commandPage(c, version)
		for _, sub := range shownCommands(c) {
			walk(sub)
		}
	}
	walk(root)
	if len(m.Settings) > 0 {
		pages["handrail.toml.5"] = settingsPage(version, m)
	}
	return pages
}

func shownCommands(c *cobra.Command) (shown []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			shown = append(shown, sub)
		}
	}
	slices.SortFunc(shown, func(a, b *cobra.Command) int { return strings.Compare(a.Name(), b.Name()) })
	return shown
}

// manName is the name of a page: handrail-ledger-verify.
func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// page is a manual page in the making, in the language of man(7).
type page struct {
	strings.Builder
	fresh bool // a section began, whose first paragraph needs no word
}

func newPage(name, section, version, about string) *page {
	p := &page{}
	p.line(".TH %s %s %s %s \"handrail manual\"", strings.ToUpper(name), section, builtOn(), roffWord("handrail "+version))
	p.section("NAME")
	p.line("%s \\- %s", roff(name), roff(about))
	return p
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *page) section(name string) {
	p.line(".SH %s", name)
	p.fresh = true
}

// paragraph begins one.
func (p *page) paragraph() {
	if !p.fresh {
		p.line(".PP")
	}
	p.fresh = false
}

// builtOn is the day of the source that the program was built from.
func builtOn() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if day, _, found := strings.Cut(s.Value, "T"); found && s.Key == "vcs.time" {
				return day
			}
		}
	}
	return "2026-01-01" // built without its history
}

// paragraphs is text as our help has it: paragraphs between empty lines; what is
// indented stays as it is.
func (p *page) paragraphs(text string) {
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(block, " ") || strings.HasPrefix(block, "\t") || strings.Contains(block, "\n  ") {
			p.verbatim(block)
			continue
		}
		p.paragraph()
		for l := range strings.Lines(block) {
			p.line("%s", roff(strings.TrimSpace(l)))
		}
	}
}

func (p *page) verbatim(text string) {
	p.paragraph()
	p.line(".nf")
	for l := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		if strings.TrimSpace(l) == "" {
			p.line(".sp")
			continue
		}
		p.line("%s", roff(l))
	}
	p.line(".fi")
}

// roff is text that means itself.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\(ga", "^", `\(ha`, "~", `\(ti`, "…", "...", "\t", "  ").Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

func roffWord(s string) string { return `"` + strings.ReplaceAll(roff(s), `"`, `\(dq`) + `"` }

func commandPage(c *cobra.Command, version string) string {
	p := newPage(manName(c), "1", version, c.Short)
	p.section("SYNOPSIS")
	use := c.UseLine()
	if c.HasAvailableSubCommands() {
		use = c.CommandPath() + " COMMAND [flags]"
	}
	p.line(".B %s", roff(use))
	p.section("DESCRIPTION")
	about := c.Long
	if about == "" {
		about = c.Short + "."
	}
	p.paragraphs(about)
	if subs := shownCommands(c); len(subs) > 0 {
		p.section("COMMANDS")
		for _, sub := range subs {
			p.line(".TP")
			p.line(".B %s", roff(sub.Name()))
			p.line("%s.", roff(strings.TrimSuffix(sub.Short, ".")))
		}
	}
	p.flags("OPTIONS", c.NonInheritedFlags())
	p.flags("OPTIONS OF EVERY COMMAND", c.InheritedFlags())
	if c.Example != "" {
		p.section("EXAMPLES")
		p.verbatim(c.Example)
	}
	p.section("EXIT STATUS")
	p.line("0 done, 1 failed, 2 used wrongly, 3 denied, 4 needs a second person's approval, 5 partly done.")
	var others []string
	if c.HasParent() {
		others = append(others, manName(c.Parent()))
	}
	for _, sub := range shownCommands(c) {
		others = append(others, manName(sub))
	}
	p.section("SEE ALSO")
	for i, name := range others {
		comma := ","
		if i == len(others)-1 {
			comma = ""
		}
		p.line(".BR %s (1)%s", roff(name), comma)
	}
	if !c.HasParent() {
		p.line(".BR handrail.toml (5)")
	}
	return p.String()
}

func (p *page) flags(title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	p.section(title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		kind, usage := pflag.UnquoteUsage(f)
		p.line(".TP")
		if kind != "" {
			p.line("\\fB%s\\fR \\fI%s\\fR", roff(name), roff(kind))
		} else {
			p.line("\\fB%s\\fR", roff(name))
		}
		p.line("%s.", roff(strings.TrimSuffix(usage, ".")))
	})
}

func settingsPage(version string, m Manual) string {
	p := newPage("handrail.toml", "5", version, "configuration of handrail up, server and node")
	p.section("DESCRIPTION")
	p.paragraphs(m.About)
	p.section("SETTINGS")
	for _, s := range m.Settings {
		p.line(".TP")
		p.line(".B %s", roff(s.Name))
		p.line("%s.", roff(strings.TrimSuffix(s.About, ".")))
	}
	p.section("SEE ALSO")
	p.line(".BR handrail (1),")
	p.line(".BR handrail\\-config\\-explain (1)")
	return p.String()
}
