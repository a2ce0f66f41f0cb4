package keyring_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
)

const origin = "test.handrail.internal/log"

func makeRing(t *testing.T) (ring *keyring.Ring, dir, root string) {
	t.Helper()
	dir, root = filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "root")
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ring, dir, root
}

func wantKind(t *testing.T, err error, kind fault.Kind, part string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v (%v), want %v with %q", err, fault.KindOf(err), kind, part)
	}
}

func TestARingIsMadeOnceAndStaysTheSame(t *testing.T) {
	first, dir, root := makeRing(t)
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatalf("the second Init: %v", err)
	}
	again, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, a := first.Bundle()
	_, b := again.Bundle()
	if !bytes.Equal(a, b) || first.RootHash() != again.RootHash() {
		t.Fatal("the ring changed")
	}
	if info, err := os.Stat(filepath.Join(root, "root.key")); err != nil || info.Mode().Perm() != 0o400 {
		t.Fatalf("root key: %v %v", info, err)
	}
}

func TestTheBundleIsSignedByTheRootKeyAndNamesTheKeys(t *testing.T) {
	ring, _, _ := makeRing(t)
	_, signed := ring.Bundle()
	b, err := ledger.OpenBundle(signed, ring.RootHash())
	if err != nil {
		t.Fatal(err)
	}
	if b.Origin != origin || b.Version != 1 || b.Epoch != 1 || len(b.CA) != 1 || len(b.SSHUserCA) != 1 || len(b.SSHHostCA) != 1 {
		t.Fatalf("bundle %+v", b)
	}
	if _, err := ledger.OpenBundle(signed, ledger.RootHash("another")); err == nil {
		t.Fatal("the bundle opens under another root")
	}
	other, _, _ := makeRing(t)
	if other.RootHash() == ring.RootHash() {
		t.Fatal("two installations share a root key")
	}
}

func TestARunningServerNeedsNoRootKey(t *testing.T) {
	_, dir, root := makeRing(t)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatalf("Init with the root key taken away: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "root.key")); err == nil {
		t.Fatal("a second root key was made")
	}
}

