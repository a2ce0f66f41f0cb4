package keyring

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

// made is a new ring with its root key apart.
func made(t *testing.T) (*Ring, string) {
	t.Helper()
	dir := t.TempDir()
	keys, root := filepath.Join(dir, "keys"), filepath.Join(dir, "root")
	if err := Init(keys, root, "handrail/test"); err != nil {
		t.Fatal(err)
	}
	r, err := Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r, root
}

func chest(t *testing.T) *Chest {
	t.Helper()
	c, err := MakeChest(filepath.Join(t.TempDir(), "chest"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestARingTravelsToTheKeyThatItWasSealedFor(t *testing.T) {
	ring, _ := made(t)
	mine, other := chest(t), chest(t)
	sealed, err := ring.SealFor(mine.Public(), "v-1")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	for what, try := range map[string]func() error{
		"another key":          func() error { return other.Unpack(dir, ring.RootHash(), "v-1", sealed) },
		"another join":         func() error { return mine.Unpack(dir, ring.RootHash(), "v-2", sealed) },
		"another installation": func() error { return mine.Unpack(dir, "elsewhere", "v-1", sealed) },
		"a changed byte": func() error {
			bad := bytes.Clone(sealed)
			bad[len(bad)-1] ^= 1
			return mine.Unpack(dir, ring.RootHash(), "v-1", bad)
		},
		"too much": func() error { return mine.Unpack(dir, ring.RootHash(), "v-1", make([]byte, maxParcel+1)) },
	} {
		if try() == nil {
			t.Errorf("%s opens the keys", what)
		}
	}
	if err := mine.Unpack(dir, ring.RootHash(), "v-1", sealed); err != nil {
		t.Fatal(err)
	}
	there, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, was := ring.Bundle()
	if _, is := there.Bundle(); !bytes.Equal(was, is) { // Open has compared it with the keys
		t.Error("the ring that arrived is another")
	}
	if err := mine.Unpack(dir, ring.RootHash(), "v-1", sealed); fault.KindOf(err) != fault.Conflict {
		t.Errorf("keys that are there are replaced: %v", err)
	}
}

func TestTheRootKeyDoesNotTravel(t *testing.T) {
	ring, root := made(t)
	d, err := openDir(root)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := d.read(fileRoot)
	if err != nil {
		t.Fatal(err)
	}
	secret = trimLine(secret)
	files, err := os.ReadDir(ring.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !f.IsDir() && !slices.Contains(travelling, f.Name()) {
			t.Errorf("%s stays behind: another server has half a ring", f.Name())
		}
	}
	for _, name := range travelling {
		content, err := secureDir{ring.dir, d.owner}.read(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, secret) {
			t.Errorf("%s holds the root key", name)
		}
	}
}

func TestACertificateSaysWhichServerItIsAndNoNodePassesForOne(t *testing.T) {
	ring, _ := made(t)
	if err := ring.ActAs("v-abc"); err != nil {
		t.Fatal(err)
	}
	cert, err := ring.ServerCertificate([]string{"a.example"})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := ServerOf(cert.Leaf); err != nil || id != "v-abc" {
		t.Errorf("the server is %q, %v", id, err)
	}
	if _, err := NodeOf(cert.Leaf); err == nil {
		t.Error("a server passes for a node")
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ring.CAPool(), KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Error(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ring.IssueNode(csr, "h-abc")
	if err != nil {
		t.Fatal(err)
	}
	node, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ServerOf(node); err == nil {
		t.Error("a node passes for a server")
	}
	for _, bad := range []string{"", "v-", "h-abc", "v-a/b", "v-A"} {
		if ring.ActAs(bad) == nil {
			t.Errorf("it acts as %q", bad)
		}
	}
}

// shelf is one in memory.
type shelf struct {
	mu   sync.Mutex
	keys map[string][]byte
	gone map[string]bool
}

func newShelf() *shelf { return &shelf{keys: map[string][]byte{}, gone: map[string]bool{}} }

func (s *shelf) Put(subject string, wrapped []byte) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone[subject] {
		return nil, true, nil
	}
	if s.keys[subject] == nil {
		s.keys[subject] = wrapped
	}
	return s.keys[subject], false, nil
}

func (s *shelf) Get(subject string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[subject], s.gone[subject], nil
}

func (s *shelf) Destroy(subject string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, subject)
	s.gone[subject] = true
	return nil
}

func (s *shelf) List() (map[string]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]bool{}
	for k := range s.keys {
		all[k] = false
	}
	for k := range s.gone {
		all[k] = true
	}
	return all, nil
}

// twice opens one ring in two places, as two servers have it.
func twice(t *testing.T) (a, b *Ring) {
	t.Helper()
	a, _ = made(t)
	c := chest(t)
	sealed, err := a.SealFor(c.Public(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	if err := c.Unpack(dir, a.RootHash(), "", sealed); err != nil {
		t.Fatal(err)
	}
	if b, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestServersAgreeOnOneDataKeyForEachSubject(t *testing.T) {
	a, b := twice(t)
	if _, err := a.Subjects().Seal("system", []byte("before"), nil); err != nil {
		t.Fatal(err)
	}
	b.Subjects().Share()
	if _, err := b.Subjects().Seal("p-late", []byte("x"), nil); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("a key is made that nobody agreed to: %v", err)
	}
	on := newShelf()
	for _, r := range []*Ring{a, b} {
		if err := r.Subjects().UseShelf(on); err != nil {
			t.Fatal(err)
		}
	}
	// Both meet a hundred new subjects at the same moment.
	var group sync.WaitGroup
	sealed := make([][2][]byte, 100)
	for i := range sealed {
		for j, r := range []*Ring{a, b} {
			group.Go(func() {
				out, err := r.Subjects().Seal(subjectNo(i), []byte("words"), nil)
				if err != nil {
					t.Error(err)
				}
				sealed[i][j] = out
			})
		}
	}
	group.Wait()
	for i := range sealed {
		for j, r := range []*Ring{b, a} {
			if plain, err := r.Subjects().Open(subjectNo(i), sealed[i][j], nil); err != nil || string(plain) != "words" {
				t.Fatalf("subject %d cannot be read by the other: %v", i, err)
			}
		}
	}
}

func subjectNo(i int) string { return "p-" + string(rune('a'+i/26)) + string(rune('a'+i%26)) }

func TestWhatIsErasedOnOneServerIsErasedOnAll(t *testing.T) {
	a, b := twice(t)
	on := newShelf()
	for _, r := range []*Ring{a, b} {
		if err := r.Subjects().UseShelf(on); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := a.Subjects().Seal("p-ada", []byte("words"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Subjects().Open("p-ada", sealed, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Subjects().Destroy("p-ada"); err != nil {
		t.Fatal(err)
	}
	again, err := Open(b.dir) // b was down meanwhile
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Subjects().UseShelf(on); err != nil {
		t.Fatal(err)
	}
	if err := b.Subjects().Forget("p-ada"); err != nil { // or followed the ledger
		t.Fatal(err)
	}
	for _, r := range []*Ring{a, b, again} {
		if _, err := r.Subjects().Open("p-ada", sealed, nil); fault.KindOf(err) != fault.NotFound {
			t.Errorf("what was erased can be read: %v", err)
		}
		if _, err := r.Subjects().Seal("p-ada", nil, nil); fault.KindOf(err) != fault.NotFound {
			t.Errorf("an erased key came back: %v", err)
		}
	}
}

func TestTwoKeysForOneSubjectAreRefused(t *testing.T) {
	a, b := twice(t)
	for _, r := range []*Ring{a, b} {
		if _, err := r.Subjects().Seal("p-ada", []byte("words"), nil); err != nil {
			t.Fatal(err)
		}
	}
	on := newShelf()
	if err := a.Subjects().UseShelf(on); err != nil {
		t.Fatal(err)
	}
	if err := b.Subjects().UseShelf(on); fault.KindOf(err) != fault.Conflict {
		t.Errorf("half of what was sealed is unreadable, and nobody says so: %v", err)
	}
}
