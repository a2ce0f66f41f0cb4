// Package web is the page: what people see in a browser. It is a client of the
// API like any other: every page is made from API messages fetched with the
// visitor's own login, so that the page has no door that the API lacks.
//
// House rules: templates take API messages and convert nothing but form; every
// list that can change names its topics in data-live and is refreshed from the
// page it stands on; no inline script or style anywhere (the content security
// policy refuses them); a secret is shown once, on a page that is not stored.
package web

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
)

// Deps is what the pages stand on.
type Deps struct {
	// Transport carries the pages' calls to the API. Each call has the
	// visitor's login as bearer token and, for the ledger, where the visitor
	// comes from in SourceHeader. The API must believe that header from this
	// transport only.
	Transport http.RoundTripper
	// BaseURL is the API's address as Transport sees it.
	BaseURL string
	// Secure says whether the visitor came by HTTPS; nil means r.TLS != nil.
	Secure func(*http.Request) bool
	// Demo marks the pages before the login; the others hear it from the API.
	Demo bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// The headers that the pages add to their API calls.
const (
	SourceHeader = "Handrail-Source" // the visitor's address
	ViaHeader    = "Handrail-Via"    // always "browser"
)

// site is the pages: the API clients and the files that never change.
type site struct {
	secure func(*http.Request) bool
	now    func() time.Time
	log    *slog.Logger
	files  *files
	demo   bool

	logins    handrailv1connect.LoginsClient
	provider  handrailv1connect.ProviderClient
	directory handrailv1connect.DirectoriesClient
	rights    handrailv1connect.RightsClient
	hosts     handrailv1connect.HostsClient
	drains    handrailv1connect.DrainsClient
	sessions  handrailv1connect.SessionsClient
	grants    handrailv1connect.GrantsClient
	approvals handrailv1connect.ApprovalsClient
	people    handrailv1connect.PeopleClient
	policies  handrailv1connect.PoliciesClient
	ledger    handrailv1connect.LedgerClient
	events    handrailv1connect.EventsClient
	inspect   handrailv1connect.InspectionsClient
	servers   handrailv1connect.ServersClient
	vouchers  handrailv1connect.VouchersClient
	webhooks  handrailv1connect.WebhooksClient

	recordings handrailv1connect.RecordingsClient
}

// New returns the pages. It serves every path but those of the API.
func New(d Deps) http.Handler {
	s := &site{secure: d.Secure, now: d.Now, log: d.Log, files: loadFiles(), demo: d.Demo}
	if s.secure == nil {
		s.secure = func(r *http.Request) bool { return r.TLS != nil }
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	base := d.BaseURL
	if base == "" {
		base = "http://api.handrail.internal"
	}
	client := &http.Client{Transport: d.Transport}
	with := connect.WithInterceptors(carrier{})
	s.logins = handrailv1connect.NewLoginsClient(client, base, with)
	s.provider = handrailv1connect.NewProviderClient(client, base, with)
	s.directory = handrailv1connect.NewDirectoriesClient(client, base, with)
	s.rights = handrailv1connect.NewRightsClient(client, base, with)
	s.hosts = handrailv1connect.NewHostsClient(client, base, with)
	s.drains = handrailv1connect.NewDrainsClient(client, base, with)
	s.sessions = handrailv1connect.NewSessionsClient(client, base, with)
	s.grants = handrailv1connect.NewGrantsClient(client, base, with)
	s.approvals = handrailv1connect.NewApprovalsClient(client, base, with)
	s.people = handrailv1connect.NewPeopleClient(client, base, with)
	s.policies = handrailv1connect.NewPoliciesClient(client, base, with)
	s.ledger = handrailv1connect.NewLedgerClient(client, base, with)
	s.events = handrailv1connect.NewEventsClient(client, base, with)
	s.inspect = handrailv1connect.NewInspectionsClient(client, base, with)
	s.servers = handrailv1connect.NewServersClient(client, base, with)
	s.vouchers = handrailv1connect.NewVouchersClient(client, base, with)
	s.webhooks = handrailv1connect.NewWebhooksClient(client, base, with)
	s.recordings = handrailv1connect.NewRecordingsClient(client, base, with)
	return s.guard(s.routes())
}

// routes is the table of contents.
func (s *site) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /static/", s.files)
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, s.files.path("icon.svg"), http.StatusFound)
	})

	mux.HandleFunc("GET /login", s.open(s.showLogin))
	mux.HandleFunc("POST /login", s.open(s.redeem))
	mux.HandleFunc("GET /login/state", s.open(s.loginState))
	mux.HandleFunc("POST /login/passkey/begin", s.open(s.passkeyLoginBegin))
	mux.HandleFunc("POST /login/passkey/finish", s.open(s.passkeyLoginFinish))
	mux.HandleFunc("POST /logout", s.page(s.logout))
	mux.HandleFunc("GET /welcome", s.page(s.showWelcome))
	mux.HandleFunc("POST /welcome", s.page(s.setName))
	mux.HandleFunc("GET /me", s.page(s.showMe))
	mux.HandleFunc("POST /me/passkey/begin", s.page(s.passkeyBegin))
	mux.HandleFunc("POST /me/passkey/finish", s.page(s.passkeyFinish))

	mux.HandleFunc("GET /{$}", s.page(s.showHome))
	mux.HandleFunc("GET /events", s.page(s.streamEvents))
	s.routeProvider(mux)
	s.routeHosts(mux)
	s.routeInspect(mux)
	s.routeSessions(mux)
	s.routeSearch(mux)
	s.routeApprovals(mux)
	s.routePeople(mux)
	s.routeDirectory(mux)
	s.routeRecords(mux)
	s.routeServers(mux)
	s.routeDrills(mux)
	s.routeVoucherKey(mux)
	s.routeWebhooks(mux)
	s.routeBrakes(mux)
	s.routeDrains(mux)
	mux.HandleFunc("/", s.page(s.notFound))
	return mux
}

// carried is what of a visit goes along with each API call.
type carried struct{ login, source string }

type carriedKey struct{}

// carrier is the interceptor that adds the visitor's login to API calls.
type carrier struct{}

func (carrier) head(ctx context.Context, h http.Header) {
	c, _ := ctx.Value(carriedKey{}).(carried)
	if c.login != "" {
		h.Set("Authorization", "Bearer "+c.login)
	}
	h.Set(SourceHeader, c.source)
	h.Set(ViaHeader, "browser")
}

// WrapUnary implements connect.Interceptor.
func (c carrier) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		c.head(ctx, req.Header())
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (c carrier) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		c.head(ctx, conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (carrier) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