// What a kill or a power cut before the first rename leaves is some of the files
// of a draft, some of them cut short: all of it is made anew, with a root key that
// belongs to it.
func TestADraftThatWasKilledIsThrownAway(t *testing.T) {
	_, whole, wholeRoot := makeRing(t)
	names := []string{"origin", "log.key", "order.key", "ssh-user-ca.key", "ssh-host-ca.key", "ssh-host.key", "voucher-ca.key",
		"ca.key", "ca.crt", "master.key", "replay.key", "replay.pub", "root.hash", "bundle"}
	for n := range 2 * (len(names) + 1) {
		dir, root := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "root")
		for _, folder := range []string{dir, filepath.Join(dir+".new", "subjects"), root} { // the place itself may wait, empty
			if err := os.MkdirAll(folder, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for i, name := range names[:n/2] {
			b := read(t, whole, name)
			if n%2 == 1 && i == n/2-1 {
				b = b[:len(b)/2]
			}
			put(t, dir+".new", name, b)
		}
		if n > 0 {
			put(t, root, "root.key.new", read(t, wholeRoot, "root.key")[:30*min(n-1, 2)])
		}
		if err := keyring.Init(dir, root, origin); err != nil {
			t.Fatalf("after %d files: %v", n/2, err)
		}
		belongs(t, dir, root)
		if bytes.Equal(read(t, dir, "log.key"), read(t, whole, "log.key")) {
			t.Fatal("a key of the draft was taken")
		}
	}
}

// belongs checks that the ring opens, that the root key is its own, and that
// nothing else was left.
func belongs(t *testing.T, dir, root string) {
	t.Helper()
	if _, err := keyring.NewEpoch(dir, read(t, root, "root.key"), time.Now()); err != nil { // it signs the next bundle
		t.Fatal(err)
	}
	for _, folder := range []string{root, filepath.Dir(dir)} {
		list, err := os.ReadDir(folder)
		if err != nil || len(list) != 1 {
			t.Fatalf("%s holds %v (%v)", folder, list, err)
		}
	}
}

// Between the two renames a ring stands whose root key has no name yet.
func TestARootKeyGetsItsNameAfterAKill(t *testing.T) {
	_, dir, root := makeRing(t)
	key, waiting := filepath.Join(root, "root.key"), filepath.Join(root, "root.key.new")
	was := read(t, root, "root.key")
	if err := os.Rename(key, waiting); err != nil {
		t.Fatal(err)
	}
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatal(err)
	}
	belongs(t, dir, root)
	if !bytes.Equal(was, read(t, root, "root.key")) {
		t.Fatal("it is another key")
	}
	// No other key gets the name, and none loses it.
	_, _, other := makeRing(t)
	put(t, root, "root.key.new", read(t, other, "root.key"))
	wantKind(t, keyring.Init(dir, root, origin), fault.Conflict, "two installations")
	if !bytes.Equal(was, read(t, root, "root.key")) {
		t.Fatal("the root key was replaced")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	wantKind(t, keyring.Init(dir, root, origin), fault.Conflict, "two installations")
}

func TestARingThatAnEarlierVersionLeftHalfMadeIsRefused(t *testing.T) {
	_, dir, root := makeRing(t)
	put(t, dir, "making", nil)
	wantKind(t, keyring.Init(dir, root, origin), fault.Conflict, "half made")
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestALostKeyIsRefusedNeverRemade(t *testing.T) {
	for _, name := range []string{"log.key", "order.key", "ca.key", "ca.crt", "ssh-user-ca.key", "master.key", "bundle", "origin", "root.hash"} {
		_, dir, root := makeRing(t)
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		wantKind(t, keyring.Init(dir, root, origin), fault.NotFound, name)
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Fatalf("%s was made anew", name)
		}
	}
}

func TestAnEmptyFolderBesideAnotherRootKeyIsRefused(t *testing.T) {
	_, _, root := makeRing(t)
	wantKind(t, keyring.Init(filepath.Join(t.TempDir(), "keys"), root, origin), fault.Conflict, "root key of another")
}

func TestAKeyFromAnotherRingIsRefused(t *testing.T) {
	_, a, _ := makeRing(t)
	_, b, _ := makeRing(t)
	for _, name := range []string{"log.key", "order.key", "ssh-user-ca.key", "bundle"} {
		kept, _ := os.ReadFile(filepath.Join(a, name))
		foreign, _ := os.ReadFile(filepath.Join(b, name))
		put(t, a, name, foreign)
		if _, err := keyring.Open(a); err == nil {
			t.Fatalf("a ring with a foreign %s opens", name)
		}
		put(t, a, name, kept)
	}
}

func TestWiderPermissionsAndLinksAreRefused(t *testing.T) {
	_, dir, _ := makeRing(t)
	key := filepath.Join(dir, "order.key")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660} {
		if err := os.Chmod(key, mode); err != nil {
			t.Fatal(err)
		}
		_, err := keyring.Open(dir)
		wantKind(t, err, fault.Denied, "others may read or change it")
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	_, err := keyring.Open(dir)
	wantKind(t, err, fault.Denied, "others may read or change it")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(key+".away", key); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Open(dir); err == nil {
		t.Fatal("a key behind a symbolic link is read")
	}
}

func TestAForeignOwnerIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	_, dir, _ := makeRing(t)
	if err := os.Chown(filepath.Join(dir, "order.key"), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	_, err := keyring.Open(dir)
	wantKind(t, err, fault.Denied, "belongs to uid 12345")
}

// Root makes the ring, gives it to the server's account, and starts again.
func TestRootOpensTheRingThatItGaveToTheServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	_, dir, root := makeRing(t)
	if err := os.Chown(dir, 12345, 12345); err != nil { // half given away: a crash in between
		t.Fatal(err)
	}
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 12345, 12345))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := keyring.Init(dir, root, origin); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "log.key"), 54321, 54321); err != nil {
		t.Fatal(err)
	}
	wantKind(t, keyring.Init(dir, root, origin), fault.Denied, "belongs to uid 54321")
}

