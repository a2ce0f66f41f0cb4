package agentless_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
)

// sudoers lets an account use sudo for the test.
func sudoers(t *testing.T, account, may string) {
	t.Helper()
	if _, err := exec.LookPath("sudo"); err != nil {
		t.Skip("sudo is missing (Debian: sudo)")
	}
	path := filepath.Join("/etc/sudoers.d", account)
	fatal(t, os.WriteFile(path, fmt.Appendf(nil, "%s %s\n", account, may), 0o440))
	t.Cleanup(func() { _ = os.Remove(path) })
}

func TestAReadAccountThatMayBecomeRootGetsNoReadSession(t *testing.T) {
	w := newWorld(t, agentless.Bounds{}, session.Bounds{})
	_, h := w.debian("dev")
	ada := w.person("ada")
	sudoers(t, h.SSHUser, "ALL=(ALL) ALL") // with a password that it does not have
	if r := ada.run("", "ssh", "db-7@gateway", "id -un"); r.status != 0 || strings.TrimSpace(r.out) != h.SSHUser {
		t.Errorf("where sudo wants a password: %+v", r)
	}
	for _, may := range []string{"ALL=(ALL) NOPASSWD: ALL", "ALL=(root) NOPASSWD: /usr/bin/less"} {
		sudoers(t, h.SSHUser, may)
		for _, command := range []string{"id -un", "handrail-sweeper id -un"} {
			r := ada.run("", "ssh", "db-7@gateway", command)
			if r.status != 126 || r.out != "" || !strings.Contains(r.err, "may use sudo without a password") || !strings.Contains(r.err, "handrail host adopt") {
				t.Errorf("%s, %s: %+v", may, command, r)
			}
		}
		if r := ada.run("id -un\n", "ssh", "-T", "db-7@gateway"); r.status != 126 || r.out != "" {
			t.Errorf("%s, a shell: %+v", may, r)
		}
	}
	sudoers(t, h.SSHWrite, "ALL=(ALL) NOPASSWD: ALL") // whose grant says what it may
	ada.grant(h.ID, doorway.GrantInForce{})
	if r := ada.run("", "ssh", "db-7+write@gateway", "id -un"); r.status != 0 || strings.TrimSpace(r.out) != h.SSHWrite {
		t.Errorf("a write session: %+v", r)
	}
}
