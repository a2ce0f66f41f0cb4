package sandbox

import (
	"os"
	"strings"
	"testing"
)

// writeSpec is a write session of an account that every host has.
func writeSpec(t *testing.T, command ...string) Spec {
	t.Helper()
	a, err := LookupAccount("daemon")
	if err != nil {
		t.Skip(err)
	}
	return Spec{Level: Write, Mode: RootMode, UID: a.UID, GID: a.GID, User: a.Name, Home: a.Home, Shell: "/bin/sh", Command: command}
}

func TestAWriteSessionIsTheNamedAccount(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	spec := writeSpec(t, "sh", "-c", "id -un; echo kept > "+dir+"/file; grep NoNewPrivs /proc/self/status; mkdir /sys/fs/cgroup/*/mine 2>&1 | head -1")
	out, _ := output(t, spec, Options{})
	if b, _ := os.ReadFile(dir + "/file"); string(b) != "kept\n" || !strings.HasPrefix(out, "daemon\n") {
		t.Errorf("wrote %q; said:\n%s", b, out)
	}
	if !strings.Contains(out, "NoNewPrivs:\t1") {
		t.Errorf("no no_new_privs:\n%s", out)
	}
}

func TestSudoIsAFieldOfItsOwn(t *testing.T) {
	needRoot(t)
	spec := writeSpec(t, "grep", "NoNewPrivs", "/proc/self/status")
	spec.Sudo = true
	if out, _ := output(t, spec, Options{}); !strings.Contains(out, "NoNewPrivs:\t0") {
		t.Errorf("sudo cannot work:\n%s", out)
	}
}

func TestARootSessionIsRootButSeesTheCgroupTreeReadOnly(t *testing.T) {
	needRoot(t)
	spec := writeSpec(t, "sh", "-c", "id -u; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/mine; done")
	spec.Root, spec.UID, spec.GID, spec.User, spec.Home = true, 0, 0, "root", "/root"
	out, _ := output(t, spec, Options{})
	if !strings.HasPrefix(out, "0\n") || !strings.Contains(out, "Read-only file system") {
		t.Errorf("%s", out)
	}
}

func TestHandrailsFoldersAreEmptyForAnAccount(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/var/lib", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/key", []byte("ours"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := writeSpec(t, "cat", dir+"/key")
	spec.Hide = []string{dir}
	if out, _ := output(t, spec, Options{}); strings.Contains(out, "ours") {
		t.Errorf("a write session reads it: %s", out)
	}
	if b, err := os.ReadFile(dir + "/key"); err != nil || string(b) != "ours" {
		t.Errorf("the host lost it: %v", err)
	}
	read := readSpec("cat", dir+"/key")
	read.Hide = []string{dir}
	if out, _ := output(t, read, Options{}); strings.Contains(out, "ours") {
		t.Errorf("a read session reads it: %s", out)
	}
}

func TestASecretIsMaskedUnderEveryNameThatWasFound(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/var/lib", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	must(os.Mkdir(dir+"/other", 0o755))
	must(os.WriteFile(dir+"/secret", []byte("the-secret\n"), 0o644))
	must(os.Link(dir+"/secret", dir+"/other/hardlink"))
	must(os.WriteFile(dir+"/secret.bak", []byte("the-secret, older\n"), 0o644))
	must(os.WriteFile(dir+"/unrelated-name", []byte("the-secret\n"), 0o644))
	must(os.Symlink(dir+"/secret", dir+"/symlink"))
	must(os.WriteFile(dir+"/log", []byte("open\n"), 0o644))

	spec := readSpec("sh", "-c", "cat "+dir+"/* "+dir+"/other/* 2>/dev/null; cat "+dir+"/log")
	spec.Secrets = []string{dir + "/sec*t"}
	out, _ := output(t, spec, Options{})
	if strings.Contains(out, "the-secret") || !strings.Contains(out, "open") {
		t.Errorf("%s", out)
	}
}
