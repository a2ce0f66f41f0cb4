package oidc_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/oidc"
)

// evil is a provider that lies as a test tells it to. By itself it is honest.
type evil struct {
	t      *testing.T
	server *httptest.Server
	key    *rsa.PrivateKey
	asked  atomic.Int64 // exchanges

	mu        sync.Mutex
	challenge string // of the question that was asked last
	nonce     string

	discovery func(map[string]any)                     // changes what it says of itself
	claims    func(map[string]any)                     // changes the token's claims
	sign      func(head, body map[string]any) string   // makes the token
	token     func(http.ResponseWriter, *http.Request) // answers an exchange
}

func newEvil(t *testing.T) *evil {
	key := keys()[0]
	e := &evil{t: t, key: key, discovery: func(map[string]any) {}, claims: func(map[string]any) {}}
	e.sign, e.token = e.rs256, e.honest
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		said := map[string]any{
			"issuer": e.server.URL, "authorization_endpoint": e.server.URL + "/auth", "token_endpoint": e.server.URL + "/token",
			"jwks_uri": e.server.URL + "/jwks", "id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
			"authorization_response_iss_parameter_supported": true, "device_authorization_endpoint": e.server.URL + "/device",
		}
		e.discovery(said)
		_ = json.NewEncoder(w).Encode(said)
	})
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		n, x := key.N.Bytes(), big.NewInt(int64(key.E)).Bytes()
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "RSA", "kid": "1", "use": "sig", "n": b64(n), "e": b64(x)}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		e.asked.Add(1)
		e.token(w, r)
	})
	e.server = httptest.NewServer(mux)
	t.Cleanup(e.server.Close)
	return e
}

// keys are the provider's, and somebody else's.
var keys = sync.OnceValue(func() (two [2]*rsa.PrivateKey) {
	for i := range two {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		two[i] = key
	}
	return two
})

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func part(v map[string]any) string {
	text, _ := json.Marshal(v)
	return b64(text)
}

func (e *evil) rs256(head, body map[string]any) string {
	signed := part(head) + "." + part(body)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, e.key, crypto.SHA256, sum[:])
	if err != nil {
		e.t.Error(err)
	}
	return signed + "." + b64(sig)
}

func hs256(secret []byte) func(head, body map[string]any) string {
	return func(head, body map[string]any) string {
		head["alg"] = "HS256"
		signed := part(head) + "." + part(body)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + b64(mac.Sum(nil))
	}
}

// honest checks PKCE as a provider does, and gives a token.
func (e *evil) honest(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
	if b64(sum[:]) != e.challenge {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_grant"}`)
		return
	}
	now := time.Now()
	body := map[string]any{
		"iss": e.server.URL, "sub": "1815", "aud": client, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(), "nonce": e.nonce,
		"email": "ada@example.com", "email_verified": true, "groups": []string{"sre-team"},
	}
	e.claims(body)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": "x", "token_type": "Bearer", "id_token": e.sign(map[string]any{"alg": "RS256", "kid": "1"}, body),
	})
}

// login goes the whole way, as an honest browser does.
func (e *evil) login(p *oidc.Provider) (oidc.Subject, error) {
	asked, a, err := e.ask(p)
	if err != nil {
		return oidc.Subject{}, err
	}
	a.Ticket = asked.Ticket
	return p.Finish(e.t.Context(), a)
}

func (e *evil) ask(p *oidc.Provider) (oidc.Asked, oidc.Answer, error) {
	asked, err := p.Begin(e.t.Context(), oidc.ToPage, "", nil)
	if err != nil {
		return asked, oidc.Answer{}, err
	}
	u, err := url.Parse(asked.URL)
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.challenge, e.nonce = u.Query().Get("code_challenge"), u.Query().Get("nonce")
	return asked, oidc.Answer{Ticket: asked.Ticket, State: u.Query().Get("state"), Code: "code", Issuer: e.server.URL}, nil
}

