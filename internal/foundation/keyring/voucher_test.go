package keyring_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

func publicKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAVoucherSaysWhatPlainSSHRefuses(t *testing.T) {
	ring, _, _ := makeRing(t)
	terms := wire.VoucherTerms{V: 1, Person: "p-ada00001", PersonName: "ada", Minutes: 60, Hosts: []wire.VoucherHost{{ID: "h-00000001", Account: "root"}}}
	cert, err := ring.SignVoucher(publicKey(t), 7, terms, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	plain := ssh.CertChecker{IsUserAuthority: func(ssh.PublicKey) bool { return true }}
	if err := plain.CheckCert(wire.VoucherPrincipal, cert); err == nil || !strings.Contains(err.Error(), "unsupported critical option") {
		t.Errorf("a plain server takes it: %v", err)
	}
	if got, serial, offline, err := ring.VoucherIn(cert.Marshal()); err != nil || serial != 7 || offline || got.Key != wire.KeyFile {
		t.Errorf("%+v %d %v %v", got, serial, offline, err)
	}
	for name, span := range map[string]time.Duration{"two days": 48 * time.Hour, "no time": 0} {
		if _, err := ring.SignVoucher(publicKey(t), 7, terms, span); err == nil {
			t.Errorf("one for %s is made", name)
		}
	}
	if _, err := ring.SignVoucher(cert, 7, terms, time.Hour); err == nil {
		t.Error("a certificate is certified")
	}
}

func TestARingFromBeforeVouchersGetsTheirAuthorityByTheRootKeyAlone(t *testing.T) {
	_, dir, root := makeRing(t)
	// A ring of before: its bundle names no authority for vouchers.
	old, err := os.ReadFile(filepath.Join(dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	older := without(t, old, dir, root)
	put(t, dir, "bundle", older)
	if err := os.Remove(filepath.Join(dir, "voucher-ca.key")); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ring.GivesVouchers() {
		t.Fatal("it gives vouchers")
	}
	line, err := ring.OfferVoucherAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ring.OfferVoucherAuthority(); err != nil || again != line {
		t.Errorf("it offers another the second time: %v", err)
	}
	if ring, err = keyring.Open(dir); err != nil || ring.GivesVouchers() {
		t.Fatalf("between offer and signature: %v", err)
	}
	offline := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(publicKey(t))))
	signed, err := keyring.SignVoucherTrust(root, older, line, offline)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Adopt(older); err == nil {
		t.Error("the bundle in force is adopted again")
	}
	if v, err := ring.Adopt(signed); err != nil || v != 2 {
		t.Fatal(v, err)
	}
	if ring, err = keyring.Open(dir); err != nil || !ring.GivesVouchers() {
		t.Fatalf("after the signature: %v", err)
	}
	if b, _ := ring.Bundle(); len(b.OfflineCA) != 1 || b.OfflineCA[0] != offline {
		t.Errorf("%+v", b.OfflineCA)
	}
	_, foreign, foreignRoot := makeRing(t)
	_ = foreign
	if _, err := keyring.SignVoucherTrust(foreignRoot, signed, line, ""); err == nil {
		t.Error("another installation's root key signs it")
	}
}

// without is a bundle as it was made before vouchers.
func without(t *testing.T, signed []byte, dir, root string) []byte {
	t.Helper()
	skey, err := os.ReadFile(filepath.Join(root, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(skey)))
	if err != nil {
		t.Fatal(err)
	}
	hash, err := os.ReadFile(filepath.Join(dir, "root.hash"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ledger.OpenBundle(signed, strings.TrimSpace(string(hash)))
	if err != nil {
		t.Fatal(err)
	}
	b.VoucherCA = nil
	out, err := ledger.SignBundle(b, signer)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
