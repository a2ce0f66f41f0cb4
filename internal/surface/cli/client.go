package cli

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// client is a person's connection to the server: every service, over TLS that
// is checked against the trust bundle.
type client struct {
	folder folder
	login  login
	trust  *trust
	http   *http.Client

	logins    handrailv1connect.LoginsClient
	provider  handrailv1connect.ProviderClient
	robots    handrailv1connect.RobotsClient
	events    handrailv1connect.EventsClient
	hosts     handrailv1connect.HostsClient
	sshHosts  handrailv1connect.SSHHostsClient
	people    handrailv1connect.PeopleClient
	grants    handrailv1connect.GrantsClient
	approvals handrailv1connect.ApprovalsClient
	sessions  handrailv1connect.SessionsClient
	inspect   handrailv1connect.InspectionsClient
	drains    handrailv1connect.DrainsClient
	cores     handrailv1connect.CoresClient
	answers   handrailv1connect.AnswersClient
	ledger    handrailv1connect.LedgerClient
	policies  handrailv1connect.PoliciesClient
	servers   handrailv1connect.ServersClient
	vouchers  handrailv1connect.VouchersClient
	witnesses handrailv1connect.WitnessesClient
	erasures  handrailv1connect.ErasuresClient
	retention handrailv1connect.RetentionClient
	keys      handrailv1connect.KeysClient
	webhooks  handrailv1connect.WebhooksClient
	directory handrailv1connect.DirectoriesClient
	rights    handrailv1connect.RightsClient

	recordings handrailv1connect.RecordingsClient
	unmaskings handrailv1connect.UnmaskingsClient
}

// client opens the folder for somebody who is logged in.
func (t *tool) client() (*client, error) {
	f, err := t.folder()
	if err != nil {
		return nil, err
	}
	l, err := f.login()
	if err != nil {
		return nil, err
	}
	if l.Token == "" {
		return nil, notLoggedIn()
	}
	if !l.Expires.IsZero() && !t.Now().Before(l.Expires) {
		return nil, fault.New(fault.Unauthenticated, "cannot go on: the login of %s ended %s ago", clean(l.PersonName), length(t.Now().Sub(l.Expires))).
			WithHint("handrail login")
	}
	return connectTo(f, l)
}

func connectTo(f folder, l login) (*client, error) {
	tr := &trust{folder: f, address: l.Address, rootHash: l.RootHash}
	if err := tr.stored(); err != nil {
		return nil, err
	}
	return newClient(f, l, tr), nil
}

func newClient(f folder, l login, tr *trust) *client {
	// HTTP/1.1 on purpose: the attach WebSocket needs it, and a command line
	// holds few streams at a time.
	h := &http.Client{Transport: bearer{l.Token, &http.Transport{DialTLSContext: tr.dial}}}
	base, option := "https://"+l.Address, connect.WithInterceptors(patience())
	return &client{
		folder: f, login: l, trust: tr, http: h,
		logins:    handrailv1connect.NewLoginsClient(h, base, option),
		robots:    handrailv1connect.NewRobotsClient(h, base, option),
		provider:  handrailv1connect.NewProviderClient(h, base, option),
		events:    handrailv1connect.NewEventsClient(h, base, option),
		hosts:     handrailv1connect.NewHostsClient(h, base, option),
		sshHosts:  handrailv1connect.NewSSHHostsClient(h, base, option),
		people:    handrailv1connect.NewPeopleClient(h, base, option),
		grants:    handrailv1connect.NewGrantsClient(h, base, option),
		approvals: handrailv1connect.NewApprovalsClient(h, base, option),
		sessions:  handrailv1connect.NewSessionsClient(h, base, option),
		inspect:   handrailv1connect.NewInspectionsClient(h, base, option),
		drains:    handrailv1connect.NewDrainsClient(h, base, option),
		cores:     handrailv1connect.NewCoresClient(h, base, option),
		answers:   handrailv1connect.NewAnswersClient(h, base, option),
		ledger:    handrailv1connect.NewLedgerClient(h, base, option),
		policies:  handrailv1connect.NewPoliciesClient(h, base, option),
		servers:   handrailv1connect.NewServersClient(h, base, option),
		vouchers:  handrailv1connect.NewVouchersClient(h, base, option),
		witnesses: handrailv1connect.NewWitnessesClient(h, base, option),
		erasures:  handrailv1connect.NewErasuresClient(h, base, option),
		retention: handrailv1connect.NewRetentionClient(h, base, option),
		keys:      handrailv1connect.NewKeysClient(h, base, option),
		webhooks:  handrailv1connect.NewWebhooksClient(h, base, option),
		directory: handrailv1connect.NewDirectoriesClient(h, base, option),
		rights:    handrailv1connect.NewRightsClient(h, base, option),

		recordings: handrailv1connect.NewRecordingsClient(h, base, option),
		unmaskings: handrailv1connect.NewUnmaskingsClient(h, base, option),
	}
}

func (c *client) bundle() ledger.Bundle { return c.trust.current() }

// bearer puts the login on every request. It is only ever sent over a
// connection that tr.dial has verified.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// patience bounds a call that is not a stream.
func patience() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return next(ctx, r)
		}
	}
}

// understand returns the fault that an error stands for. A fault crosses the
// wire as a detail of a Connect error; a server that cannot be reached sends none.
func understand(err error) *fault.Error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	if errors.Is(err, context.Canceled) {
		return fault.New(fault.Unavailable, "cannot go on: interrupted")
	}
	var c *connect.Error
	if !errors.As(err, &c) {
		return fault.From(err)
	}
	if !connect.IsWireError(err) && (c.Code() == connect.CodeUnavailable || c.Code() == connect.CodeDeadlineExceeded) {
		return fault.New(fault.Unavailable, "cannot reach the server: %v", c.Unwrap()).WithHint("handrail status")
	}
	w := handrailv1connect.FaultOf(err)
	f = &fault.Error{Kind: fault.ParseKind(w.GetKind()), Text: w.GetText(), Hint: w.GetHint(), Rule: w.GetRule(), Entry: w.GetEntry()}
	if f.Hint == "" && f.Kind == fault.Unauthenticated {
		f.Hint = "handrail login"
	}
	return f
}

// unreachable says which server could not be reached, unless it answered.
func unreachable(address string, err error) error {
	f := understand(err)
	if f.Kind != fault.Unavailable || connect.IsWireError(err) {
		return f
	}
	why := errors.Unwrap(err)
	var op *net.OpError
	if errors.As(err, &op) {
		why = op.Err // without the address once more
	}
	var call *os.SyscallError
	if errors.As(why, &call) {
		why = call.Err
	}
	f = fault.New(fault.Unavailable, "cannot reach the server at %s: %v", address, why)
	if host, _, err := net.SplitHostPort(address); err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback()) {
		return f.WithHint("handrail up starts it on this machine")
	}
	return f.WithHint("handrail up, on the machine that it ran on; or let this machine reach it")
}
