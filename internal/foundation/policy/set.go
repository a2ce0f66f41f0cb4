package policy

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	cedar "github.com/cedar-policy/cedar-go"
	cedarast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

//go:embed schema.cedarschema default
var embedded embed.FS

// SettingsFile is the one file of a set that is not rules.
const SettingsFile = "settings.toml"

// The bounds of a set: what an admin's mistake can make us compute.
const (
	maxFiles = 64
	maxBytes = 512 << 10
	maxRules = 2000
)

// File is one file of a set.
type File struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Set is what is put in force as a whole: rules and the settings beside them.
type Set struct {
	Files []File `json:"files"`
}

// Default is the set that a new installation starts with.
func Default() Set {
	var s Set
	names, _ := fs.Glob(embedded, "default/*")
	for _, name := range names {
		text, err := embedded.ReadFile(name)
		if err != nil {
			continue // embedded files can be read
		}
		s.Files = append(s.Files, File{Name: path.Base(name), Text: string(text)})
	}
	return s
}

// Vocabulary is the text that says what rules can speak of.
func Vocabulary() string {
	text, err := embedded.ReadFile("schema.cedarschema")
	if err != nil {
		return ""
	}
	return string(text)
}

// Hash names the set: it is what people approve.
func (s Set) Hash() []byte {
	files := slices.Clone(s.Files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	h.Write([]byte("handrail-policy-v1\n"))
	for _, f := range files {
		for _, part := range []string{f.Name, f.Text} {
			var size [8]byte
			binary.BigEndian.PutUint64(size[:], uint64(len(part)))
			h.Write(size[:])
			h.Write([]byte(part))
		}
	}
	return h.Sum(nil)
}

// Problem is one thing wrong with a set, and where.
type Problem struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

// String is the problem as an editor understands it.
func (p Problem) String() string {
	if p.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return p.File + ": " + p.Text
}

// rule is one policy of the set with what people are told about it.
type rule struct {
	id     cedar.PolicyID
	policy *cedar.Policy // as it is written
	asked  *cedar.Policy // without the scopes that question.All looks at
	permit bool
	says   string
	next   string
	allows string // the sentence of an answer that this rule gives
	denies string
	kind   string // the only type of principal that its scope fits; "": any
	group  string // the only group that its scope fits; "": any
}

// rules is the rules of one action.
type rules []rule

// vocabulary is the resolved schema: which actions there are, and what each
// applies to.
type vocabulary struct {
	schema  *resolved.Schema
	actions map[string]verb
}

type verb struct {
	uid          cedar.EntityUID
	installation bool // may be asked without a host
}

var speak = sync.OnceValues(func() (*vocabulary, error) {
	var s schema.Schema
	s.SetFilename("schema.cedarschema")
	if err := s.UnmarshalCedar([]byte(Vocabulary())); err != nil {
		return nil, fmt.Errorf("cannot read the policy schema: %w", err)
	}
	res, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("cannot resolve the policy schema: %w", err)
	}
	v := &vocabulary{schema: res, actions: map[string]verb{}}
	for uid, action := range res.Actions {
		known := verb{uid: uid}
		if action.AppliesTo != nil {
			known.installation = slices.Contains(action.AppliesTo.Resources, types.EntityType("Installation"))
		}
		v.actions[string(uid.ID)] = known
	}
	return v, nil
})

// Verbs lists every action that rules know, in order.
func Verbs() []string {
	v, err := speak()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(v.actions))
}

// Parse reads and checks a set. With any problem there is no engine: a set that
// is half right must not come into force.
func Parse(s Set) (e *Engine, problems []Problem) {
	defer func() { // a parser that panics is a set that cannot be read
		if r := recover(); r != nil {
			e, problems = nil, []Problem{{File: "(set)", Text: fmt.Sprintf("cannot be read: %v", r)}}
		}
	}()
	v, err := speak()
	if err != nil {
		return nil, []Problem{{File: "schema.cedarschema", Text: err.Error()}}
	}
	if problems := s.checkFiles(); problems != nil {
		return nil, problems
	}
	e = &Engine{set: s, hash: s.Hash(), words: v, byAction: map[string]rules{}}
	seen := map[cedar.PolicyID]string{}
	check := validate.New(v.schema, validate.WithStrict())
	for _, f := range s.Files {
		if f.Name == SettingsFile {
			settings, found := parseSettings(f)
			e.settings, problems = settings, append(problems, found...)
			continue
		}
		list, found := parseRules(f, check, seen)
		problems = append(problems, found...)
		for _, r := range list {
			e.add(r)
		}
	}
	if len(seen) > maxRules {
		problems = append(problems, Problem{File: s.Files[0].Name, Text: fmt.Sprintf("the set has %d rules, at most %d", len(seen), maxRules)})
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b Problem) int {
			return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
		})
		return nil, problems
	}
	e.groups = mentionedGroups(s, e.settings)
	if len(e.whoMay("policies.apply")) == 0 {
		return nil, []Problem{{File: s.Files[0].Name, Text: "nobody could change these rules again: permit policies.apply to a group"}}
	}
	return e, nil
}

