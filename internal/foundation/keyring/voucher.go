package keyring

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// voucherSlack is how far a host's clock may be behind.
const voucherSlack = 5 * time.Minute

func readVoucher(d secureDir) (ssh.Signer, error) {
	if !d.has(fileVoucherCA) {
		return nil, nil
	}
	key, err := d.readEd25519(fileVoucherCA)
	if err != nil {
		return nil, err
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, d.damaged(fileVoucherCA, err)
	}
	return s, nil
}

// GivesVouchers says whether this installation has an authority for vouchers.
func (r *Ring) GivesVouchers() bool {
	k := r.keys()
	return k.voucher != nil && len(k.bundle.VoucherCA) > 0
}

// SignVoucher certifies a person's key as a voucher with these terms.
func (r *Ring) SignVoucher(key ssh.PublicKey, serial uint64, terms wire.VoucherTerms, validFor time.Duration) (*ssh.Certificate, error) {
	if !r.GivesVouchers() {
		return nil, fault.New(fault.Unavailable, "cannot give vouchers: this installation has no authority for them").
			WithHint("handrail voucher trust (where the root key is)")
	}
	if validFor <= 0 || validFor > wire.MaxVoucherLife {
		return nil, fault.New(fault.Invalid, "cannot give a voucher for %s: at most %s", validFor, wire.MaxVoucherLife)
	}
	return MakeVoucher(r.keys().voucher, key, serial, terms, time.Now(), validFor)
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

// OfferVoucherAuthority makes the authority for vouchers if this ring is from
// before them, and returns its public line. It counts once the root key has
// signed a bundle that names it.
func (r *Ring) OfferVoucherAuthority() (line string, err error) {
	d, err := openDir(r.dir)
	if err != nil {
		return "", err
	}
	err = d.createOnce(fileVoucherCA, func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return encodeKey(key)
	})
	if err != nil {
		return "", err
	}
	key, err := d.readEd25519(fileVoucherCA)
	if err != nil {
		return "", err
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return "", d.damaged(fileVoucherCA, err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))), nil
}

// SignVoucherTrust signs, with the root key, the bundle that follows the given
// one and differs from it in whose vouchers count, and in nothing else: a server
// that was taken over gets no other key signed this way. "" adds none.
func SignVoucherTrust(rootDir string, signed []byte, voucher, offline string) ([]byte, error) {
	root, err := openDir(rootDir)
	if err != nil {
		return nil, err
	}
	text, err := root.read(fileRoot)
	if err != nil {
		return nil, err
	}
	skey := strings.TrimSpace(string(text))
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, root.damaged(fileRoot, err)
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return nil, root.damaged(fileRoot, err)
	}
	b, err := ledger.OpenBundle(signed, ledger.RootHash(vkey))
	if err != nil {
		return nil, err
	}
	for _, add := range []struct {
		line string
		to   *[]string
	}{{voucher, &b.VoucherCA}, {offline, &b.OfflineCA}} {
		if add.line == "" {
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(add.line))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read a voucher authority's public key")
		}
		if line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))); !slices.Contains(*add.to, line) {
			*add.to = append(slices.Clone(*add.to), line)
		}
	}
	b.Version++
	return ledger.SignBundle(b, signer)
}

// SealVoucherAuthority is the authority that a bundle names and the one in force
// does not, sealed for the other servers; nil where there is none to hand on.
func (r *Ring) SealVoucherAuthority(signed []byte) (sealed []byte, err error) {
	b, err := ledger.OpenBundle(signed, r.rootHash)
	if err != nil {
		return nil, err
	}
	text, err := b.Text()
	if err != nil {
		return nil, err
	}
	d, err := openDir(r.dir)
	if err != nil || !d.has(fileVoucherCA) || len(b.VoucherCA) == len(r.keys().bundle.VoucherCA) {
		return nil, err
	}
	key, err := d.read(fileVoucherCA)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(parcel{V: 1, Files: map[string][]byte{fileVoucherCA: key}})
	clear(key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot seal the authority for vouchers")
	}
	defer clear(plain)
	aead, err := r.rotationKey()
	if err != nil {
		return nil, err
	}
	return seal(aead, plain, rotationContext(text)), nil
}

