package keyring

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// MaxSSHUser is how long an SSH user certificate lives at most.
const MaxSSHUser = 8 * time.Hour

// skew is how far a client's clock may be behind ours.
const skew = time.Minute

const hostCertificateFor = 365 * 24 * time.Hour

// SignSSHUser certifies a device's key for a person, for at most eight hours.
// The key id says which device and person ("handrail:d-…:p-…"), the one
// principal is the person, and the one permission is a terminal: no port,
// agent or X11 forwarding.
func (r *Ring) SignSSHUser(key ssh.PublicKey, personID, deviceID string, validFor time.Duration) (*ssh.Certificate, error) {
	if _, isCert := key.(*ssh.Certificate); isCert {
		return nil, fault.New(fault.Invalid, "cannot certify an SSH key: it is a certificate already")
	}
	if validFor <= 0 || validFor > MaxSSHUser {
		return nil, fault.New(fault.Invalid, "cannot certify an SSH key for %s: at most %s", validFor, MaxSSHUser)
	}
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, Serial: binary.BigEndian.Uint64(randomBytes(8)), CertType: ssh.UserCert,
		KeyId: "handrail:" + deviceID + ":" + personID, ValidPrincipals: []string{personID},
		ValidAfter: uint64(now.Add(-skew).Unix()), ValidBefore: uint64(now.Add(validFor).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}},
	}
	if err := cert.SignCert(rand.Reader, r.keys().sshUser); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot certify an SSH key")
	}
	return cert, nil
}

// IsSSHUserAuthority says whether key is an authority for people's keys that
// counts now.
func (r *Ring) IsSSHUserAuthority(key ssh.PublicKey) bool {
	return slices.Contains(r.keys().bundle.SSHAuthorities(ledger.KeySSHUser, time.Now()), sshLine(key))
}

// SSHHostSigner is the gateway's host key with a certificate for these names,
// good for a year, made anew at each start.
func (r *Ring) SSHHostSigner(names []string) (ssh.Signer, error) {
	now := time.Now()
	cert := &ssh.Certificate{
		Key: r.hostKey.PublicKey(), Serial: binary.BigEndian.Uint64(randomBytes(8)), CertType: ssh.HostCert,
		KeyId: "handrail gateway", ValidPrincipals: append([]string{ServerName}, names...),
		ValidAfter: uint64(now.Add(-skew).Unix()), ValidBefore: uint64(now.Add(hostCertificateFor).Unix()),
	}
	if err := cert.SignCert(rand.Reader, r.keys().sshHost); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot certify the gateway's host key")
	}
	signer, err := ssh.NewCertSigner(cert, r.hostKey)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot certify the gateway's host key")
	}
	return signer, nil
}

// SSHHostKey is the gateway's bare host key, for clients without certificates.
func (r *Ring) SSHHostKey() ssh.Signer { return r.hostKey }
