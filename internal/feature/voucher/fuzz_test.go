package voucher

import "testing"

func FuzzParseKey(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUOKXvMhFVQVHCCAJAVSvvXtFWJjCWKJzcdtaQ0GvPP laptop")
	f.Add("sk-ssh-ed25519@openssh.com AAAA")
	f.Fuzz(func(t *testing.T, line string) {
		if key, err := parseKey(line); err == nil && len(key.Marshal()) == 0 {
			t.Fatal("a key of no bytes")
		}
	})
}
