package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/when"
)

// Length is a length of time as settings write it: "30m", "72h", "7d".
type Length time.Duration

// UnmarshalText reads a length of time.
func (l *Length) UnmarshalText(text []byte) error {
	d, err := when.Duration(string(text))
	*l = Length(d)
	return err
}

// Settings is what goes with the rules: numbers and names.
type Settings struct {
	Read         ReadSettings            `toml:"read"`
	BreakGlass   BreakGlass              `toml:"break_glass"`
	Approvals    map[string]ApprovalRule `toml:"approvals"`
	Environments map[string]Environment  `toml:"environments"`
	Scopes       map[string]Scope        `toml:"scopes"`
}

// ReadSettings shapes read sessions.
type ReadSettings struct {
	Groups  []string `toml:"groups"`
	Secrets []string `toml:"secrets"`
}

// BreakGlass is the lengths of break-glass.
type BreakGlass struct {
	For          Length `toml:"for"`
	RatifyWithin Length `toml:"ratify_within"`
	ReviewWithin Length `toml:"review_within"`
}

// ApprovalRule says who must agree to a kind of request.
type ApprovalRule struct {
	Needed          int      `toml:"needed"`
	Groups          []string `toml:"groups"`
	DifferentGroups bool     `toml:"different_groups"` // each from another one of Groups
	Passkey         bool     `toml:"passkey"`          // the device key is not enough
	Lapse           Length   `toml:"lapse"`
}

// Environment is what holds in an environment.
type Environment struct {
	WriteAccount string   `toml:"write_account"`
	LeastFloor   string   `toml:"least_floor"` // full, reduced, account, brokered
	LongestGrant Length   `toml:"longest_grant"`
	Prompt       string   `toml:"prompt"`
	Colour       string   `toml:"colour"`
	Banner       string   `toml:"banner"`
	Approvals    int      `toml:"approvals"` // of a grant; 0: as in [approvals.grant]
	Approvers    []string `toml:"approvers"` // groups; empty: as in [approvals.grant]
	Passkey      bool     `toml:"passkey"`
	Secrets      []string `toml:"secrets"` // beside those of [read]
}

// Scope is what regulated data adds.
type Scope struct {
	Buddy        bool   `toml:"buddy"` // in production, of every write session
	LongestGrant Length `toml:"longest_grant"`
	Approvals    int    `toml:"approvals"`
	Passkey      bool   `toml:"passkey"`
}

// rootGroups can become root or read every secret; no session is given one.
var rootGroups = []string{"root", "docker", "disk", "shadow", "sudo", "wheel", "lxd", "libvirt", "kvm", "kmem", "mem", "tape", "admin", "podman", "incus"}

func parseSettings(f File) (Settings, []Problem) {
	var s Settings
	meta, err := toml.Decode(f.Text, &s)
	if err != nil {
		p := Problem{File: f.Name, Text: err.Error()}
		if at, ok := err.(toml.ParseError); ok {
			p.Line, p.Text = at.Position.Line, at.Message
			if p.Text == "" {
				p.Text = err.Error()
			}
		}
		return s, []Problem{p}
	}
	var problems []Problem
	bad := func(format string, args ...any) {
		problems = append(problems, Problem{File: f.Name, Line: 0, Text: fmt.Sprintf(format, args...)})
	}
	unknown := meta.Undecoded()
	for _, key := range unknown[:min(len(unknown), maxUnknown)] { // the rest is told when these are gone
		last := key[len(key)-1]
		p := Problem{File: f.Name, Line: lineOf(f.Text, last), Text: fmt.Sprintf("there is no key %s", key)}
		if near := fault.Nearest(last, knownKeys); near != "" {
			p.Text += ": did you mean " + near + "?"
		}
		problems = append(problems, p)
	}
	s.check(bad)
	return s, problems
}

const maxUnknown = 20

var knownKeys = []string{
	"read", "groups", "secrets", "break_glass", "for", "ratify_within", "review_within", "approvals", "needed",
	"different_groups", "passkey", "lapse", "environments", "write_account", "least_floor", "longest_grant", "prompt",
	"colour", "banner", "approvers", "scopes", "buddy",
}

// check refuses settings that cannot work; every environment and scope must be
// there, so that nothing falls back silently.
func (s Settings) check(bad func(string, ...any)) {
	for _, name := range target.Environments {
		e, there := s.Environments[name]
		switch {
		case !there:
			bad("[environments.%s] is missing", name)
			continue
		case !slices.Contains([]string{"full", "reduced", "account", "brokered"}, e.LeastFloor):
			bad("[environments.%s] least_floor is %q: use full, reduced, account or brokered", name, e.LeastFloor)
		case e.WriteAccount == "" || e.WriteAccount == "root":
			bad("[environments.%s] write_account is %q: name an account that is not root; root is a field of the grant", name, e.WriteAccount)
		case e.LongestGrant <= 0:
			bad("[environments.%s] longest_grant is missing", name)
		case e.Approvals < 0 || e.Approvals > 10:
			bad("[environments.%s] approvals is %d: at most 10", name, e.Approvals)
		}
	}
	for name := range s.Environments {
		if !slices.Contains(target.Environments, name) {
			bad("[environments.%s] is none of %s", name, strings.Join(target.Environments, ", "))
		}
	}
	for _, name := range target.Scopes {
		if _, there := s.Scopes[name]; !there {
			bad("[scopes.%s] is missing", name)
		}
	}
	for name := range s.Scopes {
		if !slices.Contains(target.Scopes, name) {
			bad("[scopes.%s] is none of %s", name, strings.Join(target.Scopes, ", "))
		}
	}
	for _, g := range s.Read.Groups {
		if slices.Contains(rootGroups, g) {
			bad("[read] groups: %s can become root, no session is given it", g)
		}
	}
	for _, path := range s.Read.Secrets {
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "..") {
			bad("[read] secrets: %q is not an absolute path", path)
		}
	}
	if s.BreakGlass.For <= 0 || s.BreakGlass.RatifyWithin <= 0 || s.BreakGlass.ReviewWithin <= 0 {
		bad("[break_glass] needs for, ratify_within and review_within")
	}
	s.checkApprovals(bad)
}