// putVoucherAuthority takes what SealVoucherAuthority made, unless the authority
// that a bundle names is here. One that no bundle ever named is replaced.
func (r *Ring) putVoucherAuthority(d secureDir, b ledger.Bundle, sealed []byte) error {
	if held, err := readVoucher(d); err != nil || len(b.VoucherCA) == 0 || held != nil && slices.Contains(b.VoucherCA, sshLine(held.PublicKey())) {
		return err
	}
	if len(sealed) == 0 {
		return fault.New(fault.Conflict, "cannot take the authority for vouchers of trust bundle %d: it is not handed on any more", b.Version).
			WithHint("remove this server and join it again: handrail server invite")
	}
	text, err := b.Text()
	if err != nil {
		return err
	}
	aead, err := r.rotationKey()
	if err != nil {
		return err
	}
	plain, err := unseal(aead, sealed, rotationContext(text))
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot open the authority for vouchers")
	}
	defer clear(plain)
	var p parcel
	if err := json.Unmarshal(plain, &p); err != nil || p.V != 1 || len(p.Files[fileVoucherCA]) == 0 {
		return fault.New(fault.Invalid, "cannot read the authority for vouchers: it is of another version")
	}
	return d.replace(fileVoucherCA, p.Files[fileVoucherCA])
}

// MayAdopt says whether a bundle follows the one in force and differs from it in
// whose vouchers count alone.
func (r *Ring) MayAdopt(signed []byte) (ledger.Bundle, error) {
	b, err := ledger.OpenBundle(signed, r.rootHash)
	if err != nil {
		return b, err
	}
	now := r.keys().bundle
	want := b
	want.VoucherCA, want.OfflineCA, want.Version = now.VoucherCA, now.OfflineCA, now.Version
	text, err := want.Text()
	if err != nil {
		return b, err
	}
	if held, err := now.Text(); err != nil || b.Version <= now.Version || !bytes.Equal(text, held) {
		return b, fault.New(fault.Denied, "cannot adopt trust bundle %d: %d is in force, and it must name the same keys", b.Version, now.Version)
	}
	return b, nil
}

// Adopt puts a newer bundle in place of the one in force, with the authority that
// another server has sealed, if any.
func (r *Ring) Adopt(sealed, signed []byte) (version int64, err error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	b, err := r.MayAdopt(signed)
	if err != nil {
		return 0, err
	}
	d, err := openDir(r.dir)
	if err != nil {
		return 0, err
	}
	if err := r.putVoucherAuthority(d, b, sealed); err != nil {
		return 0, err
	}
	if err := d.replace(fileBundle, signed); err != nil {
		return 0, err
	}
	return b.Version, r.loadKeys(d)
}

// VoucherIn reads a voucher that a host took: made by an authority of this
// installation, whatever its time is now.
func (r *Ring) VoucherIn(raw []byte) (terms wire.VoucherTerms, serial uint64, offline bool, err error) {
	bad := func(why string) (wire.VoucherTerms, uint64, bool, error) {
		return wire.VoucherTerms{}, 0, false, fault.New(fault.Denied, "cannot accept voucher: %s", why)
	}
	key, err := ssh.ParsePublicKey(raw)
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok {
		return bad("it is none")
	}
	signer := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert.SignatureKey)))
	offline = slices.Contains(r.keys().bundle.OfflineCA, signer)
	if !offline && !slices.Contains(r.keys().bundle.VoucherCA, signer) {
		return bad("no authority of this installation made it")
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{wire.VoucherOption, "force-command", "verify-required"},
		Clock:                    func() time.Time { return time.Unix(int64(cert.ValidAfter), 0) },
		IsUserAuthority:          func(ssh.PublicKey) bool { return true }, // decided above
	}
	if err := checker.CheckCert(wire.VoucherPrincipal, cert); err != nil {
		return bad(err.Error())
	}
	terms, err = wire.ParseVoucherTerms(cert.CriticalOptions[wire.VoucherOption])
	return terms, cert.Serial, offline, err
}
