package keyring

import (
	"crypto/rand"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// voucherSlack is how far a host's clock may be behind.
const voucherSlack = 5 * time.Minute

func (r *Ring) loadVoucher(d secureDir) error {
	if !d.has(fileVoucherCA) {
		return nil
	}
	key, err := d.readEd25519(fileVoucherCA)
	if err != nil {
		return err
	}
	if r.voucher, err = ssh.NewSignerFromKey(key); err != nil {
		return d.damaged(fileVoucherCA, err)
	}
	return nil
}

// GivesVouchers says whether this installation has an authority for vouchers.
func (r *Ring) GivesVouchers() bool { return r.voucher != nil && len(r.bundle.VoucherCA) > 0 }

// SignVoucher certifies a person's key as a voucher with these terms.
func (r *Ring) SignVoucher(key ssh.PublicKey, serial uint64, terms wire.VoucherTerms, validFor time.Duration) (*ssh.Certificate, error) {
	if !r.GivesVouchers() {
		return nil, fault.New(fault.Unavailable, "cannot give vouchers: this installation has no authority for them").
			WithHint("handrail voucher trust (where the root key is), then start the server again")
	}
	if validFor <= 0 || validFor > wire.MaxVoucherLife {
		return nil, fault.New(fault.Invalid, "cannot give a voucher for %s: at most %s", validFor, wire.MaxVoucherLife)
	}
	return MakeVoucher(r.voucher, key, serial, terms, time.Now(), validFor)
}

// MakeVoucher makes the certificate. A ceremony calls it with the key that it
// put together; the server goes through SignVoucher.
func MakeVoucher(by ssh.Signer, key ssh.PublicKey, serial uint64, terms wire.VoucherTerms, now time.Time, validFor time.Duration) (*ssh.Certificate, error) {
	if _, isCert := key.(*ssh.Certificate); isCert {
		return nil, fault.New(fault.Invalid, "cannot make a voucher: the key is a certificate already")
	}
	terms.Key = wire.KeyFile
	options := map[string]string{"force-command": wire.VoucherCommand}
	if strings.HasPrefix(key.Type(), "sk-") {
		terms.Key = wire.KeyHardware
		options["verify-required"] = ""
	}
	text, err := terms.Marshal()
	if err != nil {
		return nil, err
	}
	options[wire.VoucherOption] = text
	cert := &ssh.Certificate{
		Key: key, Serial: serial, CertType: ssh.UserCert, KeyId: "handrail voucher of " + terms.Person,
		ValidPrincipals: []string{wire.VoucherPrincipal},
		ValidAfter:      uint64(now.Add(-voucherSlack).Unix()), ValidBefore: uint64(now.Add(validFor).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: options, Extensions: map[string]string{"permit-pty": ""}},
	}
	if err := cert.SignCert(rand.Reader, by); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make a voucher")
	}
	return cert, nil
}
