package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/target"
)

func engine(t testing.TB) *Engine {
	t.Helper()
	e, problems := Parse(Default())
	for _, p := range problems {
		t.Error(p)
	}
	if e == nil {
		t.FailNow()
	}
	return e
}

func person(groups ...string) identity.Principal {
	return identity.Principal{ID: "p-00000001", Name: "ada", Kind: "person", Groups: groups}
}

var (
	web = &target.Host{ID: "h-00000001", Name: "web-1", Environment: "production", Scope: "none"}
	pay = &target.Host{ID: "h-00000002", Name: "pay-1", Environment: "production", Scope: "pci"}
	lab = &target.Host{ID: "h-00000003", Name: "lab", Environment: "dev", Scope: "none"}
)

func TestTheDefaultRulesSayWhatTheManualSays(t *testing.T) {
	e := engine(t)
	read, write := Context{Level: "read"}, Context{Level: "write"}
	granted := func(c Context) Context { c.GrantActive = true; return c }
	locked := person("admin")
	locked.Locked = true
	robot := identity.Principal{ID: "p-0000000r", Name: "ci", Kind: "robot", Groups: []string{"admin"}}
	for i, c := range []struct {
		who     identity.Principal
		action  string
		host    *target.Host
		context Context
		rule    string // that decides
		allowed bool
	}{
		{person(), "hosts.list", nil, Context{}, "look-around", true},
		{person(), "ledger.verify", nil, Context{}, "look-around", true},
		{person(), "sessions.open", web, read, "read-is-standing", true},
		{person(), "sessions.open", pay, read, "regulated-reads-need-a-grant", false},
		{person(), "sessions.open", pay, granted(read), "read-is-standing", true},
		{person("admin"), "sessions.open", web, write, "write-with-a-grant", false},
		{person("admin"), "sessions.open", web, granted(write), "write-with-a-grant", true},
		{person(), "sessions.open", web, Context{}, "write-with-a-grant", false},
		{person(), "sessions.open", nil, read, "", false},
		{person(), "grants.request", web, Context{}, "ask-for-a-grant", true},
		{person(), "grants.breakglass", web, Context{}, "break-glass", true},
		{person("admin"), "grants.breakglass", web, Context{OwesReview: true}, "a-review-is-owed", false},
		{person("operator"), "approvals.decide", nil, Context{}, "approve", true},
		{person("admin"), "approvals.decide", nil, Context{}, "approve", true},
		{person("admin"), "approvals.decide", nil, Context{Self: true, Bootstrap: true}, "never-your-own", false},
		{person("developer"), "approvals.decide", nil, Context{}, "approve", false},
		{robot, "approvals.decide", nil, Context{}, "robots-ask", false},
		{robot, "grants.breakglass", web, Context{}, "robots-ask", false},
		{robot, "sessions.open", web, read, "write-with-a-grant", false},
		{person("developer"), "people.add", nil, Context{}, "admins-run-the-installation", false},
		{person("operator"), "people.add", nil, Context{}, "admins-run-the-installation", false},
		{person("admin"), "people.add", nil, Context{}, "admins-run-the-installation", true},
		{person("admin"), "policies.apply", nil, Context{}, "admins-run-the-installation", true},
		{person("admin"), "hosts.set", web, Context{}, "admins-run-the-installation", true},
		{person("operator"), "people.lock", nil, Context{}, "lock", true},
		{person("developer"), "people.lock", nil, Context{}, "lock", false},
		{person(), "sessions.watch", web, Context{Self: true}, "watch-and-control", true},
		{person(), "sessions.watch", web, Context{}, "watch-and-control", false},
		{person("operator"), "sessions.control", web, Context{}, "watch-and-control", true},
		{person("auditor"), "sessions.control", web, Context{}, "watch-and-control", false},
		{person("auditor"), "sessions.replay", web, Context{}, "replay", true},
		{person("developer"), "sessions.replay", nil, Context{}, "replay", false},
		{person("developer"), "grants.revoke", nil, Context{Self: true}, "end-a-grant", true},
		{person("developer"), "grants.revoke", nil, Context{}, "end-a-grant", false},
		{person("auditor"), "grants.review", nil, Context{}, "close-a-review", true},
		{person("admin"), "grants.review", nil, Context{Self: true}, "close-a-review", false},
		{person("auditor"), "ledger.export", nil, Context{}, "export", true},
		{person("operator"), "ledger.export", nil, Context{}, "export", false},
		{locked, "hosts.list", nil, Context{}, "locked", false},
		{locked, "sessions.open", web, granted(write), "locked", false},
		{identity.Principal{Kind: "anonymous"}, "hosts.list", nil, Context{}, "", false},
		{identity.Principal{ID: "h-1", Kind: "node"}, "hosts.list", nil, Context{}, "", false},
		{person("admin"), "hosts.destroy", nil, Context{}, "", false},
	} {
		d := e.Decide(Query{Principal: c.who, Action: c.action, Host: c.host, Context: c.context})
		rule := ""
		if len(d.Rules) > 0 {
			rule = d.Rules[0]
		}
		if d.Allowed != c.allowed || rule != c.rule || d.Text == "" {
			t.Errorf("%d: %s by %v: allowed=%v by %q (%s), want %v by %q", i, c.action, c.who.Groups, d.Allowed, rule, d.Text, c.allowed, c.rule)
		}
	}
}

