package spine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// playbook looks, changes, and looks again whether nothing is left to change.
const playbook = `
- hosts: all
  gather_facts: true
  tasks:
    - ansible.builtin.copy: {content: "{{ ansible_kernel }}\n", dest: "{{ open }}/kernel", mode: "0640"}
    - ansible.builtin.template: {src: motd.j2, dest: "{{ open }}/motd"}
    - ansible.builtin.lineinfile: {path: "{{ open }}/kernel", line: last}
    - ansible.builtin.shell: {cmd: "wc -l < {{ open }}/kernel"}
      register: lines
      changed_when: false
    - ansible.builtin.fetch: {src: "{{ open }}/kernel", dest: fetched, flat: true}
    - ansible.builtin.assert: {that: lines.stdout == '2'}
`

// TestAnsibleWorksThroughTheGateway runs Debian's ansible, unchanged, with the
// inventory that a command prints: its connections are shared, its modules come
// by standard input and by sftp.
func TestAnsibleWorksThroughTheGateway(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is missing")
	}
	i := up(t, t.TempDir())
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	dir := t.TempDir()
	ansible := func(args ...string) result {
		return cleo.client(t, dir, append([]string{"env", "HOME=" + dir, "ANSIBLE_NOCOLOR=1", "ANSIBLE_TIMEOUT=60", "ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3"}, args...)...)
	}
	put(t, dir, "hosts.yml", cleo.ok("host", "ansible"))
	put(t, dir, "play.yml", playbook)
	put(t, dir, "motd.j2", "this is {{ inventory_hostname }}\n")

	if r := ansible("ansible", "-i", "hosts.yml", "env_dev", "-m", "setup", "-a", "filter=ansible_user_id"); r.code != 0 || !strings.Contains(r.out, `"ansible_user_id": "cleo"`) {
		t.Fatalf("Ansible cannot look: exit %d\n%s%s", r.code, r.out, r.err)
	}
	open := openFolder(t)
	play := []string{"ansible-playbook", "-i", "hosts.yml", "-e", "open=" + open, "play.yml"}
	if r := ansible(play...); r.code == 0 {
		t.Errorf("a playbook changed something in read sessions:\n%s", r.out)
	}
	play = append(play, "-e", "handrail_write=true")
	if r := ansible(play...); r.code == 0 || !strings.Contains(r.out+r.err, "handrail elevate "+host) {
		t.Errorf("a playbook without a grant is not told how to get one: exit %d\n%s%s", r.code, r.out, r.err)
	}
	var ask asked
	cleo.json(&ask, "elevate", host, "--reason", "deploy", "--for", "30m", "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	if r := ansible(play...); r.code != 0 || !strings.Contains(r.out, "changed=") {
		t.Fatalf("the playbook failed: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "fetched")); err != nil || !strings.HasSuffix(string(b), "last\n") {
		t.Errorf("what was fetched: %q, %v", b, err)
	}
	if b, _ := os.ReadFile(filepath.Join(open, "motd")); string(b) != "this is "+host+"\n" {
		t.Errorf("the template became %q", b)
	}
	// The connection that Ansible keeps open is no way around the end of a grant.
	ben.ok("revoke", ask.ID, "--reason", "done")
	if r := ansible(play...); r.code == 0 {
		t.Errorf("a playbook went on over a shared connection after its grant was revoked:\n%s", r.out)
	}
	ada.ok("ledger", "verify")
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
