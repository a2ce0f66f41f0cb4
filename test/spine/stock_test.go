package spine_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// client runs a stock client with the ssh config that `login` wrote.
func (p person) client(t *testing.T, dir string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+p.config(), "GIT_CONFIG_GLOBAL=/dev/null")
	return finish(t, cmd)
}

func (p person) config() string { return filepath.Join(p.home, "ssh_config") }

func stock(t *testing.T, ada person, host string) {
	dir := t.TempDir()
	at := host + "@handrail"
	if r := ada.client(t, dir, "ssh", "-F", ada.config(), at, "id", "-un"); strings.TrimSpace(r.out) != "admin" {
		t.Fatalf("ssh: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if r := ada.client(t, dir, "ssh", "-F", ada.config(), at, "exit 5"); r.code != 5 {
		t.Errorf("ssh: exit 5 became %d", r.code)
	}
	want := make([]byte, 3<<20)
	_, _ = rand.Read(want)
	source := filepath.Join("/opt", "handrail-stock-"+filepath.Base(filepath.Dir(dir)))
	if err := os.WriteFile(source, want, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(source)
	for name, args := range map[string][]string{
		"scp over sftp": {"scp", "-F", ada.config(), at + ":" + source, "got"},
		"scp, old":      {"scp", "-O", "-F", ada.config(), at + ":" + source, "got"},
		"rsync":         {"rsync", "-e", "ssh -F " + ada.config(), at + ":" + source, "got"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := ada.client(t, dir, args...)
			got, err := os.ReadFile(filepath.Join(dir, "got"))
			if r.code != 0 || err != nil || !bytes.Equal(got, want) {
				t.Errorf("exit %d, %d bytes: %v\n%s%s", r.code, len(got), err, r.out, r.err)
			}
		})
	}
	t.Run("sftp", func(t *testing.T) {
		dir := t.TempDir()
		batch := filepath.Join(dir, "batch")
		if err := os.WriteFile(batch, []byte("get "+source+" got\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := ada.client(t, dir, "sftp", "-F", ada.config(), "-b", batch, at)
		got, _ := os.ReadFile(filepath.Join(dir, "got"))
		if r.code != 0 || !bytes.Equal(got, want) {
			t.Errorf("exit %d, %d bytes\n%s%s", r.code, len(got), r.out, r.err)
		}
	})
	t.Run("sftp cannot write", func(t *testing.T) {
		batch := filepath.Join(t.TempDir(), "batch")
		if err := os.WriteFile(batch, []byte("put "+source+" /etc/handrail-stock\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := ada.client(t, dir, "sftp", "-F", ada.config(), "-b", batch, at)
		if _, err := os.Stat("/etc/handrail-stock"); r.code == 0 || err == nil {
			t.Errorf("sftp wrote: exit %d\n%s", r.code, r.err)
		}
	})
	t.Run("git clone", func(t *testing.T) { gitClone(t, ada, at) })
}

// gitClone clones a repository that lies on the host, read-only.
func gitClone(t *testing.T, ada person, at string) {
	repo, err := os.MkdirTemp("/opt", "handrail-git")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(repo)
	if err := os.Chmod(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"git", "init", "-q", repo},
		{"git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "first"},
	} {
		if r := ada.client(t, "/", args...); r.code != 0 {
			t.Fatalf("%v: %s", args, r.err)
		}
	}
	dir := t.TempDir()
	if r := ada.client(t, dir, "git", "clone", "-q", "ssh://"+at+repo, "copy"); r.code != 0 {
		t.Fatalf("git clone: exit %d\n%s", r.code, r.err)
	}
	if r := ada.client(t, dir, "git", "-C", "copy", "log", "--oneline"); !strings.Contains(r.out, "first") {
		t.Errorf("the clone lacks the commit: %s%s", r.out, r.err)
	}
}
