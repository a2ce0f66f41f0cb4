package spine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/provider"
)

// colleagues are who is known at the provider.
func colleagues(groups ...string) provider.People {
	ada := map[string]any{"email": "ada@example.com", "email_verified": true}
	if len(groups) > 0 {
		ada["groups"] = groups
	}
	return provider.People{"1815": ada, "1906": {"email": "grace@example.com", "email_verified": true}}
}

// withProvider starts an installation that knows a real provider, and ada.
func withProvider(t *testing.T) (*provider.Provider, *installation, person) {
	t.Helper()
	const secret = "kept / in a file"
	p := provider.Start(t, provider.Plan{Client: "handrail", Secret: secret, People: colleagues("sre-team"), Redirects: []string{
		"http://localhost/login/provider/back", "http://localhost/login/provider/paste", "http://127.0.0.1/handrail",
	}})
	dir := t.TempDir()
	config := filepath.Join(dir, "handrail.toml")
	for name, text := range map[string]string{
		filepath.Join(dir, "client-secret"): secret + "\n",
		config: fmt.Sprintf(`[oidc]
issuer = %q
name = "Example ID"
client-id = "handrail"
client-secret-file = "client-secret"
mail-domains = ["example.com"]
groups-claim = "groups"
device-code = true

[oidc.groups]
sre-team = "operator"
`, p.Issuer),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HANDRAIL_CONFIG", config)
	i := up(t, t.TempDir())
	first := i.first()
	first.ok("person", "add", "ada", "--group", "developer")
	return p, i, first
}

var (
	addressIn = regexp.MustCompile(`http://127\.0\.0\.1:\d+/(?:auth\?\S+|device\S*)`)
	codeIn    = regexp.MustCompile(`(?m)^  ([A-Z]{4}-[A-Z]{4})$`)
	lineIn    = regexp.MustCompile(`hrp_[A-Za-z0-9_-]+`)
)

// found waits for what a command prints.
func (r *process) found(what *regexp.Regexp) string {
	r.t.Helper()
	var got []string
	i := installation{t: r.t}
	i.until(what.String(), func() bool {
		if got = what.FindStringSubmatch(r.out.String()); got == nil {
			select {
			case <-r.done:
				r.t.Fatalf("it ended:\n%s", r.out)
			default:
			}
		}
		return got != nil
	})
	return got[len(got)-1]
}

// named is how a new device learns which server to trust.
func (p person) named() []string {
	p.i.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.home, "login.json"))
	if err != nil {
		p.i.t.Fatal(err)
	}
	var l struct {
		Address  string `json:"address"`
		RootHash string `json:"root_hash"`
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		p.i.t.Fatal(err)
	}
	return []string{"--server", l.Address, "--root-key", l.RootHash}
}

// groups is what whoami says.
func (p person) groups() string {
	p.i.t.Helper()
	var me struct {
		Person struct {
			Name   string
			Groups []string
		}
	}
	p.json(&me, "whoami", "-o", "json")
	return me.Person.Name + ": " + strings.Join(me.Person.Groups, " ")
}

// visit goes to a command's listener, as the browser does.
func visit(t *testing.T, at string) {
	t.Helper()
	answer, err := http.Get(at)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v %v", at, answer, err)
	}
	answer.Body.Close()
}

func TestPeopleLogInAtARealProvider(t *testing.T) {
	needRoot(t)
	at, i, first := withProvider(t)
	ada := person{i, i.newHome()}

	// In the browser of the same machine.
	login := ada.start(append([]string{"login", "--provider"}, first.named()...)...)
	browser := provider.NewBrowser(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last login said:\n%s", login.out)
		}
	})
	back := browser.Back(login.found(addressIn), "1815")
	// Whoever else knocks there changes nothing.
	for _, other := range []string{"/handrail", "/handrail?state=x&code=y", "/"} {
		answer, err := http.Get("http://" + back.Host + other)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", other, answer.StatusCode)
		}
	}
	visit(t, back.String())
	login.wait()
	if got := ada.groups(); got != "ada: developer operator" {
		t.Fatalf("%s\n%s", got, login.out)
	}

	// The claim is gone, the last group with it. It goes on at the provider by
	// itself, with a browser elsewhere.
	at.Set(t, colleagues())
	in, out, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	login = ada.startWith(in, "login", "--paste")
	pasteAt := browser.Back(login.found(addressIn), "1815")
	shown, err := browser.Client().Get(pasteAt.String())
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(shown.Body)
	shown.Body.Close()
	if err != nil || shown.Header.Get("Cache-Control") != "no-store" {
		t.Fatal(err, shown.Header)
	}
	line := lineIn.FindString(string(page))
	fmt.Fprintln(out, line)
	login.wait()
	if got := ada.groups(); got != "ada: developer" {
		t.Fatalf("%s\n%s", got, login.out)
	}
	if r := ada.runIn(line+"\n", "login", "--paste"); r.code == 0 {
		t.Error("a line was used twice")
	}

	// By a code.
	at.Set(t, colleagues("sre-team", "admin"))
	login = ada.start("login", "--device")
	browser.Type(login.found(addressIn), login.found(codeIn), "1815", true)
	login.wait()
	if got := ada.groups(); got != "ada: developer operator" {
		t.Fatalf("%s\n%s", got, login.out)
	}

	// Whom nobody knows is told whom to ask.
	grace := person{i, i.newHome()}
	login = grace.start(append([]string{"login", "--provider"}, first.named()...)...)
	back = provider.NewBrowser(t).Back(login.found(addressIn), "1906")
	visit(t, back.String())
	login.wait()
	login.waitFor(`nobody here is "grace"`)
	login.waitFor("handrail person add grace")

	// What such a login made approves nothing.
	if said := first.ok("person", "show", "ada"); !strings.Contains(said, "logs in only") {
		t.Errorf("%s", said)
	}

	// While the provider is down, who is in stays in, and a link works.
	at.Stop()
	if got := ada.groups(); got != "ada: developer operator" {
		t.Error(got)
	}
	if r := ada.refused(1, "login", "--device"); !strings.Contains(r.err, "cannot reach Example ID") || !strings.Contains(r.err, "handrail login-link") {
		t.Errorf("%s", r.err)
	}
	first.ok("status")
	link := first.ok("login-link", "ada")
	if !strings.Contains(link, "http") {
		t.Errorf("%s", link)
	}
	// The ledger says all of it, in words, and still proves.
	told := first.ok("ledger", "list")
	for _, part := range []string{"ada is from now on who " + at.Issuer + " says they are"} {
		if !strings.Contains(told, part) {
			t.Errorf("the ledger does not say %q:\n%s", part, told)
		}
	}
	first.ok("ledger", "verify")
}

// TestTheProviderInTheBrowser logs in by the page in Chromium. What is asserted
// lies in provider.mjs, one line a check.
func TestTheProviderInTheBrowser(t *testing.T) {
	chromium := needBrowser(t)
	lookAtSources(t)
	at, i, _ := withProvider(t)
	u, err := url.Parse(i.link)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := json.Marshal(map[string]string{"chromium": chromium, "page": u.Scheme + "://" + u.Host, "issuer": at.Issuer})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "provider.mjs", string(plan))
	cmd.Dir = browserDir
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the browser found something: %v", err)
	}
}
