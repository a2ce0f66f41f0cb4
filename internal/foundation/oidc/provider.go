// Package oidc is login at the company's own provider, handrail being its
// relying party: the authorization code flow with PKCE for the page and for
// the command line, and the device grant for machines without a browser.
//
// What must stay true:
//   - what the provider says is believed only as an ID token that it signed
//     with a public key algorithm, for this client, just now, and in answer to
//     the very question that was asked (nonce, PKCE, exact redirect, issuer).
//   - a question travels sealed with who asked it, so that strangers fill
//     nothing here. It expires; that it is answered once is kept by the unique
//     proof of the login that it opens.
//   - an answer is bounded in size and time, and the number that is waited for
//     at once is bounded too: a provider that is slow, huge or down costs
//     nobody else anything.
//   - a group that the configuration does not map is no group; a claim that is
//     not there is no group.
//
// Which person that is, and whether they are let in, is identity's to say.
package oidc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
)

const (
	answerTime  = 10 * time.Second // that the provider has for one answer
	answerBytes = 1 << 20
	atOnce      = 16          // questions to the provider
	refreshed   = time.Hour   // between looks at what it says of itself
	silence     = time.Second // after it did not answer
)

// algorithms are those whose signatures count: by a key that the provider
// alone has. Neither "none" nor a secret that the client knows too.
var algorithms = []string{
	goidc.RS256, goidc.RS384, goidc.RS512, goidc.PS256, goidc.PS384, goidc.PS512, goidc.ES256, goidc.ES384, goidc.ES512, goidc.EdDSA,
}

// Provider is the company's provider as this installation uses it.
type Provider struct {
	conf   Config
	page   string // where the browser comes back to on the page
	seals  *keyring.Subjects
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	busy   chan struct{}
	polls  polls

	mu    sync.Mutex
	known *known
	tried time.Time
}

// known is what the provider says of itself.
type known struct {
	verifier *goidc.IDTokenVerifier
	endpoint oauth2.Endpoint
	at       time.Time

	DeviceURL  string   `json:"device_authorization_endpoint"`
	JWKS       string   `json:"jwks_uri"`
	SaysIssuer bool     `json:"authorization_response_iss_parameter_supported"`
	Challenges []string `json:"code_challenge_methods_supported"`
	Methods    []string `json:"token_endpoint_auth_methods_supported"`
}

// Deps is what a Provider needs.
type Deps struct {
	Seals *keyring.Subjects
	// Page is the page's own address, "https://handrail.example.com".
	Page string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger // nil: nothing is logged
}

// New returns the provider of a complete Config. It asks nothing yet: an
// installation starts, and lets people in by other ways, while it is down.
func New(c Config, d Deps) *Provider {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{conf: c, page: d.Page, seals: d.Seals, now: d.Now, log: d.Log, busy: make(chan struct{}, atOnce)}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	p.client = &http.Client{
		Transport: bounded{transport}, Timeout: answerTime,
		// A redirect would take the client's secret elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it answers with a redirect") },
	}
	return p
}

// Config is what the installation says of the provider.
func (p *Provider) Config() Config { return p.conf }

// bounded ends an answer that is too long, and goes only where nobody else can
// answer.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := safeURL(r.URL.String()); err != nil {
		return nil, err
	}
	answer, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer.Body = &short{Reader: io.LimitReader(answer.Body, answerBytes+1), Closer: answer.Body}
	return answer, nil
}

type short struct {
	io.Reader
	io.Closer
	read int
}

func (s *short) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if s.read += n; s.read > answerBytes {
		return 0, fmt.Errorf("its answer is longer than %d bytes", answerBytes)
	}
	return n, err
}

// ask runs one exchange with the provider, of which there are few at once.
func (p *Provider) ask(ctx context.Context, f func(ctx context.Context, k *known) error) error {
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	default:
		return fault.New(fault.Unavailable, "cannot ask %s: too many logins wait for it", p.conf.Name).WithHint("try again in a moment")
	}
	ctx, cancel := context.WithTimeout(goidc.ClientContext(ctx, p.client), 2*answerTime)
	defer cancel()
	k, err := p.know(ctx)
	if err != nil {
		return err
	}
	return f(ctx, k)
}

// away is the error of a provider that does not answer. The other ways in stay.
func (p *Provider) away(err error) error {
	p.log.Warn("the provider gave no usable answer", "error", err) // the cause names addresses inside; strangers read the answer
	return fault.New(fault.Unavailable, "cannot reach %s", p.conf.Name).
		WithHint("try again; meanwhile a passkey works, and a login link: handrail login-link NAME")
}

// know is what the provider says of itself, asked for once an hour. While it
// does not answer, what it said before holds.
func (p *Provider) know(ctx context.Context) (*known, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.known != nil && now.Sub(p.known.at) < refreshed {
		return p.known, nil
	}
	if p.known == nil && now.Sub(p.tried) < silence {
		return nil, p.away(errors.New("it did not answer a moment ago"))
	}
	k, err := p.discover(ctx)
	if err != nil {
		p.tried = p.now()
		if p.known != nil {
			p.known.at = p.now().Add(time.Minute - refreshed) // a minute later again
			return p.known, nil
		}
		return nil, err
	}
	p.known = k
	return k, nil
}

func (p *Provider) discover(ctx context.Context) (*known, error) {
	found, err := goidc.NewProvider(ctx, p.conf.Issuer) // refuses another issuer than the one asked
	if err != nil {
		return nil, p.away(err)
	}
	k := &known{endpoint: found.Endpoint(), at: p.now()}
	if err := found.Claims(k); err != nil {
		return nil, p.away(err)
	}
	for _, u := range []string{k.endpoint.AuthURL, k.endpoint.TokenURL, k.JWKS} {
		if err := safeURL(u); err != nil {
			return nil, p.away(err)
		}
	}
	k.endpoint.AuthStyle = oauth2.AuthStyleInParams
	if len(p.conf.Secret.Reveal()) > 0 && (len(k.Methods) == 0 || has(k.Methods, "client_secret_basic")) {
		k.endpoint.AuthStyle = oauth2.AuthStyleInHeader
	}
	k.verifier = found.VerifierContext(goidc.ClientContext(context.WithoutCancel(ctx), p.client), &goidc.Config{
		ClientID: p.conf.ClientID, SupportedSigningAlgs: algorithms, Now: p.now,
	})
	return k, nil
}

func has(list []string, word string) bool {
	for _, w := range list {
		if w == word {
			return true
		}
	}
	return false
}

// client is the client that this installation is, for one redirect.
func (p *Provider) oauth(k *known, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.conf.ClientID, ClientSecret: string(p.conf.Secret.Reveal()), Endpoint: k.endpoint,
		RedirectURL: redirect, Scopes: p.conf.Scopes,
	}
}
