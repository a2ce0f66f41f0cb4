package app

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A command about a session goes to the session's home, whichever server it
// came to: with the person's own login, so that the home finds out who asks and
// decides, once. This server only finds the home. Calls that other servers send
// here end here.

const (
	// fromServer marks a call that another server sent on; the front removes it
	// from what comes over the network.
	fromServer = "Handrail-Server"
	// sourceHeader is where the person called from, as the first server saw it.
	sourceHeader = "Handrail-Source"
	// maxAsked bounds a call that is looked into.
	maxAsked = 64 << 10
)

// aboutOne are the calls whose first field is a session's id.
var aboutOne = map[string]bool{
	"/handrail.v1.Sessions/Get": true, "/handrail.v1.Sessions/Attach": true, "/handrail.v1.Sessions/Pause": true,
	"/handrail.v1.Sessions/Resume": true, "/handrail.v1.Sessions/Stop": true, "/handrail.v1.Sessions/Replay": true,
}

// aboutCode are the calls about a client that waits at one of the servers.
var aboutCode = map[string]bool{"/handrail.v1.Logins/CodeShow": true, "/handrail.v1.Logins/CodeConfirm": true}

// aboutLeader are the calls that only the server that leads can do.
var aboutLeader = map[string]bool{"/handrail.v1.Directory/Status": true, "/handrail.v1.Directory/Sync": true}

// toHomes sends calls to where they belong.
func (s *Server) toHomes(here http.Handler) http.Handler {
	if !s.shared() {
		return here
	}
	proxy := s.proxy()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if server := s.homeOf(r); server != "" {
			proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), serverKey{}, server)))
			return
		}
		if aboutCode[r.URL.Path] {
			s.wherever(w, r, here, proxy)
			return
		}
		here.ServeHTTP(w, r)
	})
}

type serverKey struct{}

// proxy speaks with other servers over connections whose certificates say that
// they are the ones.
func (s *Server) proxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			server, _ := p.In.Context().Value(serverKey{}).(string)
			p.Out.URL = &url.URL{Scheme: "http", Host: server, Path: p.In.URL.Path, RawQuery: p.In.URL.RawQuery}
			p.Out.Host = p.In.Host // an attach stream is compared with its origin there, too
			p.Out.Header.Set(fromServer, s.id)
			if p.Out.Header.Get(sourceHeader) == "" {
				p.Out.Header.Set(sourceHeader, p.In.RemoteAddr)
			}
		},
		FlushInterval: -1,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				server, _, _ := net.SplitHostPort(address)
				return s.fleet.DialPeer(ctx, server, wire.PeerHello{V: 1, Use: wire.PeerAPI})
			},
			MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			server, _ := r.Context().Value(serverKey{}).(string)
			s.c.Log.Warn("a call could not be sent on", "server", server, "path", r.URL.Path, "error", err)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(map[string]string{"code": "unavailable", // as Connect says errors
				"message": "cannot reach server " + server + ", where this session lives: " + fault.From(err).Text})
		},
	}
}

// homeOf says to which other server a call belongs; "" is to this one. Only
// who is logged in makes this server call another.
func (s *Server) homeOf(r *http.Request) string {
	if r.Header.Get(fromServer) != "" {
		return ""
	}
	var id string
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v1/sessions/"); ok {
		id, _, _ = strings.Cut(rest, "/")
		return s.sessions.HomeOf(r.Context(), id) // the ticket proves who attaches, at the home
	}
	if !aboutOne[r.URL.Path] && !aboutLeader[r.URL.Path] {
		return ""
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	who, err := s.people.AuthenticateBrake(r.Context(), strings.TrimSpace(bearer))
	if err != nil {
		return "" // it is refused here, in the usual words
	}
	if aboutLeader[r.URL.Path] {
		return s.peers.OtherLeader()
	}
	if id = askedID(r); id == "-" {
		latest, err := s.sessions.Latest(r.Context(), who.ID)
		if err != nil {
			return ""
		}
		id = latest.ID
	}
	if id == "" {
		return ""
	}
	if r.URL.Path == "/handrail.v1.Sessions/Replay" {
		if i, err := s.sessions.Get(r.Context(), id); err == nil && s.recordings.Archived(r.Context(), i.ID) {
			return "" // what lies in the bucket, every server reads
		}
	}
	return s.sessions.HomeOf(r.Context(), id)
}

// askedID reads the first field of a call, whose body stays to be read.
func askedID(r *http.Request) string {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAsked+1))
	rest := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	if err != nil || len(body) > maxAsked {
		return ""
	}
	kind := r.Header.Get("Content-Type")
	if strings.HasPrefix(kind, "application/connect+") { // a stream's message has a head: flags, length
		if len(body) < 5 || body[0] != 0 {
			return ""
		}
		body, kind = body[5:], strings.Replace(kind, "connect+", "", 1)
	}
	if strings.HasPrefix(kind, "application/json") {
		var asked struct {
			ID string `json:"id"`
		}
		_ = json.Unmarshal(body, &asked) // what cannot be read is refused by who serves it
		return asked.ID
	}
	return firstField(body)
}

// firstField is the text of field 1 of a protobuf message.
func firstField(b []byte) string {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ""
		}
		b = b[n:]
		if number == 1 && kind == protowire.BytesType {
			text, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return ""
			}
			return string(text)
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return ""
		}
		b = b[n:]
	}
	return ""
}

// wherever asks here, and where nothing is known here, the other servers.
func (s *Server) wherever(w http.ResponseWriter, r *http.Request, here, proxy http.Handler) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAsked+1))
	if err != nil || len(body) > maxAsked || r.Header.Get(fromServer) != "" {
		r.Body = io.NopCloser(bytes.NewReader(body))
		here.ServeHTTP(w, r)
		return
	}
	again := func(ctx context.Context, h http.Handler) *kept {
		in := r.Clone(ctx)
		in.Body = io.NopCloser(bytes.NewReader(body))
		k := &kept{header: http.Header{}, code: http.StatusOK}
		h.ServeHTTP(k, in)
		return k
	}
	answer := again(r.Context(), here)
	for _, p := range s.peers.List() {
		if answer.code != http.StatusNotFound {
			break
		}
		if p.Self || !p.Serves() || !p.Alive {
			continue
		}
		if k := again(context.WithValue(r.Context(), serverKey{}, p.ID), proxy); k.code != http.StatusServiceUnavailable {
			answer = k
		}
	}
	answer.send(w)
}

// kept is a small answer that may be thrown away.
type kept struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) WriteHeader(code int)        { k.code = code }
func (k *kept) Write(p []byte) (int, error) { return k.body.Write(p) }

func (k *kept) send(w http.ResponseWriter) {
	for name, values := range k.header {
		w.Header()[name] = values
	}
	w.WriteHeader(k.code)
	_, _ = w.Write(k.body.Bytes())
}