func TestATokenThatProvesNothingIsRefused(t *testing.T) {
	now := time.Now()
	claim := func(name string, value any) func(*evil) {
		return func(e *evil) { e.claims = func(c map[string]any) { c[name] = value } }
	}
	public := func(e *evil) []byte {
		der, _ := x509.MarshalPKIXPublicKey(&e.key.PublicKey)
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	for name, lie := range map[string]func(*evil){
		"none": func(e *evil) {
			e.sign = func(head, body map[string]any) string {
				head["alg"] = "none"
				return part(head) + "." + part(body) + "."
			}
		},
		"None": func(e *evil) {
			e.sign = func(head, body map[string]any) string {
				head["alg"] = "None"
				return part(head) + "." + part(body) + "."
			}
		},
		"HS256 by the public key":    func(e *evil) { e.sign = hs256(public(e)) },
		"HS256 by the modulus":       func(e *evil) { e.sign = hs256(e.key.N.Bytes()) },
		"HS256 by the client secret": func(e *evil) { e.sign = hs256([]byte(secret)) },
		"another key": func(e *evil) {
			other := keys()[1]
			e.sign = func(head, body map[string]any) string { return (&evil{t: e.t, key: other}).rs256(head, body) }
		},
		"a key in the token": func(e *evil) {
			other := keys()[1]
			e.sign = func(head, body map[string]any) string {
				head["jwk"] = map[string]any{"kty": "RSA", "n": b64(other.N.Bytes()), "e": "AQAB"}
				return (&evil{t: e.t, key: other}).rs256(head, body)
			}
		},
		"no signature": func(e *evil) {
			e.sign = func(head, body map[string]any) string { return part(head) + "." + part(body) + "." }
		},
		"changed claims": func(e *evil) {
			e.sign = func(head, body map[string]any) string {
				signed := strings.Split(e.rs256(head, body), ".")
				body["email"] = "grace@example.com"
				return signed[0] + "." + part(body) + "." + signed[2]
			}
		},
		"no token":              func(e *evil) { e.sign = func(_, _ map[string]any) string { return "" } },
		"garbage":               func(e *evil) { e.sign = func(_, _ map[string]any) string { return "a.b.c" } },
		"another issuer":        claim("iss", "https://id.example.com"),
		"another audience":      claim("aud", "someone-else"),
		"two audiences, not us": claim("aud", []string{client, "someone-else"}),
		"another party":         claim("azp", "someone-else"),
		"expired":               claim("exp", now.Add(-time.Minute).Unix()),
		"old":                   claim("iat", now.Add(-time.Hour).Unix()),
		"of the future":         claim("iat", now.Add(time.Hour).Unix()),
		"not yet":               claim("nbf", now.Add(time.Hour).Unix()),
		"another question":      claim("nonce", "another"),
		"no question":           claim("nonce", ""),
		"nobody":                claim("sub", ""),
		"a long name":           claim("sub", strings.Repeat("x", 300)),
		"groups that are none":  claim("groups", map[string]any{"sre-team": true}),
		"groups of numbers":     claim("groups", []any{"sre-team", 7}),
	} {
		t.Run(name, func(t *testing.T) {
			e := newEvil(t)
			p := party(t, config(e.server.URL))
			if _, err := e.login(p); err != nil {
				t.Fatalf("an honest one: %v", err)
			}
			lie(e)
			who, err := e.login(p)
			if who.ID != "" {
				t.Errorf("it says %+v", who)
			}
			refused(t, err, fault.Unauthenticated, name)
			if err != nil && strings.Contains(err.Error(), e.server.URL) {
				t.Errorf("a stranger reads %v", err)
			}
		})
	}
}

func TestAnAnswerThatIsNotToOurQuestionIsRefused(t *testing.T) {
	e := newEvil(t)
	p := party(t, config(e.server.URL))
	another := party(t, config(newEvil(t).server.URL))
	_, before, err := e.ask(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*oidc.Answer){
		"another state":    func(a *oidc.Answer) { a.State = before.State },
		"no state":         func(a *oidc.Answer) { a.State = "" },
		"another's ticket": func(a *oidc.Answer) { a.Ticket = before.Ticket },
		"no ticket":        func(a *oidc.Answer) { a.Ticket = "" },
		"a ticket that was changed": func(a *oidc.Answer) {
			a.Ticket = strings.Map(func(r rune) rune { return r ^ 1 }, a.Ticket[:9]) + a.Ticket[9:]
		},
		"a huge ticket":       func(a *oidc.Answer) { a.Ticket = strings.Repeat("A", 1<<20) },
		"a device's key":      func(a *oidc.Answer) { a.Device = key },
		"another issuer":      func(a *oidc.Answer) { a.Issuer = "https://evil.example.com" },
		"no issuer":           func(a *oidc.Answer) { a.Issuer = "" },
		"no code":             func(a *oidc.Answer) { a.Code = "" },
		"a huge code":         func(a *oidc.Answer) { a.Code = strings.Repeat("A", 1<<20) },
		"an error and a code": func(a *oidc.Answer) { a.Error = "access_denied" },
	} {
		asked := e.asked.Load()
		_, a, err := e.ask(p)
		if err != nil {
			t.Fatal(err)
		}
		change(&a)
		_, err = p.Finish(t.Context(), a)
		refused(t, err, fault.Unauthenticated, name)
		if e.asked.Load() != asked {
			t.Errorf("%s: the provider was asked", name)
		}
	}
	_, a, err := e.ask(p)
	if err != nil {
		t.Fatal(err)
	}
	_, err = another.Finish(t.Context(), a)
	refused(t, err, fault.Unauthenticated, "a ticket of another provider's")
}

func TestACodeThatWasStolenIsWorthNothingWithoutItsVerifier(t *testing.T) {
	e := newEvil(t)
	p := party(t, config(e.server.URL))
	asked, victim, err := e.ask(p)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(asked.URL)
	challenge := u.Query().Get("code_challenge")
	// The thief has the victim's code, and a question of their own to put it to.
	_, thief, err := e.ask(p)
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	e.challenge = challenge // the code is the victim's: the provider remembers their challenge
	e.mu.Unlock()
	thief.Code = victim.Code
	_, err = p.Finish(t.Context(), thief)
	refused(t, err, fault.Unauthenticated, "the victim's code in the thief's login")
	for _, secret := range []string{"verifier", "nonce"} {
		if raw, _ := base64.RawURLEncoding.DecodeString(asked.Ticket); strings.Contains(string(raw), secret) {
			t.Errorf("the ticket shows its %s", secret)
		}
	}
}

func TestATicketEndsInTime(t *testing.T) {
	e := newEvil(t)
	c, err := config(e.server.URL).Complete()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p := oidc.New(c, oidc.Deps{Seals: seals(t), Page: page, Now: func() time.Time { return now }})
	_, a, err := e.ask(p)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(11 * time.Minute)
	_, err = p.Finish(t.Context(), a)
	refused(t, err, fault.Unauthenticated, "eleven minutes later")
}

func TestAProviderThatIsHugeOrBrokenOrAwayIsNoWayInAndHoldsNothingUp(t *testing.T) {
	for name, broken := range map[string]func(*evil){
		"huge": func(e *evil) {
			e.token = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"access_token":"x","id_token":"`)
				for range 4 << 10 {
					if _, err := io.WriteString(w, strings.Repeat("A", 1<<10)); err != nil {
						return
					}
				}
			}
		},
		"broken": func(e *evil) {
			e.token = func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "<b>oops</b>", http.StatusInternalServerError)
			}
		},
		"no JSON": func(e *evil) {
			e.token = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
		},
		"moved": func(e *evil) {
			e.token = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
			}
		},
		"cut": func(e *evil) {
			e.token = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		},
		"without our client": func(e *evil) {
			e.token = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
			}
		},
	} {
		e := newEvil(t)
		p := party(t, config(e.server.URL))
		broken(e)
		_, err := e.login(p)
		refused(t, err, fault.Unavailable, name)
		if strings.Contains(fmt.Sprint(err), "oops") || strings.Contains(fmt.Sprint(err), secret) {
			t.Errorf("%s: %v", name, err)
		}
		e.token = e.honest
		if _, err := e.login(p); err != nil {
			t.Errorf("%s: and it does not heal: %v", name, err)
		}
	}
}

