package identity_test

import (
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

func FuzzNames(f *testing.F) {
	for _, s := range []string{"ada", "root", "p-7k3f9q2m", "a b", "\x00", "ada\n", "ADA", "a.b_c-d", strings.Repeat("a", 33), "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := identity.CheckName(s); err != nil {
			if fault.KindOf(err) != fault.Invalid || len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\x00\x1b\n") {
				t.Fatalf("%q: %q", s, err)
			}
			return
		}
		if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
			t.Fatalf("accepted %q", s)
		}
		for _, c := range []byte(s) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0) {
				t.Fatalf("accepted %q", s)
			}
		}
	})
}

func FuzzSecretsAndCodes(f *testing.F) {
	w := newWorld(f)
	who, _ := w.first()
	_, good := w.add("ada")
	d := w.login(good)
	for _, s := range []string{"", good, d.login.Bearer, "hrl_x", "ABCD-EFGH", "abcd efgh", "O0I1-L1UU", strings.Repeat("A", 43), "ÀÀÀÀÀÀÀÀ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := w.people.Authenticate(w.ctx(), s); err == nil && s != d.login.Bearer {
			t.Fatalf("%q is %+v", s, got)
		}
		if _, _, _, err := w.people.Redeem(w.ctx(), s, nil, "", identity.ViaBrowser, s); err == nil {
			t.Fatalf("%q logs in", s)
		}
		if _, err := w.people.ShowCode(w.ctx(), who, s); err == nil {
			t.Fatalf("%q is a code", s)
		}
		_, _, _, err := w.people.Renew(w.ctx(), []byte(s), []byte(s), []byte(s), s)
		if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unauthenticated {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	w := newWorld(b)
	_, secret := w.add("ada")
	d := w.login(secret)
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.people.Authenticate(w.ctx(), d.login.Bearer); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("certificate", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.people.AuthenticateSSH(w.ctx(), d.cert); err != nil {
				b.Fatal(err)
			}
		}
	})
}
