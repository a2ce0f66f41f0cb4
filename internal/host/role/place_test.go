package role

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
)

func TestADataFolderThatOthersMayWriteIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Prepare(dir, true)
	if fault.KindOf(err) != fault.Denied || fault.From(err).Hint == "" {
		t.Errorf("got %v", err)
	}
}

func TestARolesFolderThatIsALinkIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "server")); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(dir, true); fault.KindOf(err) != fault.Denied {
		t.Errorf("got %v", err)
	}
}

func TestEachRoleHasAFolderOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Prepare(dir, false); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"warden": 0o700, "link": 0o700, "run": 0o711} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, fi, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "server")); err == nil {
		t.Error("a node alone has a server's folder")
	}
	if _, err := Prepare(dir, true); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "root")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("root: %v %v", fi, err)
	}
}

func TestASecondStartSaysWhoHasTheFolder(t *testing.T) {
	p := Place{Dir: t.TempDir()}
	first, err := p.Lock()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Running{{PID: 4711, Listen: "127.0.0.1:7080"}, {PID: 4712}} {
		if err := first.Say(r); err != nil {
			t.Fatal(err)
		}
		_, err = p.Lock()
		if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), r.Listen) || !strings.Contains(fault.From(err).Hint, "471") {
			t.Errorf("got %v", err)
		}
	}
	first.Close()
	again, err := p.Lock()
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
