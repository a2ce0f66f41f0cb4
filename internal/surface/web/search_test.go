package web_test

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"handrail.dev/handrail/test/browser/fake"
)

func TestASearchIsSentByHandAndLeadsIntoTheReplay(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	resp, _ := b.get("/sessions/search?words=chgrp")
	if resp.StatusCode != http.StatusOK || b.api.Searches != 0 {
		t.Fatalf("a link searched, in the name of who followed it: %s, %d searches", resp.Status, b.api.Searches)
	}
	resp, body := b.post("/sessions/search", url.Values{"words": {" CHGRP   checkout "}})
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" || b.api.Searches != 1 {
		t.Errorf("%s, %q, %d searches", resp.Status, resp.Header.Get("Cache-Control"), b.api.Searches)
	}
	for _, want := range []string{
		"<code>sudo <mark>chgrp checkout</mark> /etc/checkout/tls.pem</code>", "linus on web-1", "typed", "1 line in 1 recording", "212 recordings searched",
		"1 recording that you may not replay; 12 recordings with another server alone; 2 recordings that cannot be read", "sessions that are still open",
		"handrail sessions search &#39;CHGRP   checkout&#39;", `name="before" value="s-9b3n7m1q"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	at := regexp.MustCompile(`/sessions/s-9b3n7m1q\?at=([0-9.]+s)`).FindStringSubmatch(html.UnescapeString(body))
	if at == nil {
		t.Fatal("no line leads into the replay")
	}
	_, body = b.get(at[0])
	if !strings.Contains(body, "handrail replay s-9b3n7m1q --at "+at[1]) || !strings.Contains(body, `data-at="`) || b.api.Replays != 0 {
		t.Errorf("%s: the replay does not begin there, or looking at the page began it", at[0])
	}
	for _, at := range []string{"", "-5s", "soon", "999999999999h"} {
		if resp, body := b.get("/sessions/s-9b3n7m1q?at=" + at); resp.StatusCode != http.StatusOK || strings.Contains(body, "data-at=") {
			t.Errorf("at=%s: %s", at, resp.Status)
		}
	}
}

func TestASearchSaysWhatItDidNotCover(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	for name, c := range map[string]struct {
		form url.Values
		want []string
	}{
		"nothing": {url.Values{"words": {"zebra"}}, []string{"Nothing found", "None of the 212 recordings", "Not searched: 1 recording", "leave out the person"}},
		"refused": {url.Values{"words": {"checkout"}, "person": {"mallory"}}, []string{"Only an auditor may", "replay-by-auditors", "No recording was searched", "handrail policy explain"}},
		"broken":  {url.Values{"words": {"checkout"}, "host": {"build-1"}}, []string{"The storage is away", "recordings that are older were not searched", "<mark>checkout</mark>"}},
		"short":   {url.Values{"words": {"x"}}, []string{"2 to 200", "No recording was searched"}},
		"more":    {url.Values{"words": {"checkout"}}, []string{"there are more lines"}},
	} {
		_, body := b.post("/sessions/search", c.form)
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the page lacks %q", name, want)
			}
		}
	}
}

func TestAServerThatIsCutOffSaysSoOnEveryPage(t *testing.T) {
	b := open(t, fake.Frozen, "ada")
	resp, body := b.get("/hosts/db-1?x=1")
	if resp.StatusCode != http.StatusServiceUnavailable || len(resp.Cookies()) != 0 {
		t.Errorf("%s, %v", resp.Status, resp.Cookies())
	}
	for _, want := range []string{"cut off from the database since 14:05:11 UTC", "try south at south.example.org:7080", `href="/hosts/db-1?x=1">Try again`, `action="/brake"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if resp, body = b.post("/people/p-2m4x8c1d/unlock", nil); resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "Try again") {
		t.Errorf("a form: %s", resp.Status)
	}
}
