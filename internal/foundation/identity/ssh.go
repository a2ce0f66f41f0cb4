package identity

import (
	"context"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
)

// AuthenticateSSH returns who holds the certificate. The caller has verified
// that the peer holds its key. The certificate says who; the rows say whether
// that still counts: device enrolled, login alive, person not locked.
func (p *People) AuthenticateSSH(ctx context.Context, cert *ssh.Certificate) (Principal, error) {
	person, device, err := p.readCertificate(cert)
	if err != nil {
		return Principal{}, err
	}
	return p.sshPrincipal(ctx, cert.Key, person, device)
}

// AuthenticateKey returns whose enrolled device key this is. It counts only
// while that device is logged in, as a certificate does.
func (p *People) AuthenticateKey(ctx context.Context, key ssh.PublicKey) (Principal, error) {
	return p.sshPrincipal(ctx, key, "", "")
}

func (p *People) readCertificate(cert *ssh.Certificate) (person, device string, err error) {
	refuse := func(why string) (string, string, error) {
		return "", "", fault.New(fault.Unauthenticated, "cannot accept the SSH certificate: %s", why).WithHint("handrail login")
	}
	if cert == nil || cert.CertType != ssh.UserCert || !p.ring.IsSSHUserAuthority(cert.SignatureKey) {
		return refuse("it is not of this installation")
	}
	parts := strings.Split(cert.KeyId, ":")
	if len(parts) != 3 || parts[0] != "handrail" || len(cert.ValidPrincipals) != 1 || cert.ValidPrincipals[0] != parts[2] {
		return refuse("it names nobody")
	}
	// The checker refuses what it does not know among the critical options,
	// and verifies signature and validity.
	checker := ssh.CertChecker{IsUserAuthority: p.ring.IsSSHUserAuthority, Clock: time.Now}
	if err := checker.CheckCert(parts[2], cert); err != nil {
		return refuse(strings.TrimPrefix(err.Error(), "ssh: "))
	}
	return parts[2], parts[1], nil
}

// sshPrincipal finds the device of a key and a login of it that is alive.
// person and device, where given, must be those of the rows.
func (p *People) sshPrincipal(ctx context.Context, key ssh.PublicKey, person, device string) (Principal, error) {
	var who Principal
	now := time.Now()
	err := p.store.View(ctx, func(v *store.View) error {
		d, err := liveDevice(v, key)
		if err != nil {
			return err
		}
		if person != "" && (d.Person != person || d.ID != device) {
			return unknownDevice()
		}
		rows, err := store.All[bearerRow](v, selectLogin+`WHERE l.device = $1 ORDER BY l.expires DESC LIMIT 8`, d.ID)
		if err != nil {
			return err
		}
		last := notLoggedIn()
		for _, r := range rows {
			if last = p.live(r, now); last == nil {
				who = r.principal()
				who.Via, who.Source = ViaSSH, ""
				p.standing.note("", who, 0)
				return nil
			}
		}
		return last
	})
	return who, err
}
