package sandbox

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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

// outside starts a process of an account on the host, as a service would be.
func outside(t *testing.T, spec Spec) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: spec.UID, Gid: spec.GID}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestAnAccountWithServicesMaySignalThemAndNothingMore(t *testing.T) {
	needRoot(t)
	if landlockABI() < abiPart {
		t.Skip("this kernel cannot part sessions")
	}
	spec := writeSpec(t)
	pid := strconv.Itoa(outside(t, spec))
	spec.Command = []string{"sh", "-c", "kill -CONT " + pid + " && echo signalled; cat /proc/" + pid + "/environ && echo looked; readlink /proc/" + pid + "/fd/0 && echo listed"}
	out, _ := output(t, spec, Options{})
	if !strings.Contains(out, "signalled\n") || strings.Contains(out, "looked\n") || strings.Contains(out, "listed\n") {
		t.Errorf("%s", out)
	}
	spec.Alone = true
	if out, _ := output(t, spec, Options{}); strings.Contains(out, "signalled\n") && landlockABI() >= abiScope {
		t.Errorf("an account that is kept for sessions: %s", out)
	}
}

func TestWhatDoesNotKeepWriteSessionsApartIsNamed(t *testing.T) {
	needRoot(t)
	home := t.TempDir()
	spec := writeSpec(t, "true")
	spec.Alone, spec.Home = true, home
	ready := func(without ...string) Ready {
		c, err := StartWithout(t.Context(), spec, Options{}, without...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(); err != nil {
			t.Fatal(err)
		}
		return c.Ready
	}
	if r := ready(); landlockABI() >= abiScope && (r.Floor != Full || len(r.Missing) > 0) {
		t.Errorf("%+v", r)
	}
	if r := ready("landlock"); r.Floor != Reduced || len(r.Missing) != 1 || !strings.Contains(r.Missing[0], "keep write sessions apart") {
		t.Errorf("without Landlock: %+v", r)
	}
	spec.Home = "/no/such/home"
	if r := ready(); len(r.Missing) == 0 {
		t.Errorf("without a home: %+v", r)
	}
	spec.Alone = false
	if r := ready(); len(r.Missing) != 2 {
		t.Errorf("an account with services: %+v", r)
	}
}

// The older kernels' way must hold as far as it goes.
func TestADomainWithoutScopesStopsTracingAndLetsFilesBe(t *testing.T) {
	needRoot(t)
	if landlockABI() < abiPart {
		t.Skip("this kernel cannot part sessions")
	}
	dir := t.TempDir()
	spec := writeSpec(t)
	if err := errors.Join(os.Mkdir(dir+"/a", 0o777), os.Mkdir(dir+"/b", 0o777), os.Chmod(dir+"/a", 0o777), os.Chmod(dir+"/b", 0o777),
		os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(outside(t, spec))
	spec.Command = []string{"sh", "-c", "echo x > " + dir + "/a/f && ln " + dir + "/a/f " + dir + "/b/g && mv " + dir + "/a/f " + dir + "/b/f && cat " + dir + "/b/f; cat /proc/" + pid + "/environ && echo looked"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err := StartWithout(t.Context(), spec, Options{Stdout: w, Stderr: w}, OlderLandlock(5))
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if _, werr := c.Wait(); err != nil || werr != nil {
		t.Fatal(err, werr)
	}
	if !strings.HasPrefix(string(b), "x\n") || strings.Contains(string(b), "looked") {
		t.Errorf("%s", b)
	}
	if c.Ready.Landlock != 5 || !strings.Contains(strings.Join(c.Ready.Missing, " "), "scope signals") {
		t.Errorf("%+v", c.Ready)
	}
}
