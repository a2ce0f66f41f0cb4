package kernels

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/sandbox/attack"
)

func TestMain(m *testing.M) {
	sandbox.Stage2()
	attack.Main()
	if os.Args[0] == ownAttack {
		attackOwn()
	}
	if os.Getpid() == 1 {
		beGuest()
	}
	os.Exit(m.Run())
}

// boot runs a machine to its end.
func boot(t *testing.T, kernel, initial string, o order, more ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	result := filepath.Join(t.TempDir(), "result")
	words := append([]string{"console=ttyS0", "quiet", "panic=-1", orderWord + strings.ReplaceAll(string(text), `"`, "'")}, more...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm", "-cpu", "max", "-m", "1024", "-display", "none", "-monitor", "none",
		"-nodefaults", "-no-reboot", "-serial", "stdio", "-serial", "file:"+result, "-kernel", kernel, "-initrd", initial, "-append", strings.Join(words, " "))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, tail(said.String()))
	}
	b, err := os.ReadFile(result)
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatalf("%v: %q\n%s", err, tail(string(b)), tail(said.String()))
	}
	if a.Err != "" {
		t.Fatalf("%s\n%s", a.Err, tail(said.String()))
	}
	return a
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// initial packs the machines' root.
func initial(t *testing.T) string {
	t.Helper()
	var a archive
	for _, dir := range []string{"bin", "sbin", "usr", "usr/bin", "etc", "root", "dev", "var", "var/lib", "var/spool", "home", "home/kim"} {
		a.dir(dir, 0o755)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is missing (as root: apt-get install busybox-static)")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"bin/busybox": busybox, "init": self, "bin/handrail": program(t)} {
		if err := a.program(name, path); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			a.link("bin/"+applet, "busybox")
		}
	}
	a.link("usr/bin/env", "../../bin/busybox")
	a.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nkim:x:1000:1000::/home/kim:/bin/sh\n")
	a.text("etc/group", "root:x:0:\nkim:x:1000:\n")
	a.secret("etc/shadow", "root:secret-of-shadow:1:0:99999:7:::\n")
	a.text("etc/hostname", "odd\n")
	path := filepath.Join(t.TempDir(), "initial")
	if err := os.WriteFile(path, a.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/handrail")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("bin/handrail is missing: make build")
	}
	return path
}

// foundKernels are those in HANDRAIL_TEST_KERNELS.
func foundKernels(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("HANDRAIL_TEST_KERNELS")
	if dir == "" {
		t.Skip("make test-kernels")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu is missing (as root: apt-get install qemu-system-x86)")
	}
	all, err := filepath.Glob(filepath.Join(dir, "vmlinuz*"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no vmlinuz* in %s: %v", dir, err)
	}
	return all
}

// TestTheFloorOfEachKernel boots each kernel as a host with cgroup version 2.
func TestTheFloorOfEachKernel(t *testing.T) {
	kernels, root := foundKernels(t), initial(t)
	for _, kernel := range kernels {
		t.Run(filepath.Base(kernel), func(t *testing.T) {
			a := boot(t, kernel, root, order{Cgroup: "v2", Attack: true, Product: true})
			want, known := landlockOf(a.Probe.Kernel)
			if known && a.Probe.Landlock != want {
				t.Errorf("Linux %s has Landlock %d, want %d", a.Probe.Kernel, a.Probe.Landlock, want)
			}
			a.check(t, "v2")
			a.attacked(t)
		})
	}
}

// TestOddHosts boots the newest kernel as hosts of other forms.
func TestOddHosts(t *testing.T) {
	kernels, root := foundKernels(t), initial(t)
	kernel := kernels[len(kernels)-1]
	for _, host := range []struct {
		name string
		order
		more string
	}{
		{name: "cgroup version 1", order: order{Cgroup: "v1"}},
		{name: "both versions", order: order{Cgroup: "hybrid"}},
		{name: "no cgroups", order: order{Cgroup: "none"}},
		{name: "a root that cannot be written", order: order{Cgroup: "v2", ReadOnly: true}},
		{name: "a process list that hides others", order: order{Cgroup: "v2", HidePID: "2"}},
		{name: "no Landlock", order: order{Cgroup: "v2", Attack: true}, more: "lsm=capability"},
	} {
		t.Run(host.name, func(t *testing.T) {
			host.Product = true
			a := boot(t, kernel, root, host.order, strings.Fields(host.more)...)
			if host.more != "" && a.Probe.Landlock != 0 {
				t.Errorf("it has Landlock %d", a.Probe.Landlock)
			}
			a.check(t, host.Cgroup)
			if host.Attack {
				a.attacked(t)
			}
		})
	}
}

// landlockOf is the version that Linux had at a release; later ones are not
// known here.
func landlockOf(release string) (abi int, known bool) {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, false
	}
	at := major*1000 + minor
	for i, since := range []int{5013, 5019, 6002, 6007, 6010, 6012} {
		if at < since {
			return i, true
		}
	}
	return 6, at < 6015
}