func (s Settings) checkApprovals(bad func(string, ...any)) {
	for _, kind := range []string{"default", "grant", "ratification"} {
		if _, there := s.Approvals[kind]; !there {
			bad("[approvals.%s] is missing", kind)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(s.Approvals)) {
		rule := s.Approvals[kind]
		switch {
		case rule.Needed < 1 || rule.Needed > 10:
			bad("[approvals.%s] needed is %d: from 1 to 10", kind, rule.Needed)
		case len(rule.Groups) == 0:
			bad("[approvals.%s] groups is empty: nobody could agree", kind)
		case rule.DifferentGroups && rule.Needed > len(rule.Groups):
			bad("[approvals.%s] %d approvals from different groups cannot come from %d groups", kind, rule.Needed, len(rule.Groups))
		case rule.Lapse <= 0:
			bad("[approvals.%s] lapse is missing", kind)
		}
	}
}

func lineOf(text, key string) int {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if rest, found := strings.CutPrefix(line, key); found && strings.HasPrefix(strings.TrimSpace(rest), "=") {
			return i + 1
		}
		if strings.HasPrefix(line, "[") && strings.Contains(line, key) {
			return i + 1
		}
	}
	return 0
}

// Settings is all of them.
func (e *Engine) Settings() Settings { return e.settings }

// environment falls back to production: what is unknown is treated as the most
// dangerous.
func (e *Engine) environment(name string) Environment {
	if env, there := e.settings.Environments[name]; there {
		return env
	}
	return e.settings.Environments["production"]
}

// WriteAccount is the account that write sessions on the host run as.
func (e *Engine) WriteAccount(h target.Host) string {
	return e.environment(h.Environment).WriteAccount
}

// GroupsFor is the supplementary groups of a read session.
func (e *Engine) GroupsFor(_ identity.Principal, _ target.Host) []string {
	return slices.Clone(e.settings.Read.Groups)
}

// Secrets is the paths that no read session on the host can open.
func (e *Engine) Secrets(h target.Host) []string {
	return append(slices.Clone(e.settings.Read.Secrets), e.environment(h.Environment).Secrets...)
}

// LeastFloor is the weakest sandbox with which a read session may start.
func (e *Engine) LeastFloor(environment string) string {
	return e.environment(environment).LeastFloor
}

// MaxDuration is the longest grant on all of the hosts.
func (e *Engine) MaxDuration(hosts ...target.Host) time.Duration {
	longest := e.settings.Environments["dev"].LongestGrant
	if len(hosts) == 0 {
		longest = e.environment("").LongestGrant
	}
	for i, h := range hosts {
		limit := e.environment(h.Environment).LongestGrant
		if scope := e.settings.Scopes[h.Scope].LongestGrant; scope > 0 {
			limit = min(limit, scope)
		}
		if i == 0 || limit < longest {
			longest = limit
		}
	}
	return time.Duration(longest)
}

// BuddyRequired says whether write sessions on one of the hosts need a watcher.
func (e *Engine) BuddyRequired(hosts ...target.Host) bool {
	return slices.ContainsFunc(hosts, func(h target.Host) bool {
		return h.Environment == "production" && e.settings.Scopes[h.Scope].Buddy
	})
}

// BreakGlassFor is how long break-glass on the hosts lasts: never longer than a
// grant there.
func (e *Engine) BreakGlassFor(hosts ...target.Host) time.Duration {
	return min(time.Duration(e.settings.BreakGlass.For), e.MaxDuration(hosts...))
}

// RatifyWithin is when a second person must have agreed to a break-glass.
func (e *Engine) RatifyWithin() time.Duration {
	return time.Duration(e.settings.BreakGlass.RatifyWithin)
}

// ReviewWithin is when the review of a break-glass must be closed.
func (e *Engine) ReviewWithin() time.Duration {
	return time.Duration(e.settings.BreakGlass.ReviewWithin)
}

// Prompt is what a session on the host shows: text, colour, banner.
func (e *Engine) Prompt(h target.Host) (text, colour, banner string) {
	env := e.environment(h.Environment)
	return env.Prompt, env.Colour, env.Banner
}

// Approval is the rule for a kind of request that concerns the hosts: the
// strictest of them counts.
func (e *Engine) Approval(kind string, hosts ...target.Host) ApprovalRule {
	rule, there := e.settings.Approvals[kind]
	if !there {
		rule = e.settings.Approvals["default"]
	}
	rule.Groups = slices.Clone(rule.Groups)
	if kind != "grant" {
		return rule
	}
	for _, h := range hosts {
		env, scope := e.environment(h.Environment), e.settings.Scopes[h.Scope]
		rule.Needed = max(rule.Needed, env.Approvals, scope.Approvals)
		rule.Passkey = rule.Passkey || env.Passkey || scope.Passkey
		if len(env.Approvers) > 0 {
			rule.Groups = narrow(rule.Groups, env.Approvers)
		}
	}
	return rule
}

// narrow keeps the groups that both name; where none is left, the later ones
// stand, since an approval that nobody can give helps nobody.
func narrow(groups, to []string) []string {
	var both []string
	for _, g := range groups {
		if slices.Contains(to, g) {
			both = append(both, g)
		}
	}
	if len(both) == 0 {
		return slices.Clone(to)
	}
	return both
}
