package spine_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// slowDisk mounts a disk of its own that writes so many times a second.
func slowDisk(t *testing.T, writes int) (dir string) {
	t.Helper()
	const throttle = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device" // of the whole machine, for this disk alone
	if _, err := os.Stat(throttle); err != nil {
		t.Skip("this kernel slows no disk down (cgroup blkio)")
	}
	run := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Skipf("this machine gives no disk of its own: %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	base, err := os.MkdirTemp("", "slow") // the name of a socket in there has to stay short
	if err == nil {
		err = os.Chmod(base, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "m")
	run("truncate", "-s", "512M", image)
	run("mkfs.ext4", "-q", "-F", image)
	device := run("losetup", "-f", "--show", image)
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run("mount", device, dir)
	var at unix.Stat_t
	if err := unix.Stat(device, &at); err != nil {
		t.Fatal(err)
	}
	slow := func(writes int) error {
		return os.WriteFile(throttle, fmt.Appendf(nil, "%d:%d %d\n", unix.Major(at.Rdev), unix.Minor(at.Rdev), writes), 0)
	}
	t.Cleanup(func() {
		_ = slow(0)
		_ = exec.Command("umount", dir).Run()
	})
	if err := slow(writes); err != nil {
		t.Skipf("this machine slows no disk down: %v", err)
	}
	return dir
}

// TestASlowDiskIsOnlySlow has everything on a disk that writes ten times a second:
// one commit takes some tenths, a login seconds. What is asked for happens all the
// same, once, and the ledger verifies.
func TestASlowDiskIsOnlySlow(t *testing.T) {
	needRoot(t)
	needFaults(t)
	disk := slowDisk(t, 10)
	i := up(t, filepath.Join(disk, "data"))
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	var grant asked
	cleo.json(&grant, "elevate", host, "--reason", "it burns", "-o", "json")
	ben.ok("approve", grant.ID, "--yes")
	marks := []string{marker(t), marker(t)}
	written := cleo.start("ssh", "--write", host, "--", "echo up; sleep "+marks[0])
	written.waitFor("up")
	read := cleo.start("ssh", host, "--", "echo up; sleep "+marks[1])
	read.waitFor("up")
	ben.ok("revoke", grant.ID, "--reason", "enough")
	i.until("the end of the revoked session", func() bool { return len(running(marks[0])) == 0 })
	written.wait()
	ada.ok("lock", "cleo", "--reason", "lost laptop")
	i.until("the end of the locked person's session", func() bool { return len(running(marks[1])) == 0 })
	read.wait()
	i.until("all of it to be in the ledger", func() bool {
		out := ada.ok("ledger", "list", "--limit", "500", "-o", "json")
		return strings.Contains(out, "person.locked") && strings.Contains(out, "grant.ended") && strings.Count(out, "session.closed") == strings.Count(out, "session.opened")
	})
	ada.ok("ledger", "verify")
}
