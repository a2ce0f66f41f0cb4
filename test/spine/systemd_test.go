package spine_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The units of the packages, run by a real systemd that is PID 1 of namespaces
// of its own. Sessions are not tried there: their control groups need
// controllers, which the machine around may keep to itself.
func TestTheUnitsRunUnderARealSystemd(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		t.Skip("there is no systemd to run (Debian: apt-get install systemd)")
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "over"), 0o755))
	packaging, err := filepath.Abs("../../packaging")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "testdata/systemd.sh", dir, binary, packaging)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET | syscall.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL,
	}
	said, _ := cmd.CombinedOutput() // how PID 1 of a namespace ends says nothing
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if err != nil {
		if strings.Contains(string(said), "mount:") {
			t.Skipf("a systemd cannot be had here: %s", said)
		}
		t.Fatalf("nothing was seen: %v\n%s", err, said)
	}
	const noPower = "process: Uid: 993 993 993 993 CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"
	for _, want := range []string{
		"server: ActiveState=active NRestarts=0 Result=success SubState=running", noPower + " \n" + noPower, "root key: 0 400", "logged in\njoined",
		"node: ActiveState=active NRestarts=0 Result=success SubState=running", "web-2 online", "server: ActiveState=active NRestarts=1",
		"ledger      nothing was touched", `"PRIORITY":"4"`, "server: ActiveState=inactive NRestarts=1 Result=success", "node: ActiveState=inactive NRestarts=0 Result=success", "done",
	} {
		if !strings.Contains(string(seen), want) {
			errs, _ := os.ReadFile(filepath.Join(dir, "errors"))
			t.Fatalf("%q was not seen:\n%s%s\n%s", want, seen, errs, said)
		}
	}
}
