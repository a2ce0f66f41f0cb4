package spine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSudoIsOfTheGrantThatNamesIt runs the host's own sudo, which its own rules let
// the account of write sessions use: a plain grant does not reach it, one with sudo
// does, and ends what it started. Ansible's become is the same sudo. The lab's host
// is the server's machine too, where the default rules grant nobody sudo.
func TestSudoIsOfTheGrantThatNamesIt(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if _, err := exec.LookPath("sudo"); err != nil {
		t.Skip("sudo is missing (Debian: sudo)")
	}
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	ada.ok("policy", "apply", ada.rulesWithout("root-owns-the-server"), "--yes")
	i.labHost("web-1", ada.invite("web-1", "--env", "staging"), map[string]string{"/etc/sudoers.d/handrail": "handrail-write ALL=(root) NOPASSWD: ALL\n"})
	i.until("web-1 to be online", func() bool { return ada.stateOf("web-1") == "online" })
	grant := func(more ...string) string {
		var ask asked
		cleo.json(&ask, append([]string{"elevate", "web-1", "--reason", "a package", "-o", "json"}, more...)...)
		ben.ok("approve", ask.ID, "--yes")
		return ask.ID
	}

	plain := grant()
	if r := cleo.run("ssh", "--write", "web-1", "--", "sudo -n id -u"); r.code == 0 || strings.Contains(r.out, "0") {
		t.Errorf("a plain grant reaches root: exit %d\n%s%s", r.code, r.out, r.err)
	}
	ben.ok("revoke", plain, "--reason", "more is needed")

	with := grant("--sudo")
	if out := cleo.ok("ssh", "--write", "web-1", "--", "id -un; sudo -n id -u"); out != "handrail-write\n0\n" {
		t.Errorf("a grant with sudo: %q", out)
	}
	if _, err := exec.LookPath("ansible"); err == nil {
		dir := t.TempDir()
		put(t, dir, "hosts.yml", cleo.ok("host", "ansible"))
		r := cleo.client(t, dir, "env", "HOME="+dir, "ANSIBLE_NOCOLOR=1", "ANSIBLE_TIMEOUT=60", "ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3",
			"ansible", "-i", "hosts.yml", "web-1", "-e", "handrail_write=true", "--become", "-m", "command", "-a", "id -un")
		if r.code != 0 || !strings.Contains(r.out, "\nroot\n") {
			t.Errorf("Ansible's become: exit %d\n%s%s", r.code, r.out, r.err)
		}
	}
	mark := marker(t)
	long := cleo.start("ssh", "--write", "web-1", "--", "echo up; sudo -n setsid sleep "+mark+" & sleep "+mark)
	long.waitFor("up")
	i.until("what sudo started", func() bool { return len(running(mark)) >= 2 })
	ben.ok("revoke", with, "--reason", "done")
	long.wait()
	i.until("the end of what sudo started", func() bool { return len(running(mark)) == 0 })
	ada.ok("ledger", "verify")
}

// rulesWithout is a folder with the rules in force but one.
func (p person) rulesWithout(id string) string {
	t := p.i.t
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rules")
	p.ok("policy", "show", "--dir", dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.cedar"))
	must(t, err)
	rule := regexp.MustCompile(`(?s)@id\("` + id + `"\).*?;\n`)
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		found += len(rule.FindAll(text, -1))
		put(t, dir, filepath.Base(file), string(rule.ReplaceAll(text, nil)))
	}
	if found != 1 {
		t.Fatalf("%d rules are called %s", found, id)
	}
	return dir
}
