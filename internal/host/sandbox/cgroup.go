package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Limits bound what a session may take of the host; zero is no limit.
type Limits struct {
	Pids        int64
	MemoryBytes int64
	CPUPercent  int // of one core: 150 is one and a half
}

// Cgroup holds every process of one session.
//
// Three layouts exist. Where version 2 is mounted alone, everything is there.
// Where it is mounted beside version 1 controllers (hybrid), the child is born
// in the version 2 group, which can be frozen and killed as a whole, and then
// enters the version 1 groups that limit it. Where only version 1 exists,
// killing is pids.max=0, freeze, kill, thaw, until nobody is left.
type Cgroup struct {
	layout  string
	unified string            // folder of the version 2 group; empty without
	legacy  map[string]string // controller → folder of the version 1 group
	fd      *os.File          // the version 2 folder, for clone
	held    []*os.File        // every folder above, named by its path: root in the session can unmount the trees
	unbound []string          // controllers that this host does not have, of the limits that were asked for
}

// mounted says where the hierarchies are and where this process is in them.
type mounted struct {
	unified     string // mount point of version 2
	controllers map[string]bool
	legacy      map[string]string // controller → mount point
	own         map[string]string // controller ("" = version 2) → own path in it
}

// cgroupMounts reads mountinfo and our own membership.
func cgroupMounts() (mounted, error) {
	m := mounted{controllers: map[string]bool{}, legacy: map[string]string{}, own: map[string]string{}}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			m.unified = unescapeMount(f[4])
		case "cgroup":
			for _, c := range strings.Split(tail[2], ",") {
				m.legacy[c] = unescapeMount(f[4])
			}
		}
	}
	if m.unified != "" {
		b, _ := os.ReadFile(filepath.Join(m.unified, "cgroup.controllers"))
		for _, c := range strings.Fields(string(b)) {
			m.controllers[c] = true
		}
	}
	b, err = os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			m.own[c] = f[2]
		}
	}
	return m, nil
}

// CgroupTops are the folders at which hierarchies are mounted, of both versions.
func CgroupTops() []string {
	m, err := cgroupMounts()
	if err != nil {
		return nil
	}
	tops := values(m.legacy)
	if m.unified != "" {
		tops = append(tops, m.unified)
	}
	slices.Sort(tops)
	return slices.Compact(tops) // controllers can share one
}

// parentName is the folder that holds the groups of all sessions.
const parentName = "handrail"

// NewCgroup makes the session's cgroup. The name is one path element.
func NewCgroup(name string, l Limits) (*Cgroup, error) {
	if name == "" || strings.ContainsAny(name, "/\n") || strings.HasPrefix(name, ".") {
		return nil, fault.New(fault.Invalid, "cannot make cgroup %q: not one path element", name)
	}
	m, err := cgroupMounts()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make cgroup %q", name)
	}
	c := &Cgroup{legacy: map[string]string{}}
	if err := c.make(m, name, l); err != nil {
		_ = c.Remove()
		f := fault.Wrap(fault.Unavailable, err, "cannot make cgroup %q", name)
		if errors.Is(err, errNoCgroups) {
			return nil, f.WithHint("%s", mountAdvice)
		}
		return nil, f.WithHint("run handrail as root, or under a service with Delegate=yes")
	}
	return c, nil
}

var errNoCgroups = errors.New("this host has no cgroups mounted")

// mountAdvice is what to do then.
const mountAdvice = "mount -t cgroup2 none /sys/fs/cgroup, and start handrail again"

