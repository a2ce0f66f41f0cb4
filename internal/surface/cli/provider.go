package cli

import (
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// atProvider is a login at the company's provider, as it was asked for.
type atProvider struct {
	on, paste, device bool
	server, root      string
	user              string // with the password that the directory knows
}

func (o *atProvider) flags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.on, "provider", false, "log in at your company's provider, in a browser on this machine")
	f.BoolVar(&o.paste, "paste", false, "the same, with a browser on another machine: paste what it shows")
	f.BoolVar(&o.device, "device", false, "the same, by a code that you type on another machine")
	f.StringVar(&o.user, "user", "", "log in under this name, with the password that your company's directory knows")
	f.StringVar(&o.server, "server", "", "host:port of the server, the first time (the page Your login says it)")
	f.StringVar(&o.root, "root-key", "", "hash of its root key, the first time")
}

func (o *atProvider) asked() bool {
	return o.on || o.paste || o.device || o.user != "" || o.server != "" || o.root != ""
}

func (o *atProvider) check() error {
	if o.user != "" && (o.on || o.paste || o.device) {
		return fault.New(fault.Invalid, "cannot log in: a password and a provider exclude each other").WithHint("handrail login --user NAME")
	}
	if o.paste && o.device {
		return fault.New(fault.Invalid, "cannot log in: --paste and --device exclude each other").WithHint("handrail login --paste")
	}
	if (o.server == "") != (o.root == "") {
		return fault.New(fault.Invalid, "cannot log in: --server and --root-key go together, so that nobody else can pose as the server").
			WithHint("the page Your login shows both")
	}
	return nil
}

// logInAtProvider logs in at the provider of the installation that this folder
// knows, or that was named.
func (t *tool) logInAtProvider(ctx context.Context, f folder, o atProvider) error {
	l := login{Address: address(o.server), RootHash: o.root}
	if o.server == "" {
		old, err := f.login()
		if err != nil {
			return fault.New(fault.Unauthenticated, "cannot log in at a provider: this device knows no server yet").
				WithHint("handrail login --server HOST:PORT --root-key HASH, as the page Your login shows it")
		}
		l = login{Address: old.Address, RootHash: old.RootHash, SSHAddress: old.SSHAddress}
	}
	tr, err := t.pin(ctx, f, l)
	if err != nil {
		return err
	}
	key, err := f.device(true)
	if err != nil {
		return err
	}
	c := newClient(f, l, tr)
	if o.user != "" {
		return t.logInByPassword(ctx, f, tr, l, o.user, key)
	}
	offer, err := c.provider.Offer(ctx, &v1.OfferRequest{})
	if err != nil {
		return err
	}
	if !offer.Offered {
		return fault.New(fault.Unavailable, "cannot log in at a provider: %s has none", l.Address).WithHint("handrail login, with a token of handrail login-link")
	}
	w := waiting{t: t, c: c, key: key.PublicKey().Marshal(), name: clean(offer.Name)}
	var answer *v1.RedeemResponse
	switch {
	case o.device:
		answer, err = w.device(ctx)
	case o.paste:
		answer, err = w.paste(ctx)
	default:
		answer, err = w.loop(ctx)
	}
	if err != nil {
		return err
	}
	l.Provider = true
	return t.keep(f, tr, l, answer)
}

// waiting is a login that waits for its person at the provider.
type waiting struct {
	t    *tool
	c    *client
	key  []byte
	name string
}

// loopPath is where this command's listener takes the browser back.
const loopPath = "/handrail"

// loop waits for the browser on this machine (RFC 8252).
func (w waiting) loop(ctx context.Context) (*v1.RedeemResponse, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot wait for the browser").WithHint("handrail login --paste")
	}
	defer l.Close()
	asked, err := w.c.provider.Begin(ctx, &v1.ProviderBeginRequest{Way: v1.Way_WAY_LOOP, Redirect: "http://" + l.Addr().String() + loopPath, DeviceKey: w.key})
	if err != nil {
		return nil, err
	}
	to, state, err := destination(asked.Url)
	if err != nil {
		return nil, err
	}
	back := make(chan url.Values, 1)
	srv := &http.Server{Handler: taker(l.Addr().String(), state, back), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10}
	defer srv.Close()
	go func() { _ = srv.Serve(l) }()
	w.t.say("Log in with %s:\n\n  %s\n\nNo browser on this machine? Ctrl-C, then: handrail login --paste", w.name, to)
	w.t.browse(to)
	ctx, cancel := context.WithDeadline(ctx, asked.Expires.AsTime())
	defer cancel()
	select {
	case q := <-back:
		return w.finish(ctx, asked.Ticket, q)
	case <-ctx.Done():
		return nil, w.late(ctx)
	}
}