func TestSubjectsAreSealedApartAndBoundToTheirContext(t *testing.T) {
	ring, dir, _ := makeRing(t)
	s := ring.Subjects()
	sealed, err := s.Seal("p-00000001", []byte("Ada"), []byte("entry"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("Ada")) {
		t.Fatal("not sealed")
	}
	if _, err := os.Stat(filepath.Join(dir, "subjects", "p-00000001.key")); err != nil {
		t.Fatalf("the key is not on disk before the payload: %v", err)
	}
	for _, wrong := range []struct {
		subject string
		ad      string
		sealed  []byte
	}{
		{"p-00000001", "other", sealed},
		{"p-00000001", "entry", sealed[:len(sealed)-1]},
		{"p-00000001", "entry", flip(sealed, len(sealed)/2)},
		{"p-00000001", "entry", nil},
		{"p-00000002", "entry", sealed},
	} {
		if _, err := s.Open(wrong.subject, wrong.sealed, []byte(wrong.ad)); err == nil {
			t.Fatalf("opened with %+v", wrong)
		}
	}
	reopened, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := reopened.Subjects().Open("p-00000001", sealed, []byte("entry"))
	if err != nil || string(plain) != "Ada" {
		t.Fatalf("%q %v", plain, err)
	}
}

func flip(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func TestADestroyedSubjectStaysUnreadable(t *testing.T) {
	ring, dir, _ := makeRing(t)
	s := ring.Subjects()
	sealed, err := s.Seal("p-00000001", []byte("Ada"), nil)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "subjects", "p-00000001.key")
	backup, _ := os.ReadFile(key)
	for range 2 {
		if err := s.Destroy("p-00000001"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Open("p-00000001", sealed, nil)
	wantKind(t, err, fault.NotFound, "erased")
	_, err = s.Seal("p-00000001", []byte("Ada"), nil)
	wantKind(t, err, fault.NotFound, "erased")
	// A crash between the tombstone and the shredding, or a file put back.
	put(t, filepath.Dir(key), filepath.Base(key), backup)
	again, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = again.Subjects().Open("p-00000001", sealed, nil)
	wantKind(t, err, fault.NotFound, "erased")
	if _, err := os.Stat(key); err == nil {
		t.Fatal("the key file is still there")
	}
}

func TestASubjectCannotNameAPath(t *testing.T) {
	ring, _, _ := makeRing(t)
	for _, bad := range []string{"", "../master", "p-1/x", "P-1", ".", "p-1\n", strings.Repeat("a", 65)} {
		if _, err := ring.Subjects().Seal(bad, nil, nil); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%q: %v", bad, err)
		}
		if err := ring.Subjects().Destroy(bad); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%q: %v", bad, err)
		}
	}
}

func TestReplayNeedsThePrivateHalfOnlyToOpen(t *testing.T) {
	ring, dir, _ := makeRing(t)
	wrapped, err := ring.Replay().WrapReplay([]byte("data key of a recording"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := ring.Replay().OpenReplay(wrapped); err != nil || string(plain) != "data key of a recording" {
		t.Fatalf("%q %v", plain, err)
	}
	if _, err := ring.Replay().OpenReplay(flip(wrapped, 40)); err == nil {
		t.Fatal("a changed wrapping opens")
	}
	if err := os.Rename(filepath.Join(dir, "replay.key"), filepath.Join(t.TempDir(), "apart")); err != nil {
		t.Fatal(err)
	}
	apart, err := keyring.Open(dir)
	if err != nil {
		t.Fatalf("a ring whose replay key is kept elsewhere: %v", err)
	}
	if _, err := apart.Replay().WrapReplay([]byte("next")); err != nil {
		t.Fatal(err)
	}
	_, err = apart.Replay().OpenReplay(wrapped)
	wantKind(t, err, fault.NotFound, "replay.key")
}

func request(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "h-somebody"}, DNSNames: []string{keyring.ServerName},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func TestANodeReachesTheServerWithItsCertificateAlone(t *testing.T) {
	ring, _, _ := makeRing(t)
	key, csr := request(t)
	der, err := ring.IssueNode(csr, "h-7k3f9q2m")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ring.ServerCertificate([]string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	state := handshake(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ring.CAPool(), ClientAuth: tls.RequireAndVerifyClientCert},
		&tls.Config{RootCAs: ring.CAPool(), ServerName: keyring.ServerName, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	host, err := keyring.NodeOf(state.PeerCertificates[0])
	if err != nil || host != "h-7k3f9q2m" {
		t.Fatalf("%q %v", host, err)
	}
	if names := state.PeerCertificates[0].DNSNames; len(names) != 0 {
		t.Fatalf("the node chose its own names %v", names)
	}
	if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: ring.CAPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Fatal("a node's certificate would pass for a server's")
	}
	if _, err := keyring.NodeOf(server.Leaf); err == nil {
		t.Fatal("a server's certificate would pass for a node's")
	}
}

func handshake(t *testing.T, server, client *tls.Config) tls.ConnectionState {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan tls.ConnectionState, 1)
	failed := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			failed <- err
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if err := c.Handshake(); err != nil {
			failed <- err
			return
		}
		done <- c.ConnectionState()
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case s := <-done:
		return s
	case err := <-failed:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("no handshake")
	}
	return tls.ConnectionState{}
}

func TestABadCertificateRequestIsRefused(t *testing.T) {
	ring, _, _ := makeRing(t)
	_, csr := request(t)
	for _, bad := range [][]byte{nil, []byte("junk"), flip(csr, len(csr)-4), bytes.Repeat([]byte{0}, 9<<10)} {
		if _, err := ring.IssueNode(bad, "h-7k3f9q2m"); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%v", err)
		}
	}
	for _, host := range []string{"", "h-", "p-7k3f9q2m", "h-../x", "h-a/b"} {
		if _, err := ring.IssueNode(csr, host); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%q: %v", host, err)
		}
	}
}

