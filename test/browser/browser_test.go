package browser

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/surface/web"
	"handrail.dev/handrail/test/browser/fake"
)

// need skips, or fails where the run must not skip, when a tool is missing.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if strings.Contains(os.Getenv("HANDRAIL_TEST_REQUIRE"), "browser") {
		t.Fatalf("the browser tests need %s", what)
	}
	t.Skipf("skipped: the browser tests need %s", what)
}

func chromium() string {
	for _, name := range []string{os.Getenv("HANDRAIL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); name != "" && err == nil {
			return p
		}
	}
	return ""
}

// address is where the browser goes: passkeys are bound to a name, not to an
// address.
func address(url string) string { return strings.Replace(url, "127.0.0.1", "localhost", 1) }

func serve(t *testing.T, kind fake.Kind) string {
	s := fake.New(kind, time.Now()).Serve(func(rt http.RoundTripper, base string) http.Handler {
		return web.New(web.Deps{Transport: rt, BaseURL: base})
	})
	t.Cleanup(s.Close)
	return address(s.URL)
}

func TestPagesWorkInARealBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: takes a minute")
	}
	_, nodeErr := exec.LookPath("node")
	need(t, nodeErr == nil, "node")
	_, moduleErr := os.Stat("node_modules/playwright-core")
	need(t, moduleErr == nil, "playwright-core (npm install in test/browser)")
	browser := chromium()
	need(t, browser != "", "Chromium")

	drivers, _ := filepath.Glob("*.mjs") // so that go test runs this again when one changes
	for _, driver := range drivers {
		if _, err := os.Stat(driver); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := json.Marshal(map[string]string{
		"chromium": browser,
		"busy":     serve(t, fake.Busy), "fresh": serve(t, fake.Fresh), "noShells": serve(t, fake.NoShells), "flows": serve(t, fake.Busy), "hostile": serve(t, fake.Hostile), "frozen": serve(t, fake.Frozen),
		"tokenPrefix": fake.Token(""), "linkPrefix": fake.Link(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "node", "drive.mjs", string(plan)).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the browser found something: %v", err)
	}
}