func TestAProviderThatMisnamesItselfIsNotAsked(t *testing.T) {
	for name, lie := range map[string]func(map[string]any){
		"another issuer":      func(d map[string]any) { d["issuer"] = "https://id.example.com" },
		"a token in the open": func(d map[string]any) { d["token_endpoint"] = "http://id.example.com/token" },
		"keys in the open":    func(d map[string]any) { d["jwks_uri"] = "http://id.example.com/jwks" },
		"a script":            func(d map[string]any) { d["authorization_endpoint"] = "javascript:alert(1)" },
		"no PKCE":             func(d map[string]any) { d["code_challenge_methods_supported"] = []string{"plain"} },
		"huge":                func(d map[string]any) { d["more"] = strings.Repeat("A", 2<<20) },
	} {
		e := newEvil(t)
		e.discovery = lie
		p := party(t, config(e.server.URL))
		_, err := p.Begin(t.Context(), oidc.ToPage, "", nil)
		refused(t, err, fault.Unavailable, name)
	}
}

func TestSlowAnswersAreBoundedInNumber(t *testing.T) {
	e := newEvil(t)
	p := party(t, config(e.server.URL))
	if _, err := e.login(p); err != nil {
		t.Fatal(err)
	}
	hold, in := make(chan struct{}), make(chan struct{}, 64)
	e.token = func(w http.ResponseWriter, r *http.Request) { in <- struct{}{}; <-hold; http.Error(w, "", 500) }
	var waiting sync.WaitGroup
	for range 16 {
		_, a, err := e.ask(p)
		if err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() { _, _ = p.Finish(t.Context(), a) })
		<-in
	}
	_, err := p.Begin(t.Context(), oidc.ToPage, "", nil)
	refused(t, err, fault.Unavailable, "the seventeenth")
	close(hold)
	waiting.Wait()
	e.token = e.honest
	if _, err := e.login(p); err != nil {
		t.Error(err)
	}
}

