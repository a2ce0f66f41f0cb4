package oidc_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/oidc"
)

// workload is the token of one, as an honest issuer makes it.
func (e *evil) workload(change func(head, body map[string]any)) string {
	now := time.Now()
	head := map[string]any{"alg": "RS256", "kid": "1"}
	body := map[string]any{"iss": e.server.URL, "sub": "project:infra:main", "aud": "handrail", "exp": now.Add(10 * time.Minute).Unix(), "iat": now.Unix(), "environment": "production"}
	change(head, body)
	return e.sign(head, body)
}

func as(map[string]any, map[string]any) {}

func TestAWorkloadIsBelievedByItsIssuersWordAlone(t *testing.T) {
	e := newEvil(t)
	w := oidc.NewWorkloads([]oidc.Issuer{{Issuer: e.server.URL}}, oidc.Deps{})
	got, err := w.Verify(t.Context(), e.workload(as))
	if err != nil || got.Subject != "project:infra:main" || len(got.Audience) != 1 || got.Audience[0] != "handrail" || got.Claims["environment"] != "production" {
		t.Fatalf("%+v %v", got, err)
	}
	now := time.Now()
	set := func(name string, value any) string {
		return e.workload(func(_, body map[string]any) { body[name] = value })
	}
	honest, other := e.sign, keys()[1]
	for name, token := range map[string]func() string{
		"of another issuer": func() string { return set("iss", "https://id.example.com") },
		"of a longer name":  func() string { return set("iss", e.server.URL+"/") },
		"expired":           func() string { return set("exp", now.Add(-time.Minute).Unix()) },
		"not yet":           func() string { return set("nbf", now.Add(time.Hour).Unix()) },
		"for a year":        func() string { return set("exp", now.Add(365*24*time.Hour).Unix()) },
		"of the future":     func() string { return set("iat", now.Add(time.Hour).Unix()) },
		"of nobody":         func() string { return set("sub", "") },
		"for nobody":        func() string { return set("aud", []string{}) },
		"none": func() string {
			e.sign = func(head, body map[string]any) string {
				head["alg"] = "none"
				return part(head) + "." + part(body) + "."
			}
			return e.workload(as)
		},
		"by a secret":    func() string { e.sign = hs256([]byte("x")); return e.workload(as) },
		"by another key": func() string { e.sign = (&evil{t: t, key: other}).rs256; return e.workload(as) },
		"garbage":        func() string { return "a.b.c" },
		"nothing":        func() string { return "" },
		"huge":           func() string { return strings.Repeat("A", 1<<20) },
	} {
		made := token()
		e.sign = honest
		_, err := w.Verify(t.Context(), made)
		refused(t, err, fault.Unauthenticated, name)
	}
}

func TestATokenIsTheSameHoweverItIsWritten(t *testing.T) {
	e := newEvil(t)
	w := oidc.NewWorkloads([]oidc.Issuer{{Issuer: e.server.URL}}, oidc.Deps{})
	token := e.workload(as)
	first, err := w.Verify(t.Context(), token)
	if err != nil || first.Once == "" {
		t.Fatalf("%+v %v", first, err)
	}
	for name, other := range map[string]string{
		"a line end at the end":     token + "\n",
		"a line end in the body":    strings.Replace(token, ".", ".\n", 1),
		"a line end in the first":   token[:3] + "\r\n" + token[3:],
		"other bits that are spare": token[:len(token)-1] + string(token[len(token)-1]+1),
	} {
		again, err := w.Verify(t.Context(), other)
		if err == nil && again.Once != first.Once {
			t.Errorf("%s makes it a token that was not used", name)
		}
	}
	next, err := w.Verify(t.Context(), e.workload(func(_, body map[string]any) { body["jti"] = "2" }))
	if err != nil || next.Once == first.Once {
		t.Errorf("another token is the same: %v", err)
	}
}

func TestTokensWithMadeUpKeysDoNotHaveTheIssuerAskedEachTime(t *testing.T) {
	e := newEvil(t)
	var asked atomic.Int64
	inner := e.server.Config.Handler
	e.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		inner.ServeHTTP(w, r)
	})
	now := time.Now()
	w := oidc.NewWorkloads([]oidc.Issuer{{Issuer: e.server.URL, JWKS: e.server.URL + "/jwks"}}, oidc.Deps{Now: func() time.Time { return now }})
	if _, err := w.Verify(t.Context(), e.workload(as)); err != nil {
		t.Fatal(err)
	}
	before := asked.Load()
	for i := range 200 {
		_, _ = w.Verify(t.Context(), e.workload(func(head, _ map[string]any) { head["kid"] = strings.Repeat("x", i+1) }))
	}
	if n := asked.Load() - before; n > 2 {
		t.Errorf("the issuer was asked %d times", n)
	}
	if _, err := w.Verify(t.Context(), e.workload(as)); err != nil {
		t.Errorf("and an honest token waits: %v", err)
	}
}

func FuzzWorkloadTokens(f *testing.F) {
	w := oidc.NewWorkloads([]oidc.Issuer{{Issuer: "https://ci.example.com", JWKS: "http://127.0.0.1:1/"}}, oidc.Deps{})
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2NpLmV4YW1wbGUuY29tIn0.")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := w.Verify(t.Context(), token); err == nil {
			t.Fatal("it was believed")
		}
	})
}
