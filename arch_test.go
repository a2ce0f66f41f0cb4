// Package handrail_test holds the rules of the layout. A rule is a line here;
// a new edge between packages is a line that somebody reviews.
package handrail_test

import (
	"os"
	"os/exec"
	"path"
	"sort"
	"strings"
	"testing"
)

const module = "handrail.dev/handrail/"

// pkg is one line of `go list`: its imports of this module and all others,
// direct and transitive.
type pkg struct {
	path    string   // below the module
	imports []string // direct
	deps    []string // transitive
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	format := `{{.ImportPath}}|{{join .Imports " "}}|{{join .Deps " "}}`
	out, err := exec.Command("go", append([]string{"list", "-f", format}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		part := strings.Split(line, "|")
		all = append(all, pkg{
			path:    strings.TrimPrefix(part[0], module),
			imports: strings.Fields(part[1]),
			deps:    strings.Fields(part[2]),
		})
	}
	return all
}

// own keeps the packages of this module, without the module's prefix.
func own(imports []string) []string {
	var kept []string
	for _, p := range imports {
		if strings.HasPrefix(p, module) {
			kept = append(kept, strings.TrimPrefix(p, module))
		}
	}
	return kept
}

// allowed says, for packages below a prefix, what of this module they may
// reach, directly or through others. The longest prefix counts.
var allowed = map[string][]string{
	"api/":                 {"api/"},
	"internal/surface/web": {"api/", "internal/foundation/fault", "internal/surface/web"},
	"internal/surface/cli": {"api/", "internal/foundation/fault", "internal/foundation/when", "internal/foundation/ledger", "internal/foundation/seal", "internal/surface/cli"},
	"internal/surface/rpc": {"api/", "internal/foundation/", "internal/feature/", "internal/surface/rpc"},
	"internal/host/":       {"api/node/", "internal/host/", "internal/foundation/wire", "internal/foundation/mux", "internal/foundation/ledger", "internal/foundation/seal", "internal/foundation/fault"},
	"internal/foundation/": {"internal/foundation/", "api/node/"},
	"internal/feature/":    {"internal/foundation/", "internal/feature/", "api/node/"},
	"internal/app":         {"internal/", "api/"},
	"cmd/handrail":         {"internal/", "api/"},
	"cmd/handrail-node":    {"internal/host/", "internal/foundation/wire", "internal/foundation/mux", "internal/foundation/ledger", "internal/foundation/seal", "internal/foundation/fault"},
	"test/":                {"internal/", "api/", "test/"},
}

func TestPackagesReachOnlyWhatTheirRingMay(t *testing.T) {
	for _, p := range list(t, "./...") {
		rule := longest(p.path)
		if rule == "" {
			if p.path != "handrail.dev/handrail" {
				t.Errorf("%s stands in no ring: name it in `allowed`", p.path)
			}
			continue
		}
		for _, dep := range own(p.deps) {
			if !covered(dep, allowed[rule]) {
				t.Errorf("%s reaches %s, which its ring (%s) may not", p.path, dep, rule)
			}
		}
	}
}

func longest(p string) string {
	best := ""
	for prefix := range allowed {
		if (p == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(p, prefix)) && len(prefix) > len(best) {
			if prefix == "cmd/handrail" && p != prefix {
				continue
			}
			best = prefix
		}
	}
	return best
}

func covered(dep string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if dep == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(dep, prefix) {
			return true
		}
	}
	return false
}

// order is foundation, lowest first. Those on one line do not import each
// other.
var order = [][]string{
	{"fault"},
	{"when", "crowd", "shamir", "seal", "blob", "mux"},
	{"ledger"},
	{"wire"},
	{"keyring"},
	{"store"},
	{"identity", "oidc", "target"},
	{"directory"},
	{"policy"},
	{"approval"},
	{"doorway"},
	{"fleet"},
	{"rollout"},
}

