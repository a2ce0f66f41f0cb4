package app

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/internal/surface/cli"
)

// Somebody else's program judges each page.
func TestEveryManualPageIsOne(t *testing.T) {
	dir := t.TempDir()
	root := cli.New(cli.Deps{Roles: Commands("test"), Ceremony: VoucherCommands(), Manual: Manual(), Version: "test"})
	root.SetArgs([]string{"man", dir})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.[15]"))
	if err != nil || len(pages) < 100 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, name := range []string{"handrail.1", "handrail-ssh.1", "handrail-ledger-verify.1", "handrail-webhook-add.1", "handrail.toml.5"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "handrail.toml.5"))
	if err != nil || !strings.Contains(string(text), "[webhooks]") || !strings.Contains(string(text), `ssh\-listen`) {
		t.Errorf("the configuration is not in its page: %v", err)
	}
	lint, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is missing (apt-get install mandoc)")
	}
	out, err := exec.CommandContext(t.Context(), lint, append([]string{"-T", "lint", "-W", "warning"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		lines := strings.Split(string(out), "\n")
		t.Errorf("%v: %d findings\n%s", err, len(lines), strings.Join(lines[:min(len(lines), 30)], "\n"))
	}
}