func TestAnSSHUserCertificateAllowsATerminalAndNothingElse(t *testing.T) {
	ring, _, _ := makeRing(t)
	key := sshKey(t)
	cert, err := ring.SignSSHUser(key.PublicKey(), "p-7k3f9q2m", "d-7k3f9q2m", keyring.MaxSSHUser)
	if err != nil {
		t.Fatal(err)
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey(ssh.MarshalAuthorizedKey(cert))
	if err != nil {
		t.Fatal(err)
	}
	got := parsed.(*ssh.Certificate)
	if got.KeyId != "handrail:d-7k3f9q2m:p-7k3f9q2m" || fmt.Sprint(got.ValidPrincipals) != "[p-7k3f9q2m]" {
		t.Fatalf("%+v", got)
	}
	if len(got.Extensions) != 1 || len(got.CriticalOptions) != 0 {
		t.Fatalf("permissions %+v", got.Permissions)
	}
	checker := ssh.CertChecker{IsUserAuthority: ring.IsSSHUserAuthority}
	if err := checker.CheckCert("p-7k3f9q2m", got); err != nil {
		t.Fatal(err)
	}
	if !ring.IsSSHUserAuthority(got.SignatureKey) {
		t.Fatal("signed by somebody else")
	}
	for _, d := range []time.Duration{0, -time.Hour, keyring.MaxSSHUser + time.Second} {
		if _, err := ring.SignSSHUser(key.PublicKey(), "p-1", "d-1", d); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%v: %v", d, err)
		}
	}
	if _, err := ring.SignSSHUser(cert, "p-1", "d-1", time.Hour); fault.KindOf(err) != fault.Invalid {
		t.Fatalf("a certificate over a certificate: %v", err)
	}
}

func sshKey(t *testing.T) ssh.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func TestClientsTrustTheGatewayByItsHostAuthority(t *testing.T) {
	ring, _, _ := makeRing(t)
	signer, err := ring.SSHHostSigner([]string{"gateway.example"})
	if err != nil {
		t.Fatal(err)
	}
	bundle, _ := ring.Bundle()
	ca, _, _, _, err := ssh.ParseAuthorizedKey([]byte(bundle.SSHHostCA[0]))
	if err != nil {
		t.Fatal(err)
	}
	checker := ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return bytes.Equal(k.Marshal(), ca.Marshal()) }}
	if err := checker.CheckHostKey("gateway.example:22", &net.TCPAddr{}, signer.PublicKey()); err != nil {
		t.Fatal(err)
	}
	if err := checker.CheckHostKey("elsewhere.example:22", &net.TCPAddr{}, signer.PublicKey()); err == nil {
		t.Fatal("the certificate is good for any name")
	}
}

func TestASecretIsNeverShown(t *testing.T) {
	s := keyring.NewSecret([]byte("hunter2"))
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("made", "secret", s)
	js, err := json.Marshal(map[string]any{"s": s})
	if err != nil {
		t.Fatal(err)
	}
	shown := log.String() + string(js)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, struct{ S keyring.Secret }{s})
	}
	_, _ = io.WriteString(&log, shown)
	for _, leak := range []string{"hunter2", "68756e74657232", "104 117"} {
		if strings.Contains(shown, leak) {
			t.Fatalf("shown: %s", shown)
		}
	}
	if string(s.Reveal()) != "hunter2" {
		t.Fatal("Reveal")
	}
}
