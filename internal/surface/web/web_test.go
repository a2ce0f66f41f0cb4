package web_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/surface/web"
	"handrail.dev/handrail/test/browser/fake"
)

// browser is a visitor without a browser: it follows no redirects by itself.
type browser struct {
	t      *testing.T
	base   string
	api    *fake.API
	person string
}

func open(t *testing.T, kind fake.Kind, person string) browser {
	api := fake.New(kind, time.Now())
	s := api.Serve(func(rt http.RoundTripper, base string) http.Handler {
		return web.New(web.Deps{Transport: rt, BaseURL: base})
	})
	t.Cleanup(s.Close)
	return browser{t, s.URL, api, person}
}

func (b browser) do(r *http.Request) (*http.Response, string) {
	b.t.Helper()
	if b.person != "" {
		r.AddCookie(&http.Cookie{Name: "handrail_login", Value: fake.Token(b.person)})
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(body)
}

func (b browser) get(path string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.base+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(r)
}

func (b browser) post(path string, form url.Values) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.do(r)
}

var everyPage = []string{
	"/", "/hosts", "/hosts/db-1", "/sessions", "/sessions/s-4f9k2m7x", "/sessions/s-9b3n7m1q", "/approvals", "/approvals/a-6y1u8i4o",
	"/grants/g-8d3f1k6q", "/people", "/policy", "/ledger", "/ledger/3", "/code", "/me", "/welcome",
	"/sessions/search", "/webhooks", "/webhooks/siem", "/vouchers/key?key=k", "/drills", "/servers",
}

func TestEveryPageIsStrict(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	inline := regexp.MustCompile(`(?i)<script(?:>|[^>]*[^/]>\s*\S)|\sstyle=|\son[a-z]+=|javascript:|<style`)
	for _, path := range everyPage {
		resp, body := b.get(path)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
		csp := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy lacks %s: %s", path, want, csp)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("%s: the policy is unsafe: %s", path, csp)
		}
		if strings.Contains(csp, "nonce-") != strings.HasPrefix(path, "/sessions/s-") {
			t.Errorf("%s: only pages with a terminal have a nonce: %s", path, csp)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin"} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if m := inline.FindString(strings.ReplaceAll(body, "></script>", "/>")); m != "" {
			t.Errorf("%s: something inline: %q", path, m)
		}
		if strings.Count(body, "<h1") != 1 || !strings.Contains(body, `<main id="main"`) || !strings.Contains(body, `class="skip"`) && path != "/welcome" {
			t.Errorf("%s: a page has one h1, a main and a skip link", path)
		}
	}
}

func TestALoginLinkIsNotUsedUpByLookingAtIt(t *testing.T) {
	b := open(t, fake.Busy, "")
	link := "/login?t=" + fake.Link("grace")
	for range 3 {
		resp, body := b.get(link)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, "Open handrail") || len(resp.Cookies()) != 0 {
			t.Fatalf("looking: %s, %d cookies", resp.Status, len(resp.Cookies()))
		}
		if resp.Header.Get("Cache-Control") != "no-store" {
			t.Error("the page with the token in it may be kept")
		}
	}
	resp, _ := b.post("/login", url.Values{"t": {fake.Link("grace")}})
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		t.Fatalf("using it: %s", resp.Status)
	}
	if c := resp.Cookies()[0]; c.Name != "handrail_login" || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" {
		t.Errorf("the cookie is %v", c)
	}
	resp, body := b.post("/login", url.Values{"t": {fake.Link("grace")}})
	if resp.StatusCode != http.StatusConflict || !strings.Contains(body, "used already") || !strings.Contains(body, "handrail login-link") {
		t.Errorf("using it twice: %s", resp.Status)
	}
}