func TestFoundationIsOrdered(t *testing.T) {
	rank := map[string]int{}
	for i, row := range order {
		for _, name := range row {
			rank[name] = i
		}
	}
	for _, p := range list(t, "./internal/foundation/...") {
		name := path.Base(p.path)
		mine, ok := rank[name]
		if !ok {
			t.Errorf("%s is not in the order of foundation", p.path)
			continue
		}
		for _, dep := range own(p.imports) {
			if other := rank[path.Base(dep)]; strings.HasPrefix(dep, "internal/foundation/") && other >= mine {
				t.Errorf("%s imports %s, which is not below it", p.path, dep)
			}
		}
	}
}

// edges are the only imports of a feature by another.
var edges = map[string][]string{
	"sshgate": {"session"},
	"session": {"recording", "access"},
	"voucher": {"session", "recording", "access"},
	"fix":     {"inventory"},
	"change":  {"inventory"},
}

func TestFeaturesMeetOnlyAlongListedEdges(t *testing.T) {
	for _, p := range list(t, "./internal/feature/...") {
		from := path.Base(p.path)
		for _, dep := range own(p.imports) {
			if !strings.HasPrefix(dep, "internal/feature/") {
				continue
			}
			if !covered(path.Base(dep), edges[from]) {
				t.Errorf("feature %s imports feature %s: not a listed edge", from, path.Base(dep))
			}
		}
	}
}

// fences name who alone may import a thing directly.
var fences = []struct{ what, who string }{
	{"modernc.org/sqlite", "internal/foundation/store"},
	{"github.com/jackc/pgx", "internal/foundation/store"},
	{"database/sql", "internal/foundation/store"},
	{"github.com/nats-io/", "internal/foundation/fleet internal/foundation/wire internal/host/link"},
	{"github.com/cedar-policy/", "internal/foundation/policy"},
	{"github.com/coreos/go-oidc", "internal/foundation/oidc"},
	{"golang.org/x/oauth2", "internal/foundation/oidc"},
	{"github.com/a-h/templ", "internal/surface/web"},
	{"filippo.io/age", "internal/app"},
	{"github.com/go-ldap/", "internal/foundation/directory"},
	{"os/exec", "internal/host internal/surface/cli internal/app"},
	{"golang.org/x/sys/unix", "internal/host internal/app"},
}

func TestFencedImportsStayInTheirRooms(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.path, "test/") {
			continue
		}
		for _, imported := range p.imports {
			for _, f := range fences {
				if (imported == f.what || strings.HasPrefix(imported, strings.TrimSuffix(f.what, "/")+"/")) && !covered(p.path, withSlashes(f.who)) {
					t.Errorf("%s imports %s; only %s may", p.path, imported, f.who)
				}
			}
		}
	}
}

func withSlashes(list string) []string {
	var out []string
	for _, w := range strings.Fields(list) {
		out = append(out, w, w+"/")
	}
	return out
}

// budgets bound the modules that a role links. The lists beside them are
// checked, so that a new module is a line of a diff.
var budgets = []struct {
	pkg   string
	most  int
	list  string
	notes string
}{
	{"./cmd/handrail-node", 25, "docs/modules/node.txt", "runs as root on other people's machines"},
	{"./internal/surface/cli", 12, "docs/modules/cli.txt", "runs on every laptop"},
}

func TestModuleBudgetsHold(t *testing.T) {
	for _, b := range budgets {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", b.pkg).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", b.pkg, err)
		}
		seen := map[string]bool{}
		for _, m := range strings.Fields(string(out)) {
			if m+"/" != module {
				seen[m] = true
			}
		}
		var mods []string
		for m := range seen {
			mods = append(mods, m)
		}
		sort.Strings(mods)
		got := strings.Join(mods, "\n") + "\n"
		if os.Getenv("UPDATE_MODULES") != "" {
			if err := os.WriteFile(b.list, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(b.list)
		if err != nil || string(want) != got {
			t.Errorf("%s (%s) links these modules, %s says otherwise (UPDATE_MODULES=1 go test . to accept):\n%s", b.pkg, b.notes, b.list, got)
		}
		if len(mods) > b.most {
			t.Errorf("%s links %d modules, at most %d", b.pkg, len(mods), b.most)
		}
	}
}
