package entrance

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/wire"
)

// FuzzCheck hands anything in as a voucher: nothing but what the authority
// signed may pass.
func FuzzCheck(f *testing.F) {
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	ca, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	terms, err := wire.VoucherTerms{V: 1, Person: "p-ada00001", PersonName: "ada", Key: wire.KeyFile, Minutes: 60, Hosts: []wire.VoucherHost{{ID: "h-00000001", Account: "root"}}}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	cert := &ssh.Certificate{Key: ca.PublicKey(), Serial: 1, CertType: ssh.UserCert, ValidPrincipals: []string{wire.VoucherPrincipal},
		ValidAfter: uint64(now.Unix() - 60), ValidBefore: uint64(now.Unix() + 600),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{"force-command": wire.VoucherCommand, wire.VoucherOption: terms}}}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		f.Fatal(err)
	}
	good := cert.Marshal()
	a := Authorities{Voucher: []string{string(ssh.MarshalAuthorizedKey(ca.PublicKey()))}}
	if _, err := Check(good, a, now); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(ca.PublicKey().Marshal())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if v, err := Check(raw, a, now); err == nil && string(raw) != string(good) {
			// ed25519 signs all of it, but for what follows the signature.
			key, perr := ssh.ParsePublicKey(raw)
			if perr != nil || string(key.Marshal()) != string(good) {
				t.Errorf("%+v passed", v)
			}
		}
	})
}

// A stolen authority makes nothing that outlives what a voucher may.
func TestNoVoucherIsValidForLongerThanADay(t *testing.T) {
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	ca, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	a := Authorities{Voucher: []string{string(ssh.MarshalAuthorizedKey(ca.PublicKey()))}}
	terms, err := wire.VoucherTerms{V: 1, Person: "p-ada00001", PersonName: "ada", Key: wire.KeyFile, Minutes: 60, Hosts: []wire.VoucherHost{{ID: "h-00000001", Account: "root"}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	from := uint64(now.Unix() - 60)
	for name, until := range map[string]uint64{
		"two days": from + 2*86400, "a number of seconds that is a short Duration": from + 1<<55, "for ever": ssh.CertTimeInfinity,
	} {
		cert := &ssh.Certificate{Key: ca.PublicKey(), Serial: 1, CertType: ssh.UserCert, ValidPrincipals: []string{wire.VoucherPrincipal}, ValidAfter: from, ValidBefore: until,
			Permissions: ssh.Permissions{CriticalOptions: map[string]string{"force-command": wire.VoucherCommand, wire.VoucherOption: terms}}}
		if err := cert.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(cert.Marshal(), a, now); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

func FuzzAsk(f *testing.F) {
	raw, _ := json.Marshal(Ask{Op: OpStart, Kind: wire.SessionShell, PTY: true})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, body []byte) {
		mine, theirs := pair(t)
		defer mine.Close()
		go func() {
			defer theirs.Close()
			_ = wire.WriteBlock(theirs, body)
		}()
		if a, err := ReadAsk(mine); err == nil && (len(a.Data) > 128 || len(a.Command) > wire.MaxLine) {
			t.Errorf("%+v came through", a)
		}
	})
}

func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}
