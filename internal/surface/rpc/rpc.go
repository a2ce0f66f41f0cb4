// Package rpc is the API's surface: one file for each service, each method
// converts, calls a feature, converts. It decides nothing: who asks is found
// by identity, whether they may by the doorway.
//
// House rules of this package: a message and a row meet only here; a method
// has no branch that a feature should have; an error leaves as a Fault.
package rpc

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

// gate authenticates each call and lets the doorway decide the ones that only
// look. Calls that change something pass the doorway inside their feature, in
// the transaction that records them.
type gate struct {
	people *identity.People
	door   *doorway.Door
	log    *slog.Logger
	rules  map[string]rule // by procedure
}

// rule is what a method's options say.
type rule struct {
	action string
	audit  handrailv1.Audit
}

func newGate(people *identity.People, door *doorway.Door, log *slog.Logger) *gate {
	g := &gate{people: people, door: door, log: log, rules: map[string]rule{}}
	protoregistry.GlobalFiles.RangeFilesByPackage("handrail.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				g.rules["/"+string(s.FullName())+"/"+string(m.Name())] = rule{
					action: proto.GetExtension(m.Options(), handrailv1.E_Action).(string),
					audit:  proto.GetExtension(m.Options(), handrailv1.E_Audit).(handrailv1.Audit),
				}
			}
		}
		return true
	})
	return g
}

// WrapUnary implements connect.Interceptor.
func (g *gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := g.enter(ctx, req.Spec().Procedure, req.Header(), req.Peer().Addr)
		if err != nil {
			return nil, g.leave(err)
		}
		resp, err := next(ctx, req)
		return resp, g.leave(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g *gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (g *gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, err := g.enter(ctx, conn.Spec().Procedure, conn.RequestHeader(), conn.Peer().Addr)
		if err != nil {
			return g.leave(err)
		}
		if who, ok := identity.FromContext(ctx); ok && who.Kind != identity.KindAnonymous {
			conn = whileLoggedIn{conn, ctx, g.people}
		}
		return g.leave(next(ctx, conn))
	}
}

// whileLoggedIn is a stream that says nothing more once its login has ended: a
// stream lives for hours, a lock must not wait for its end.
type whileLoggedIn struct {
	connect.StreamingHandlerConn
	ctx    context.Context
	people *identity.People
}

// Send implements connect.StreamingHandlerConn.
func (c whileLoggedIn) Send(m any) error {
	if _, err := c.people.Authenticate(c.ctx, bearerOf(c.RequestHeader())); err != nil {
		return err
	}
	return c.StreamingHandlerConn.Send(m)
}

// brakes are the actions that only take power away, and must work while the
// database is away. To resume is none: its act needs the database.
var brakes = map[string]bool{"people.lock": true, "grants.revoke": true, "sessions.control": true}

// enter finds out who asks. A method without an action needs no login; a
// method that is not in the table is refused.
func (g *gate) enter(ctx context.Context, procedure string, header http.Header, address string) (context.Context, error) {
	r, ok := g.rules[procedure]
	if !ok {
		return ctx, fault.New(fault.Internal, "cannot serve %s: it names no action", procedure)
	}
	source := sourceOf(header, address)
	if r.action == "" {
		return identity.WithPrincipal(ctx, identity.Principal{Kind: "anonymous", Source: source}), nil
	}
	authenticate := g.people.Authenticate
	if brakes[r.action] {
		authenticate = g.people.AuthenticateBrake
	}
	who, err := authenticate(ctx, bearerOf(header))
	if err != nil {
		return ctx, err
	}
	who.Source = source
	ctx = identity.WithPrincipal(ctx, who)
	if r.audit == handrailv1.Audit_AUDIT_SUMMARY {
		err = g.door.Read(ctx, doorway.Act{Action: r.action, By: who})
	}
	return ctx, err
}

// leave turns an error into one that carries its fault. What is nobody's to
// act on keeps its text in the log alone. That a caller went away, or closed its
// stream, is no failure of ours, and nobody is there to be told.
func (g *gate) leave(err error) error {
	if err == nil {
		return nil
	}
	f := fault.From(err)
	if f.Kind == fault.Internal && connect.CodeOf(err) == connect.CodeCanceled {
		return err
	}
	text := f.Text
	if f.Kind == fault.Internal {
		g.log.Error("a call failed", "error", err)
		if f.Hint == "" {
			f = &fault.Error{Kind: fault.Internal, Text: text, Hint: "handrail status; the server's log says more"}
		}
	}
	return handrailv1connect.NewError(f.Kind.ConnectCode(), &handrailv1.Fault{
		Kind: f.Kind.String(), Text: text, Hint: f.Hint, Rule: f.Rule, Entry: f.Entry,
	})
}

// bearerOf reads the login from the Authorization header.
func bearerOf(h http.Header) string {
	token, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return strings.TrimSpace(token)
}

// pageSource is set by the page's in-process transport alone; the front
// removes it from what comes over the network.
const pageSource = "Handrail-Source"

func sourceOf(h http.Header, address string) string {
	if s := h.Get(pageSource); s != "" {
		address = s
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// caller returns who asks; enter put them there.
func caller(ctx context.Context) identity.Principal {
	p, _ := identity.FromContext(ctx)
	return p
}