func TestAProviderThatWentAwayIsUsedAgainOnceItIsBack(t *testing.T) {
	e := newEvil(t)
	c, err := config(e.server.URL).Complete()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p := oidc.New(c, oidc.Deps{Seals: seals(t), Page: page, Now: func() time.Time { return now }})
	down := true
	e.discovery = func(d map[string]any) {
		if down {
			d["issuer"] = "down"
		}
	}
	for range 3 {
		_, err := p.Begin(t.Context(), oidc.ToPage, "", nil)
		refused(t, err, fault.Unavailable, "while it is down")
	}
	down, now = false, now.Add(5*time.Second)
	if _, err := p.Begin(t.Context(), oidc.ToPage, "", nil); err != nil {
		t.Fatal(err)
	}
	down, now = true, now.Add(2*time.Hour) // what it said before holds
	if _, err := p.Begin(t.Context(), oidc.ToPage, "", nil); err != nil {
		t.Fatal(err)
	}
}

func TestARedirectGoesOnlyWhereItMay(t *testing.T) {
	e := newEvil(t)
	p := party(t, config(e.server.URL))
	for _, redirect := range []string{
		"", "http://127.0.0.1/handrail", "http://127.0.0.1:80@evil.example.com/handrail", "http://localhost:4040/handrail", "https://127.0.0.1:4040/handrail",
		"http://127.0.0.1:4040/", "http://127.0.0.1:4040/handrail?x=1", "http://127.0.0.1:4040/handrail#x", "http://192.0.2.1:4040/handrail", "http://127.0.0.1:0/handrail",
		"http://evil.example.com:4040/handrail", "http://127.0.0.1:4040/handrail/../x", "HTTP://127.0.0.1:4040/handrail", "http://127.0.0.1:004040/handrail/", "javascript:alert(1)",
	} {
		if _, err := p.Begin(t.Context(), oidc.ToLoop, redirect, key); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v", redirect, err)
		}
	}
	asked, err := p.Begin(t.Context(), oidc.ToPage, "https://evil.example.com/", nil)
	if u, _ := url.Parse(asked.URL); err != nil || u.Query().Get("redirect_uri") != page+oidc.PagePath {
		t.Errorf("%v %v", asked.URL, err)
	}
	if _, err := p.Begin(t.Context(), oidc.ToPage, "", key); fault.KindOf(err) != fault.Invalid {
		t.Errorf("the page with a device key: %v", err)
	}
	if _, err := p.Begin(t.Context(), oidc.ToPaste, "", nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a command without a device key: %v", err)
	}
}

