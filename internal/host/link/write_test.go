package link

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWritingAnIdentityFollowsNoLinkThatWasLeftThere(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, pairName+".new")); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, pairName), []byte("key")); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "mine" {
		t.Errorf("a file elsewhere was overwritten: %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, pairName)); string(b) != "key" {
		t.Errorf("the key reads %q", b)
	}
}
