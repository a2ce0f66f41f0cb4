package kernels

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/sandbox/attack"
)

// order is what a machine is told on its kernel's command line.
type order struct {
	Cgroup   string `json:"cgroup"`            // v1, v2, hybrid, none
	ReadOnly bool   `json:"ro,omitempty"`      // the root cannot be written; /run, /tmp and /srv can
	HidePID  string `json:"hidepid,omitempty"` // of /proc
	Attack   bool   `json:"attack,omitempty"`
	Product  bool   `json:"product,omitempty"` // run handrail itself
}

// answer is what a machine found.
type answer struct {
	Err    string
	Probe  sandbox.Report
	Root   attack.Result // of a session of root's
	Own    attack.Result // of an ordinary account's, if user namespaces are allowed
	OwnErr string
	Run    []ran // what handrail itself said
}

type ran struct {
	Name   string
	Status int
	Out    string
}

// orderWord marks the order on the kernel's command line.
const orderWord = "handrail="

// beGuest is the first process of a machine. It never returns.
func beGuest() {
	var a answer
	o, err := ordered()
	if err == nil {
		err = a.fill(o)
	}
	if err != nil {
		a.Err = err.Error()
		fmt.Println("guest:", err)
	}
	b, _ := json.Marshal(a)
	if out, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		if t, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err == nil {
			t.Oflag &^= unix.OPOST
			_ = unix.IoctlSetTermios(int(out.Fd()), unix.TCSETS, t)
		}
		_, _ = out.Write(append(b, '\n'))
		_ = unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // until it is sent
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// ordered mounts what is needed to read the order, and reads it.
func ordered() (o order, err error) {
	for _, m := range []mount{{"proc", "/proc", ""}, {"devtmpfs", "/dev", ""}} {
		if err := errors.Join(os.MkdirAll(m.at, 0o755), unix.Mount(m.kind, m.at, m.kind, 0, "")); err != nil {
			return o, err
		}
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return o, err
	}
	for _, word := range strings.Fields(string(b)) {
		if text, ok := strings.CutPrefix(word, orderWord); ok {
			return o, json.Unmarshal([]byte(strings.ReplaceAll(text, "'", `"`)), &o)
		}
	}
	return o, errors.New("no order on the command line")
}

func (a *answer) fill(o order) error {
	if err := o.makeHost(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	a.Probe = sandbox.Probe(ctx, nil)
	if o.Attack {
		if err := os.Setenv("HANDRAIL_ATTACK_FOLDER", "/srv"); err != nil {
			return err
		}
		var err error
		if a.Root, err = attack.Run(ctx, sandbox.RootMode); err != nil {
			return err
		}
		a.attackAsNobody(ctx)
	}
	if o.Product {
		a.runHandrail(ctx)
	}
	return nil
}

// attackAsNobody runs the suite without root, in a process of its own.
func (a *answer) attackAsNobody(ctx context.Context) {
	folder := "/srv/nobody"
	if err := errors.Join(os.Mkdir(folder, 0o755), os.Chown(folder, 65534, 65534)); err != nil {
		a.OwnErr = err.Error()
		return
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args[0] = ownAttack
	cmd.Env = append(os.Environ(), "HANDRAIL_ATTACK_FOLDER="+folder, "HOME="+folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &a.Own)
	}
	if err != nil {
		a.OwnErr = fmt.Sprint(err, ": ", said.String())
	}
}

// ownAttack is argv[0] of the suite's process without root.
const ownAttack = "handrail-kernels-own"

func attackOwn() {
	r, err := attack.Run(context.Background(), sandbox.UserNamespaceMode)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	os.Exit(0)
}

type mount struct{ kind, at, options string }

// makeHost turns the initial root into the host that was ordered.
func (o order) makeHost() error {
	if err := newRoot(); err != nil {
		return fmt.Errorf("cannot make the root: %w", err)
	}
	proc := ""
	if o.HidePID != "" {
		proc = "hidepid=" + o.HidePID
	}
	mounts := []mount{
		{"proc", "/proc", proc}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}, {"devpts", "/dev/pts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"}, {"tmpfs", "/run", "mode=755"}, {"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/var/tmp", "mode=1777"}, {"tmpfs", "/srv", "mode=755"},
	}
	const top = "/sys/fs/cgroup"
	legacy := []string{"pids", "memory", "cpu", "freezer"}
	switch o.Cgroup {
	case "v2":
		mounts = append(mounts, mount{"cgroup2", top, ""})
	case "v1", "hybrid":
		mounts = append(mounts, mount{"tmpfs", top, "mode=755"})
		for _, c := range legacy {
			mounts = append(mounts, mount{"cgroup", top + "/" + c, c})
		}
		if o.Cgroup == "hybrid" {
			mounts = append(mounts, mount{"cgroup2", top + "/unified", ""})
		}
	}
	for _, m := range mounts {
		_ = os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	if err := o.narrow(top + "/cpu/narrow"); err != nil {
		return fmt.Errorf("cannot narrow the share of the processor: %w", err)
	}
	if o.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("cannot make the root read-only: %w", err)
		}
	}
	os.Clearenv()
	for name, value := range map[string]string{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TMPDIR": "/tmp"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return errors.Join(unix.Sethostname([]byte("odd")), loopback())
}

// narrow puts this machine's processes into a group with less of the processor
// than a session may have, as a container or a unit with a quota is. Version 1
// refuses to give more to those below.
func (o order) narrow(dir string) error {
	if o.Cgroup != "v1" && o.Cgroup != "hybrid" {
		return nil
	}
	return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/cpu.cfs_quota_us", []byte("100000"), 0), os.WriteFile(dir+"/cgroup.procs", []byte("1"), 0))
}

// newRoot moves what the kernel unpacked into a file system of its own, as a
// boot does: the initial one cannot be made read-only or left.
func newRoot() error {
	const to = "/newroot"
	if err := errors.Join(os.Mkdir(to, 0o755), unix.Mount("root", to, "tmpfs", 0, "mode=755,size=80%")); err != nil {
		return err
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != "newroot" && name != "proc" && name != "dev" {
			if out, err := exec.Command("/bin/busybox", "cp", "-a", "/"+name, to+"/"+name).CombinedOutput(); err != nil {
				return fmt.Errorf("cannot copy %s: %w: %s", name, err, out)
			}
		}
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "srv", "var/tmp", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(to, dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(unix.Unmount("/proc", 0), unix.Unmount("/dev", unix.MNT_DETACH), unix.Chdir(to), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
