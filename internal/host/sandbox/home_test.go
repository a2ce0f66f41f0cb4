package sandbox

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsMountedInAHomeOutlivesIt(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	home, elsewhere := dir+"/ho me", dir+"/elsewhere"
	if err := MakeHome(home, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(elsewhere, 0o755), os.WriteFile(elsewhere+"/data", nil, 0o644), os.Mkdir(home+"/deep", 0o755),
		os.Mkdir(home+"/deep/bound", 0o755), os.Symlink(elsewhere, home+"/link"), os.WriteFile(home+"/own", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one on top of the other
		if err := unix.Mount(elsewhere, home+"/deep/bound", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveHome(home); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(home); !os.IsNotExist(err) {
		t.Errorf("the home is left: %v", err)
	}
	if _, err := os.Lstat(elsewhere + "/data"); err != nil {
		t.Errorf("what was mounted there is gone: %v", err)
	}
}
