// Package fake is an API in memory with a believable story, for looking at the
// pages and for testing them without a server. It decides nothing as handrail
// does: it remembers what it was told and says what a page needs to hear.
package fake

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

// Kind is which story an API tells.
type Kind int

// The stories.
const (
	Busy     Kind = iota // hosts, people, live sessions, requests, a broken glass
	Fresh                // minute one: one host, nobody but the first person
	NoShells             // a machine where no shell is possible
	Hostile              // the busy one, told by an attacker wherever text is free
	Frozen               // a server that is cut off from its database
)

// API is the story and its state.
type API struct {
	kind Kind
	Now  time.Time

	mu        sync.Mutex
	install   *v1.Installation
	hosts     []*v1.Host
	people    []*v1.Person
	sessions  []*v1.Session
	grants    []*v1.Grant
	approvals []*v1.Approval
	entries   []*v1.Entry
	tree      tree
	redeemed  map[string]bool
	watchers  map[chan string]bool
	Replays   int // how often a recording was looked at
	Searches  int // how often recordings were searched
	tickets   map[string]string
}

// New returns an API that tells that story, as of now.
func New(kind Kind, now time.Time) *API {
	a := &API{kind: kind, Now: now, redeemed: map[string]bool{}, watchers: map[chan string]bool{}, tickets: map[string]string{}}
	a.tell()
	return a
}

// Token is the bearer token of a person, and Link what a login link carries.
func Token(person string) string { return "token-of-" + person }

// Link is the single-use token of a person's login link.
func Link(person string) string { return "link-of-" + person }

// Handler serves the API, and what a terminal attaches to.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	if a.kind == Frozen {
		mux.HandleFunc("/", frozen)
		return a.brakes(mux)
	}
	with := connect.WithInterceptors(guard{a})
	mux.Handle(handrailv1connect.NewLoginsHandler(logins{a: a}, with))
	mux.Handle(handrailv1connect.NewHostsHandler(hosts{a: a}, with))
	mux.Handle(handrailv1connect.NewDrainsHandler(drains{a: a}, with))
	mux.Handle(handrailv1connect.NewSessionsHandler(sessions{a: a}, with))
	mux.Handle(handrailv1connect.NewInspectionsHandler(inspections{a: a}, with))
	mux.Handle(handrailv1connect.NewGrantsHandler(grants{a: a}, with))
	mux.Handle(handrailv1connect.NewApprovalsHandler(approvals{a: a}, with))
	mux.Handle(handrailv1connect.NewPeopleHandler(people{a: a}, with))
	mux.Handle(handrailv1connect.NewPoliciesHandler(policies{a: a}, with))
	mux.Handle(handrailv1connect.NewLedgerHandler(entries{a: a}, with))
	mux.Handle(handrailv1connect.NewEventsHandler(events{a: a}, with))
	mux.Handle(handrailv1connect.NewProviderHandler(provider{}, with))
	mux.Handle(handrailv1connect.NewDirectoriesHandler(directories{a: a}, with))
	mux.Handle(handrailv1connect.NewRightsHandler(rights{a: a}, with))
	mux.Handle(handrailv1connect.NewServersHandler(servers{}, with))
	mux.Handle(handrailv1connect.NewVouchersHandler(vouchers{a: a}, with))
	mux.Handle(handrailv1connect.NewWebhooksHandler(webhooks{a: a}, with))
	mux.Handle(handrailv1connect.NewRecordingsHandler(recordings{a: a}, with))
	mux.HandleFunc("GET /v1/sessions/{id}/attach", a.attach)
	return mux
}

// Serve starts the API and the pages, made by pages, on one loopback port.
func (a *API) Serve(pages func(http.RoundTripper, string) http.Handler) *httptest.Server {
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	api := a.Handler()
	for _, name := range []string{"Logins", "Hosts", "Drains", "Inspections", "Sessions", "Grants", "Approvals", "People", "Policies", "Ledger", "Events", "Provider", "Directories", "Rights", "Servers", "Vouchers", "Webhooks", "Recordings"} {
		mux.Handle("/handrail.v1."+name+"/", api)
	}
	mux.Handle("/v1/", api)
	mux.Handle("/", pages(http.DefaultTransport, s.URL))
	return s
}

type personKey struct{}

// guard finds who calls, and refuses who is nobody, but for logging in.
type guard struct{ a *API }

func (g guard) who(ctx context.Context, procedure string, h http.Header) (context.Context, error) {
	name, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "+Token(""))
	g.a.mu.Lock()
	defer g.a.mu.Unlock()
	if p := g.a.person(name); ok && p != nil {
		return context.WithValue(ctx, personKey{}, p.Id), nil
	}
	switch procedure {
	case handrailv1connect.LoginsRedeemProcedure, handrailv1connect.LoginsPasskeyLoginBeginProcedure, handrailv1connect.LoginsPasskeyLoginFinishProcedure,
		handrailv1connect.ProviderOfferProcedure, handrailv1connect.DirectoriesLoginProcedure:
		return ctx, nil
	}
	return ctx, wrong(fault.New(fault.Unauthenticated, "cannot tell who asks: the login is missing or over").WithHint("handrail login"))
}

func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := g.who(ctx, r.Spec().Procedure, r.Header())
		if err != nil {
			return nil, err
		}
		return next(ctx, r)
	}
}

func (g guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		ctx, err := g.who(ctx, c.Spec().Procedure, c.RequestHeader())
		if err != nil {
			return err
		}
		return next(ctx, c)
	}
}

func wrong(f *fault.Error) error {
	return handrailv1connect.NewError(f.Kind.ConnectCode(), &v1.Fault{Kind: f.Kind.String(), Text: f.Text, Hint: f.Hint, Rule: f.Rule, Entry: f.Entry})
}

func (a *API) person(nameOrID string) *v1.Person {
	for _, p := range a.people {
		if p.Name == nameOrID || p.Id == nameOrID {
			return p
		}
	}
	return nil
}

func (a *API) host(nameOrID string) *v1.Host {
	for _, h := range a.hosts {
		if h.Name == nameOrID || h.Id == nameOrID {
			return h
		}
	}
	return nil
}

func (a *API) session(id string) *v1.Session {
	for _, s := range a.sessions {
		if s.Id == id {
			return s
		}
	}
	return nil
}

func self(ctx context.Context) string {
	id, _ := ctx.Value(personKey{}).(string)
	return id
}

// Change tells every page that a topic changed.
func (a *API) Change(topic string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed(topic)
}

func (a *API) changed(topic string) {
	for c := range a.watchers {
		select {
		case c <- topic:
		default:
		}
	}
}

// Do changes the story under its lock, and tells the pages.
func (a *API) Do(topic string, change func(sessions []*v1.Session, approvals []*v1.Approval)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a.sessions, a.approvals)
	a.changed(topic)
}

func copyOf[M proto.Message](m M) M { return proto.Clone(m).(M) }

func copies[M proto.Message](list []M) []M {
	out := make([]M, len(list))
	for i, m := range list {
		out[i] = copyOf(m)
	}
	return out
}

func (a *API) at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(a.Now.Add(d)) }

func lasting(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func notFound(what, name, hint string) error {
	return wrong(fault.New(fault.NotFound, "cannot find %s %q: there is none of that name", what, name).WithHint("%s", hint))
}
