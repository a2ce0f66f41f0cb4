package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
)

// Cluster makes this server one of several: its message bus is routed to
// theirs. nil in Deps is a server alone.
type Cluster struct {
	ID   string // v-…, which its certificate names
	Host string // where the bus listens for the other servers
	Port int
	// Routes are the buses to call from the start. A server that comes later
	// calls this one: to change them in a running NATS would end every channel
	// of a node.
	Routes []string
	Cert   func() (*tls.Certificate, error)
	// Outside are further ways between servers that somebody else runs.
	Outside Outside
}

// Peer is another server as it is known now.
type Peer struct {
	ID, Address string
	Alive       bool // observed
}

// routeTime bounds the TLS handshake of a route.
const routeTime = 5.0

// clusterOptions adds what routes need. Only servers of the list may be one:
// a route needs a certificate that names a server, which no node has, and a
// node's own channel is a client's whatever it says.
func (f *Fleet) clusterOptions(o *server.Options) {
	c := f.d.Cluster
	if c == nil {
		return
	}
	cert := func() (*tls.Certificate, error) { return c.Cert() }
	// What crosses is only what servers say to each other: no subject of a node.
	between := &server.SubjectPermission{Allow: []string{f.prefix() + ".>"}}
	// This NATS opens its port for routes only after one for clients. That one is
	// of no use to anybody: on loopback, behind a handshake that nobody can pass.
	// Nodes and this server come through pipes, which need none.
	o.DontListen, o.Host, o.Port = false, "127.0.0.1", server.RANDOM_PORT
	o.TLSTimeout = 1
	o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() }}
	o.ServerName, o.Routes = c.ID, c.routes()
	o.Cluster = server.ClusterOpts{
		Name: "handrail", Host: c.Host, Port: c.Port, NoAdvertise: true, TLSTimeout: routeTime, AuthTimeout: routeTime,
		ConnectRetries: 0, PingInterval: 5 * time.Second, MaxPingsOut: 2,
		Permissions: &server.RoutePermissions{Import: between, Export: between},
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, ServerName: keyring.ServerName,
			// The bus takes one configuration for good, and authorities are
			// replaced: peerOf verifies each connection against those that count.
			InsecureSkipVerify:   true,
			GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() },
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert() },
			VerifyConnection: func(s tls.ConnectionState) error {
				_, err := f.peerOf(s)
				return err
			},
		},
	}
}

// routes are the addresses in the form that the bus takes.
func (c *Cluster) routes() (list []*url.URL) {
	for _, at := range c.Routes {
		list = append(list, &url.URL{Scheme: "nats-route", Host: at})
	}
	return list
}

// peerOf says which other server a TLS connection is with.
func (f *Fleet) peerOf(s tls.ConnectionState) (Peer, error) {
	if err := f.verified(s); err != nil {
		return Peer{}, fault.New(fault.Unauthenticated, "cannot speak with a server: it shows no certificate of this installation")
	}
	id, err := keyring.ServerOf(s.PeerCertificates[0])
	if err != nil {
		return Peer{}, err
	}
	p, ok := f.peer(id)
	if !ok {
		return Peer{}, fault.New(fault.Denied, "cannot speak with server %s: it is not in the list", id).WithHint("handrail servers")
	}
	return p, nil
}

func (f *Fleet) peer(id string) (Peer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.peers[id]
	return p, ok
}

// verified says whether a connection's certificate is of this installation,
// whoever verified it.
func (f *Fleet) verified(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return fault.New(fault.Unauthenticated, "no certificate")
	}
	rest := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		rest.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: f.d.Ring.CAPool(), Intermediates: rest, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// alivePeers are the other servers that live.
func (f *Fleet) alivePeers() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range f.peers {
		if p.Alive {
			ids = append(ids, id)
		}
	}
	return ids
}

// UsePeers takes the list of the other servers. Nodes that were connected to
// one that went count as away until they come to another.
func (f *Fleet) UsePeers(list []Peer) {
	if f.d.Cluster == nil {
		return
	}
	peers := map[string]Peer{}
	for _, p := range list {
		if p.ID != f.d.Cluster.ID {
			peers[p.ID] = p
		}
	}
	f.mu.Lock()
	f.peers = peers
	f.mu.Unlock()
	f.lookSoon()
}

// Routed is how many other servers' buses this one's is routed to.
func (f *Fleet) Routed() int { return f.bus.nats.NumRoutes() }
