package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/test/slapd"
)

// company is 5,000 people in 200 groups: some nested, some in a cycle, one
// that holds a stranger.
func company(people, groups int) string {
	var b strings.Builder
	name := func(i int) string { return fmt.Sprintf("p%04d", i) }
	for i := range people {
		b.WriteString(slapd.LDIFPerson(name(i), "manager: "+slapd.Person(name(i/8))))
	}
	for g := range groups {
		members := []string{}
		for i := g; i < people; i += groups {
			members = append(members, slapd.Person(name(i)))
		}
		for _, inner := range []int{2*g + 1, 2*g + 2} {
			if inner < groups {
				members = append(members, slapd.Group(fmt.Sprintf("g%03d", inner)))
			}
		}
		members = append(members, slapd.Group("g000"), "uid=stranger,dc=elsewhere") // cycles, and somebody else's
		b.WriteString(slapd.LDIFGroup(fmt.Sprintf("g%03d", g), members...))
	}
	return b.String()
}

func settingsFor(s *slapd.Server) Settings {
	return Settings{URL: s.URL(), BindDN: slapd.Admin, Password: slapd.Password, People: slapd.People, Groups: slapd.Groups}
}

func checked(t testing.TB, s Settings) config {
	t.Helper()
	c, err := s.check()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// watch follows a server and hands on each world as a copy.
func watch(t *testing.T, c config) <-chan *Copy {
	t.Helper()
	l, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copies := make(chan *Copy, 64)
	done := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		err := l.follow(ctx, func(w *world) error { copies <- w.copy(); return nil }, signals{})
		if err != nil && ctx.Err() == nil {
			t.Errorf("following ended: %v", err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return copies
}

func next(t *testing.T, copies <-chan *Copy) *Copy {
	t.Helper()
	select {
	case c := <-copies:
		return c
	case <-time.After(time.Minute):
		t.Fatal("nothing came from the directory")
		return nil
	}
}

func TestPushedAndPagedReadingsAreTheSameCompany(t *testing.T) {
	const people, groups = 5000, 200
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: company(people, groups)})
	c := checked(t, settingsFor(s))
	begun := time.Now()
	first := next(t, watch(t, c))
	t.Logf("pushed: %d people, %d groups in %v", len(first.People), len(first.Groups), time.Since(begun))
	l, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	begun = time.Now()
	w, err := l.readAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("paged in %v", time.Since(begun))
	_, pushed, err := first.pack()
	if err != nil {
		t.Fatal(err)
	}
	body, paged, err := w.copy().pack()
	if err != nil {
		t.Fatal(err)
	}
	if pushed != paged || len(first.People) != people || len(first.Groups) != groups {
		t.Fatalf("pushed %s with %d and %d, paged %s", pushed, len(first.People), len(first.Groups), paged)
	}
	t.Logf("a copy has %d bytes", len(body))
	begun = time.Now()
	st := first.stand(map[string][]string{"all": {"g000"}})
	if n := len(st.of); n != people { // the cycle holds everybody
		t.Errorf("%d people stand in the cycle, want all", n)
	}
	t.Logf("closure in %v", time.Since(begun))
}

func TestAChangeIsPushedAtOnce(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: slapd.LDIFPerson("ada") + slapd.LDIFPerson("bob") +
		slapd.LDIFGroup("sre", slapd.Person("ada"), slapd.Person("bob")) + slapd.LDIFGroup("ops", slapd.Group("sre"))})
	copies := watch(t, checked(t, settingsFor(s)))
	mapped := map[string][]string{"operator": {"ops"}}
	members := func(c *Copy) string {
		var names []string
		st := c.stand(mapped)
		for i, p := range c.People {
			if len(st.groups(i)) > 0 {
				names = append(names, p.Name+" by "+strings.Join(st.path(i, "operator"), "/"))
			}
		}
		return strings.Join(names, ", ")
	}
	sortedWant := func(c *Copy, want ...string) {
		t.Helper()
		got := members(c)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		if strings.Count(got, " by ") != len(want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	sortedWant(next(t, copies), "ada by ops/sre", "bob by ops/sre")
	s.Leave("sre", slapd.Person("bob"))
	sortedWant(next(t, copies), "ada by ops/sre")
	s.Do(func(c *ldap.Conn) error {
		return c.ModifyDN(ldap.NewModifyDNRequest(slapd.Person("ada"), "uid=ada.l", true, ""))
	})
	got := next(t, copies) // the group still names the old DN: nobody is in it
	sortedWant(got)
	s.AddPerson("ada")
	got = next(t, copies)
	sortedWant(got, "ada by ops/sre") // the group means the new ada: what it says counts, and it says it to a new person
	if len(got.People) != 3 {
		t.Errorf("%d people, want 3", len(got.People))
	}
	s.Delete(slapd.Person("ada"))
	sortedWant(next(t, copies))
}

func TestWithoutPushTheServerSaysSo(t *testing.T) {
	s := slapd.Start(t, slapd.Options{LDIF: slapd.LDIFPerson("ada")})
	l, err := checked(t, settingsFor(s)).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	err = l.follow(t.Context(), func(*world) error { t.Error("a world came"); return nil }, signals{})
	if !errors.Is(err, errNoPush) {
		t.Errorf("got %v", err)
	}
}

func TestAPartIsAFailureNeverASmallerCompany(t *testing.T) {
	read := func(t *testing.T, o slapd.Options, change func(*Settings)) error {
		t.Helper()
		s := slapd.Start(t, o)
		set := settingsFor(s)
		change(&set)
		l, err := checked(t, set).open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		_, err = l.readAll(t.Context())
		return err
	}
	reader := slapd.LDIFPerson("reader")
	asReader := func(s *Settings) { s.BindDN, s.Password = slapd.Person("reader"), "reader-pw" }
	everybody := "access to * by * read"
	for name, c := range map[string]struct {
		o      slapd.Options
		change func(*Settings)
		want   string
	}{
		"a size limit": {slapd.Options{LDIF: reader + company(40, 2), Limit: 10, Rules: everybody}, asReader, "Size Limit"},
		"a group whose members may not be seen": {slapd.Options{LDIF: reader + company(4, 2),
			Rules: "access to attrs=member by * none\naccess to * by * read"}, asReader, "shows no member"},
		"people whose id may not be seen": {slapd.Options{LDIF: reader,
			Rules: "access to attrs=entryUUID by * none\naccess to * by * read"}, asReader, "0 values of entryUUID"},
		"a referral": {slapd.Options{LDIF: "dn: ou=far," + slapd.People + "\nobjectClass: referral\nobjectClass: extensibleObject\nou: far\nref: ldap://elsewhere.example/ou=far\n\n"},
			func(*Settings) {}, "referral"},
		"a branch that is not there":     {slapd.Options{}, func(s *Settings) { s.Groups = "ou=nowhere," + slapd.Base }, "No Such Object"},
		"more people than a company has": {slapd.Options{LDIF: company(20, 1)}, func(s *Settings) { s.MaxPeople = 10 }, "more than 10 people"},
	} {
		t.Run(name, func(t *testing.T) {
			err := read(t, c.o, c.change)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