func TestTheCookieIsSecureOverHTTPS(t *testing.T) {
	api := fake.New(fake.Busy, time.Now())
	s := httptest.NewServer(api.Handler())
	defer s.Close()
	h := web.New(web.Deps{Transport: http.DefaultTransport, BaseURL: s.URL, Secure: func(*http.Request) bool { return true }})
	r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(url.Values{"t": {fake.Link("ada")}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if c := w.Result().Cookies(); len(c) != 1 || !c[0].Secure {
		t.Errorf("cookies: %v", c)
	}
}

func TestWhoIsNotLoggedInGoesToLogInAndBack(t *testing.T) {
	b := open(t, fake.Busy, "")
	resp, _ := b.get("/hosts/db-1?x=1")
	if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != "/login?next="+url.QueryEscape("/hosts/db-1?x=1") {
		t.Errorf("%s to %q", resp.Status, got)
	}
	b.person = "nobody" // a login that is over
	resp, _ = b.get("/")
	if c := resp.Cookies(); resp.StatusCode != http.StatusSeeOther || len(c) != 1 || c[0].MaxAge >= 0 {
		t.Errorf("a login that is over: %s, %v", resp.Status, c)
	}
	b.person = ""
	for next, want := range map[string]string{
		"/hosts": "/hosts", "https://evil.example/": "/", "//evil.example/": "/", `/\evil.example`: "/", "/login?t=x": "/", "javascript:alert(1)": "/",
		"/%2F%2Fevil.example": "/", "/%5Cevil.example": "/%5Cevil.example", "/\t/evil.example": "/", "http:/evil.example": "/", "///evil.example": "/",
		"?t=x": "/", "https:evil.example": "/", "/hosts?q=a%0d%0ab": "/hosts?q=a%0d%0ab",
	} {
		_, body := b.get("/login?next=" + url.QueryEscape(next))
		if !strings.Contains(body, `data-next="`+want+`"`) {
			t.Errorf("next=%s does not lead to %s", next, want)
		}
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	for header, value := range map[string]string{"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.base+"/people/p-2m4x8c1d/lock", strings.NewReader("reason=x"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set(header, value)
		if resp, _ := b.do(r); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s: %s", header, value, resp.Status)
		}
	}
	if _, body := b.get("/people"); strings.Count(body, `class="tag locked"`) != 1 {
		t.Error("somebody was locked by another site")
	}
}

func TestAnApprovalThatCountsNoMoreIsShownAsSuch(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	for path, want := range map[string][]string{
		"/approvals":            {"0 of 2"},
		"/approvals/a-2q9w4e1r": {"0 of 2", "counts no more: they left admin since"},
		"/approvals/a-3e7r2t5w": {"1 of 1"},
	} {
		_, body := b.get(path)
		for _, text := range want {
			if !strings.Contains(body, text) {
				t.Errorf("%s does not say %q", path, text)
			}
		}
	}
}

func TestARefusalSaysWhatWhyAndWhatNext(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	resp, body := b.post("/hosts/web-1/open", url.Values{"level": {"write"}})
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status %s", resp.Status)
	}
	for _, want := range []string{"no grant of yours is in force", "write-with-a-grant", `href="/hosts/web-1#elevate"`, "handrail elevate web-1", "/ledger/12"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	resp, body = b.get("/nowhere")
	if resp.StatusCode != http.StatusNotFound || !strings.Contains(body, "there is no such page") {
		t.Errorf("an unknown page: %s", resp.Status)
	}
	resp, body = b.get("/sessions/s-none")
	if resp.StatusCode != http.StatusNotFound || !strings.Contains(body, "handrail sessions") {
		t.Errorf("an unknown session: %s", resp.Status)
	}
}

func TestASecretIsOnAPageThatNothingKeeps(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	for path, form := range map[string]url.Values{
		"/people":                 {"name": {"barbara"}, "groups": {"developer"}},
		"/people/p-2m4x8c1d/link": {"name": {"grace"}},
		"/hosts/invite":           {"name": {"web-3"}},
		"/hosts/thinkpad/open":    {"level": {"read"}},
	} {
		resp, body := b.post(path, form)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s, %q", path, resp.Status, resp.Header.Get("Cache-Control"))
		}
		if !strings.Contains(body, "hr1.") && !strings.Contains(body, "data-ticket=") {
			t.Errorf("%s shows no secret", path)
		}
	}
}

// Browsers refuse a pattern with an escape that it does not need (ECMAScript, flag
// v): then the field would take anything.
func TestThePatternOfANameHasNoEscapeThatBrowsersRefuse(t *testing.T) {
	if _, body := open(t, fake.Busy, "ada").get("/hosts/web-1"); !strings.Contains(body, `pattern="web-1"`) {
		t.Error("the name is not asked for as it is")
	}
}

func TestBreakGlassAsksForTheNameTyped(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	resp, body := b.post("/hosts/db-1/break-glass", url.Values{"reason": {"fire"}, "sure": {"db-2"}})
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "typed to confirm") {
		t.Errorf("%s", resp.Status)
	}
	resp, _ = b.post("/hosts/db-1/break-glass", url.Values{"reason": {"fire"}, "sure": {"db-1"}})
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(resp.Header.Get("Location"), "/grants/") {
		t.Errorf("%s", resp.Status)
	}
}

