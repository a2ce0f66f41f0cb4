package spine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Back up, go on, lose the server's data, restore: the node, which kept a later
// checkpoint, goes on, and an entry names the cut. The same backup put back by
// hand, without the epoch that the root key signs, is refused by that node.
func TestALostServerIsRestoredAndItsNodeGoesOn(t *testing.T) {
	t.Parallel()
	needRoot(t)
	i := up(t, filepath.Join(t.TempDir(), "data"))
	i.needShells()
	ada := i.first()
	host := strings.TrimSpace(ada.ok("hosts", "-o", "name"))
	dir := t.TempDir()
	secret := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(secret, []byte("twelve and more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rootKey, err := os.ReadFile(filepath.Join(i.data, "root", "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "root.key")
	if err := os.WriteFile(keyFile, rootKey, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "monday")
	ada.ok("backup", "--data", i.data, "--passphrase-file", secret, file)
	if note, err := os.ReadFile(filepath.Join(i.data, "backed-up")); err != nil || !strings.Contains(string(note), `"at"`) {
		t.Errorf("the doctor is not told of the backup: %s %v", note, err)
	}
	for n := range 3 { // the node keeps what comes after the backup
		if out := ada.ok("ssh", host, "--", "echo after"); out != "after\n" {
			t.Fatalf("session %d: %q", n, out)
		}
	}
	i.stop()
	for _, lost := range []string{"server", "root", "keys-made"} {
		if err := os.RemoveAll(filepath.Join(i.data, lost)); err != nil {
			t.Fatal(err)
		}
	}
	if r := ada.run("restore", "--data", i.data, "--passphrase-file", secret, file); r.code == 0 || !strings.Contains(r.err, "--root-key") {
		t.Errorf("restored without the root key: %d %s", r.code, r.err)
	}
	if r := ada.runIn("another passphrase\n", "restore", "--data", i.data, "--root-key", keyFile, file); r.code == 0 {
		t.Error("another passphrase opens it")
	}
	ada.ok("restore", "--data", i.data, "--passphrase-file", secret, "--root-key", keyFile, file)
	if r := ada.run("restore", "--data", i.data, "--passphrase-file", secret, "--root-key", keyFile, file); r.code == 0 || !strings.Contains(r.err, "away first") {
		t.Errorf("restored over a server's data: %d %s", r.code, r.err)
	}
	i = i.again()
	ada.i = i
	i.until("a session after the restore", func() bool { return ada.run("ssh", host, "--", "echo in").out == "in\n" })
	if out := ada.ok("ledger", "list"); !strings.Contains(out, "ledger.restored") {
		t.Errorf("no entry names the cut:\n%s", out)
	}
	ada.ok("ledger", "verify")
}
