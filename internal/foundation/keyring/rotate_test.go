package keyring_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// rootSigns signs a proposal as whoever holds the root key does.
func rootSigns(t *testing.T, root string, text []byte) []byte {
	t.Helper()
	skey, err := os.ReadFile(filepath.Join(root, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(skey)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ledger.ReadBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.SignBundle(b, signer)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func checkpointBy(t *testing.T, r *keyring.Ring, n int64) []byte {
	t.Helper()
	signed, err := ledger.SignCheckpoint(r.Origin(), tlog.Tree{N: n, Hash: tlog.Hash{byte(n)}}, r.Log())
	must(t, err)
	return signed
}

func TestKeysAreReplacedWhileTheRingIsInUse(t *testing.T) {
	ring, dir, root := makeRing(t)
	before, _ := ring.Bundle()
	oldOrder := ring.Order().Public().(ed25519.PublicKey)
	oldPoint := checkpointBy(t, ring, 1)
	oldLog, err := before.Log(time.Now())
	must(t, err)

	p, err := ring.Propose(keyring.Kinds(), time.Now().Add(time.Hour))
	must(t, err)
	if b, _ := ring.Bundle(); b.Version != before.Version {
		t.Fatal("a proposal changed the bundle in force")
	}
	signed := rootSigns(t, root, p.Text)
	must(t, ring.Install(p.Sealed, signed))
	after, _ := ring.Bundle()

	// Announced: everybody may know the new keys, and the old ones act.
	if !ring.Rotating() || !bytes.Equal(ring.Order().Public().(ed25519.PublicKey), oldOrder) {
		t.Error("the new order key acts before anybody can know it")
	}
	both := checkpointBy(t, ring, 2)
	newLog, err := after.Log(time.Now())
	must(t, err)
	for what, keys := range map[string]note.Verifier{"the old": oldLog, "the new": newLog} {
		if _, err := ledger.OpenCheckpoint(both, ring.Origin(), keys); err != nil {
			t.Errorf("who knows %s log key cannot open a checkpoint of the hand-over: %v", what, err)
		}
	}
	if n := len(ledger.SignedBy(both, newLog)); n != 2 {
		t.Errorf("%d keys signed the hand-over, not both", n)
	}

	// A restart in between changes nothing.
	again, err := keyring.Open(dir)
	must(t, err)
	if !again.Rotating() || !bytes.Equal(again.Order().Public().(ed25519.PublicKey), oldOrder) {
		t.Error("after a restart the rotation is not where it was")
	}

	must(t, ring.Finish())
	if ring.Rotating() || bytes.Equal(ring.Order().Public().(ed25519.PublicKey), oldOrder) {
		t.Error("the old order key acts after the hand-over")
	}
	late := checkpointBy(t, ring, 3)
	if _, err := ledger.OpenCheckpoint(late, ring.Origin(), oldLog); err == nil {
		t.Error("the old log key still signs")
	}
	if _, err := ledger.OpenCheckpoint(oldPoint, ring.Origin(), ring.LogVerifier()); err != nil {
		t.Errorf("what was signed before the rotation cannot be opened any more: %v", err)
	}
	again, err = keyring.Open(dir)
	must(t, err)
	if !bytes.Equal(again.Order().Public().(ed25519.PublicKey), ring.Order().Public().(ed25519.PublicKey)) {
		t.Error("after a restart another order key acts")
	}
	for _, name := range []string{"log.key", "order.key", "ca.key", "ca.crt", "ssh-host-ca.key"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("the old %s was not destroyed", name)
		}
	}

	// A ring that is rotated again travels, and is rotated once more.
	p, err = again.Propose([]string{ledger.KeyOrder, ledger.KeyLog}, time.Now().Add(time.Hour))
	must(t, err)
	must(t, again.Install(p.Sealed, rootSigns(t, root, p.Text)))
	must(t, again.Finish())
	if _, err := keyring.Open(dir); err != nil {
		t.Errorf("a ring that was rotated twice does not open: %v", err)
	}
	if _, err := ledger.OpenCheckpoint(oldPoint, ring.Origin(), again.LogVerifier()); err != nil {
		t.Errorf("the first log key is forgotten after two rotations: %v", err)
	}
}

func TestARotationIsOnlyWhatTheRootKeySigned(t *testing.T) {
	ring, _, root := makeRing(t)
	p, err := ring.Propose([]string{ledger.KeyOrder}, time.Now().Add(time.Hour))
	must(t, err)
	other, err := ring.Propose([]string{ledger.KeyOrder}, time.Now().Add(time.Hour))
	must(t, err)
	signed := rootSigns(t, root, p.Text)

	_, _, otherRoot := makeRing(t)
	b, err := ledger.ReadBundle(p.Text)
	must(t, err)
	skey, err := os.ReadFile(filepath.Join(otherRoot, "root.key"))
	must(t, err)
	stranger, err := note.NewSigner(strings.TrimSpace(string(skey)))
	must(t, err)
	if _, err := ledger.SignBundle(b, stranger); err == nil {
		t.Error("another root key signs the bundle")
	}
	wantKind(t, ring.Install(other.Sealed, signed), fault.Conflict, "cannot open the keys")
	flipped := bytes.Clone(p.Sealed)
	flipped[len(flipped)/2] ^= 1
	wantKind(t, ring.Install(flipped, signed), fault.Conflict, "cannot open the keys")
	must(t, ring.Install(p.Sealed, signed))
	wantKind(t, ring.Install(p.Sealed, signed), fault.Denied, "in force") // a replay
	_, err = ring.Propose([]string{ledger.KeyOrder}, time.Now().Add(time.Hour))
	wantKind(t, err, fault.Conflict, "not finished")
	must(t, ring.Finish())
	_, err = ring.Propose([]string{"root"}, time.Now().Add(time.Hour))
	wantKind(t, err, fault.Invalid, "no kind of key")
	_, err = ring.Propose([]string{ledger.KeyOrder, ledger.KeyOrder}, time.Now().Add(time.Hour))
	wantKind(t, err, fault.Invalid, "twice")
}

func TestAKilledRotationIsResumedAtEveryStep(t *testing.T) {
	ring, dir, root := makeRing(t)
	p, err := ring.Propose(keyring.Kinds(), time.Now().Add(time.Hour))
	must(t, err)
	signed := rootSigns(t, root, p.Text)

	// The states between the writes of Install and Finish are its files in the
	// order in which they come and go: take each prefix of what a whole run adds.
	whole := filepath.Join(t.TempDir(), "whole")
	must(t, os.CopyFS(whole, os.DirFS(dir)))
	must(t, os.Chmod(whole, 0o700))
	private(t, whole)
	done, err := keyring.Open(whole)
	must(t, err)
	must(t, done.Install(p.Sealed, signed))
	var added []string
	list, err := os.ReadDir(whole)
	must(t, err)
	for _, e := range list {
		if _, err := os.Lstat(filepath.Join(dir, e.Name())); err != nil {
			added = append(added, e.Name())
		}
	}
	slices.SortFunc(added, func(a, b string) int { // certificates first, as Install writes them
		return strings.Compare(strings.TrimPrefix(a, "ca.crt"), strings.TrimPrefix(b, "ca.crt"))
	})
	if len(added) != 6 {
		t.Fatalf("a rotation of everything adds %v", added)
	}
	for n := range added {
		at := filepath.Join(t.TempDir(), "ring")
		must(t, os.CopyFS(at, os.DirFS(dir)))
		for _, name := range added[:n] {
			content, err := os.ReadFile(filepath.Join(whole, name))
			must(t, err)
			put(t, at, name, content)
		}
		private(t, at)
		r, err := keyring.Open(at)
		if err != nil {
			t.Fatalf("killed after %d files the ring does not open: %v", n, err)
		}
		if r.Rotating() {
			t.Errorf("killed after %d files, before the bundle, new keys count", n)
		}
		must(t, r.Install(p.Sealed, signed))
		must(t, r.Finish())
	}
	// Finish is killed after each of the files that it removes.
	for _, gone := range [][]string{{"log.key"}, {"log.key", "order.key"}, {"log.key", "order.key", "ca.key"}, {"log.key", "order.key", "ca.key", "ca.crt"}} {
		at := filepath.Join(t.TempDir(), "ring")
		must(t, os.CopyFS(at, os.DirFS(whole)))
		private(t, at)
		for _, name := range gone {
			must(t, os.Remove(filepath.Join(at, name)))
		}
		r, err := keyring.Open(at)
		if err != nil {
			t.Fatalf("killed after removing %v the ring does not open: %v", gone, err)
		}
		if !r.Rotating() {
			t.Errorf("killed after removing %v nobody would finish", gone)
		}
		must(t, r.Finish())
	}
}

// private gives a copied ring the permissions of the real one.
func private(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	}))
}

