package keyring

import (
	"crypto/x509"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

const serverAuthority = "server"

var serverID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^v-[0-9a-z]{1,32}$`) })

// ActAs says which server of the installation this is: its certificates carry
// the id from now on, and let it call other servers. Call it before the first
// certificate is made.
func (r *Ring) ActAs(server string) error {
	if !serverID().MatchString(server) {
		return fault.New(fault.Internal, "cannot act as server %q: bad id", server)
	}
	r.server = server
	return nil
}

// serverURI names a server in its certificate.
func serverURI(id string) *url.URL {
	return &url.URL{Scheme: nodeScheme, Host: serverAuthority, Path: "/" + id}
}

// ServerOf says which server a verified certificate is for. A node's names
// none: its URI is of another kind, and it may not serve.
func ServerOf(cert *x509.Certificate) (string, error) {
	if len(cert.URIs) == 1 && len(cert.DNSNames) > 0 && cert.DNSNames[0] == ServerName {
		u := cert.URIs[0]
		id, ok := strings.CutPrefix(u.Path, "/")
		if ok && u.Scheme == nodeScheme && u.Host == serverAuthority && serverID().MatchString(id) {
			return id, nil
		}
	}
	return "", fault.New(fault.Unauthenticated, "cannot tell which server this is: its certificate names none")
}
