package sandbox

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A node that visits, or one that a server carries, runs from memory, and so
// does what it runs in a session: its sftp server.
func TestAProgramInMemoryRunsItselfInASession(t *testing.T) {
	needRoot(t)
	if os.Getenv("HANDRAIL_TEST_IN_MEMORY") != "" {
		spec := readSpec("again", "-test.run=^$")
		spec.Self = true
		if out, code := output(t, spec, Options{}); code != 0 {
			t.Fatalf("exit %d:\n%s", code, out)
		}
		t.Log("ran itself")
		return
	}
	fd, err := unix.MemfdCreate("handrail-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip("no files in memory here: ", err)
	}
	program := os.NewFile(uintptr(fd), "handrail-test")
	defer program.Close()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if _, err := io.Copy(program, self); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd()), "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "HANDRAIL_TEST_IN_MEMORY=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "ran itself") {
		t.Fatalf("%v:\n%s", err, out)
	}
}
