package oidc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"handrail.dev/handrail/internal/foundation/fault"
)

// The paths at which a browser comes back.
const (
	PagePath  = "/login/provider/back"  // of the page, to a login of that browser
	PastePath = "/login/provider/paste" // of the page, to be shown what goes into a terminal
	loopPath  = "/handrail"             // of the command line's own listener
)

// Way is how the browser's answer comes back.
type Way int

// The ways.
const (
	ToPage  Way = iota // to the page
	ToLoop             // to a listener of the command line on this machine (RFC 8252)
	ToPaste            // to the page, which shows it for a terminal on another machine
)

// Asked is a question for the provider: the browser goes to URL, and who asked
// keeps Ticket.
type Asked struct {
	URL, Ticket string
	Expires     int64 // Unix seconds
}

// Begin asks who somebody is. redirect is for ToLoop only, key the device key
// that the login is for, if it is for one.
func (p *Provider) Begin(ctx context.Context, way Way, redirect string, key []byte) (Asked, error) {
	switch way {
	case ToPage:
		redirect = p.page + PagePath
	case ToPaste:
		redirect = p.page + PastePath
	default:
		if err := loopRedirect(redirect); err != nil {
			return Asked{}, err
		}
	}
	if (way == ToPage) != (len(key) == 0) {
		return Asked{}, fault.New(fault.Invalid, "cannot begin a login: a command brings a device key, a browser none")
	}
	t := ticket{
		Flow: flowCode, State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Redirect: redirect,
		Device: deviceOf(key), Expires: p.now().Add(ticketFor).Unix(),
	}
	sealed, err := p.seal(t)
	if err != nil {
		return Asked{}, err
	}
	asked := Asked{Ticket: sealed, Expires: t.Expires}
	err = p.ask(ctx, func(_ context.Context, k *known) error {
		if len(k.Challenges) > 0 && !has(k.Challenges, "S256") {
			return fault.New(fault.Unavailable, "cannot log in at %s: it does not know PKCE with S256", p.conf.Name).WithHint("choose another provider, or a login link")
		}
		asked.URL = p.oauth(k, redirect).AuthCodeURL(t.State, goidc.Nonce(t.Nonce), oauth2.S256ChallengeOption(t.Verifier))
		return nil
	})
	return asked, err
}

// loopRedirect takes exactly the address of a listener of the command line: a
// code must never be sent to another machine.
func loopRedirect(text string) error {
	u, err := url.Parse(text)
	if err == nil {
		port, bad := strconv.Atoi(u.Port())
		if ip := net.ParseIP(u.Hostname()); bad == nil && port > 0 && ip != nil && ip.IsLoopback() && text == "http://"+net.JoinHostPort(ip.String(), u.Port())+loopPath {
			return nil
		}
	}
	return fault.New(fault.Invalid, "cannot send a login to %.60q: only to http://127.0.0.1:PORT%s of the machine itself", text, loopPath)
}

// Answer is what came back with the browser.
type Answer struct {
	Ticket string
	Device []byte // the same as at Begin
	State  string
	Code   string
	Issuer string // RFC 9207; may be empty where the provider does not say it
	Error  string
}

// Finish checks an answer and exchanges it for who somebody is.
func (p *Provider) Finish(ctx context.Context, a Answer) (Subject, error) {
	t, err := p.open(flowCode, a.Ticket, a.Device)
	if err != nil {
		return Subject{}, err
	}
	if a.State == "" || subtle.ConstantTimeCompare([]byte(a.State), []byte(t.State)) != 1 {
		return Subject{}, stale()
	}
	var who Subject
	err = p.ask(ctx, func(ctx context.Context, k *known) error {
		// An answer of somebody else's, to our question: a mix-up (RFC 9207).
		if a.Issuer != "" && a.Issuer != p.conf.Issuer || a.Issuer == "" && k.SaysIssuer {
			return fault.New(fault.Unauthenticated, "cannot finish this login: the answer is not from %s", p.conf.Name).WithHint("begin again")
		}
		if a.Error != "" || a.Code == "" || len(a.Code) > maxTicket {
			return p.refused(a.Error)
		}
		token, err := p.oauth(k, t.Redirect).Exchange(ctx, a.Code, oauth2.VerifierOption(t.Verifier))
		if err != nil {
			return p.exchange(err)
		}
		who, err = p.subject(ctx, k, token, t.Nonce, t.State)
		return err
	})
	return who, err
}

// refused is the error of a provider that said no. What it says is not
// repeated: anybody can put words into an address.
func (p *Provider) refused(code string) error {
	why := "it refused"
	switch code {
	case "access_denied":
		why = "it, or you, refused"
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		why = "it wants you to log in there first"
	case "temporarily_unavailable", "server_error":
		return p.away(errors.New("it says that it does not work at the moment"))
	case "expired_token":
		why = "the code has expired"
	}
	return fault.New(fault.Unauthenticated, "cannot log in at %s: %s", p.conf.Name, why).WithHint("begin again, or ask whoever runs %s", p.conf.Name)
}

// exchange is the error of an exchange: a refusal, or a provider that is away.
func (p *Provider) exchange(err error) error {
	var said *oauth2.RetrieveError
	if errors.As(err, &said) && said.Response != nil && said.Response.StatusCode/100 == 4 && said.Response.StatusCode != http.StatusTooManyRequests {
		if said.ErrorCode == "invalid_client" || said.ErrorCode == "unauthorized_client" {
			return fault.New(fault.Unavailable, "cannot log in at %s: it does not know this installation (%s)", p.conf.Name, said.ErrorCode).
				WithHint("ask an admin to check client-id and client-secret-file of [oidc]")
		}
		return p.refused(said.ErrorCode)
	}
	return p.away(err)
}

// deviceOf names a device key in a ticket; nothing for a browser.
func deviceOf(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}
