package entrance

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Authorities are whose vouchers count.
type Authorities struct {
	Voucher []string // authorized_keys lines; the server's
	Offline []string // of the ceremony
}

// Voucher is a certificate that was checked.
type Voucher struct {
	wire.VoucherTerms
	Serial  uint64
	Offline bool // made by a ceremony
	Expires time.Time
}

// maxCertificate bounds what is parsed; the terms are most of it.
const maxCertificate = 200 << 10

// Check judges a voucher by itself: form, authority, validity at that time, and
// that nothing in it is not understood here. Whether this host honours vouchers
// now is the warden's question.
func Check(raw []byte, a Authorities, now time.Time) (Voucher, error) {
	var v Voucher
	if len(raw) > maxCertificate {
		return v, fault.New(fault.Invalid, "cannot use voucher: it has %d bytes", len(raw))
	}
	key, err := ssh.ParsePublicKey(raw)
	if err != nil {
		return v, fault.Wrap(fault.Invalid, err, "cannot read voucher")
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return v, fault.New(fault.Denied, "cannot use this key alone: the entrance opens for vouchers").
			WithHint("ssh -o CertificateFile=… as the voucher says; handrail voucher show")
	}
	signer := cert.SignatureKey.Marshal()
	switch {
	case names(a.Voucher, signer):
	case names(a.Offline, signer):
		v.Offline = true
	default:
		return v, fault.New(fault.Denied, "cannot use voucher: this installation's voucher authority did not sign it")
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{wire.VoucherOption, "force-command", "verify-required"},
		Clock:                    func() time.Time { return now },
		IsUserAuthority:          func(ssh.PublicKey) bool { return true }, // decided above
	}
	if err := checker.CheckCert(wire.VoucherPrincipal, cert); err != nil {
		return v, fault.Wrap(fault.Denied, err, "cannot use voucher").WithHint("handrail voucher fetch, while the server answers")
	}
	if v.VoucherTerms, err = wire.ParseVoucherTerms(cert.CriticalOptions[wire.VoucherOption]); err != nil {
		return v, err
	}
	v.Serial, v.Expires = cert.Serial, time.Unix(int64(cert.ValidBefore), 0)
	return v, v.checkForm(cert)
}

// checkForm refuses what our own authority does not make: an authority whose
// key is used for something else is a stolen one.
func (v Voucher) checkForm(cert *ssh.Certificate) error {
	bad := func(why string) error { return fault.New(fault.Denied, "cannot use voucher %d: %s", v.Serial, why) }
	longest := wire.MaxVoucherLife
	if v.Offline {
		longest = wire.MaxCeremonyLife
	}
	hardware := strings.HasPrefix(cert.Key.Type(), "sk-")
	switch {
	case cert.CertType != ssh.UserCert:
		return bad("it is no user certificate")
	case !slices.Equal(cert.ValidPrincipals, []string{wire.VoucherPrincipal}):
		return bad("its principals are not those of a voucher")
	case cert.CriticalOptions["force-command"] != wire.VoucherCommand:
		return bad("its command is not that of a voucher")
	case cert.ValidBefore <= cert.ValidAfter || cert.ValidBefore-cert.ValidAfter > uint64((longest+2*clockSlack)/time.Second): // in seconds: for ever is more than a Duration holds
		return bad("it is valid for longer than a voucher may be")
	case hardware != (v.Key == wire.KeyHardware):
		return bad("its key is not of the kind it says")
	case !v.Offline && (v.Reason != "" || len(v.Officers) > 0 || slices.ContainsFunc(v.Hosts, func(h wire.VoucherHost) bool { return h.ID == wire.EveryHost })):
		return bad("it says what only a ceremony may say")
	case v.Serial == 0:
		return bad("it has no serial")
	}
	return nil
}

// clockSlack is how far before its making a voucher is valid, for clocks that
// are behind.
const clockSlack = 5 * time.Minute

func names(lines []string, key []byte) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		return err == nil && bytes.Equal(pub.Marshal(), key)
	})
}