func (c *Cgroup) make(m mounted, name string, l Limits) error {
	limits := l.files()
	if m.unified != "" {
		if err := c.makeUnified(m, name); err != nil {
			return err
		}
		c.layout = "v2"
	}
	for _, controller := range [...]string{"pids", "memory", "cpu", "freezer"} {
		at, ok := m.legacy[controller]
		if !ok || controller == "freezer" && c.unified != "" {
			continue
		}
		dir := filepath.Join(at, m.own[controller], parentName, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		c.legacy[controller] = dir
		if _, err := c.hold(dir); err != nil {
			return err
		}
		for file, value := range limits[controller].v1 {
			err := writeFile(filepath.Join(dir, file), value)
			if controller == "cpu" && errors.Is(err, unix.EINVAL) {
				continue // the group above has less, and bounds the session
			}
			if err != nil {
				return err
			}
		}
	}
	if c.unified == "" && len(c.legacy) == 0 {
		return errNoCgroups
	}
	if len(c.legacy) > 0 {
		c.layout = "hybrid"
		if c.unified == "" {
			c.layout = "v1"
		}
	}
	for controller, files := range limits {
		switch {
		case c.legacy[controller] != "":
			continue
		case c.unified == "" || !m.controllers[controller]:
			c.unbound = append(c.unbound, controller)
			continue
		}
		for file, value := range files.v2 {
			if err := writeFile(filepath.Join(c.unified, file), value); err != nil {
				return err
			}
		}
	}
	return nil
}

// unifiedBase is where the version 2 groups lie: alone, at the top, where the
// limits can be had without moving our own process; beside version 1 they need
// no controllers and lie under our own group.
func (m mounted) unifiedBase() string {
	if m.controllers["pids"] && os.Getuid() == 0 {
		return m.unified
	}
	return filepath.Join(m.unified, m.own[""])
}

// makeUnified makes the version 2 group.
func (c *Cgroup) makeUnified(m mounted, name string) error {
	base := m.unifiedBase()
	parent := filepath.Join(base, parentName)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	if m.controllers["pids"] {
		for _, dir := range [...]string{base, parent} {
			for _, controller := range [...]string{"pids", "memory", "cpu"} {
				if !m.controllers[controller] {
					continue
				}
				if err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller); err != nil {
					return err
				}
			}
		}
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	c.unified = dir
	var err error
	c.fd, err = c.hold(dir)
	return err
}

// hold keeps a folder of the group open.
func (c *Cgroup) hold(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	c.held = append(c.held, f)
	return f, nil
}

// limitFiles are the files to write for one controller in each version.
type limitFiles struct{ v1, v2 map[string]string }

func (l Limits) files() map[string]limitFiles {
	out := map[string]limitFiles{}
	add := func(controller, v1, v1value, v2, v2value string) {
		out[controller] = limitFiles{map[string]string{v1: v1value}, map[string]string{v2: v2value}}
	}
	if l.Pids > 0 {
		n := strconv.FormatInt(l.Pids, 10)
		add("pids", "pids.max", n, "pids.max", n)
	}
	if l.MemoryBytes > 0 {
		n := strconv.FormatInt(l.MemoryBytes, 10)
		add("memory", "memory.limit_in_bytes", n, "memory.max", n)
	}
	if l.CPUPercent > 0 {
		const period = 100_000 // µs, the kernel's default
		quota := strconv.Itoa(l.CPUPercent * period / 100)
		add("cpu", "cpu.cfs_quota_us", quota, "cpu.max", quota+" "+strconv.Itoa(period))
	}
	return out
}

func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return writeAll(f, value)
}

func writeAll(f *os.File, value string) error {
	_, err := f.WriteString(value)
	return errors.Join(err, f.Close())
}

