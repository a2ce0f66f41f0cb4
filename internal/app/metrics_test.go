package app

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

func written() string {
	var e exposition
	e.head("handrail_nodes", "gauge", "Nodes by state.")
	e.value("handrail_nodes", label("state", "a\"b\\c\nd"), 2)
	e.gauge("handrail_sessions_live", "Sessions.", 3)
	e.counter("handrail_logins_failed_total", "Logins.", 1e9)
	e.histogram("handrail_commit_duration_seconds", "Commits.", []float64{0.001, 1}, []uint64{3, 2, 1}, 4.5)
	return e.b.String()
}

func TestMetricsAreWrittenInPrometheusForm(t *testing.T) {
	want := `# HELP handrail_nodes Nodes by state.
# TYPE handrail_nodes gauge
handrail_nodes{state="a\"b\\c\nd"} 2
# HELP handrail_sessions_live Sessions.
# TYPE handrail_sessions_live gauge
handrail_sessions_live 3
# HELP handrail_logins_failed_total Logins.
# TYPE handrail_logins_failed_total counter
handrail_logins_failed_total 1e+09
# HELP handrail_commit_duration_seconds Commits.
# TYPE handrail_commit_duration_seconds histogram
handrail_commit_duration_seconds_bucket{le="0.001"} 3
handrail_commit_duration_seconds_bucket{le="1"} 5
handrail_commit_duration_seconds_bucket{le="+Inf"} 6
handrail_commit_duration_seconds_sum 4.5
handrail_commit_duration_seconds_count 6
`
	if got := written(); got != want {
		t.Errorf("got\n%s", got)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is missing: apt-get install prometheus")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(written())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func TestMetricsAreNeverOpenToTheWorld(t *testing.T) {
	for listen, ok := range map[string]bool{"127.0.0.1:7083": true, "[::1]:7083": true, "0.0.0.0:7083": false, "192.0.2.1:7083": false, "7083": false, "host:1": false} {
		if err := (&metricsSection{Listen: listen}).check(); (err == nil) != ok {
			t.Errorf("%s without a token: %v", listen, err)
		}
	}
	if err := (&metricsSection{Listen: "0.0.0.0:7083", TokenFile: "t"}).check(); err != nil {
		t.Errorf("with a token: %v", err)
	}
	srv := httptest.NewServer(metricsHandler("planted", func(_ context.Context, e *exposition) error {
		e.gauge("handrail_sessions_live", "Sessions.", 3)
		return nil
	}))
	defer srv.Close()
	for header, want := range map[string]int{"": 401, "Bearer wrong": 401, "Bearer ": 401, "Bearer planted": 200} {
		req, err := http.NewRequest(http.MethodGet, srv.URL+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", header)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || strings.Contains(string(body), "handrail_") != (want == 200) {
			t.Errorf("%q: %d %s", header, resp.StatusCode, body)
		}
	}
}