func TestAClaimIsBelievedOnlyAsFarAsItGoes(t *testing.T) {
	e := newEvil(t)
	for name, c := range map[string]struct {
		claims map[string]any
		value  string
		groups int
	}{
		"as it should be":       {nil, "ada", 1},
		"not verified":          {map[string]any{"email_verified": false}, "", 1},
		"verified as a text":    {map[string]any{"email_verified": "true"}, "", 1},
		"verified by nobody":    {map[string]any{"email_verified": nil}, "", 1},
		"of another domain":     {map[string]any{"email": "ada@example.org"}, "", 1},
		"of a longer domain":    {map[string]any{"email": "ada@example.com.evil.org"}, "", 1},
		"of a domain below":     {map[string]any{"email": "ada@evil.example.com"}, "", 1},
		"with two ats":          {map[string]any{"email": "ada@evil.org@example.com"}, "", 1},
		"without a name":        {map[string]any{"email": "@example.com"}, "", 1},
		"a list of addresses":   {map[string]any{"email": []string{"ada@example.com"}}, "", 1},
		"groups not there":      {map[string]any{"groups": nil}, "ada", 0},
		"groups that are empty": {map[string]any{"groups": []string{}}, "ada", 0},
		"one group as a text":   {map[string]any{"groups": "sre-team"}, "ada", 1},
		"groups nobody mapped":  {map[string]any{"groups": []string{"admin", "operator", "SRE-TEAM", "sre-team "}}, "ada", 0},
	} {
		e.claims = func(m map[string]any) {
			for k, v := range c.claims {
				if m[k] = v; v == nil {
					delete(m, k)
				}
			}
		}
		who, err := e.login(party(t, config(e.server.URL)))
		if err != nil || who.Value != c.value || len(who.Groups) != c.groups {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
}

func TestNobodyIsAddedWhomTheProviderOnlyHasAsAGuest(t *testing.T) {
	e := newEvil(t)
	c := config(e.server.URL)
	c.Unknown = oidc.Add
	for name, said := range map[string]struct {
		claims  map[string]any
		newName string
	}{
		"one of us":         {nil, "newcomer"},
		"of another domain": {map[string]any{"email": "ada@example.org"}, ""},
		"not verified":      {map[string]any{"email_verified": false}, ""},
		"without address":   {map[string]any{"email": ""}, ""},
	} {
		e.claims = func(m map[string]any) {
			m["preferred_username"] = "newcomer"
			for k, v := range said.claims {
				m[k] = v
			}
		}
		who, err := e.login(party(t, c))
		if err != nil || who.NewName != said.newName {
			t.Errorf("%s: %+v %v", name, who, err)
		}
	}
}

func TestAConfigurationThatCannotBeMeantIsRefused(t *testing.T) {
	for name, change := range map[string]func(*oidc.Config){
		"no issuer":                 func(c *oidc.Config) { c.Issuer = "" },
		"an issuer in the open":     func(c *oidc.Config) { c.Issuer = "http://id.example.com" },
		"an issuer with a password": func(c *oidc.Config) { c.Issuer = "https://a:b@id.example.com" },
		"no client":                 func(c *oidc.Config) { c.ClientID = "" },
		"mail without domains":      func(c *oidc.Config) { c.MailDomains = nil },
		"mail of any claim":         func(c *oidc.Config) { c.PersonClaim, c.PersonIs = "upn", oidc.Mail },
		"a claim of what":           func(c *oidc.Config) { c.PersonClaim, c.PersonIs = "upn", "" },
		"a domain with a star":      func(c *oidc.Config) { c.MailDomains = []string{"*.example.com"} },
		"groups of no claim":        func(c *oidc.Config) { c.GroupsClaim = "" },
		"a group that is no name":   func(c *oidc.Config) { c.Groups = map[string]string{"x": "Admin Team"} },
		"another answer":            func(c *oidc.Config) { c.Unknown = "allow" },
		"adding from the directory": func(c *oidc.Config) { c.PersonClaim, c.PersonIs, c.Unknown = "entryuuid", oidc.Directory, oidc.Add },
		"no openid":                 func(c *oidc.Config) { c.Scopes = []string{"email"} },
	} {
		c := config("https://id.example.com")
		change(&c)
		if _, err := c.Complete(); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := config("https://id.example.com").Complete()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(text, secret) {
		t.Error("a printed configuration shows its secret")
	}
	c.DeviceCode = false
	_, err = oidc.New(c, oidc.Deps{Seals: seals(t), Page: page}).DeviceBegin(t.Context(), key)
	refused(t, err, fault.Denied, "a code where none is allowed")
}

func FuzzTickets(f *testing.F) {
	dir := f.TempDir()
	if err := keyring.Init(dir+"/keys", dir+"/root", "handrail/test"); err != nil {
		f.Fatal(err)
	}
	ring, err := keyring.Open(dir + "/keys")
	if err != nil {
		f.Fatal(err)
	}
	c, err := config("https://id.example.com").Complete()
	if err != nil {
		f.Fatal(err)
	}
	p := oidc.New(c, oidc.Deps{Seals: ring.Subjects(), Page: page})
	f.Add("AAAA", "state")
	f.Fuzz(func(t *testing.T, ticket, state string) {
		if _, err := p.Finish(t.Context(), oidc.Answer{Ticket: ticket, State: state, Code: "c"}); fault.KindOf(err) != fault.Unauthenticated {
			t.Fatalf("%v", err)
		}
	})
}
