package keyring

import (
	"path/filepath"
	"testing"
	"time"
)

func TestAServerRunsLongerThanItsCertificate(t *testing.T) {
	dir := t.TempDir()
	if err := Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), "handrail/test"); err != nil {
		t.Fatal(err)
	}
	ring, err := Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	current, err := ring.ServerCertificates([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := current()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := current(); again != first {
		t.Error("a young certificate was replaced")
	}
	leaf := *first.Leaf
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-61*24*time.Hour), time.Now().Add(29*24*time.Hour)
	old := *first
	old.Leaf = &leaf
	renewing := ring.servingFrom(&old, []string{"localhost"})
	next, err := renewing()
	if err != nil || next == &old || time.Until(next.Leaf.NotAfter) < 80*24*time.Hour {
		t.Errorf("an old certificate is served on: %v %v", next.Leaf.NotAfter, err)
	}
	if again, _ := renewing(); again != next {
		t.Error("the new certificate was replaced")
	}
}
