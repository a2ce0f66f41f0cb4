package spine_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A first start that is killed, and killed again a little later each time, leaves
// a folder that starts.
func TestAFirstStartThatIsKilledCanBeDoneAgain(t *testing.T) {
	data := t.TempDir()
	if err := os.Chmod(data, 0o711); err != nil {
		t.Fatal(err)
	}
	args := upArgs(t, data)
	for _, point := range []string{
		"up.json", "server/keys.new", "root/root.key.new", "server/keys.new/bundle", "server/keys", "root/root.key", "keys-made",
		"server/state.db.new", "server/state.db", "server/remembered", "server/state.db-wal", "server/witness/key", "run/server/control.sock",
	} {
		killAt(t, filepath.Join(data, point), exec.Command(binary, args...))
	}
	i := upBy(t, exec.Command(binary, args...), data)
	i.first().ok("ledger", "verify")
	for _, pattern := range []string{"*.new*", "*/*.new*"} {
		if left, err := filepath.Glob(filepath.Join(data, pattern)); err != nil || len(left) > 0 {
			t.Errorf("%v is left (%v)", left, err)
		}
	}
}

// killAt starts an installation and kills all of it as soon as a file is there.
func killAt(t *testing.T, path string, cmd *exec.Cmd) {
	t.Helper()
	said := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = io.Discard, said
	cmd.Env = append(os.Environ(), "HANDRAIL_HOME=")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	late := time.After(patience)
	for there := false; !there; {
		select {
		case err := <-ended:
			t.Fatalf("it ended before %s was there: %v\n%s", path, err, said)
		case <-late:
			t.Fatalf("%s does not appear\n%s", path, said)
		default:
			_, err := os.Lstat(path)
			there = err == nil
		}
	}
	roles := below(cmd.Process.Pid)
	kill(t, cmd.Process.Pid)
	for _, f := range roles {
		_ = syscall.Kill(f.pid, syscall.SIGKILL) // it may have ended with its supervisor
	}
	<-ended
}
