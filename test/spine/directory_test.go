package spine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/slapd"
)

// company starts a real directory and points the next installation at it.
func company(t *testing.T, more string) *slapd.Server {
	t.Helper()
	d := slapd.Start(t, slapd.Options{Sync: true, LDIF: slapd.LDIFPerson("dora") + slapd.LDIFPerson("emil") + slapd.LDIFPerson("fred") +
		slapd.LDIFGroup("oncall", slapd.Person("emil")) + slapd.LDIFGroup("ops", slapd.Person("dora"), slapd.Group("oncall")) +
		slapd.LDIFGroup("dev", slapd.Person("emil"), slapd.Person("fred"))})
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("directory.password", slapd.Password+"\n")
	write("handrail.toml", fmt.Sprintf(`[directory]
url = %q
bind-dn = %q
bind-password-file = "directory.password"
people = %q
groups = %q
login = true
%s
[directory.map]
operator = ["ops"]
developer = ["dev"]
`, d.URL(), slapd.Admin, slapd.People, slapd.Groups, more))
	t.Setenv("HANDRAIL_CONFIG", filepath.Join(dir, "handrail.toml"))
	return d
}

// member logs somebody in with the password that the directory knows.
func (i *installation) member(ada person, name string) person {
	i.t.Helper()
	var status struct {
		Installation struct{ RootKeyHash string }
	}
	ada.json(&status, "status", "-o", "json")
	p := person{i, i.newHome()}
	args := []string{"login", "--user", name, "--server", i.page, "--root-key", status.Installation.RootKeyHash}
	if r := p.runIn("wrong\n", args...); r.code != 3 || !strings.Contains(r.err, "do not belong together") {
		i.t.Fatalf("a wrong password: exit %d\n%s", r.code, r.err)
	}
	if r := p.runIn("\n", args...); r.code != 3 {
		i.t.Fatalf("an empty password: exit %d\n%s", r.code, r.err)
	}
	if r := p.runIn(name+"-pw\n", args...); r.code != 0 {
		i.t.Fatalf("%s cannot log in: %s", name, r.err)
	}
	return p
}

// The company's directory decides who may what: whoever it takes out of a
// group loses grant and session, whoever it takes out altogether everything.
func TestWhoLeavesTheDirectoryLosesGrantAndSession(t *testing.T) {
	needRoot(t)
	d := company(t, "")
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	var status struct {
		People  int
		Version string
		Mode    string
	}
	i.until("the company to be here", func() bool {
		ada.json(&status, "directory", "status", "-o", "json")
		return status.People == 3 && status.Version != "0"
	})
	// The same configuration would change nothing; a smaller map takes away.
	if out := ada.ok("directory", "test", "--data", i.data); strings.TrimSpace(out) != "" {
		t.Errorf("the configuration in force would change something: %s", out)
	}
	smaller := os.Getenv("HANDRAIL_CONFIG")
	whole, err := os.ReadFile(smaller)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(smaller, []byte(strings.Replace(string(whole), `operator = ["ops"]`, "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := ada.ok("directory", "test", "--data", i.data); !strings.Contains(out, "dora") || !strings.Contains(out, "loses operator") {
		t.Errorf("a smaller map: %s", out)
	}
	emil, fred := i.member(ada, "emil"), i.member(ada, "fred")
	if out := emil.ok("access", "emil", "-o", "json"); !strings.Contains(out, `"oncall"`) || !strings.Contains(out, `"operator"`) {
		t.Errorf("the way of groups is not said: %s", out)
	}
	if out := ada.ok("access", "--host", host, "-o", "wide"); !strings.Contains(out, "read-is-standing") {
		t.Errorf("the rule is not said: %s", out)
	}
	var ask asked
	emil.json(&ask, "elevate", host, "--reason", "disk full", "--for", "30m", "-o", "json")
	ada.ok("approve", ask.ID, "--yes")
	mark := marker(t)
	long := emil.start("ssh", "--write", host, "--", "setsid sleep "+mark+" & echo up; sleep "+mark)
	long.waitFor("up")
	begun := time.Now()
	d.Leave("dev", slapd.Person("emil"))
	long.wait()
	i.until("the end of everything that ran under the grant", func() bool { return len(running(mark)) == 0 })
	t.Logf("out of the group: every process of the write session was dead %v after the directory said so", time.Since(begun))
	emil.refused(255, "ssh", "--write", host, "--", "true")
	if out := ada.ok("grants", "--all", "-o", "json"); !strings.Contains(out, "took them out of developer") {
		t.Errorf("the grant does not say why it ended: %s", out)
	}
	read := fred.start("ssh", host, "--", "setsid sleep "+mark+" & echo up; sleep "+mark)
	read.waitFor("up")
	begun = time.Now()
	d.Delete(slapd.Person("fred"))
	read.wait()
	i.until("the end of everything of fred's", func() bool { return len(running(mark)) == 0 })
	t.Logf("out of the company: every process was dead %v after the directory said so", time.Since(begun))
	i.until("fred to be refused", func() bool { return fred.run("hosts").code == 3 })
	ada.ok("ledger", "verify")
}

// While the directory is away everybody logs in and reads; once the copy is
// old, a grant takes one approver more, and the page says so.
func TestADirectoryThatIsAwayKeepsNobodyOut(t *testing.T) {
	needRoot(t)
	d := company(t, "")
	data := t.TempDir()
	i := up(t, data)
	ada := i.first()
	host := ada.hostname()
	var status struct {
		People  int
		Failing string
	}
	i.until("the company to be here", func() bool {
		ada.json(&status, "directory", "status", "-o", "json")
		return status.People == 3
	})
	emil := i.member(ada, "emil")
	d.Stop()
	i.until("the outage to be seen", func() bool {
		ada.json(&status, "directory", "status", "-o", "json")
		return status.Failing != ""
	})
	if status.People != 3 {
		t.Errorf("%d people while the directory is away", status.People)
	}
	emil.ok("ssh", host, "--", "true")
	ada.ok("login")
	d.Again()
	i.until("the directory to be back", func() bool {
		ada.json(&status, "directory", "status", "-o", "json")
		return status.Failing == ""
	})
}
