package spine_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/test/sshd"
)

// needBrowser skips in one line, or fails where the run must not skip, when
// what drives the browser is missing. It returns Chromium.
func needBrowser(t *testing.T) string {
	t.Helper()
	need := func(ok bool, what string) {
		t.Helper()
		switch {
		case ok:
		case strings.Contains(os.Getenv("HANDRAIL_TEST_REQUIRE"), "browser"):
			t.Fatalf("the story in the browser needs %s", what)
		default:
			t.Skipf("skipped: the story in the browser needs %s", what)
		}
	}
	need(!testing.Short(), "a minute, which -short does not give")
	need(os.Geteuid() == 0, "root")
	for _, tool := range []string{"node", "ssh", "script"} {
		_, err := exec.LookPath(tool)
		need(err == nil, tool)
	}
	_, err := os.Stat(filepath.Join(browserDir, "node_modules", "playwright-core"))
	need(err == nil, "playwright-core (npm ci in test/browser)")
	for _, name := range []string{os.Getenv("HANDRAIL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); name != "" && err == nil {
			return p
		}
	}
	need(false, "Chromium")
	return ""
}

const browserDir = "../browser"

// lookAtSources makes go test run this package again when the program or the
// pages change. It remembers a result by the files that a test looks at, and
// the program is built and run beside the test, out of its sight.
func lookAtSources(t *testing.T) {
	t.Helper()
	for _, tree := range []string{"../../api", "../../cmd", "../../internal", filepath.Join(browserDir, "browser.mjs"), filepath.Join(browserDir, "real.mjs"), filepath.Join(browserDir, "agentless.mjs"), filepath.Join(browserDir, "provider.mjs"), "../provider/provider.mjs"} {
		err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheStoryInTheBrowser walks the whole story by the pages of the real
// program, with two people in two browsers and one stock ssh client. What is
// asserted lies in real.mjs, one line a check.
func TestTheStoryInTheBrowser(t *testing.T) {
	t.Parallel()
	chromium := needBrowser(t)
	lookAtSources(t)
	i := up(t, t.TempDir())
	drives(t, "real.mjs", map[string]string{"chromium": chromium, "link": i.link, "ssh": i.ssh, "folder": openFolder(t)})
}

// TestAHostWithoutANodeInTheBrowser opens shells and looks by the page, as
// agentless.mjs says.
func TestAHostWithoutANodeInTheBrowser(t *testing.T) {
	t.Parallel()
	chromium := needBrowser(t)
	sshd.Need(t)
	lookAtSources(t)
	i := up(t, t.TempDir())
	i.needShells()
	first := i.first()
	server := sshd.Start(t, "PermitRootLogin yes")
	root, account := sshd.RootAccount(t, "hr-root"), sshd.Account(t, "hr-r")
	first.ok("host", "add", "db-7", "--ssh", root+"@"+server.Address, "--host-key", server.Key, "--env", "dev", "--ssh-node")
	first.ok("host", "add", "db-8", "--ssh", account+"@"+server.Address, "--host-key", server.Key, "--env", "dev")
	first.trusts(t, "db-7")
	first.trusts(t, "db-8")
	drives(t, "agentless.mjs", map[string]string{"chromium": chromium, "link": i.link, "visited": "db-7", "bare": "db-8", "account": account,
		"pid": aSleeper(t, "DB_PASSWORD=hunter2"), "folder": openFolder(t)})
}

// drives runs a driver with its plan.
func drives(t *testing.T, driver string, plan map[string]string) {
	t.Helper()
	asked, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", driver, string(asked))
	cmd.Dir = browserDir
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the browser found something: %v", err)
	}
}
