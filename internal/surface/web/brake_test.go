package web_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"handrail.dev/handrail/test/browser/fake"
)

// The forms of pages that were open, and the one that a server that is cut off
// shows, reach the brakes; and say so, though no page can be had to go on to.
func TestBrakesOfThePageWorkAtAServerThatIsCutOff(t *testing.T) {
	reason := url.Values{"reason": {"lost laptop"}}
	for path, want := range map[string]string{
		"/people/grace/lock": "Locked", "/sessions/s-4f9k2m7x/pause": "Paused",
		"/sessions/s-4f9k2m7x/stop": "Stopped", "/grants/g-8d3f1k6q/revoke": "Revoked",
	} {
		resp, body := open(t, fake.Frozen, "ada").post(path, reason)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) || !strings.Contains(body, "cut off from the database") || !strings.Contains(body, `action="/brake"`) {
			t.Errorf("%s: %s\n%s", path, resp.Status, body)
		}
	}
	for what, named := range map[string][2]string{
		"lock": {"grace", "Locked"}, "pause": {"s-4f9k2m7x", "Paused"}, "stop": {"s-4f9k2m7x", "Stopped"}, "revoke": {"g-8d3f1k6q", "Revoked"},
	} {
		b := open(t, fake.Frozen, "ada")
		resp, body := b.post("/brake", url.Values{"what": {what}, "whom": {named[0]}, "reason": {"lost laptop"}})
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, named[1]) || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s\n%s", what, resp.Status, body)
		}
	}
	b := open(t, fake.Frozen, "ada")
	for _, form := range []url.Values{{"what": {"lock"}}, {"what": {"unlock"}, "whom": {"grace"}}, {}} {
		if resp, _ := b.post("/brake", form); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%v: %s", form, resp.Status)
		}
	}
	if resp, body := open(t, fake.Frozen, "").post("/people/grace/lock", reason); resp.StatusCode != http.StatusUnauthorized || strings.Contains(body, "Locked") {
		t.Errorf("who is not logged in: %s", resp.Status)
	}
}

// Where pages can be had, a brake goes on to the usual one.
func TestABrakeGoesOnToItsPage(t *testing.T) {
	for path, want := range map[string]string{
		"/people/linus/lock": "/people?ok=locked", "/people/grace/lock": "/approvals?ok=locked-agreed", "/sessions/s-4f9k2m7x/pause": "/sessions/s-4f9k2m7x?ok=paused", "/grants/g-8d3f1k6q/revoke": "/grants/g-8d3f1k6q?ok=revoked",
	} {
		resp, _ := open(t, fake.Busy, "ada").post(path, url.Values{"reason": {"lost laptop"}})
		if to := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || to != want {
			t.Errorf("%s: %s to %s", path, resp.Status, to)
		}
	}
}