func TestAnOldAuthorityCountsUntilItsEnd(t *testing.T) {
	ring, dir, root := makeRing(t)
	_, csr := request(t)
	der, err := ring.IssueNode(csr, "h-1")
	must(t, err)
	device := sshKey(t)
	cert, err := ring.SignSSHUser(device.PublicKey(), "p-1", "d-1", time.Hour)
	must(t, err)
	until := time.Now().Add(time.Hour)
	p, err := ring.Propose([]string{ledger.KeyCA, ledger.KeySSHUser, ledger.KeySSHHost}, until)
	must(t, err)
	must(t, ring.Install(p.Sealed, rootSigns(t, root, p.Text)))
	hop := func() string {
		t.Helper()
		_, c, err := ring.SignSSHHop(keyring.Hop{Session: "s-1", Person: "p-1", Principals: []string{"x"}})
		must(t, err)
		return string(c.SignatureKey.Marshal())
	}
	before := hop()
	must(t, ring.Finish())
	if !verifies(ring, der) || !ring.IsSSHUserAuthority(cert.SignatureKey) {
		t.Error("what the old authority certified counts no more, before its end")
	}
	if hop() != before {
		t.Error("hosts without a node are reached by an authority that they do not know yet")
	}
	if lines := strings.Split(ring.SSHUserAuthority(), "\n"); len(lines) != 2 {
		t.Errorf("a host without a node is told of %d authorities", len(lines))
	}
	b, _ := ring.Bundle()
	late := until.Add(time.Minute)
	if len(b.Authorities(late)) != 1 || len(b.SSHAuthorities(ledger.KeySSHUser, late)) != 1 || len(b.OrderKeys(late)) != 1 {
		t.Error("an old authority counts after its end")
	}
	must(t, ring.Tidy(late))
	if _, err := os.Lstat(filepath.Join(dir, "ssh-user-ca.key.hop")); err == nil {
		t.Error("the old authority's key outlives its end")
	}
	if hop() == before {
		t.Error("the old authority certifies after its end")
	}
}

func verifies(ring *keyring.Ring, der []byte) bool {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	_, err = c.Verify(x509.VerifyOptions{Roots: ring.CAPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}
