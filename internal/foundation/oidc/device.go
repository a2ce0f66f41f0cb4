package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	deviceGrant  = "urn:ietf:params:oauth:grant-type:device_code"
	pollDefault  = 5 * time.Second
	pollLongest  = time.Minute
	maxPolls     = 1024 // device logins that wait at once
	maxDeviceFor = 30 * time.Minute
)

// DeviceAsked is what a person types on another machine.
type DeviceAsked struct {
	UserCode, URL, FullURL string // FullURL has the code in it, where the provider offers that
	Ticket                 string
	Interval               time.Duration // between polls
	Expires                int64         // Unix seconds
}

// DeviceBegin begins a login by a code that is typed on another machine.
func (p *Provider) DeviceBegin(ctx context.Context, key []byte) (DeviceAsked, error) {
	if !p.conf.DeviceCode {
		return DeviceAsked{}, fault.New(fault.Denied, "cannot log in by a code: this installation does not allow it, since whoever is sent a code can be talked into typing it").
			WithRule("no-device-code").WithHint("handrail login --paste")
	}
	if len(key) == 0 {
		return DeviceAsked{}, fault.New(fault.Invalid, "cannot log in by a code without a device key")
	}
	var asked DeviceAsked
	err := p.ask(ctx, func(ctx context.Context, k *known) error {
		if k.DeviceURL == "" {
			return fault.New(fault.Unavailable, "cannot log in by a code: %s does not offer it", p.conf.Name).WithHint("handrail login --paste")
		}
		said, err := p.deviceCode(ctx, k)
		if err != nil {
			return err
		}
		lasts := min(max(time.Duration(said.ExpiresIn)*time.Second, 0), maxDeviceFor)
		asked = DeviceAsked{
			UserCode: said.UserCode, URL: said.URL, FullURL: said.FullURL, Expires: p.now().Add(lasts).Unix(),
			Interval: min(max(time.Duration(said.Interval)*time.Second, time.Second), pollLongest),
		}
		if said.Interval == 0 {
			asked.Interval = pollDefault
		}
		asked.Ticket, err = p.seal(ticket{
			Flow: flowDevice, DeviceCode: said.DeviceCode, Device: deviceOf(key), Interval: int64(asked.Interval / time.Second), Expires: asked.Expires,
		})
		return err
	})
	return asked, err
}

// deviceCoded is the answer of RFC 8628, 3.2.
type deviceCoded struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URL        string `json:"verification_uri"`
	FullURL    string `json:"verification_uri_complete"`
	ExpiresIn  int64  `json:"expires_in"`
	Interval   int64  `json:"interval"`
}

// deviceCode asks as the client that we are; x/oauth2 asks as a public one.
func (p *Provider) deviceCode(ctx context.Context, k *known) (said deviceCoded, err error) {
	form := url.Values{"client_id": {p.conf.ClientID}, "scope": {strings.Join(p.conf.Scopes, " ")}}
	secret := string(p.conf.Secret.Reveal())
	if secret != "" && k.endpoint.AuthStyle == oauth2.AuthStyleInParams {
		form.Set("client_secret", secret)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, k.DeviceURL, strings.NewReader(form.Encode()))
	if err != nil {
		return said, p.away(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	if secret != "" && k.endpoint.AuthStyle == oauth2.AuthStyleInHeader {
		r.SetBasicAuth(url.QueryEscape(p.conf.ClientID), url.QueryEscape(secret))
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return said, p.away(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return said, fault.New(fault.Unavailable, "cannot log in by a code: %s answered %d", p.conf.Name, answer.StatusCode).WithHint("handrail login --paste; ask an admin whether %s allows the device grant to this client", p.conf.Name)
	}
	if err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
		return said, p.away(err)
	}
	if said.DeviceCode == "" || said.UserCode == "" || len(said.DeviceCode) > maxWord || len(said.UserCode) > 64 || safeURL(said.URL) != nil ||
		said.FullURL != "" && safeURL(said.FullURL) != nil {
		return said, p.away(errors.New("it gave no usable code"))
	}
	return said, nil
}

// DevicePoll asks whether the code was typed. pending is how long to wait
// before asking again; 0 means that it was.
func (p *Provider) DevicePoll(ctx context.Context, sealed string, key []byte) (who Subject, pending time.Duration, err error) {
	t, err := p.open(flowDevice, sealed, key)
	if err != nil {
		return Subject{}, 0, err
	}
	interval := time.Duration(t.Interval) * time.Second
	if early, err := p.polls.early(t.DeviceCode, interval, p.now()); err != nil || early > 0 {
		return Subject{}, early, err
	}
	err = p.ask(ctx, func(ctx context.Context, k *known) error {
		// The grant is another than a code's; the rest of the exchange is the same.
		token, err := p.oauth(k, "").Exchange(ctx, "", oauth2.SetAuthURLParam("grant_type", deviceGrant), oauth2.SetAuthURLParam("device_code", t.DeviceCode))
		var said *oauth2.RetrieveError
		if errors.As(err, &said) && (said.ErrorCode == "authorization_pending" || said.ErrorCode == "slow_down") {
			if pending = interval; said.ErrorCode == "slow_down" {
				pending += pollDefault
			}
			p.polls.wait(t.DeviceCode, p.now().Add(pending))
			return nil
		}
		p.polls.done(t.DeviceCode)
		if err != nil {
			return p.exchange(err)
		}
		who, err = p.subject(ctx, k, token, "", t.DeviceCode)
		return err
	})
	return who, pending, err
}

// polls keeps who waits for a code from asking the provider too often through
// us, and bounds how many wait.
type polls struct {
	mu   sync.Mutex
	next map[string]time.Time
}

func (w *polls) early(code string, interval time.Duration, now time.Time) (time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if next, ok := w.next[code]; ok && now.Before(next) {
		return next.Sub(now), nil
	}
	if _, ok := w.next[code]; !ok && len(w.next) >= maxPolls {
		for c, next := range w.next {
			if now.Sub(next) > 2*pollLongest { // who asked last that long ago has gone
				delete(w.next, c)
			}
		}
		if len(w.next) >= maxPolls {
			return 0, fault.New(fault.Exhausted, "cannot wait for this code: %d others are waited for", len(w.next)).WithHint("handrail login --paste")
		}
	}
	if w.next == nil {
		w.next = map[string]time.Time{}
	}
	w.next[code] = now.Add(interval)
	return 0, nil
}

func (w *polls) wait(code string, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next[code] = until
}

func (w *polls) done(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.next, code)
}