func (w waiting) late(ctx context.Context) error {
	if context.Cause(ctx) == context.DeadlineExceeded {
		return fault.New(fault.Unauthenticated, "cannot log in: nobody came back from %s in time", w.name).WithHint("handrail login --provider")
	}
	return ctx.Err()
}

// destination checks where the browser is sent, and finds the state that it
// must bring back.
func destination(text string) (to, state string, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Query().Get("state") == "" {
		return "", "", fault.New(fault.Internal, "cannot log in: the server names no address to log in at")
	}
	return u.String(), u.Query().Get("state"), nil
}

// taker takes the browser's answer, once. What any other page or program sends
// here does not have our state, and changes nothing.
func taker(host, state string, back chan<- url.Values) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		q := r.URL.Query()
		if r.Method != http.MethodGet || r.URL.Path != loopPath || r.Host != host || q.Get("state") != state {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
		select {
		case back <- q:
		default: // a reload
		}
		_, _ = io.WriteString(rw, "<!DOCTYPE html><html lang=en><title>handrail</title><h1>Back to your terminal</h1><p>handrail has the answer and goes on there. You can close this page.")
	})
}

func (w waiting) finish(ctx context.Context, ticket string, q url.Values) (*v1.RedeemResponse, error) {
	return w.c.provider.Finish(ctx, &v1.ProviderFinishRequest{
		Ticket: ticket, State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error"),
		DeviceKey: w.key, DeviceName: w.t.deviceName(),
	})
}

// paste waits for what the browser on another machine shows.
func (w waiting) paste(ctx context.Context) (*v1.RedeemResponse, error) {
	asked, err := w.c.provider.Begin(ctx, &v1.ProviderBeginRequest{Way: v1.Way_WAY_PASTE, DeviceKey: w.key})
	if err != nil {
		return nil, err
	}
	to, _, err := destination(asked.Url)
	if err != nil {
		return nil, err
	}
	w.t.say("Open this in any browser, log in with %s, and paste the line that it shows:\n\n  %s\n", w.name, to)
	line, err := w.t.ask(ctx, "Line: ")
	if err != nil {
		return nil, err
	}
	q, err := unpaste(line)
	if err != nil {
		return nil, err
	}
	return w.finish(ctx, asked.Ticket, q)
}

// unpaste reads the line that the page shows.
func unpaste(line string) (url.Values, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "hrp_")
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	if ok && err == nil {
		if q, err := url.ParseQuery(string(raw)); err == nil {
			return q, nil
		}
	}
	return nil, fault.New(fault.Invalid, "cannot log in: this is not the line that the browser shows; it begins with hrp_").WithHint("handrail login --paste")
}

// device waits for a code to be typed on another machine (RFC 8628).
func (w waiting) device(ctx context.Context) (*v1.RedeemResponse, error) {
	asked, err := w.c.provider.DeviceBegin(ctx, &v1.DeviceBeginRequest{DeviceKey: w.key})
	if err != nil {
		return nil, err
	}
	w.t.say("On another machine, open\n\n  %s\n\nlog in with %s and type this code:\n\n  %s\n", clean(asked.Url), w.name, clean(asked.UserCode))
	ctx, cancel := context.WithDeadline(ctx, asked.Expires.AsTime())
	defer cancel()
	for wait := asked.IntervalSeconds; ; {
		select {
		case <-time.After(time.Duration(max(wait, 1)) * time.Second):
		case <-ctx.Done():
			return nil, w.late(ctx)
		}
		polled, err := w.c.provider.DevicePoll(ctx, &v1.DevicePollRequest{Ticket: asked.Ticket, DeviceKey: w.key, DeviceName: w.t.deviceName()})
		if err != nil {
			return nil, err
		}
		if polled.Login != nil {
			return polled.Login, nil
		}
		wait = polled.WaitSeconds
	}
}

// browse opens a browser where there is a person to see it. Where none can be
// opened, the address was printed.
func (t *tool) browse(to string) {
	name := t.Env("BROWSER")
	switch {
	case name != "":
	case !t.interactive():
		return
	case runtime.GOOS == "darwin":
		name = "open"
	case t.Env("DISPLAY") == "" && t.Env("WAYLAND_DISPLAY") == "":
		return
	default:
		name = "xdg-open"
	}
	cmd := exec.Command(name, to)
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }()
	}
}
