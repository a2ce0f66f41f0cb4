// Package provider runs a real OIDC provider (npm's certified oidc-provider)
// for tests, on loopback, and is the browser of whoever logs in there.
package provider

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// People are who is known at the provider: a login to its claims.
type People map[string]map[string]any

// Plan is what a test wants of the provider.
type Plan struct {
	Client    string   `json:"client"`
	Secret    string   `json:"secret,omitempty"` // empty: a public client
	Redirects []string `json:"redirects"`
	People    People   `json:"people"`
}

// Provider is one that runs.
type Provider struct {
	Issuer string
	stop   func()
}

// Start starts a provider that ends with the test. Where node or the package
// is missing it skips in one line, or fails where the run must not skip.
func Start(t testing.TB, plan Plan) *Provider {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Dir(file)
	need := func(ok bool, what string) {
		t.Helper()
		switch {
		case ok:
		case strings.Contains(os.Getenv("HANDRAIL_TEST_REQUIRE"), "provider"):
			t.Fatalf("the provider's tests need %s", what)
		default:
			t.Skipf("skipped: the provider's tests need %s", what)
		}
	}
	_, err := exec.LookPath("node")
	need(err == nil, "node")
	_, err = os.Stat(filepath.Join(dir, "node_modules", "oidc-provider"))
	need(err == nil, "oidc-provider (npm ci in test/provider)")
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "provider.mjs", string(text))
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	p := &Provider{stop: func() {
		if !ended {
			ended = true
			in.Close()
			_ = cmd.Wait()
		}
	}}
	t.Cleanup(p.stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the provider did not start: %v", err)
	}
	p.Issuer = strings.TrimSpace(line)
	return p
}

// Stop ends the provider before the test does.
func (p *Provider) Stop() { p.stop() }

// Set replaces who is known, and their claims.
func (p *Provider) Set(t testing.TB, people People) {
	t.Helper()
	text, err := json.Marshal(people)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(p.Issuer+"/people", "application/json", bytes.NewReader(text))
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("the provider did not take the people: %v", err)
	}
	answer.Body.Close()
}

// Browser is somebody's browser, without scripts.
type Browser struct {
	t      testing.TB
	client *http.Client
	until  func(*url.URL) bool
}

// NewBrowser returns a browser with cookies of its own.
func NewBrowser(t testing.TB) *Browser {
	jar, _ := cookiejar.New(nil)
	b := &Browser{t: t}
	b.client = &http.Client{Jar: jar, Timeout: time.Minute, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 15 || b.until != nil && b.until(r.URL) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	return b
}

// Client is the browser's own, for what else it does.
func (b *Browser) Client() *http.Client { return b.client }

// Back goes to a page of the provider, logs in there as who ("": cancels) and
// returns where the provider sends the browser back to, without going there.
func (b *Browser) Back(at, who string) *url.URL {
	b.t.Helper()
	asked, err := url.Parse(at)
	if err != nil {
		b.t.Fatal(err)
	}
	home := asked.Query().Get("redirect_uri")
	b.until = func(u *url.URL) bool { return strings.HasPrefix(u.String(), home) }
	defer func() { b.until = nil }()
	answer, text := b.do(b.client.Get(at))
	if to := b.sent(answer, home); to != nil {
		return to // the provider remembers who this is
	}
	if !strings.Contains(text, "Example ID") {
		b.t.Fatalf("the provider shows no login: %d %s", answer.StatusCode, text)
	}
	form := url.Values{"login": {who}, "do": {"enter"}}
	if who == "" {
		form.Set("do", "leave")
	}
	answer, text = b.do(b.client.PostForm(answer.Request.URL.String(), form))
	to := b.sent(answer, home)
	if to == nil {
		b.t.Fatalf("the provider does not send %s back to %s: %d %s", who, home, answer.StatusCode, text)
	}
	return to
}

func (b *Browser) do(answer *http.Response, err error) (*http.Response, string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer, string(text)
}

func (b *Browser) sent(answer *http.Response, home string) *url.URL {
	to, err := answer.Location()
	if err != nil || !strings.HasPrefix(to.String(), home) {
		return nil
	}
	return to
}

var hidden = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`name="(xsrf|user_code)" value="([^"]*)"`) })

// Type types a device code at the provider and logs in as who; agree says
// whether they go on where the provider asks whether it is theirs.
func (b *Browser) Type(at, code, who string, agree bool) {
	b.t.Helper()
	answer, text := b.do(b.client.Get(at))
	form := url.Values{"user_code": {code}}
	add := func() {
		for _, m := range hidden().FindAllStringSubmatch(text, -1) {
			if m[2] != "" {
				form.Set(m[1], m[2])
			}
		}
	}
	add()
	answer, text = b.do(b.client.PostForm(answer.Request.URL.String(), form))
	add()
	form.Set("confirm", "yes")
	if !agree {
		form = url.Values{"xsrf": form["xsrf"], "user_code": form["user_code"], "abort": {"yes"}}
	}
	answer, text = b.do(b.client.PostForm(at, form))
	if !agree {
		return
	}
	if strings.Contains(text, "Example ID") {
		answer, text = b.do(b.client.PostForm(answer.Request.URL.String(), url.Values{"login": {who}, "do": {"enter"}}))
	}
	if answer.StatusCode != http.StatusOK || strings.Contains(text, "<form") {
		b.t.Fatalf("the provider did not take the code: %d %s", answer.StatusCode, text)
	}
}