func TestARefusalNamesWhoCouldAgree(t *testing.T) {
	e := engine(t)
	d := e.Explain(Query{Principal: person("developer"), Action: "sessions.open", Host: web, Context: Context{Level: "write"}})
	if !slices.Equal(d.WhoCould, []string{"operator", "admin"}) || !strings.Contains(d.Next, "elevate web-1") {
		t.Errorf("%+v", d)
	}
	d = e.Explain(Query{Principal: person("developer"), Action: "people.add"})
	if !slices.Equal(d.WhoCould, []string{"admin"}) {
		t.Errorf("%+v", d)
	}
	d = e.Explain(Query{Principal: person("developer"), Action: "grants.breakglass", Host: web, Context: Context{OwesReview: true}})
	if !slices.Equal(d.WhoCould, []string{"admin", "auditor", "operator"}) {
		t.Errorf("%+v", d)
	}
}

// with adds a file to the default set.
func with(name, text string) Set {
	s := Default()
	s.Files = append(slices.Clone(s.Files), File{Name: name, Text: text})
	return s
}

func TestAnErrorIsARefusal(t *testing.T) {
	// The validator lets no such rule through, so it is put past it: a forbid that
	// errs, beside a permit that fits.
	e := engine(t)
	list, err := cedar.NewPolicyListFromBytes("x.cedar", []byte(`forbid (principal, action == Action::"hosts.list", resource) when { context.nosuch == 1 };`))
	if err != nil {
		t.Fatal(err)
	}
	e.add(rule{id: "broken", policy: list[0], says: "x"})
	d := e.Decide(Query{Principal: person("admin"), Action: "hosts.list"})
	if d.Allowed || len(d.Errors) != 1 || !strings.Contains(d.Errors[0], "broken") {
		t.Errorf("a forbid that errs was skipped: %+v", d)
	}
	e.addEverywhere(rule{id: "crash", policy: nil, says: "x"})
	if d := e.Decide(Query{Principal: person("admin"), Action: "policies.list"}); d.Allowed || len(d.Errors) == 0 {
		t.Errorf("a panic allows: %+v", d)
	}
}

func (e *Engine) addEverywhere(r rule) {
	for name := range e.words.actions {
		e.byAction[name] = append(e.byAction[name], r)
	}
}

func TestASetWithAFaultIsRefusedWithItsPlace(t *testing.T) {
	good := `@id("x") @says("y") permit (principal is Person, action == Action::"hosts.list", resource)`
	for text, want := range map[string]string{
		`permit (principal, action, resource);`:                                                 "no name",
		`@id("x") permit (principal is Person, action == Action::"hosts.list", resource);`:      "@says",
		good + ` when { context.nosuch };`:                                                      "nosuch",
		good + ` when { context.level == 1 };`:                                                  "rule x",
		good + ` when { resource.environment == "dev" };`:                                       "rule x",
		`@id("x") @says("y") permit (principal, action == Action::"hosts.lst", resource);`:      "hosts.lst",
		`@id("locked") @says("y") permit (principal, action == Action::"hosts.list",resource);`: "5-people.cedar",
		`@id("X y") @says("y") permit (principal, action, resource);`:                           "lower-case",
		`@id("x") @says("y") @oops("z") permit (principal, action, resource);`:                  "@oops",
		"@id(\"x\") @says(\"y\")\npermit (principal action, resource);":                         "zz.cedar:2",
	} {
		e, problems := Parse(with("zz.cedar", text))
		all := fmt.Sprint(problems)
		if e != nil || !strings.Contains(all, want) || !strings.Contains(all, "zz.cedar") {
			t.Errorf("%s\n   gives %v, want %q", text, problems, want)
		}
	}
	if e, problems := Parse(with("zz.cedar", good+`;`)); e == nil {
		t.Errorf("a good rule: %v", problems)
	}
}

