package directory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// reference finds who stands in a group the naive way: again and again, until
// nothing changes.
func reference(c *Copy, start int) []int {
	in := map[int]bool{start: true}
	for changed := true; changed; {
		changed = false
		for g := range in {
			for _, inner := range c.Groups[g].Groups {
				if !in[inner] {
					in[inner], changed = true, true
				}
			}
		}
	}
	people := map[int]bool{}
	for g := range in {
		for _, p := range c.Groups[g].People {
			people[p] = true
		}
	}
	var out []int
	for p := range people {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

func TestNestedGroupsAreTheClosureWhateverTheCycles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		people, groups := rapid.IntRange(0, 12).Draw(t, "people"), rapid.IntRange(1, 10).Draw(t, "groups")
		c := &Copy{V: 1}
		for i := range people {
			c.People = append(c.People, Human{ID: fmt.Sprintf("p%02d", i), Name: fmt.Sprint("p", i), Manager: -1})
		}
		for i := range groups {
			g := Group{ID: fmt.Sprintf("g%02d", i), Name: fmt.Sprint("g", i), DN: fmt.Sprintf("cn=g%d,dc=x", i)}
			if people > 0 {
				g.People = rapid.SliceOfN(rapid.IntRange(0, people-1), 0, 6).Draw(t, "members")
			}
			g.Groups = rapid.SliceOfN(rapid.IntRange(0, groups-1), 0, 4).Draw(t, "nested")
			c.Groups = append(c.Groups, g)
		}
		start := rapid.IntRange(0, groups-1).Draw(t, "start")
		st := c.stand(map[string][]string{"here": {c.Groups[start].DN}})
		var got []int
		for p, ways := range st.of {
			got = append(got, p)
			path := ways["here"]
			if path[0] != start || !slices.Contains(c.Groups[path[len(path)-1]].People, p) {
				t.Fatalf("the way of %d is %v", p, path)
			}
			for i := 1; i < len(path); i++ {
				if !slices.Contains(c.Groups[path[i-1]].Groups, path[i]) {
					t.Fatalf("the way of %d goes where there is none: %v", p, path)
				}
			}
		}
		slices.Sort(got)
		if want := reference(c, start); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestOneNameHasOneReferenceHoweverItIsWritten(t *testing.T) {
	same := []string{"uid=ada,ou=people,dc=example,dc=com", "UID=Ada, OU=People, DC=Example, DC=Com", `uid=\61da,ou=people,dc=example,dc=com`, "uid= ada ,ou=people,dc=example,dc=com"}
	first, err := refOf(same[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range same[1:] {
		if r, err := refOf(other); err != nil || r != first {
			t.Errorf("%q is another name (%v)", other, err)
		}
	}
	for _, other := range []string{"uid=ada,ou=people,dc=example", `uid=ada\,ou=people,dc=example,dc=com`, "uid=ada+cn=x,ou=people,dc=example,dc=com", "cn=ada,ou=people,dc=example,dc=com"} {
		if r, err := refOf(other); err != nil || r == first {
			t.Errorf("%q is the same name (%v)", other, err)
		}
	}
}

func TestOnlyTheTooManyAreTooMany(t *testing.T) {
	for _, c := range []struct {
		lose, total int
		want        bool
	}{{1, 1, false}, {2, 2, false}, {3, 3, true}, {1, 3, false}, {5, 6, false}, {6, 100, true}, {5, 5000, false}, {250, 5000, false}, {251, 5000, true}} {
		if got := tooMany(c.lose, c.total); got != c.want {
			t.Errorf("%d of %d: %v", c.lose, c.total, got)
		}
	}
}

func TestACopyIsBelievedOnlyWithItsSignature(t *testing.T) {
	h := build(t)
	s := Statement{Version: 7, Read: fromMicros(1_700_000_000_000_000), Hash: strings.Repeat("a", 64)}
	signed, err := s.sign(h.ring.Log())
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenStatement(signed, h.ring.LogVerifier())
	if err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := OpenStatement(strings.Replace(signed, "\n7\n", "\n8\n", 1), h.ring.LogVerifier()); err == nil {
		t.Error("another version is believed")
	}
	c := &Copy{V: 1, People: []Human{{ID: "x", Name: "ada", Manager: -1}}}
	body, hash, err := c.pack()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := unpack(body, hash); err != nil || again.People[0].Name != "ada" {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := unpack(body, strings.Repeat("0", 64)); err == nil {
		t.Error("a copy with another hash is believed")
	}
}

// entry is one of the directory, for what needs no server.
func entry(dn, uuid string, attributes ...string) *ldap.Entry {
	m := map[string][]string{"entryUUID": {uuid}}
	for i := 0; i+1 < len(attributes); i += 2 {
		m[attributes[i]] = append(m[attributes[i]], attributes[i+1])
	}
	return ldap.NewEntry(dn, m)
}

func uuidN(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012x", n+1) }

func testConfig(t testing.TB) config {
	return checked(t, Settings{URL: "ldap://127.0.0.1", People: "ou=people,dc=x", Groups: "ou=groups,dc=x",
		Map: map[string][]string{"operator": {"ops"}, "admin": {"bosses"}}})
}

func TestPretendersAndStrangeNamesGetNothing(t *testing.T) {
	c := testConfig(t)
	w := newWorld(c)
	add := func(n int, name string) {
		t.Helper()
		if err := w.putPerson(entry(fmt.Sprintf("cn=n%d,ou=people,dc=x", n), uuidN(n), "uid", name)); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"ada", "twin", "Twin", "a\u202eda", "a\u200bda", "root", "../etc", "p-12345678", "", strings.Repeat("x", 200), "local"} {
		add(i, name)
	}
	copied := w.copy()
	now := here{members: map[string]member{}, names: map[string]string{"local": "p-local000"}, uuids: map[string]string{}, agreed: map[string]string{}}
	p := makePlan(c, copied, copied.stand(c.Map), now)
	if len(p.joins) != 1 || p.joins[0].name != "ada" {
		t.Errorf("who joins: %+v", p.joins)
	}
	if len(p.odd) != 10 {
		t.Errorf("%d are odd: %+v", len(p.odd), p.odd)
	}
}

func TestNobodyEntersAGroupThatAsksFirst(t *testing.T) {
	c := testConfig(t)
	w := newWorld(c)
	if err := w.putPerson(entry("uid=ada,ou=people,dc=x", uuidN(1), "uid", "ada")); err != nil {
		t.Fatal(err)
	}
	for i, g := range []string{"ops", "bosses"} {
		if err := w.putGroup(entry("cn="+g+",ou=groups,dc=x", uuidN(10+i), "cn", g, "member", "uid=ada,ou=people,dc=x")); err != nil {
			t.Fatal(err)
		}
	}
	copied := w.copy()
	st := copied.stand(c.Map)
	now := here{members: map[string]member{}, names: map[string]string{}, uuids: map[string]string{}, agreed: map[string]string{}}
	if p := makePlan(c, copied, st, now); len(p.joins) != 1 || !slices.Equal(p.joins[0].groups, []string{"operator"}) {
		t.Fatalf("%+v", p.joins)
	}
	now.members[uuidN(1)] = member{UUID: uuidN(1), Person: "p-00000001", Name: "ada", Groups: []string{"operator"}}
	p := makePlan(c, copied, st, now)
	if len(p.gains) != 0 || len(p.held) != 1 || p.held[0].what != HeldGains {
		t.Fatalf("%+v", p)
	}
	now.agreed[HeldGains] = p.held[0].digest()
	p = makePlan(c, copied, st, now)
	if len(p.held) != 0 || len(p.gains) != 1 || !slices.Equal(p.gains[0].groups, []string{"admin"}) {
		t.Fatalf("agreed: %+v", p)
	}
}

func TestALockoutIsNoDisabling(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        bool
	}{
		{"userAccountControl", "512", false}, {"userAccountControl", "514", true}, {"userAccountControl", "what", true},
		{"nsAccountLock", "TRUE", true}, {"nsAccountLock", "false", false}, {"loginDisabled", "TRUE", true},
		{"pwdAccountLockedTime", "20261121101010Z", false}, {"pwdAccountLockedTime", "000001010000Z", true},
	} {
		if got := off(entry("uid=x,dc=x", uuidN(1), c.name, c.value)) != ""; got != c.want {
			t.Errorf("%s %s: off %v", c.name, c.value, got)
		}
	}
}

func TestSettingsThatCannotBeMeantAreRefused(t *testing.T) {
	good := Settings{URL: "ldaps://ldap.example.com", BindDN: "cn=reader,dc=x", Password: "x", People: "ou=p,dc=x", Groups: "ou=g,dc=x", Map: map[string][]string{"operator": {"ops"}}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Settings){
		"without TLS":       func(s *Settings) { s.URL = "ldap://ldap.example.com" },
		"neither ldaps":     func(s *Settings) { s.URL = "http://ldap.example.com" },
		"is not ldaps":      func(s *Settings) { s.URL = "ldaps://user:pw@ldap.example.com" },
		"TLS already":       func(s *Settings) { s.StartTLS = true },
		"anonymous":         func(s *Settings) { s.Password = "" },
		"no account":        func(s *Settings) { s.BindDN = "" },
		"is missing":        func(s *Settings) { s.People = "" },
		"distinguished":     func(s *Settings) { s.Groups = "groups" },
		"no filter":         func(s *Settings) { s.PeopleFilter = "(uid=*" },
		"can change":        func(s *Settings) { s.ID = "uid" },
		"no attribute":      func(s *Settings) { s.Member = "member;range=0-9" },
		"as a group":        func(s *Settings) { s.Map = map[string][]string{"Operators!": {"ops"}} },
		"a name is empty":   func(s *Settings) { s.Map = map[string][]string{"operator": {" "}} },
		"in no [directory.": func(s *Settings) { s.AskFirst = []string{"auditor"} },
		"less than":         func(s *Settings) { s.StaleAfter = "1s" },
		"is not from 1":     func(s *Settings) { s.MaxPeople = -1 },
		"no certificate":    func(s *Settings) { s.CA = []byte("not PEM") },
	} {
		s := good
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	s := good
	s.URL, s.StartTLS = "ldap://ldap.example.com", true
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// turning is the log's signer in whose every pause the keys are replaced.
type turning struct {
	ledger.LogSigners
	turn func()
}

func (t turning) Name() string           { defer t.turn(); return t.LogSigners.Name() }
func (t turning) KeyHash() uint32        { defer t.turn(); return t.LogSigners.KeyHash() }
func (t turning) Signers() []note.Signer { defer t.turn(); return t.LogSigners.Signers() }

// A statement is by keys that it names, whatever is rotated while it is signed,
// and is believed as long as the log's key counts.
func TestACopyIsSignedByOneKeyWhileKeysRotate(t *testing.T) {
	h := build(t)
	skey, err := os.ReadFile(filepath.Join(h.root, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := note.NewSigner(strings.TrimSpace(string(skey)))
	if err != nil {
		t.Fatal(err)
	}
	rotate := func() {
		t.Helper()
		p, err := h.ring.Propose([]string{ledger.KeyLog}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		b, err := ledger.ReadBundle(p.Text)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := ledger.SignBundle(b, root)
		if err == nil {
			err = h.ring.Install(p.Sealed, signed)
		}
		if err == nil {
			err = h.ring.Finish()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := Statement{Version: 7, Read: fromMicros(1_700_000_000_000_000), Hash: strings.Repeat("a", 64)}
	signed, err := s.sign(turning{h.ring.Log().(ledger.LogSigners), rotate})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenStatement(signed, h.ring.LogVerifier()); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
}
