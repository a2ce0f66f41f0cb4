package sshgate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/crowd"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

// handshake is what one connection's authentication needs to remember.
type handshake struct {
	g       *Gate
	ctx     context.Context
	raw     *crowd.Stranger
	source  string
	offered ssh.PublicKey // the last key that nobody knows; shown with the code
	failed  string
}

type principalKey struct{}

const serverVersion = "SSH-2.0-handrail"

func (h *handshake) config() *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		MaxAuthTries: 6, ServerVersion: serverVersion,
		PublicKeyCallback:           h.publicKey,
		KeyboardInteractiveCallback: h.code,
	}
	for _, k := range h.g.d.HostKeys {
		c.AddHostKey(k)
	}
	return c
}

var errUnknown = errors.New("not known here")

// publicKey says whose certificate or key this is. The library calls it before
// the client has proved that it holds the key; what it returns counts only for
// the key that is proved.
func (h *handshake) publicKey(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	var by identity.Principal
	var err error
	if cert, ok := key.(*ssh.Certificate); ok {
		if err := refusedCertificate(cert); err != nil {
			h.failed = err.Error()
			return nil, err
		}
		by, err = h.g.d.People.AuthenticateSSH(h.ctx, cert)
	} else {
		if by, err = h.g.d.People.AuthenticateKey(h.ctx, key); err != nil {
			h.offered = key
		}
	}
	if err != nil {
		h.failed = "key"
		return nil, errUnknown
	}
	return h.permit(by, key), nil
}

// refusedCertificate refuses what a user certificate of ours never is. A
// critical option that we do not enforce must be refused, by its definition.
func refusedCertificate(cert *ssh.Certificate) error {
	if cert.CertType != ssh.UserCert {
		return errors.New("not a user certificate")
	}
	for name := range cert.CriticalOptions {
		return fmt.Errorf("critical option %q", name)
	}
	return nil
}

func (h *handshake) permit(by identity.Principal, key ssh.PublicKey) *ssh.Permissions {
	by.Source = h.source
	p := &ssh.Permissions{ExtraData: map[any]any{principalKey{}: by}}
	if cert, ok := key.(*ssh.Certificate); ok && cert.ValidBefore != ssh.CertTimeInfinity {
		p.ExtraData[expiryKey{}] = time.Unix(int64(cert.ValidBefore), 0)
	}
	return p
}

type expiryKey struct{}

// code shows a URL and a code, and waits until a person has typed it into the
// page and confirmed what it is for.
func (h *handshake) code(conn ssh.ConnMetadata, challenge ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	host, level, err := ParseUser(conn.User())
	if err != nil {
		_, _ = challenge("", "handrail: "+fault.From(err).Text+"\n", nil, nil)
		return nil, err
	}
	select {
	case h.g.codes <- struct{}{}:
		defer func() { <-h.g.codes }()
		h.raw.Known() // it is silent while its person types; the number of those is bounded here
	default:
		_, _ = challenge("", "handrail: too many clients wait for a code; try again in a minute, or: handrail login\n", nil, nil)
		return nil, errors.New("too many codes")
	}
	code, wait, err := h.g.d.People.NewCode(h.ctx, identity.CodeRequest{Source: h.source, Target: host, Level: level, Key: h.offered})
	if err != nil {
		_, _ = challenge("", "handrail: "+fault.From(err).Text+"\n", nil, nil)
		return nil, err
	}
	_ = h.raw.SetDeadline(time.Now().Add(h.g.b.CodeTime + 10*time.Second))
	text := fmt.Sprintf("handrail does not know this key. Open %s\nand type the code  %s\n(from %s, to %s, %s; waiting %s)\n",
		h.g.d.CodeURL, code, h.source, host, level, h.g.b.CodeTime)
	// A client shows an instruction at once, and a prompt-less round answers by itself.
	if _, err := challenge("", text, nil, nil); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(h.ctx, h.g.b.CodeTime)
	defer cancel()
	by, err := wait(ctx)
	if err != nil {
		h.failed = "code"
		return nil, err
	}
	return h.permit(by, nil), nil
}