func TestSettingsAreStrict(t *testing.T) {
	for from, to := range map[string]string{
		`least_floor = "account"`:                        `leest_floor = "account"`,
		`[approvals.ratification]`:                       `[approval.ratification]`,
		`groups = ["adm", "systemd-journal"]`:            `groups = ["docker"]`,
		`write_account = "handrail-write"`:               `write_account = "root"`,
		`ratify_within = "10m"`:                          `ratify_within = "soon"`,
		`"/etc/shadow",`:                                 `"etc/shadow",`,
		"[scopes.sox]":                                   "[scopes.sax]",
		"needed = 1\n":                                   "needed = 0\n",
		`longest_grant = "2h"`:                           ``,
		`[environments.dev]`:                             `[environments.test]`,
		`# Numbers and names that go with`:               `oops = 1` + "\n# ",
		"needed = 1\ngroups = [\"operator\", \"admin\"]": "needed = 3\ndifferent_groups = true\ngroups = [\"operator\", \"admin\"]",
	} {
		s := Default()
		s.Files = slices.Clone(s.Files)
		for i, f := range s.Files {
			if f.Name == SettingsFile {
				if !strings.Contains(f.Text, from) {
					t.Fatalf("the settings hold no %q", from)
				}
				s.Files[i].Text = strings.Replace(f.Text, from, to, 1)
			}
		}
		if e, problems := Parse(s); e != nil || len(problems) == 0 || problems[0].File != SettingsFile {
			t.Errorf("%q: %v", to, problems)
		} else if strings.Contains(to, "leest") && !strings.Contains(fmt.Sprint(problems), "did you mean least_floor?") {
			t.Errorf("no suggestion: %v", problems)
		}
	}
}

func TestASetThatNobodyCouldChangeAgainIsRefused(t *testing.T) {
	s := with("zz.cedar", `@id("x") @says("y") forbid (principal, action == Action::"policies.apply", resource);`)
	if e, problems := Parse(s); e != nil || !strings.Contains(fmt.Sprint(problems), "nobody could change") {
		t.Errorf("%v", problems)
	}
	for _, s := range []Set{{}, {Files: []File{{Name: "../x.cedar"}}}, {Files: []File{{Name: "x.txt"}, {Name: SettingsFile}}}, {Files: []File{{Name: "a.cedar"}, {Name: "a.cedar"}}}} {
		if e, problems := Parse(s); e != nil || len(problems) == 0 {
			t.Errorf("%v is accepted", s)
		}
	}
}

func TestASetThatIsTooDeepIsRefusedBeforeItIsParsed(t *testing.T) {
	in := func(condition string) string {
		return `@id("x") @says("y (") permit (principal is Person, action == Action::"hosts.list", resource) when { ` + condition + ` };`
	}
	for name, text := range map[string]string{
		"brackets": in(strings.Repeat("[", 5000) + "1" + strings.Repeat("]", 5000) + " == [1]"),
		"dots":     in("context has a" + strings.Repeat(".\n a", 5000)),
		"size":     in(strings.Repeat("true || ", 10_000) + "true"),
	} {
		if e, problems := Parse(with("zz.cedar", text)); e != nil || len(problems) != 1 {
			t.Errorf("%s: %.200s", name, fmt.Sprint(problems))
		}
	}
	if e, problems := Parse(with("zz.cedar", in("// ((((((((((((((((((((((((((((((((((((((((((((((\n true"))); e == nil {
		t.Errorf("brackets in a comment: %v", problems)
	}
}

func TestObligationsTakeTheStrictest(t *testing.T) {
	e := engine(t)
	if e.MaxDuration(*lab) != 8*time.Hour || e.MaxDuration(*lab, *web) != 2*time.Hour || e.MaxDuration(*web, *pay) != time.Hour {
		t.Error("the shortest of the longest grants counts")
	}
	if e.BuddyRequired(*lab, *web) || !e.BuddyRequired(*lab, *pay) {
		t.Error("regulated production wants a buddy")
	}
	if e.LeastFloor("dev") != "account" || e.LeastFloor("production") != "full" || e.LeastFloor("what") != "full" {
		t.Error("an unknown environment is treated as production")
	}
	if e.BreakGlassFor(*lab) != 30*time.Minute || e.RatifyWithin() != 10*time.Minute || e.ReviewWithin() != 72*time.Hour {
		t.Error("the lengths of break-glass")
	}
	if got := e.Approval("person.add"); got.Needed != 1 || !slices.Equal(got.Groups, []string{"operator", "admin"}) {
		t.Errorf("an unknown kind takes the default: %+v", got)
	}
	if e.WriteAccount(*web) == "" || len(e.Secrets(*web)) == 0 || len(e.GroupsFor(person(), *web)) != 2 {
		t.Error("what a session needs")
	}
}