func TestWhoMayNotDecideIsNotAskedForAPasskey(t *testing.T) {
	resp, body := open(t, fake.Busy, "ada").post("/approvals/a-2q9w4e1r/sign", nil)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "nobody decides their own request") || strings.Contains(body, "challenge") {
		t.Errorf("the requester: %s", resp.Status)
	}
	resp, body = open(t, fake.Busy, "grace").post("/approvals/a-6y1u8i4o/sign", nil)
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, "challenge") {
		t.Errorf("who may decide: %s", resp.Status)
	}
}

func TestUpkeepIsOneLineThatSaysHowMuch(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	b.api.Keep(500)
	_, body := b.get("/ledger")
	if !strings.Contains(body, "503 entries of upkeep") || strings.Count(body, "<tr") < 40 || !strings.Contains(body, `/ledger?each=1&amp;before=638"`) {
		t.Errorf("upkeep hides what people did: %d lines", strings.Count(body, "<tr"))
	}
	for _, all := range []string{"/ledger?each=1", "/ledger?action=recording.chunks"} {
		if _, body := b.get(all); strings.Count(body, "<tr") != 101 || strings.Contains(body, "of upkeep") {
			t.Errorf("%s shows %d lines", all, strings.Count(body, "<tr"))
		}
	}
}

func TestADemoSaysSoBeforeTheLogin(t *testing.T) {
	for demo, want := range map[bool]int{true: 1, false: 0} {
		api := fake.New(fake.Busy, time.Now())
		s := httptest.NewServer(api.Handler())
		defer s.Close()
		w := httptest.NewRecorder()
		h := web.New(web.Deps{Transport: http.DefaultTransport, BaseURL: s.URL, Demo: demo})
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/login", nil))
		if got := strings.Count(w.Body.String(), "<strong>Demo.</strong>"); got != want {
			t.Errorf("demo %v: marked %d times", demo, got)
		}
	}
}

func TestReplayRelaysTheRecordingAndItsEnd(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	resp, body := b.post("/sessions/s-9b3n7m1q/replay", nil)
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if resp.Header.Get("Content-Type") != "application/x-ndjson" || len(lines) < 20 || lines[len(lines)-1] != `{"k":"end"}` {
		t.Errorf("%s, %d lines, last %q", resp.Header.Get("Content-Type"), len(lines), lines[len(lines)-1])
	}
	if b.api.Replays != 1 {
		t.Errorf("%d replays", b.api.Replays)
	}
	if b.get("/sessions/s-9b3n7m1q"); b.api.Replays != 1 {
		t.Error("looking at the page replays the recording: it would leave an entry")
	}
}

