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
	others := t.TempDir() // of another server of the installation, which offered one of its own
	if err := os.CopyFS(filepath.Join(others, "keys"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	private(t, filepath.Join(others, "keys"))
	other, err := keyring.Open(filepath.Join(others, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.OfferVoucherAuthority(); err != nil {
		t.Fatal(err)
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
	if _, err := ring.Adopt(nil, older); err == nil {
		t.Error("the bundle in force is adopted again")
	}
	sealed, err := ring.SealVoucherAuthority(signed)
	if err != nil || len(sealed) == 0 {
		t.Fatal(len(sealed), err)
	}
	if v, err := ring.Adopt(nil, signed); err != nil || v != 2 || !ring.GivesVouchers() {
		t.Fatal(v, err)
	}
	if again, err := ring.SealVoucherAuthority(signed); err != nil || again != nil {
		t.Errorf("what is in force is handed on: %v", err)
	}
	// The other server takes both at once, or nothing.
	for what, wrong := range map[string][]byte{"nothing": nil, "what nobody sealed": append([]byte{sealed[0] ^ 1}, sealed[1:]...)} {
		if _, err := other.Adopt(wrong, signed); err == nil {
			t.Errorf("%s is an authority", what)
		}
		if b, _ := other.Bundle(); b.Version != 1 {
			t.Errorf("%s: bundle %d is in force", what, b.Version)
		}
	}
	if _, err := other.Adopt(sealed, signed); err != nil || !other.GivesVouchers() {
		t.Fatal(err)
	}
	if again, err := keyring.Open(filepath.Join(others, "keys")); err != nil || !again.GivesVouchers() {
		t.Fatal(err)
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