func TestCompareSaysWhoGainsAndWhoLoses(t *testing.T) {
	before := engine(t)
	s := Default()
	s.Files = slices.Clone(s.Files)
	for i, f := range s.Files {
		s.Files[i].Text = strings.ReplaceAll(f.Text, `Group::"auditor"`, `Group::"revision"`)
		if strings.HasPrefix(f.Name, "1-") {
			s.Files[i].Text = strings.ReplaceAll(s.Files[i].Text, `["pci", "hipaa"]`, `["hipaa"]`)
		}
	}
	after, problems := Parse(s)
	if after == nil {
		t.Fatal(problems)
	}
	people := []identity.Person{{ID: "p-1", Name: "ann", Groups: []string{"auditor"}}, {ID: "p-2", Name: "dev"}}
	deltas := Compare(before, after, people, []target.Host{*web, *pay})
	var text []string
	for _, d := range deltas {
		text = append(text, fmt.Sprintf("%s %s %s %s", d.Person, d.Action, d.Target, d.After))
	}
	for _, want := range []string{
		"ann ledger.export installation deny", "ann sessions.replay installation deny", "ann sessions.open read pay-1 allow", "dev sessions.open read pay-1 allow",
	} {
		if !slices.Contains(text, want) {
			t.Errorf("missing %q in %v", want, text)
		}
	}
	if slices.ContainsFunc(text, func(s string) bool { return strings.HasPrefix(s, "dev ledger.export") }) {
		t.Errorf("dev did not change: %v", text)
	}
	if same := Compare(before, before, people, []target.Host{*web}); len(same) != 0 {
		t.Errorf("nothing changed: %v", same)
	}
}

func TestTheHashOfASetIsOfItsNamesAndTexts(t *testing.T) {
	a := Set{Files: []File{{"a.cedar", "xy"}, {"b.cedar", "z"}}}
	b := Set{Files: []File{{"b.cedar", "z"}, {"a.cedar", "xy"}}}
	c := Set{Files: []File{{"a.cedar", "x"}, {"b.cedar", "yz"}}}
	if !slices.Equal(a.Hash(), b.Hash()) || slices.Equal(a.Hash(), c.Hash()) {
		t.Error("the hash must not depend on the order, and must on where a text ends")
	}
}

// random makes any question at all, sensible or not.
func random(r *rand.Rand) Query {
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	flip := func() bool { return r.IntN(2) == 0 }
	q := Query{
		Principal: identity.Principal{
			ID: pick("", "p-00000001", "p-00000002", "\x00", `"`), Name: pick("ada", "", "né\n"), Locked: r.IntN(8) == 0,
			Kind: pick("person", "person", "person", "robot", "node", "anonymous", "", "Person"),
		},
		Action: pick(append(Verbs(), "", "sessions.Open", "hosts.destroy")...),
		Context: Context{
			Level: pick("read", "write", "", "WRITE", "root"), GrantActive: flip(), GrantKind: pick("", "elevated", "break-glass"), Sudo: flip(), Root: flip(), Forward: flip(),
			Bootstrap: flip(), OwesReview: flip(), BuddyPresent: flip(), FloorOK: flip(), Self: flip(), AgeOfCredentialHours: r.Int64N(100) - 10,
		},
	}
	for _, g := range []string{"admin", "operator", "auditor", "developer", "", "Group::\"admin\""} {
		if r.IntN(4) == 0 {
			q.Principal.Groups = append(q.Principal.Groups, g)
		}
	}
	if r.IntN(3) > 0 {
		q.Host = &target.Host{
			ID: pick("h-00000001", "", "h-2"), Name: pick("web-1", ""), Environment: pick("dev", "production", "", "prod"),
			Scope: pick("none", "pci", "hipaa", "", "PCI"), Services: []string{pick("pay", "")}, Trial: flip(),
		}
	}
	return q
}

