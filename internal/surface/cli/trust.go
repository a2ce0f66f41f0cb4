package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// trust holds the newest trust bundle that the pinned root key signed. It only
// moves forward: a bundle that is older, or of another root, is refused.
type trust struct {
	folder   folder
	address  string
	rootHash string

	mu     sync.Mutex
	bundle ledger.Bundle
	signed []byte
}

// stored opens the bundle that the folder keeps; a folder without one starts
// empty and learns it from the server, checked against the pinned root.
func (tr *trust) stored() error {
	raw, err := os.ReadFile(tr.folder.path(fileBundle))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the trust bundle")
	}
	b, err := ledger.OpenBundle(raw, tr.rootHash)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot trust %s", tr.folder.path(fileBundle)).
			WithHint("handrail logout --forget && handrail login")
	}
	tr.bundle, tr.signed = b, raw
	return nil
}

// accept takes a bundle that the server sent. What is on disk is replaced only
// once the new one is checked.
func (tr *trust) accept(signed []byte) error {
	b, err := ledger.OpenBundle(signed, tr.rootHash)
	if err != nil {
		return fault.Wrap(fault.Unauthenticated, err, "cannot trust the server at %s", tr.address).
			WithHint("handrail logout --forget, then ask for a new login token")
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if b.Epoch < tr.bundle.Epoch || b.Version < tr.bundle.Version {
		return fault.New(fault.Unauthenticated, "cannot trust the server at %s: its trust bundle %d is older than %d, which this device has seen",
			tr.address, b.Version, tr.bundle.Version).
			WithHint("ask who runs the server whether it was restored from a backup")
	}
	if string(signed) == string(tr.signed) {
		return nil
	}
	if tr.signed != nil && b.Version == tr.bundle.Version {
		return fault.New(fault.Unauthenticated, "cannot trust the server at %s: there are two trust bundles %d", tr.address, b.Version).
			WithHint("ask who runs the server: its root key may be in other hands")
	}
	if err := tr.folder.write(fileBundle, signed); err != nil {
		return err
	}
	tr.bundle, tr.signed = b, append([]byte(nil), signed...)
	return nil
}

// fetch asks the server for its bundle. The connection is not verified, and
// need not be: the bundle is public and the root's signature is on it.
func (tr *trust) fetch(ctx context.Context) error {
	plain := &http.Client{Transport: &http.Transport{
		DialContext:     dialer().DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ServerName: gatewayName, NextProtos: []string{"http/1.1"}},
	}}
	defer plain.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	answer, err := handrailv1connect.NewLoginsClient(plain, "https://"+tr.address).Trust(ctx, &v1.TrustRequest{})
	if err != nil {
		return unreachable(tr.address, err)
	}
	return tr.accept(answer.Bundle)
}

func dialer() *net.Dialer { return &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second} }

// dial opens TLS to the server and checks its certificate against the CA of
// the bundle. A certificate of an unknown CA may mean that the CA was rotated:
// then the bundle is asked for again, once.
func (tr *trust) dial(ctx context.Context, network, address string) (net.Conn, error) {
	for attempt := 0; ; attempt++ {
		if tr.empty() {
			if err := tr.fetch(ctx); err != nil {
				return nil, err
			}
		}
		raw, err := dialer().DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, tr.config())
		if err = conn.HandshakeContext(ctx); err == nil {
			return conn, nil
		}
		raw.Close()
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			return nil, err
		}
		before := tr.version()
		if attempt > 0 || tr.fetch(ctx) != nil || tr.version() == before {
			return nil, fault.New(fault.Unauthenticated, "cannot trust the server at %s: its certificate is not of this installation", address).
				WithHint("check the address; a new installation needs a new login token")
		}
	}
}

func (tr *trust) empty() bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.signed == nil
}

func (tr *trust) version() int64 {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.bundle.Version
}

func (tr *trust) current() ledger.Bundle {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.bundle
}

func (tr *trust) config() *tls.Config {
	pool := x509.NewCertPool()
	for _, der := range tr.current().Authorities(time.Now()) {
		if ca, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(ca)
		}
	}
	return &tls.Config{RootCAs: pool, ServerName: gatewayName, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
}

// address takes what a token carries, host:port or a URL, and returns
// host:port.
func address(s string) string {
	if strings.Contains(s, "://") {
		if u, err := url.Parse(s); err == nil {
			return u.Host
		}
	}
	return strings.TrimSuffix(s, "/")
}

func splitAddress(s string) (host, port string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", ""
	}
	return host, port
}