// write sets a file of the group in dir; read reads one.
func (c *Cgroup) write(dir, name, value string) error {
	f, err := c.open(dir, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	return writeAll(f, value)
}

func (c *Cgroup) read(dir, name string) ([]byte, error) {
	f, err := c.open(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (c *Cgroup) open(dir, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir, name)
	i := slices.IndexFunc(c.held, func(f *os.File) bool { return f.Name() == dir })
	if i < 0 {
		return os.OpenFile(path, flags, 0)
	}
	fd, err := unix.Openat(int(c.held[i].Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// enter puts a process that was born in the version 2 group under the version
// 1 limits as well.
func (c *Cgroup) enter(pid int) error {
	for _, dir := range c.legacy {
		if err := c.write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot put the session under its limits")
		}
	}
	return nil
}

// any is a folder whose members are all of the session's processes.
func (c *Cgroup) any() string {
	if c.unified != "" {
		return c.unified
	}
	for _, controller := range [...]string{"freezer", "pids", "memory", "cpu"} {
		if dir := c.legacy[controller]; dir != "" {
			return dir
		}
	}
	return ""
}

// Procs lists the live process ids.
func (c *Cgroup) Procs() ([]int, error) {
	b, err := c.read(c.any(), "cgroup.procs")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot list the session's processes")
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill ends every process in the cgroup and returns when none is left; n
// counts those found alive at the start. It can be called again, and after a
// crash by whoever knows the name.
func (c *Cgroup) Kill(ctx context.Context) (n int, err error) { return c.kill(ctx, false) }

// kill is Kill; tests choose the way of old kernels.
func (c *Cgroup) kill(ctx context.Context, oneByOne bool) (n int, err error) {
	pids, err := c.Procs()
	if err != nil {
		return 0, err
	}
	n = len(pids)
	for _, dir := range []string{c.legacy["pids"], c.unified} {
		if dir != "" {
			_ = c.write(dir, "pids.max", condemned) // no new ones; a belt where cgroup.kill works
		}
	}
	whole := !oneByOne && c.unified != "" && c.write(c.unified, "cgroup.kill", "1") == nil
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if pids, err = c.Procs(); err != nil || len(pids) == 0 {
			return n, err
		}
		if !whole {
			c.killOneByOne(ctx, pids)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return n, fault.New(fault.Unavailable, "cannot end the session: %d processes are still there", len(pids)).
				WithHint("look at their state with ps; one stuck in a device (state D) ends when the device answers")
		case <-t.C:
		}
	}
}

// killOneByOne is for hosts without cgroup.kill: frozen processes cannot fork
// while the signals are placed, and die when thawed.
func (c *Cgroup) killOneByOne(ctx context.Context, pids []int) {
	_ = c.Freeze(ctx)
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = c.Thaw(ctx)
}

// Freeze stops every process until Thaw.
func (c *Cgroup) Freeze(ctx context.Context) error { return c.freeze(ctx, true) }

// Thaw lets them go on.
func (c *Cgroup) Thaw(ctx context.Context) error { return c.freeze(ctx, false) }

func (c *Cgroup) freeze(ctx context.Context, on bool) error {
	file, value, state, want := "cgroup.freeze", "0", "cgroup.events", "frozen 0"
	dir := c.unified
	if on {
		value, want = "1", "frozen 1"
	}
	if dir == "" {
		dir, file, value, state = c.legacy["freezer"], "freezer.state", "THAWED", "freezer.state"
		if on {
			value = "FROZEN"
		}
		want = value
	}
	if dir == "" {
		return fault.New(fault.Unavailable, "cannot pause the session: this host has no freezer")
	}
	if err := c.write(dir, file, value); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot pause the session")
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		b, err := c.read(dir, state)
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot pause the session")
		}
		if strings.Contains(string(b), want) {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fault.New(fault.Unavailable, "cannot pause the session: some processes do not stop")
		case <-t.C:
		}
	}
}

// Remove deletes the empty cgroup.
func (c *Cgroup) Remove() error {
	for _, f := range c.held {
		f.Close()
	}
	c.fd, c.held = nil, nil
	var errs []error
	for _, dir := range append([]string{c.unified}, values(c.legacy)...) {
		if dir == "" {
			continue
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the session's cgroup")
	}
	return nil
}

func values(m map[string]string) []string {
	var out []string
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// Layout says how this machine's cgroups are mounted and what is used:
// "v2", "hybrid" or "v1".
func (c *Cgroup) Layout() string { return c.layout }

// lacks are sentences about limits that this host cannot keep.
func (c *Cgroup) lacks() (sentences []string) {
	slices.Sort(c.unbound)
	for _, controller := range c.unbound {
		sentences = append(sentences, "This host's cgroups have no "+controller+" controller: what a session takes of it is not limited. "+
			"What to do: boot without cgroup_disable="+controller+", and with cgroup_enable="+controller+" where the kernel wants that.")
	}
	return sentences
}

// Path is the folder that names the session's processes.
func (c *Cgroup) Path() string { return c.any() }