// broken is a rule that errs for some principals and hosts, past the validator.
func broken(t testing.TB) rule {
	list, err := cedar.NewPolicyListFromBytes("x.cedar", []byte(
		`forbid (principal, action, resource) when { principal in Group::"developer" && resource.nosuch == 1 };`))
	if err != nil {
		t.Fatal(err)
	}
	return rule{id: "broken", policy: list[0], asked: list[0], says: "x"}
}

// scoped are rules with every kind of scope. They forbid, so that what the
// default set refuses stays refused.
func scoped(t testing.TB) (list rules) {
	t.Helper()
	actions := `[Action::"hosts.list", Action::"sessions.open"]`
	for i, scope := range []string{
		`principal in Group::"", action, resource`,
		`principal is Person in Group::"", action in ` + actions + `, resource`,
		`principal in Group::"auditor", action == Action::"ledger.export", resource is Installation`,
		`principal is Robot in Group::"developer", action in ` + actions + `, resource is Host`,
		`principal is Person in Group::"developer", action == Action::"hosts.list", resource == Host::"h-2"`,
		`principal == Person::"p-00000002", action == Action::"people.list", resource`,
		`principal in Person::"p-00000002", action == Action::"policies.list", resource`,
		`principal is Person in Person::"p-00000002", action in Action::"grants.list", resource`,
		`principal is Robot, action, resource in Host::"h-00000001"`,
	} {
		text := fmt.Sprintf("forbid (%s)", scope) + map[bool]string{true: ";", false: ` when { context.forward };`}[i%3 == 1]
		parsed, err := cedar.NewPolicyListFromBytes("x.cedar", []byte(text))
		if err != nil {
			t.Fatal(text, err)
		}
		list = append(list, rule{id: cedar.PolicyID(fmt.Sprint("scoped-", i)), policy: parsed[0], says: "x"})
	}
	return list
}

// Whatever is asked: what errs is refused, what is refused by construction stays
// refused, and what is allowed has a rule that says so.
func TestNoQuestionIsAllowedOnError(t *testing.T) {
	plain, faulty, slow := engine(t), engine(t), engine(t)
	for _, e := range []*Engine{plain, faulty, slow} {
		for _, r := range scoped(t) {
			e.add(r)
		}
	}
	faulty.addEverywhere(broken(t))
	for _, list := range slow.byAction { // nothing left out before Cedar looks
		for i := range list {
			list[i].kind, list[i].group, list[i].asked = "", "", list[i].policy
		}
	}
	n := 100_000
	if testing.Short() {
		n = 20_000
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 7))
	errors, allowed := 0, 0
	for i := range n {
		q := random(r)
		d, f := plain.Decide(q), faulty.Decide(q)
		if d.Allowed {
			allowed++
		}
		if len(f.Errors) > 0 {
			errors++
		}
		isDeveloper := slices.Contains(q.Principal.Groups, "developer")
		if full := slow.Decide(q); full.Allowed != d.Allowed || !slices.Equal(full.Rules, d.Rules) {
			t.Fatalf("seed %d, %d: leaving rules out changes the answer: %+v", seed, i, q)
		}
		switch {
		case d.Allowed && (len(d.Errors) > 0 || len(d.Rules) == 0), f.Allowed && len(f.Errors) > 0:
			t.Fatalf("seed %d, %d: allowed on error: %+v", seed, i, q)
		case f.Allowed && isDeveloper:
			t.Fatalf("seed %d, %d: a forbid that errs was skipped: %+v", seed, i, q)
		case d.Allowed && (q.Principal.Locked || q.Principal.Kind != "person" || q.Principal.ID == ""):
			t.Fatalf("seed %d, %d: allowed to nobody: %+v", seed, i, q)
		case d.Allowed && q.Action == "approvals.decide" && q.Context.Self, d.Allowed && q.Action == "grants.breakglass" && q.Context.OwesReview:
			t.Fatalf("seed %d, %d: %+v", seed, i, q)
		case d.Allowed && q.Action == "sessions.open" && q.Context.Level != "read" && !q.Context.GrantActive:
			t.Fatalf("seed %d, %d: a write without a grant: %+v", seed, i, q)
		}
	}
	if allowed < n/100 || errors < n/100 {
		t.Errorf("of %d questions %d were allowed and %d erred: the questions are too dull", n, allowed, errors)
	}
}

