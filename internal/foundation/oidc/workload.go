package oidc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Issuer is somebody whose word on workloads is taken: [[workload]] of the
// configuration. A robot then names the one workload that it is.
type Issuer struct {
	Issuer string `toml:"issuer" json:"issuer"`
	JWKS   string `toml:"jwks" json:"jwks"` // where its keys are; "": where it says itself
}

// Check says what is wrong.
func (i Issuer) Check() error {
	for _, u := range []string{i.Issuer, i.JWKS} {
		if u == i.JWKS && u == "" {
			continue
		}
		if err := safeURL(u); err != nil {
			return fault.New(fault.Invalid, "cannot use [[workload]]: %v", err).WithHint("handrail config explain --help")
		}
	}
	return nil
}

const (
	maxToken      = 16 << 10
	longestToken  = 24 * time.Hour // that a workload's token may be good for
	strangeKeyFor = 5 * time.Second
	maxGoodKeys   = 64
)

// Workloads checks what issuers say of workloads.
type Workloads struct {
	now     func() time.Time
	log     *slog.Logger
	client  *http.Client
	busy    chan struct{}
	issuers map[string]*issuer
}

type issuer struct {
	Issuer
	mu      sync.Mutex
	keys    goidc.KeySet
	tried   time.Time       // when it, or its keys, did not answer
	good    map[string]bool // keys that a token was verified by
	strange time.Time       // when a token named a key that is not there
}

// NewWorkloads returns a checker of the issuers' tokens. It asks nothing yet.
func NewWorkloads(list []Issuer, d Deps) *Workloads {
	p := New(Config{}, d) // for its client and its defaults
	w := &Workloads{now: p.now, log: p.log, client: p.client, busy: make(chan struct{}, atOnce), issuers: map[string]*issuer{}}
	for _, i := range list {
		w.issuers[i.Issuer] = &issuer{Issuer: i, good: map[string]bool{}}
	}
	return w
}

// Knows says whether an issuer's word is taken at all.
func (w *Workloads) Knows(name string) bool { return w.issuers[name] != nil }

// Workload is what an issuer says that somebody is.
type Workload struct {
	Issuer, Subject string
	Audience        []string
	Claims          map[string]string // those that are texts
	Once            string            // hash of what the issuer signed: the same of a token, however it is written
	Expires         time.Time
}

// Verify checks a token. Which robot that is, is for the caller to compare.
func (w *Workloads) Verify(ctx context.Context, token string) (Workload, error) {
	head, body, err := peek(token)
	if err != nil {
		return Workload{}, w.untrusted(err)
	}
	from := w.issuers[body.Issuer]
	if from == nil {
		return Workload{}, w.untrusted(errors.New("its issuer is none of ours"))
	}
	select {
	case w.busy <- struct{}{}:
		defer func() { <-w.busy }()
	default:
		return Workload{}, fault.New(fault.Unavailable, "cannot check this token: too many wait to be").WithHint("try again in a moment")
	}
	ctx, cancel := context.WithTimeout(goidc.ClientContext(ctx, w.client), answerTime)
	defer cancel()
	keys, err := w.keysOf(ctx, from)
	if err != nil {
		return Workload{}, err
	}
	if !from.mayTry(head.Key, w.now()) {
		return Workload{}, fault.New(fault.Unavailable, "cannot check this token: its key is not known, and the issuer was asked a moment ago").WithHint("try again in a few seconds")
	}
	verified, err := goidc.NewVerifier(from.Issuer.Issuer, keys, &goidc.Config{
		SkipClientIDCheck:    true, // the audience is the robot's, and compared with it exactly
		SupportedSigningAlgs: algorithms, Now: w.now,
	}).Verify(ctx, token)
	from.tell(head.Key, err == nil, w.now())
	if err != nil {
		return Workload{}, w.untrusted(err)
	}
	now := w.now()
	switch {
	case verified.Subject == "" || len(verified.Audience) == 0:
		return Workload{}, w.untrusted(errors.New("it names nobody, or nobody that it is for"))
	case verified.IssuedAt.After(now.Add(fresh)), verified.Expiry.Sub(now) > longestToken:
		return Workload{}, w.untrusted(errors.New("it is good for too long, or from the future"))
	}
	var claims map[string]json.RawMessage
	if err := verified.Claims(&claims); err != nil {
		return Workload{}, w.untrusted(err)
	}
	out := Workload{Issuer: verified.Issuer, Subject: verified.Subject, Audience: verified.Audience, Claims: map[string]string{}, Once: onceOf(token), Expires: verified.Expiry}
	for name, raw := range claims {
		var s string
		if json.Unmarshal(raw, &s) == nil {
			out.Claims[name] = s
		}
	}
	return out, nil
}

func (w *Workloads) untrusted(err error) error {
	w.log.Warn("a workload's token was not believed", "error", err)
	return fault.New(fault.Unauthenticated, "cannot believe this token").WithHint("handrail robot show NAME says which issuer, audience and subject it must have; an admin lists issuers as [[workload]]")
}

type jwtHead struct {
	Key string `json:"kid"`
}

type jwtBody struct {
	Issuer string `json:"iss"`
}

// peek reads of a token, unverified, whom to ask about it.
func peek(token string) (head jwtHead, body jwtBody, err error) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return head, body, errors.New("it is no signed token")
	}
	for i, into := range []any{&head, &body} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return head, body, errors.New("it is no signed token")
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return head, body, errors.New("it is no signed token")
		}
	}
	return head, body, nil
}

// onceOf tells a verified token from others by its body alone. Its text would
// not do: base64 and ECDSA signatures can be written in more than one way, and
// each way would be a token that was not used yet.
func onceOf(token string) string {
	body, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1]) // peek has read it
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// keysOf are an issuer's keys: where they are is asked once, they themselves
// whenever a token names one that is not known.
func (w *Workloads) keysOf(ctx context.Context, from *issuer) (goidc.KeySet, error) {
	from.mu.Lock()
	defer from.mu.Unlock()
	if from.keys != nil {
		return from.keys, nil
	}
	away := func(err error) error {
		from.tried = w.now()
		w.log.Warn("an issuer of workloads gave no usable answer", "issuer", from.Issuer.Issuer, "error", err)
		return fault.New(fault.Unavailable, "cannot check this token: its issuer does not answer").WithHint("try again")
	}
	if w.now().Sub(from.tried) < silence {
		return nil, away(errors.New("it did not answer a moment ago"))
	}
	where := from.JWKS
	if where == "" {
		found, err := goidc.NewProvider(ctx, from.Issuer.Issuer)
		if err != nil {
			return nil, away(err)
		}
		var said struct {
			JWKS string `json:"jwks_uri"`
		}
		if err := found.Claims(&said); err != nil {
			return nil, away(err)
		}
		where = said.JWKS
	}
	if err := safeURL(where); err != nil {
		return nil, away(err)
	}
	from.keys = goidc.NewRemoteKeySet(goidc.ClientContext(context.WithoutCancel(ctx), w.client), where)
	return from.keys, nil
}

// mayTry keeps tokens with made-up keys from having the issuer asked each time.
func (i *issuer) mayTry(key string, now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.good[key] || now.Sub(i.strange) >= strangeKeyFor
}

func (i *issuer) tell(key string, good bool, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case good && len(i.good) >= maxGoodKeys:
		i.good = map[string]bool{key: true}
	case good:
		i.good[key] = true
	case !i.good[key]:
		i.strange = now
	}
}
