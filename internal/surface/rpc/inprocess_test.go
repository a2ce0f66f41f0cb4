package rpc

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestNobodyOutsideSaysWhereAVisitorComesFrom(t *testing.T) {
	var seen http.Header
	api := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header })
	r := httptest.NewRequest(http.MethodPost, "/handrail.v1.Logins/Redeem", nil)
	r.Header.Set(pageSource, "10.0.0.1")
	r.Header.Set("handrail-via", "browser")
	r.Header.Set("Authorization", "Bearer x")
	FromNetwork(api).ServeHTTP(httptest.NewRecorder(), r)
	if len(seen) != 1 || seen.Get("Authorization") == "" {
		t.Errorf("the API saw %v", seen)
	}
	if got := sourceOf(seen, "192.0.2.7:5000"); got != "192.0.2.7" {
		t.Errorf("the source is %q", got)
	}
}

func TestThePageReadsAStreamWhileItIsWritten(t *testing.T) {
	next := make(chan string)
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Kind", "stream")
		for line := range next {
			io.WriteString(w, line+"\n")
		}
	})
	r := httptest.NewRequest(http.MethodGet, "/stream", nil)
	go func() { next <- "one" }()
	resp, err := InProcess(api).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Kind") != "stream" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "one" {
		t.Fatalf("first line is %q", lines.Text())
	}
	next <- "two" // only now: the first was read before the handler ended
	if !lines.Scan() || lines.Text() != "two" {
		t.Fatalf("second line is %q", lines.Text())
	}
	close(next)
	if lines.Scan() {
		t.Errorf("more came: %q", lines.Text())
	}
}