func TestEveryQuestionConformsToTheSchema(t *testing.T) {
	e := engine(t)
	check := validate.New(e.words.schema)
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		q := random(r)
		action, known := e.words.actions[q.Action]
		if !known || q.Principal.Kind != "person" && q.Principal.Kind != "robot" || q.Host == nil && !action.installation {
			continue
		}
		s := e.entities.question(q, nil)
		if err := check.Entity(*s.principal); err != nil {
			t.Fatal(err)
		}
		if err := check.Entity(*s.resource); err != nil {
			t.Fatal(err)
		}
		if err := check.Request(cedar.Request{Principal: s.principal.UID, Action: action.uid, Resource: s.resource.UID, Context: e.entities.context(q.Context)}); err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
	}
}

func TestACachedEntityIsNotUsedForSomebodyWhoChanged(t *testing.T) {
	e := engine(t)
	q := Query{Principal: person("admin"), Action: "people.add"}
	if !e.Decide(q).Allowed {
		t.Fatal("an admin adds people")
	}
	q.Principal.Groups[0] = "developer" // the same slice, changed under the cache
	if e.Decide(q).Allowed {
		t.Error("the cache keeps groups that somebody lost")
	}
	h := *web
	q = Query{Principal: person(), Action: "sessions.open", Host: &h, Context: Context{Level: "read"}}
	if !e.Decide(q).Allowed {
		t.Fatal("reading is standing")
	}
	h.Scope = "pci"
	if e.Decide(q).Allowed {
		t.Error("the cache keeps a scope that a host lost")
	}
}

func TestAnOldGrantOfRootOpensNothingWhereTheServerRuns(t *testing.T) {
	e, problems := Parse(Default())
	if e == nil {
		t.Fatal(problems)
	}
	gate := &target.Host{ID: "h-00000009", Name: "gate-1", Environment: "dev", Scope: "none", Server: true}
	for _, c := range []struct {
		at      *target.Host
		context Context
		allowed bool
	}{
		{gate, Context{Level: "write", GrantActive: true, Root: true, FloorOK: true}, false},
		{gate, Context{Level: "write", GrantActive: true, Sudo: true, FloorOK: true}, false},
		{gate, Context{Level: "write", GrantActive: true, FloorOK: true}, true},
		{gate, Context{Level: "read", GrantActive: true, Root: true, FloorOK: true}, true},
		{web, Context{Level: "write", GrantActive: true, Root: true, FloorOK: true}, true},
	} {
		d := e.Decide(Query{Principal: person("developer"), Action: "sessions.open", Host: c.at, Context: c.context})
		if d.Allowed != c.allowed || !c.allowed && d.Rules[0] != "root-owns-the-server" {
			t.Errorf("%s %+v: %+v", c.at.Name, c.context, d)
		}
	}
}

// hundred is the default set and 100 more rules, a quarter of them about the
// action that is measured.
func hundred(b *testing.B) *Engine {
	var text strings.Builder
	verbs := []string{"sessions.open", "hosts.list", "people.lock", "ledger.export"}
	for i := range 100 {
		fmt.Fprintf(&text, "@id(\"team-%d\") @says(\"team %d\") permit (principal is Person in Group::\"team-%d\", action == Action::\"%s\", resource) when { context.level == \"read\" };\n", i, i, i, verbs[i%4])
	}
	e, problems := Parse(with("zz.cedar", text.String()))
	if e == nil {
		b.Fatal(problems)
	}
	return e
}

func BenchmarkDecide(b *testing.B) {
	for name, q := range map[string]Query{
		"allow": {Principal: person("developer"), Action: "sessions.open", Host: web, Context: Context{Level: "read", FloorOK: true}},
		"deny":  {Principal: person("developer"), Action: "sessions.open", Host: web, Context: Context{Level: "write", FloorOK: true}},
	} {
		b.Run(name, func(b *testing.B) {
			e := hundred(b)
			b.ReportAllocs()
			took := make([]time.Duration, 0, 1<<20)
			for b.Loop() {
				start := time.Now()
				e.Decide(q)
				if len(took) < cap(took) {
					took = append(took, time.Since(start))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, file := range Default().Files {
		f.Add(file.Text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"zz.cedar", SettingsFile} {
			s := with("zz.cedar", text)
			if name == SettingsFile {
				s = Set{Files: []File{{Name: name, Text: text}, Default().Files[0]}}
			}
			if e, problems := Parse(s); (e == nil) == (len(problems) == 0) {
				t.Fatalf("an engine beside problems: %v", problems)
			}
		}
	})
}
