package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"path/filepath"
	"time"

	mathrand "math/rand/v2"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	// renewLook is how often the certificate's age is looked at: the clock may
	// jump meanwhile.
	renewLook = time.Hour
	// renewRest is the least pause after a renewal, done or refused.
	renewRest = 10 * time.Minute
	// renewSpread is over how long a fleet renews when its authority was replaced.
	renewSpread = 20 * time.Second
	// renewTimeout bounds one: it is an entry in the ledger.
	renewTimeout = 30 * time.Second
)

// newKey makes a key of this node, which never leaves the host, and the
// request for its certificate.
func newKey(name string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key")
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a certificate request")
	}
	return key, csr, nil
}

// checkCertificate refuses a certificate that is not for our key, not of the
// installation or not of this host.
func checkCertificate(der []byte, key *ecdsa.PrivateKey, roots *x509.CertPool, host string) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot use the certificate")
	}
	if pub, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return fault.New(fault.Internal, "cannot use the certificate: it is for another key")
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != "handrail://node/"+host {
		return fault.New(fault.Internal, "cannot use the certificate: it is not of host %s", host)
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot use the certificate: it is not of this installation")
	}
	return nil
}

// keep replaces key and certificate, on disk first. The next connection uses
// them; the present one goes on.
func (id *identity) keep(key *ecdsa.PrivateKey, der []byte) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	pair := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(id.dir, pairName), pair); err != nil {
		return err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert = cert
	return nil
}

// untilRenewal is the time until a third of the certificate's life is left, or
// none if the authority that made it was replaced.
func (id *identity) untilRenewal(now time.Time) time.Duration {
	id.mu.Lock()
	leaf, current := id.cert.Leaf, id.certifiedLocked()
	id.mu.Unlock()
	if !current {
		return 0
	}
	return untilThird(leaf, now)
}

// untilThird is the time until a third of a certificate's life is left.
func untilThird(leaf *x509.Certificate, now time.Time) time.Duration {
	return leaf.NotAfter.Sub(now) - leaf.NotAfter.Sub(leaf.NotBefore)/3
}

// renewals keeps this node's certificate from running out.
func (b *bus) renewals(ctx context.Context) error {
	for {
		wait := min(b.l.id.untilRenewal(time.Now()), renewLook)
		if wait <= 0 {
			if err := b.renew(ctx); err == nil {
				b.l.log.Info("the certificate was renewed")
			} else if ctx.Err() == nil {
				b.l.log.Warn("the certificate was not renewed", "left", time.Until(b.l.id.ends()).Round(time.Minute), "error", err)
			}
			wait = renewRest
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.l.id.turned:
			if err := pause(ctx, mathrand.N(renewSpread)); err != nil {
				return err
			}
		case <-time.After(wait + mathrand.N(renewRest/2)): // a fleet that joined in one hour must not renew in one second
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (id *identity) ends() time.Time {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert.Leaf.NotAfter
}

// renew gets a certificate for a new key. Until it is kept the old one is good.
func (b *bus) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	id := b.l.id
	key, csr, err := newKey(id.Host)
	if err != nil {
		return err
	}
	ask, err := json.Marshal(wire.RenewAsk{V: 1, CSR: csr})
	if err != nil {
		return err
	}
	m, err := b.nc.RequestWithContext(ctx, wire.UpSubject(id.Host, wire.UpRenew), ask)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot renew the certificate")
	}
	var a wire.RenewAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot renew the certificate")
	}
	if a.Error != "" {
		return fault.Wrap(fault.Unavailable, errors.New(a.Error), "cannot renew the certificate")
	}
	id.mu.Lock()
	bundle := id.open
	id.mu.Unlock()
	roots, err := pool(bundle)
	if err == nil {
		err = checkCertificate(a.Certificate, key, roots, id.Host)
	}
	if err != nil {
		return err
	}
	return id.keep(key, a.Certificate)
}
