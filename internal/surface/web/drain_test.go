package web_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"handrail.dev/handrail/test/browser/fake"
)

func TestAHostIsDrainedAndSaysSoWhereItIsShown(t *testing.T) {
	b := open(t, fake.Busy, "ada")
	if _, body := b.get("/hosts/web-1"); strings.Contains(body, "Drained. ") || !strings.Contains(body, `action="/hosts/web-1/drain"`) {
		t.Error("a host that nobody drained says so, or cannot be")
	}
	if resp, _ := b.post("/hosts/web-1/drain", url.Values{"for": {"2h"}, "why": {"it <leaks>"}}); resp.StatusCode != http.StatusSeeOther {
		t.Fatal(resp.Status)
	}
	if _, body := b.get("/hosts/web-1"); !strings.Contains(body, "Drained. ") || !strings.Contains(body, "ada keeps it to themselves: it &lt;leaks&gt;.") || strings.Contains(body, `action="/hosts/web-1/drain"`) {
		t.Error("the host's page does not say it")
	}
	if _, body := b.get("/hosts"); strings.Count(body, ">drained<") != 1 {
		t.Error("the list does not say it of one host")
	}
	for _, wrong := range []url.Values{{"for": {"2h"}}, {"for": {"-2h"}, "why": {"x"}}, {"for": {"soon"}, "why": {"x"}}} {
		if resp, _ := b.post("/hosts/web-1/drain", wrong); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%v: %s", wrong, resp.Status)
		}
	}
	if resp, _ := b.post("/hosts/web-1/undrain", nil); resp.StatusCode != http.StatusSeeOther {
		t.Fatal(resp.Status)
	}
	if _, body := b.get("/hosts"); strings.Contains(body, ">drained<") {
		t.Error("it is drained for ever")
	}
}
