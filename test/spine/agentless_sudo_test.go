package spine_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/test/sshd"
)

func TestAHostIsAdoptedThroughSudo(t *testing.T) {
	needRoot(t)
	sshd.Need(t)
	if _, err := exec.LookPath("sudo"); err != nil {
		t.Skip("sudo is missing (Debian: sudo)")
	}
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	data := filepath.Join(t.TempDir(), "node")
	server := sshd.Start(t, "SetEnv HANDRAIL_DATA="+data)
	account := sshd.Account(t, "hr-r")
	rules := filepath.Join("/etc/sudoers.d", account)
	if err := os.WriteFile(rules, fmt.Appendf(nil, "Defaults:%s env_keep += HANDRAIL_DATA\n%s ALL=(root) NOPASSWD: ALL\n", account, account), 0o440); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(rules)
	ada.ok("host", "add", "db-7", "--ssh", account+"@"+server.Address, "--host-key", server.Key, "--env", "dev")
	ada.trusts(t, "db-7")
	if r := ada.run("ssh", "db-7", "--", "id -un"); r.code != 126 || !strings.Contains(r.err, "may use sudo without a password") {
		t.Errorf("a read session before the adoption: exit %d\n%s%s", r.code, r.out, r.err)
	}
	defer ada.run("host", "adopt", "--undo", "db-7") // nothing of it outlives the test
	if out := ada.ok("host", "adopt", "db-7"); !strings.Contains(out, "joined as db-7") || !strings.Contains(out, "online") {
		t.Fatalf("adopt said:\n%s", out)
	}
	if st, err := os.Stat(data); err != nil || st.Mode().Perm()&0o022 != 0 {
		t.Errorf("the node's folder: %v, %v", st, err)
	}
	open := openFolder(t)
	if r := ada.run("ssh", "db-7", "--", "id -un; touch "+open+"/x"); r.code == 0 || !strings.Contains(r.out, "admin") {
		t.Errorf("a read session after the adoption: exit %d\n%s%s", r.code, r.out, r.err)
	}
	if _, err := os.Stat(filepath.Join(open, "x")); err == nil {
		t.Error("a read session wrote")
	}
	ada.ok("host", "adopt", "--undo", "db-7")
	if _, err := os.Stat(data); err == nil {
		t.Error("the node's folder is still there")
	}
}
