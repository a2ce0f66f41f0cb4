package link

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
)

func TestACertificateIsRenewedWhileSessionsGoOn(t *testing.T) {
	f := newFake(t)
	f.life = time.Minute // of six, since it is valid from five minutes ago: a third is not left
	asked, granted := make(chan struct{}), make(chan struct{})
	var serial string
	f.renew = func(ask wire.RenewAsk) wire.RenewAnswer {
		close(asked) // a second renewal would panic: the new one is young
		<-granted
		der, err := f.ring.IssueNode(ask.CSR, host)
		if err != nil {
			return wire.RenewAnswer{V: 1, Error: err.Error()}
		}
		c, _ := x509.ParseCertificate(der)
		f.mu.Lock()
		serial = c.SerialNumber.String()
		f.mu.Unlock()
		return wire.RenewAnswer{V: 1, Certificate: der}
	}
	dir := startNode(t, f)
	<-asked
	s, a := f.open(wire.UseControl, f.order("00000001", wire.SessionSpec{Kind: wire.SessionExec, Command: "read x; echo $x"}))
	if !a.OK {
		t.Fatalf("%+v", a)
	}
	old := pairSerial(t, dir)
	close(granted)
	f.until("another certificate is kept", func() bool { return slices.Contains(f.logged, "the certificate was renewed") })
	if err := wire.NewWriter(s).Write(wire.FrameStdin, []byte("still here\n")); err != nil {
		t.Fatal(err)
	}
	if out, _ := output(t, s); out != "still here\n" {
		t.Errorf("%q", out)
	}
	f.interrupt()
	f.until("both connections are there again", func() bool { return len(f.serials) == 4 })
	if f.serials[0] != old || f.serials[1] != old || f.serials[2] != serial || f.serials[3] != serial {
		t.Errorf("connections with %v; it was %s and is %s", f.serials, old, serial)
	}
}

// pairSerial is the serial number of the certificate that is kept.
func pairSerial(t *testing.T, dir string) string {
	t.Helper()
	id, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id.cert.Leaf.SerialNumber.String()
}

func TestABadCertificateReplacesNothing(t *testing.T) {
	f, other := newFake(t), newFake(t)
	roots := f.ring.CAPool()
	key, csr, err := newKey(host)
	if err != nil {
		t.Fatal(err)
	}
	_, another, err := newKey(host)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(r *keyring.Ring, csr []byte, host string, life time.Duration) []byte {
		der, err := r.IssueNodeFor(csr, host, life)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	server, err := f.ring.ServerCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"nothing": nil, "garbage": []byte("x"),
		"for another key":         issue(f.ring, another, host, time.Hour),
		"of another host":         issue(f.ring, csr, "h-00000002", time.Hour),
		"of another installation": issue(other.ring, csr, host, time.Hour),
		"that has ended":          issue(f.ring, csr, host, -time.Minute),
		"of a server":             server.Certificate[0],
	} {
		if err := checkCertificate(der, key, roots, host); err == nil {
			t.Errorf("a certificate %s was accepted", name)
		}
	}
	if err := checkCertificate(issue(f.ring, csr, host, time.Hour), key, roots, host); err != nil {
		t.Error(err)
	}
}

func TestRenewalIsDueWhenAThirdIsLeft(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	leaf := &x509.Certificate{NotBefore: start, NotAfter: start.Add(90 * time.Hour)}
	for at, want := range map[time.Duration]time.Duration{0: 60 * time.Hour, 60 * time.Hour: 0, 80 * time.Hour: -20 * time.Hour} {
		if got := untilThird(leaf, start.Add(at)); got != want {
			t.Errorf("after %v it is due in %v, want %v", at, got, want)
		}
	}
}

// renewEnv makes this program renew the certificate of a folder until it is killed.
const renewEnv = "HANDRAIL_TEST_RENEW"

func renewForever(dir string) {
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	for err == nil {
		var id *identity
		if id, err = load(filepath.Join(dir, "link")); err != nil {
			break
		}
		key, csr, kerr := newKey(host)
		der, ierr := ring.IssueNode(csr, host)
		if err = kerr; err == nil {
			err = ierr
		}
		if err == nil {
			err = id.keep(key, der)
		}
		fmt.Print(".")
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestAKilledRenewalLeavesANodeThatConnects(t *testing.T) {
	base := t.TempDir()
	if err := keyring.Init(filepath.Join(base, "keys"), filepath.Join(base, "root"), "handrail.test/ledger"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(base, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "link")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, signed := ring.Bundle()
	id := &identity{V: 1, Host: host, Name: "web-1", Addresses: []string{"localhost:1"}, RootHash: ring.RootHash(), Bundle: signed, dir: dir}
	key, csr, err := newKey(host)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ring.IssueNode(csr, host)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.keep(key, der); err != nil {
		t.Fatal(err)
	}
	if err := id.save(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 25 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), renewEnv+"="+base)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, err = io.CopyN(io.Discard, bufio.NewReader(out), rand.Int64N(20))
		for range rand.N(200) { // somewhere within the next renewal
			os.Getppid()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			t.Fatalf("it ended by itself: %v", err)
		}
		left, err := load(dir)
		if err != nil {
			t.Fatal(err)
		}
		seen[left.cert.Leaf.SerialNumber.String()] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d certificates were seen", len(seen))
	}
}
