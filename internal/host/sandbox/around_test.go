package sandbox

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOpeningsLeaveOutWhatIsSecret(t *testing.T) {
	tree := map[string][]string{
		"/": {"etc", "root", "usr", "proc"}, "/etc": {"passwd", "shadow", "ssh"}, "/etc/ssh": {"sshd_config", "ssh_host_key"},
	}
	list := func(dir string) []string { return tree[dir] }
	got, whole := openings([]string{"/etc/shadow", "/etc/ssh/ssh_host_key", "/root", "/proc/kcore"}, list)
	want := []opening{{"/", true}, {"/usr", false}, {"/proc", false}, {"/etc", true}, {"/etc/passwd", false}, {"/etc/ssh", true}, {"/etc/ssh/sshd_config", false}}
	if !slices.Equal(got, want) || whole != nil {
		t.Errorf("got %v, %v", got, whole)
	}
	tree["/etc"] = make([]string, openingsBound)
	if got, whole = openings([]string{"/etc/shadow"}, list); !slices.Contains(got, opening{path: "/etc"}) || !slices.Equal(whole, []string{"/etc"}) {
		t.Errorf("a folder that is too large: %d openings, %v", len(got), whole)
	}
}

// A secret is rotated by renaming a new file over it, or by making its folder
// anew, and the kernel takes the mask off for that.
func TestASecretThatIsReplacedStaysSecret(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/opt", "handrail-rotated")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put("secret", "first-secret")
	put("keys/key", "first-key")
	put("plain", "plain-text")
	in, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	read, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	spec := readSpec("bash", "-c", "cat "+dir+"/plain; echo ready; read go; cat "+dir+"/secret "+dir+"/keys/key "+dir+"/plain; ls "+dir+"; echo done")
	spec.Secrets = []string{dir + "/secret", dir + "/keys"}
	c, err := Start(context.Background(), spec, Options{Stdin: in, Stdout: out, Stderr: out})
	in.Close()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = c.Wait() }()
	lines := bufio.NewScanner(read)
	text := ""
	until := func(last string) string {
		for lines.Scan() {
			if text += lines.Text() + "\n"; lines.Text() == last {
				return text
			}
		}
		t.Fatalf("it ended with:\n%s", text)
		return ""
	}
	until("ready")
	put("new", "second-secret")
	if err := os.Rename(dir+"/new", dir+"/secret"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir + "/keys"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/keys", 0o755); err != nil {
		t.Fatal(err)
	}
	put("keys/key", "second-key")
	if _, err := write.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	got := until("done")
	if strings.Contains(got, "second") || strings.Contains(got, "first") {
		t.Errorf("a secret was read:\n%s", got)
	}
	if strings.Count(got, "plain-text") != 2 {
		t.Errorf("what lies beside it is no longer of use:\n%s", got)
	}
}