// check compares what the host says of itself with what its sessions do.
func (a answer) check(t *testing.T, cgroup string) {
	t.Helper()
	t.Logf("Linux %s, Landlock %d, cgroups %q, mode %s, floor %s, missing %q", a.Probe.Kernel, a.Probe.Landlock, a.Probe.Cgroup, a.Probe.Mode, a.Probe.Floor, a.Probe.Missing)
	if cgroup == "none" {
		cgroup = ""
	}
	if a.Probe.Cgroup != cgroup {
		t.Errorf("the cgroups are %q, want %q", a.Probe.Cgroup, cgroup)
	}
	if cgroup == "" { // what cannot be killed as a whole is not begun
		if r := a.ran(opened); a.Probe.Mode != sandbox.NoShells || r.Status == 0 {
			t.Errorf("without cgroups the mode is %s, and %s ended with %d: %s", a.Probe.Mode, opened, r.Status, r.Out)
		}
		return
	}
	full := a.Probe.Floor == sandbox.Full
	if full != (a.Probe.Landlock > 0) || full != (len(a.Probe.Missing) == 0) {
		t.Errorf("floor %s with Landlock %d, and %q is missing", a.Probe.Floor, a.Probe.Landlock, a.Probe.Missing)
	}
	if r := a.ran(asked); r.Status != 0 || !strings.Contains(r.Out, fmt.Sprintf(`"floor": %q`, a.Probe.Floor)) {
		t.Errorf("the list of hosts does not name the floor: %+v", r)
	}
	if r := a.ran(opened); r.Status != 1 || !strings.Contains(r.Out, "Read-only file system") {
		t.Errorf("%s ended with %d: %s", opened, r.Status, r.Out)
	}
	if r := a.ran(strict); full != (r.Status == 0) || full == strings.Contains(r.Out, "policy wants the floor") {
		t.Errorf("%s ended with %d: %s", strict, r.Status, r.Out)
	}
	if r := a.ran(verified); r.Status != 0 {
		t.Errorf("%s ended with %d: %s", verified, r.Status, r.Out)
	}
	if t.Failed() {
		t.Logf("%+v", a.Run)
	}
}

// attacked requires that exactly what the floor is known to leave got through.
func (a answer) attacked(t *testing.T) {
	t.Helper()
	if a.OwnErr != "" {
		t.Errorf("without root: %s", a.OwnErr)
	}
	for mode, r := range map[string]attack.Result{"root": a.Root, "without root": a.Own} {
		plain, _ := r.Count()
		if plain < 100 {
			t.Errorf("%s: only %d probes succeed without a sandbox: they prove little", mode, plain)
		}
		for _, s := range r.Astray() {
			t.Errorf("%s: %s", mode, s)
		}
		names, why := r.Residue()
		t.Logf("%s: floor %s leaves %d of %d probes %v, because of %q", mode, r.Ready.Floor, len(names), len(r.Rows), names, why)
	}
}