func TestEventsAreRelayedAndEndWithTheVisitor(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: "handrail_login", Value: fake.Token("ada")})
	r.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	until := func(want string) {
		for in.Scan() {
			if strings.Contains(in.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ended before %q", want)
	}
	until("event: hello")
	b.api.Change("approvals")
	until(`{"id":"","topic":"approvals"}`)
	b.api.Do("sessions", func(s []*v1.Session, _ []*v1.Approval) { s[0].State = "ended" })
	until(`"topic":"sessions"`)
}

func TestTheFirstPersonIsAskedForANameAndNothingElse(t *testing.T) {
	b := open(t, fake.Fresh, "")
	resp, _ := b.post("/login", url.Values{"t": {fake.Link("admin")}})
	if resp.Header.Get("Location") != "/welcome" {
		t.Fatalf("the first opener goes to %q", resp.Header.Get("Location"))
	}
	b.person = "admin"
	_, body := b.get("/welcome")
	if strings.Count(body, "<input") != 1 || !strings.Contains(body, `name="name"`) {
		t.Error("more than a name is asked")
	}
	resp, body = b.post("/welcome", url.Values{"name": {"Ada"}})
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "a small letter must come first") {
		t.Errorf("a wrong name: %s", resp.Status)
	}
	resp, _ = b.post("/welcome", url.Values{"name": {"ada"}})
	if resp.Header.Get("Location") != "/welcome?step=passkey" {
		t.Errorf("after the name: %q", resp.Header.Get("Location"))
	}
	_, body = b.get("/welcome?step=passkey")
	if !strings.Contains(body, "Skip for now") {
		t.Error("the passkey cannot be skipped")
	}
}

func TestTheHomePageSaysWhatHoldsHere(t *testing.T) {
	_, body := open(t, fake.Fresh, "admin").get("/")
	for _, want := range []string{"Bootstrap.", "Trial mode", "Open a read-only shell", "Be two people", "handrail ssh thinkpad", "Verify the ledger"} {
		if !strings.Contains(body, want) {
			t.Errorf("minute one lacks %q", want)
		}
	}
	_, body = open(t, fake.NoShells, "admin").get("/")
	if strings.Contains(body, "Open a read-only shell") || !strings.Contains(body, "No user namespace: the kernel refuses") {
		t.Error("where shells are impossible the tile names the missing layer")
	}
	_, body = open(t, fake.Busy, "ada").get("/")
	for _, want := range []string{"Break-glass: grace has write", "Demo.", "Needs you now", "linus asks", "Review owed: margaret"} {
		if !strings.Contains(body, want) {
			t.Errorf("a busy day lacks %q", want)
		}
	}
}

func TestFilesAreKeptForEverUnderTheirHash(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	_, body := b.get("/")
	name := regexp.MustCompile(`/static/[0-9a-f]{12}/handrail\.css`).FindString(body)
	resp, css := b.get(name)
	if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || !strings.Contains(css, "@layer") {
		t.Errorf("%s: %s, %q", name, resp.Status, resp.Header.Get("Cache-Control"))
	}
	resp, _ = b.get("/static/000000000000/handrail.css")
	if resp.StatusCode != http.StatusOK || strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("an older page's file: %s, %q", resp.Status, resp.Header.Get("Cache-Control"))
	}
	if resp, _ = b.get("/static/x/../../web.go"); resp.StatusCode == http.StatusOK {
		t.Error("a file outside is served")
	}
}

func TestTheFirstPageIsSmall(t *testing.T) {
	b := open(t, fake.Fresh, "admin")
	total := 0
	fetch := func(path string) string {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", "gzip")
		resp, body := b.do(r)
		total += len(body)
		if resp.Header.Get("Content-Encoding") != "gzip" {
			return body
		}
		z, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		return string(plain)
	}
	body := fetch("/")
	for _, file := range regexp.MustCompile(`/static/[^"]+`).FindAllString(body, -1) {
		fetch(file)
	}
	t.Logf("the first page is %d bytes", total)
	if total > 100_000 {
		t.Errorf("the first page is %d bytes, at most 100,000", total)
	}
}

func TestVendoredFilesAreThoseThatWereChecked(t *testing.T) {
	sums, err := os.ReadFile("static/vendor/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{"SHA256SUMS": true, "NOTICES": true}
	for _, line := range strings.Split(strings.TrimSpace(string(sums)), "\n") {
		want, name, _ := strings.Cut(line, "  ")
		b, err := os.ReadFile(filepath.Join("static/vendor", name))
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != want {
			t.Errorf("%s changed since it was checked", name)
		}
		listed[name] = true
	}
	files, err := os.ReadDir("static/vendor")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !listed[f.Name()] {
			t.Errorf("%s has no checksum", f.Name())
		}
	}
}
