package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEverySessionHasAnAuditSessionOfItsOwn(t *testing.T) {
	needRoot(t)
	met := map[int64]bool{}
	for range 5 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		spec := writeSpec(t, "sh", "-c", "cat /proc/self/sessionid /proc/self/loginuid; echo; { echo 7 > /proc/self/loginuid; } 2>/dev/null; cat /proc/self/sessionid")
		spec.Root, spec.Sudo, spec.UID = true, true, 0
		c, err := Start(t.Context(), spec, Options{Stdout: w})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		var b [128]byte
		n, _ := r.Read(b[:])
		for {
			m, err := r.Read(b[n:])
			if n += m; err != nil {
				break
			}
		}
		r.Close()
		if _, err := c.Wait(); err != nil {
			t.Fatal(err)
		}
		id := c.Ready.AuditSession
		if id == 0 {
			t.Skip("this kernel has no audit sessions")
		}
		if want := fmt.Sprintf("%d0\n%d", id, id); string(b[:n]) != want || met[id] {
			t.Fatalf("the session said %q, want %q; seen %v", b[:n], want, met)
		}
		met[id] = true
	}
}

// Root in a session can unmount the tree of cgroups where the host shares its
// mounts with it.
func TestKillNeedsNoMountedCgroupTree(t *testing.T) {
	needRoot(t)
	const inner = "SANDBOX_TEST_OWN_MOUNTS"
	if os.Getenv(inner) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inner+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if t.Logf("in mounts of its own:\n%s", out); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	m, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	killedWithoutTree(t)
	if m.legacy["pids"] == "" || m.unified == "" {
		return
	}
	if err := unix.Unmount(m.unified, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	killedWithoutTree(t) // under version 1 alone
}

func killedWithoutTree(t *testing.T) {
	t.Helper()
	cg, err := NewCgroup(fmt.Sprintf("test-unmount-%d", os.Getpid()), Limits{Pids: 64, MemoryBytes: 1 << 30, CPUPercent: 100})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), readSpec("sleep", "1000"), Options{Cgroup: cg})
	if err != nil {
		t.Fatal(err)
	}
	const tree = "/sys/fs/cgroup"
	if err := unix.Mount("none", tree, "tmpfs", 0, ""); err != nil { // what it covers is out of reach
		t.Fatal(err)
	}
	if _, err := os.Stat(cg.Path()); err == nil {
		t.Fatalf("%s is still there", cg.Path())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if n, err := cg.Kill(ctx); n != 1 || err != nil {
		_ = unix.Kill(c.PID, unix.SIGKILL)
		t.Errorf("%d, %v", n, err)
	}
	if status, err := c.Wait(); err != nil || status.Signal() != syscall.SIGKILL {
		t.Errorf("%v %v", status, err)
	}
	if err := unix.Unmount(tree, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed under %s", cg.Layout())
	if err := cg.Remove(); err != nil {
		t.Error(err)
	}
}
