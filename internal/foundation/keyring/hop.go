package keyring

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// MaxHop is how long a certificate lives with which the server logs in to a
// host that has no node. The session that it opens lives longer: the server
// itself must end it.
const MaxHop = 5 * time.Minute

// Hop is what one certificate of the server is for.
type Hop struct {
	Session, Person string   // ids; the host's own log shows them as the key's id
	Principals      []string // who it may log in as
	Source          string   // networks from which it counts; "": any
	ForceCommand    string   // the only command it runs; "": what is asked for
	PTY             bool
	For             time.Duration // 0: MaxHop
}

// SignSSHHop makes a key that lives in memory alone, and certifies it.
func (r *Ring) SignSSHHop(h Hop) (ssh.Signer, *ssh.Certificate, error) {
	if h.For <= 0 {
		h.For = MaxHop
	}
	if h.For > MaxHop || h.Session == "" || len(h.Principals) == 0 {
		return nil, nil, fault.New(fault.Internal, "cannot certify a hop: for %s, session %q, %d principals", h.For, h.Session, len(h.Principals))
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key for a hop")
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot make a key for a hop")
	}
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key.PublicKey(), Serial: binary.BigEndian.Uint64(randomBytes(8)), CertType: ssh.UserCert,
		KeyId: "handrail:" + h.Session + ":" + h.Person, ValidPrincipals: h.Principals,
		ValidAfter: uint64(now.Add(-skew).Unix()), ValidBefore: uint64(now.Add(h.For - skew).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: map[string]string{}},
	}
	if h.PTY {
		cert.Extensions["permit-pty"] = ""
	}
	if h.ForceCommand != "" {
		cert.CriticalOptions["force-command"] = h.ForceCommand
	}
	if h.Source != "" {
		cert.CriticalOptions["source-address"] = h.Source
	}
	if err := cert.SignCert(rand.Reader, r.keys().hopSigner(now)); err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot certify a hop")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "cannot certify a hop")
	}
	return signer, cert, nil
}

// SSHUserAuthority is what a host without a node must trust, one line for each
// public key: while an authority is replaced, the former one and the new one.
func (r *Ring) SSHUserAuthority() string {
	return strings.Join(r.keys().bundle.SSHAuthorities(ledger.KeySSHUser, time.Now()), "\n")
}
