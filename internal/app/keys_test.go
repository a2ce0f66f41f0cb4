package app

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"handrail.dev/handrail/internal/host/role"
)

func made(t *testing.T) role.Place {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	at, err := role.Prepare(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := makeKeys(at); err != nil {
		t.Fatal(err)
	}
	return at
}

func TestTheSupervisorGivesNothingAwayInAFolderThatTheServerHasHad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	at := made(t)
	p := place(at.Dir)
	// What a server that was taken over would bring under this path.
	foreign := filepath.Join(p.keys(), "subjects", "foreign")
	if err := os.WriteFile(foreign, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeKeys(at); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("a file of root's below the server's folder was given to account %d", uid)
	}
}

func TestTheRootKeySignsNoBundleForAServerThatClaimsAHalfMadeRing(t *testing.T) {
	at := made(t)
	p := place(at.Dir)
	if err := os.WriteFile(filepath.Join(p.keys(), "making"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(p.keys(), "bundle")
	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	_ = makeKeys(at) // whether it says so is the server's to find
	if _, err := os.Lstat(bundle); err == nil {
		t.Error("the root key signed a second first bundle")
	}
}

func TestGivingAwayFollowsNoLinkOutOfTheFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	_ = giveTo(dir, "keys/victim", 4711) // refused is as good as nothing done
	info, err := os.Lstat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("a file outside was given to account %d", uid)
	}
}