func (s Set) checkFiles() []Problem {
	var problems []Problem
	total, settings := 0, false
	names := map[string]bool{}
	for _, f := range s.Files {
		total += len(f.Text)
		settings = settings || f.Name == SettingsFile
		switch {
		case f.Name != path.Base(f.Name) || f.Name == "" || f.Name == "." || len(f.Name) > 128:
			problems = append(problems, Problem{File: f.Name, Text: "is not a plain file name"})
		case names[f.Name]:
			problems = append(problems, Problem{File: f.Name, Text: "is there twice"})
		case f.Name != SettingsFile && !strings.HasSuffix(f.Name, ".cedar"):
			problems = append(problems, Problem{File: f.Name, Text: "is neither a .cedar file nor " + SettingsFile})
		}
		comment := "//"
		if f.Name == SettingsFile {
			comment = "#"
		}
		if err := shape(f.Text, comment); err != nil {
			problems = append(problems, Problem{File: f.Name, Line: lineIn(err.Error()), Text: err.Error()})
		}
		names[f.Name] = true
	}
	switch {
	case len(s.Files) == 0:
		problems = append(problems, Problem{File: "(set)", Text: "there are no files"})
	case len(s.Files) > maxFiles:
		problems = append(problems, Problem{File: "(set)", Text: fmt.Sprintf("there are %d files, at most %d", len(s.Files), maxFiles)})
	case total > maxBytes:
		problems = append(problems, Problem{File: "(set)", Text: fmt.Sprintf("the files have %d bytes, at most %d", total, maxBytes)})
	case !settings:
		problems = append(problems, Problem{File: SettingsFile, Text: "is missing"})
	}
	return problems
}

var ruleName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`) })

// parseRules reads one .cedar file. Every rule needs an @id of its own and an
// @says, since both are shown to people who are refused.
func parseRules(f File, check *validate.Validator, seen map[cedar.PolicyID]string) (list rules, problems []Problem) {
	parsed, err := cedar.NewPolicyListFromBytes(f.Name, []byte(f.Text))
	if err != nil {
		return nil, []Problem{{File: f.Name, Line: lineIn(err.Error()), Text: strings.TrimSpace(err.Error())}}
	}
	for _, p := range parsed {
		line := p.Position().Line
		bad := func(format string, args ...any) {
			problems = append(problems, Problem{File: f.Name, Line: line, Text: fmt.Sprintf(format, args...)})
		}
		notes := p.Annotations()
		r := rule{
			id: cedar.PolicyID(notes["id"]), policy: p, permit: p.Effect() == cedar.Permit,
			says: string(notes["says"]), next: string(notes["next"]),
		}
		for key := range notes {
			if key != "id" && key != "says" && key != "next" {
				bad("@%s is not known: use @id, @says and @next", key)
			}
		}
		switch {
		case r.id == "":
			bad(`the rule has no name: start it with @id("a-short-name")`)
			continue
		case !ruleName().MatchString(string(r.id)):
			bad("@id(%q): use lower-case letters, digits and -", string(r.id))
			continue
		case seen[r.id] != "":
			bad("@id(%q) is also in %s", string(r.id), seen[r.id])
			continue
		case strings.TrimSpace(r.says) == "":
			bad(`rule %s does not say what it means: add @says("…")`, r.id)
		}
		seen[r.id] = f.Name
		if err := check.Policy(string(r.id), (*ast.Policy)(p.AST())); err != nil {
			bad("rule %s: %s", r.id, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		list = append(list, r)
	}
	return list, problems
}

var lineNumber = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:line |:)(\d+)`) })

// lineIn finds the line in a parser's message.
func lineIn(text string) int {
	n := 0
	if m := lineNumber().FindStringSubmatch(text); m != nil {
		if _, err := fmt.Sscanf(m[1], "%d", &n); err != nil {
			return 0
		}
	}
	return n
}

// add files a rule under every action that its scope names.
func (e *Engine) add(r rule) {
	known := *(*ast.Policy)(r.policy.AST()) // a scope that is left out here is looked at in question.All
	switch scope := known.Principal.(type) {
	case ast.ScopeTypeIs:
		r.kind, known.Principal = string(scope.Type), ast.ScopeTypeAll{}
	case ast.ScopeTypeIsIn:
		r.kind, r.group = string(scope.Type), groupOf(scope.Entity)
	case ast.ScopeTypeIn:
		r.group = groupOf(scope.Entity)
	}
	if r.group != "" { // "" is also any other entity, which Cedar looks at
		known.Principal = ast.ScopeTypeAll{}
	}
	named := map[types.EntityUID]bool{}
	switch scope := known.Action.(type) {
	case ast.ScopeTypeEq:
		named[scope.Entity] = true
	case ast.ScopeTypeIn:
		named[scope.Entity] = true
	case ast.ScopeTypeInSet:
		for _, uid := range scope.Entities {
			named[uid] = true
		}
	default: // a scope this code does not know is filed under all: never lose a forbid
		named = nil
	}
	if named != nil {
		known.Action = ast.ScopeTypeAll{}
	}
	r.allows, r.denies = "Allowed: "+r.says+".", "Refused: "+r.says+"."
	r.asked = cedar.NewPolicyFromAST((*cedarast.Policy)(&known))
	e.all = append(e.all, r)
	for name, v := range e.words.actions {
		if named == nil || named[v.uid] {
			e.byAction[name] = append(e.byAction[name], r)
		}
	}
}

// groupOf is the group that an `in` names; a principal is also in themselves,
// so any other entity filters nothing.
func groupOf(uid types.EntityUID) string {
	if uid.Type == "Group" {
		return string(uid.ID)
	}
	return ""
}

var groupName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`Group::"([^"\\]{1,128})"`) })

// mentionedGroups lists the groups that rules and settings speak of.
func mentionedGroups(s Set, settings Settings) []string {
	found := map[string]bool{}
	for _, f := range s.Files {
		for _, m := range groupName().FindAllStringSubmatch(f.Text, -1) {
			found[m[1]] = true
		}
	}
	for _, rule := range settings.Approvals {
		for _, g := range rule.Groups {
			found[g] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
