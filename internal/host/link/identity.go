package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// serverName stands in every server certificate of an installation: which
// address a server has is not what makes it one.
const serverName = "server.handrail.internal"

const (
	// pairName holds key and certificate: one file, so that they are replaced
	// together.
	pairName = "node.pem"
	infoName = "node.json"
)

// identity is what Join wrote: who this node is and whom it trusts.
type identity struct {
	V         int      `json:"v"`
	Host      string   `json:"host"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	RootHash  string   `json:"root_hash"`
	Bundle    []byte   `json:"bundle"`
	// Servers is the newest list that the order key signed. From then on
	// Addresses counts no more.
	Servers *wire.Servers `json:"servers,omitempty"`

	dir  string
	cert tls.Certificate
	mu   sync.Mutex
	open ledger.Bundle
	// turned hears that another authority certifies from now on.
	turned chan struct{}
}

// IsJoined reports whether dir holds an identity.
func IsJoined(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, infoName))
	return err == nil
}

func load(dir string) (*identity, error) {
	b, err := os.ReadFile(filepath.Join(dir, infoName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "cannot start the link: this host has not joined an installation").
			WithHint("handrail host invite (on the server), then handrail join here")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot start the link")
	}
	id := &identity{dir: dir, turned: make(chan struct{}, 1)}
	if err := json.Unmarshal(b, id); err != nil || id.V != 1 || len(id.Addresses) == 0 {
		return nil, fault.New(fault.Invalid, "cannot read %s: it is damaged", filepath.Join(dir, infoName)).
			WithHint("remove %s and join again", dir)
	}
	if id.open, err = ledger.OpenBundle(id.Bundle, id.RootHash); err != nil {
		return nil, err
	}
	if id.cert, err = tls.LoadX509KeyPair(filepath.Join(dir, pairName), filepath.Join(dir, pairName)); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot use this node's certificate").WithHint("remove %s and join again", dir)
	}
	return id, nil
}

func (id *identity) save() error {
	b, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(id.dir, infoName), b)
}

// writeFile replaces a file: a crash leaves the old or the new one. It writes
// to no file that was there: root joins in a folder that is the link's, and a
// link left under that name would lead root elsewhere.
func writeFile(path string, b []byte) error {
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// learn keeps a newer trust bundle, if the pinned root key signed it.
func (id *identity) learn(signed []byte) error {
	if len(signed) == 0 {
		return nil
	}
	b, err := ledger.OpenBundle(signed, id.RootHash)
	if err != nil {
		return err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if b.Version <= id.open.Version || b.Epoch < id.open.Epoch || b.Origin != id.open.Origin {
		return nil
	}
	id.open, id.Bundle = b, signed
	if !id.certifiedLocked() {
		select {
		case id.turned <- struct{}{}:
		default: // it was said already
		}
	}
	return id.save()
}

func pool(b ledger.Bundle) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	for _, der := range b.Authorities(time.Now()) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot use the trust bundle's CA")
		}
		p.AddCert(c)
	}
	return p, nil
}

// noProtocol is the TLS alert of a server that speaks none of our protocols.
const noProtocol = tls.AlertError(120)

// certifiedLocked says whether an authority in force certified this node. The
// caller holds mu.
func (id *identity) certifiedLocked() bool {
	for _, der := range id.open.CA {
		c, err := x509.ParseCertificate(der)
		if err == nil && id.cert.Leaf != nil && id.cert.Leaf.CheckSignatureFrom(c) == nil {
			return true
		}
	}
	return false
}

// dial makes the mTLS connection. A server of an unknown authority may mean that
// this node was away while authorities were replaced: then the trust bundle is
// asked for, once. That question needs no trust, since the root key signed the
// answer.
func (id *identity) dial(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), at wire.ServerAt) (net.Conn, error) {
	c, err := id.dialOnce(ctx, dial, at)
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		return c, err
	}
	_, signed, terr := joiner{address: at.Address, t: ledger.Token{RootHash: id.RootHash}, o: JoinOptions{Dial: dial}}.trust(ctx)
	if terr != nil || id.learn(signed) != nil {
		return nil, err
	}
	return id.dialOnce(ctx, dial, at)
}

// dialOnce knows the server by the installation's authorities alone, which the
// pinned root key vouches for.
func (id *identity) dialOnce(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), at wire.ServerAt) (net.Conn, error) {
	address := at.Address
	id.mu.Lock()
	bundle, cert := id.open, id.cert
	id.mu.Unlock()
	roots, err := pool(bundle)
	if err != nil {
		return nil, err
	}
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot connect to %s", address)
	}
	c := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName, NextProtos: []string{wire.ALPN},
		Certificates: []tls.Certificate{cert}, VerifyConnection: checkServer(at.ID),
	})
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		if alert := tls.AlertError(0); errors.As(err, &alert) && alert == noProtocol {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot connect to %s: the server is of another release and does not speak %s; upgrade servers before nodes", address, wire.ALPN)
		}
		return nil, fault.Wrap(fault.Unavailable, err, "cannot connect to %s", address)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != wire.ALPN {
		c.Close()
		return nil, fault.New(fault.Unavailable, "cannot connect to %s: it speaks %q, not %q", address, p, wire.ALPN)
	}
	return c, nil
}
