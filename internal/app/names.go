package app

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/target"
)

// onlyOurNames answers only requests for a name of this installation. A site
// that lets its own name point here (DNS rebinding) makes a browser take this
// page for one of its own, and could read what the page and the API say.
//
// An address is ours if the connection came to it. Commands and nodes name us
// in the TLS handshake instead, whatever they dial, and trust our authority
// alone: no browser does.
func (s *Server) onlyOurNames(next http.Handler) http.Handler {
	ours := map[string]bool{}
	for _, name := range namesOf(s.url()) {
		ours[bareName(name)] = true
	}
	var given *x509.Certificate
	if s.c.Given != nil && len(s.c.Given.Certificate) > 0 {
		given, _ = x509.ParseCertificate(s.c.Given.Certificate[0]) // what cannot be read names nobody
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := bareName(r.Host)
		switch {
		case ours[name], cameTo(r, name):
		case r.TLS != nil && r.TLS.ServerName == keyring.ServerName:
		case given != nil && name != "" && given.VerifyHostname(name) == nil:
		default:
			misdirected(w, r, s.url())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownName is what this machine calls itself, if that can be the name of a host
// and of a ledger: neither changes later. A kernel that nobody told says "(none)".
func ownName() (string, error) {
	said, err := os.Hostname()
	name := strings.ToLower(said)
	if err == nil {
		err = target.ValidName(name)
	}
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot start: this machine calls itself %.80q, which cannot be the name of a host", said).
			WithHint("hostname NAME   # letters, digits and . _ -; the same name in /etc/hostname makes it last")
	}
	return name, nil
}

// bareName is a host without port, brackets, case and the dot of the root.
func bareName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// cameTo says whether name is the very address that the connection reached.
func cameTo(r *http.Request, name string) bool {
	ip, err := netip.ParseAddr(name)
	here, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return err == nil && ok && here.AddrPort().Addr().Unmap() == ip.Unmap()
}

func misdirected(w http.ResponseWriter, r *http.Request, url string) {
	text := fmt.Sprintf("cannot answer to the name %.100q: this handrail is at %s; to give it another name: handrail up --url URL", r.Host, url)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Connection", "close")
	if isAPI(r.URL.Path) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusMisdirectedRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": "failed_precondition", "message": text}) // as Connect says errors
		return
	}
	http.Error(w, text, http.StatusMisdirectedRequest)
}

// passkeyName is what passkeys are bound to: the name in the page's address,
// with or without a port.
func passkeyName(page string) string {
	if u, err := url.Parse(page); err == nil && u.Hostname() != "" {
		return u.Hostname()
	}
	return "localhost"
}
