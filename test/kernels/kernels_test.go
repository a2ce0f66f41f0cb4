package kernels

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
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
	console := io.MultiWriter(&said, t.Output()) // it takes minutes: let people see how far it is
	cmd.Stdout, cmd.Stderr = console, console
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
			abi, known := landlockOf(a.Probe.Kernel)
			if known && a.Probe.Landlock != abi {
				t.Errorf("Linux %s has Landlock %d, want %d", a.Probe.Kernel, a.Probe.Landlock, abi)
			}
			want := floor{sandbox.Full, ""}
			if a.Probe.Landlock == 0 {
				want = floor{sandbox.Reduced, "no Landlock"}
			}
			a.check(t, "v2", want)
			a.attacked(t)
		})
	}
}

// floor is what a host must say that it gives, and what it lacks.
type floor struct {
	name  sandbox.Floor
	lacks string
}

// TestOddHosts boots the newest kernel as hosts of other forms.
func TestOddHosts(t *testing.T) {
	kernels, root := foundKernels(t), initial(t)
	kernel := kernels[len(kernels)-1]
	full := floor{sandbox.Full, ""}
	for _, host := range []struct {
		name string
		order
		more string // words for the kernel
		want floor
	}{
		{"cgroup version 1", order{Cgroup: "v1"}, "", full},
		{"both versions", order{Cgroup: "hybrid"}, "", full},
		{"no cgroups", order{Cgroup: "none"}, "", floor{sandbox.Brokered, "mount -t cgroup2 none /sys/fs/cgroup"}},
		{"memory that is not counted", order{Cgroup: "v2"}, "cgroup_disable=memory", floor{sandbox.Reduced, "no memory controller"}},
		{"a root that cannot be written", order{Cgroup: "v2", ReadOnly: true}, "", full},
		{"a process list that hides others", order{Cgroup: "v2", HidePID: "2"}, "", full},
		{"no Landlock", order{Cgroup: "v2", Attack: true}, "lsm=capability", floor{sandbox.Reduced, "no Landlock"}},
		{"an attack under cgroup version 1", order{Cgroup: "v1", Attack: true}, "", full},
		{"an attack under both versions", order{Cgroup: "hybrid", Attack: true}, "", full},
	} {
		t.Run(host.name, func(t *testing.T) {
			host.Product = !host.Attack
			a := boot(t, kernel, root, host.order, strings.Fields(host.more)...)
			a.check(t, host.Cgroup, host.want)
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
func (a answer) check(t *testing.T, cgroup string, want floor) {
	t.Helper()
	t.Logf("Linux %s, Landlock %d, cgroups %q, mode %s, floor %s, missing %q", a.Probe.Kernel, a.Probe.Landlock, a.Probe.Cgroup, a.Probe.Mode, a.Probe.Floor, a.Probe.Missing)
	if cgroup == "none" {
		cgroup = ""
	}
	if a.Probe.Cgroup != cgroup {
		t.Errorf("the cgroups are %q, want %q", a.Probe.Cgroup, cgroup)
	}
	missing := strings.Join(a.Probe.Missing, " ")
	if a.Probe.Floor != want.name || !strings.Contains(missing, want.lacks) || want.lacks == "" && missing != "" {
		t.Errorf("floor %s, and %q is missing; want %s, and %q", a.Probe.Floor, missing, want.name, want.lacks)
	}
	if len(a.Run) == 0 {
		return
	}
	for _, s := range a.wanted(want) {
		if r := a.ran(s.name); r.Status != s.status && s.status != anyStatus || !strings.Contains(r.Out, s.says) {
			t.Errorf("%s ended with %d, want %d and %q: %s", s.name, r.Status, s.status, s.says, r.Out)
		}
	}
	for _, r := range a.Run {
		t.Logf("%s: %d\n%s", r.Name, r.Status, strings.TrimRight(r.Out, "\n"))
	}
}

// step is how something that people did must have ended.
type step struct {
	name   string
	status int
	says   string
}

// anyStatus is of a command whose own end says nothing: a doctor finds more than
// what these hosts are odd in.
const anyStatus = -99

// wanted are the steps of a host with that floor.
func (a answer) wanted(f floor) []step {
	all := []step{
		{nameless, 2, "next: hostname NAME"},
		{asked, 0, fmt.Sprintf(`"floor": %q`, f.name)},
		{verified, 0, ""},
	}
	if f.name == sandbox.Brokered { // what cannot be killed as a whole is not begun
		return append(all, step{doctored, anyStatus, f.lacks}, step{opened, 255, f.lacks}, step{shown, 0, f.lacks})
	}
	all = append(all,
		step{doctored, anyStatus, "handrail-write is missing"}, step{shown, 0, "handrail-write is missing"},
		step{opened, 1, "Read-only file system"}, step{looked, 0, "init"},
		step{frozen, 0, ""}, step{thawed, 0, ""}, step{stopped, 0, ""}, step{killed, 0, ""}, step{locked, 0, ""}, step{ended, 0, ""},
		step{wrote, 255, "adduser -S"},
	)
	if a.ran(prepared).Status == 0 { // else its root cannot be written
		all = append(all, step{again, 0, "handrail-write\n/tmp/written"})
	}
	if f.name == sandbox.Full {
		return append(all, step{strict, 0, ""})
	}
	return append(all, step{strict, 255, "policy wants the floor"})
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
