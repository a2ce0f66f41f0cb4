package spine_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/test/port"
)

func TestMetricsCountAndNameNobody(t *testing.T) {
	at, release, err := port.Reserve()
	must(t, err)
	t.Cleanup(release)
	dir := t.TempDir()
	config := filepath.Join(dir, "handrail.toml")
	must(t, os.WriteFile(filepath.Join(dir, "metrics.token"), []byte("planted-token\n"), 0o600))
	must(t, os.WriteFile(config, []byte("[metrics]\nlisten = \""+at+"\"\ntoken_file = \"metrics.token\"\n[retention]\n\"node.*\" = \"90d\"\n"), 0o600))
	t.Setenv("HANDRAIL_CONFIG", config)
	i := up(t, t.TempDir())
	ada := i.first()
	ada.add("zacharias", "operator")
	if r := ada.run("ledger", "retain", "--absolute"); r.code != 0 || !strings.Contains(r.out, "node.*") || !strings.Contains(r.out, "90d") || !strings.Contains(r.err, config) {
		t.Errorf("what the configuration keeps is shown as %d\n%s%s", r.code, r.out, r.err)
	}
	ask := func(token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+"/metrics", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	if code, body := ask("wrong"); code != http.StatusUnauthorized {
		t.Errorf("without the token: %d %s", code, body)
	}
	code, body := ask("planted-token")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	for _, want := range []string{"handrail_build_info{", "handrail_ledger_entries_total ", "handrail_commit_duration_seconds_bucket{le=\"+Inf\"}", "handrail_sessions_live 0", "handrail_ledger_damaged 0", "handrail_nodes"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing from\n%s", want, body)
		}
	}
	for _, secret := range []string{"zacharias", "planted-token", "p-", "127.0.0.1"} {
		if strings.Contains(body, secret) {
			t.Errorf("metrics show %q", secret)
		}
	}
}
