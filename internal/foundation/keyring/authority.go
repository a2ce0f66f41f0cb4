package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// ServerName is the name that nodes and clients expect in the certificate of
// any server of the installation, whatever address they reached it by.
const ServerName = "server.handrail.internal"

const (
	certificateFor = 90 * 24 * time.Hour
	nodeScheme     = "handrail"
	nodeAuthority  = "node"
)

var hostID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^h-[0-9a-z]{1,32}$`) })

// CAPool holds the installation's authorities alone, those that count now: no
// public one is trusted. Ask for it at each connection; keys are rotated.
func (r *Ring) CAPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range r.keys().bundle.Authorities(time.Now()) {
		if cert, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(cert)
		}
	}
	return pool
}

// ServerCertificates gives a server its certificate for as long as it runs:
// another one, with another key, once a third of its time is left or the
// authority was replaced.
func (r *Ring) ServerCertificates(names []string) (current func() (*tls.Certificate, error), err error) {
	first, err := r.ServerCertificate(names)
	if err != nil {
		return nil, err
	}
	return r.servingFrom(&first, names), nil
}

func (r *Ring) servingFrom(cert *tls.Certificate, names []string) func() (*tls.Certificate, error) {
	var mu sync.Mutex
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		left, current := time.Until(cert.Leaf.NotAfter), bytes.Equal(cert.Certificate[1], r.keys().caCert.Raw)
		if current && left > cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)/3 {
			return cert, nil
		}
		next, err := r.ServerCertificate(names)
		if err != nil {
			return cert, nil // it may do for a while yet
		}
		cert = &next
		return cert, nil
	}
}

// ServerCertificate makes a key and a certificate of the installation for a
// server that is reached under these names and addresses, good for 90 days.
// The key lives in memory only: each start makes another.
func (r *Ring) ServerCertificate(names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fault.Wrap(fault.Internal, err, "cannot make a server key")
	}
	tmpl := r.template("handrail server", x509.ExtKeyUsageServerAuth)
	tmpl.DNSNames = []string{ServerName}
	if r.server != "" {
		tmpl.URIs = []*url.URL{serverURI(r.server)}
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if n != "" && n != ServerName {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	k := r.keys()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, k.caCert, key.Public(), k.ca)
	if err != nil {
		return tls.Certificate{}, fault.Wrap(fault.Internal, err, "cannot certify the server")
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fault.Wrap(fault.Internal, err, "cannot certify the server")
	}
	return tls.Certificate{Certificate: [][]byte{der, k.caCert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// IssueNode certifies the key in a certificate request for one host, for 90
// days. Of the request only the key is used: who the node is, we say.
func (r *Ring) IssueNode(csr []byte, host string) ([]byte, error) {
	return r.IssueNodeFor(csr, host, certificateFor)
}

// IssueNodeFor is IssueNode for another time.
func (r *Ring) IssueNodeFor(csr []byte, host string, life time.Duration) ([]byte, error) {
	if !hostID().MatchString(host) {
		return nil, fault.New(fault.Invalid, "cannot certify a node: %q is not a host id", host)
	}
	if len(csr) > 8<<10 {
		return nil, fault.New(fault.Invalid, "cannot certify a node: its request has %d bytes", len(csr))
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot certify a node: its request is malformed")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot certify a node: it does not hold the key it asks for")
	}
	switch key := req.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, fault.New(fault.Invalid, "cannot certify a node: its curve is %s, not P-256 or P-384", key.Params().Name)
		}
	default:
		return nil, fault.New(fault.Invalid, "cannot certify a node: its key is %T, not ECDSA or Ed25519", key)
	}
	tmpl := r.template(host, x509.ExtKeyUsageClientAuth)
	tmpl.NotAfter = time.Now().Add(life)
	tmpl.URIs = []*url.URL{{Scheme: nodeScheme, Host: nodeAuthority, Path: "/" + host}}
	k := r.keys()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, k.nodeCA.cert, req.PublicKey, k.nodeCA.ca)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot certify a node")
	}
	return der, nil
}

// NodeOf says which host a verified node certificate is for. The caller has
// checked the chain against CAPool; this reads the one name that counts.
func NodeOf(cert *x509.Certificate) (string, error) {
	if len(cert.URIs) == 1 && len(cert.DNSNames) == 0 {
		u := cert.URIs[0]
		host, ok := strings.CutPrefix(u.Path, "/")
		if ok && u.Scheme == nodeScheme && u.Host == nodeAuthority && hostID().MatchString(host) {
			return host, nil
		}
	}
	return "", fault.New(fault.Unauthenticated, "cannot tell which node this is: its certificate names none")
}

func (r *Ring) template(name string, use x509.ExtKeyUsage) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: randomSerial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(certificateFor),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
	}
}
