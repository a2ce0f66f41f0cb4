package identity

import (
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/keyring"
)

// FuzzKeys reads keys and certificates as a client shows them.
func FuzzKeys(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x2000000000000000000000000000000000"))
	f.Add([]byte("\x00\x00\x00\x20ssh-ed25519-cert-v01@openssh.com"))
	dir := f.TempDir()
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "fuzz.example/log"); err != nil {
		f.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if key, err := parseDeviceKey(raw); err == nil && key != nil {
			if kind := key.Type(); kind != ssh.KeyAlgoED25519 && kind != ssh.KeyAlgoSKED25519 {
				t.Fatalf("a device key of type %s", kind)
			}
		}
		key, err := ssh.ParsePublicKey(raw)
		if cert, ok := key.(*ssh.Certificate); err == nil && ok {
			if person, device, err := (&People{ring: ring}).readCertificate(cert); err == nil {
				t.Fatalf("a certificate that nobody signed is of %s on %s", person, device)
			}
		}
	})
}
