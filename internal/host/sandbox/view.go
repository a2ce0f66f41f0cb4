package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A view is what a session sees of the host's files. It is built by stage 2 in
// a mount namespace of its own that nobody else enters, so a crash half way
// leaves nothing behind.
type view struct {
	spec    *Spec
	trial   bool // user namespace: the caller's uid, no device nodes of our own
	omit    map[string]bool
	newAPI  bool     // mount_setattr and open_tree (Linux 5.12)
	masked  []string // secrets under a mask
	missing []string
	layers  []Layer
}

// Where the read view keeps its own things. stage is unreadable to the session.
const (
	stageDir  = "/dev/.handrail"
	blankFile = stageDir + "/file"
	blankDir  = stageDir + "/dir"
)

// private are the places that a read session may write: they are its own and
// end with it.
var private = [...]string{"/tmp", "/var/tmp", "/dev/shm"}

const lockedDown = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

func (v *view) lack(format string, a ...any) {
	v.missing = append(v.missing, fmt.Sprintf(format, a...))
}

func (v *view) omitted(layer string) bool { return v.omit[layer] }

func (v *view) stands(name, detail string) {
	v.layers = append(v.layers, Layer{Name: name, InForce: true, Detail: detail})
}

// buildRead makes the read view. What it needs of the host's /dev and /run is
// held open before they are covered.
func (v *view) buildRead() error {
	kept := holdOpen("/run/log/journal", "/run/utmp")
	devices, err := v.holdDevices()
	if err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"make the host read-only", v.lockDown},
		{"make /dev", func() error { return v.buildDev(devices) }},
		{"make the private folders", func() error { return v.buildPrivate(kept) }},
		{"mount /proc", v.buildProc},
		{"hide the secrets", v.mask},
		{"name the session's account", v.buildAccount},
		{"make the home", v.buildHome},
	}
	if v.omitted("mounts") {
		v.lack("The host was left writable and its secrets open.")
		v.newAPI = true
		// Private, so that what follows stays in here.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		return v.buildDev(devices)
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("cannot %s: %w", s.what, err)
		}
	}
	return nil
}

// lockDown makes every mount of the host read-only, without setuid programs
// and without device nodes, and cuts propagation both ways.
func (v *view) lockDown() error {
	err := error(unix.ENOSYS)
	if !v.omitted("mount_setattr") {
		err = unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE,
			&unix.MountAttr{Attr_set: lockedDown, Propagation: unix.MS_PRIVATE})
	}
	if err == nil {
		v.newAPI = true
		v.stands("read-only mounts", "recursive, by mount_setattr")
		return nil
	}
	if !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		err := unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
		// A mount under another one cannot be reached by path, for the session
		// as little as for us.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	v.lack("This kernel has no mount_setattr (Linux 5.12): mounts were made read-only one by one, and one added in that instant may be missed.")
	v.stands("read-only mounts", "one by one")
	return nil
}

// mountPoints lists where this namespace has mounts, in order.
func mountPoints() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, unescapeMount(f[4]))
		}
	}
	return points, nil
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// tmpfs mounts a small private file system; its memory counts against the
// session's cgroup.
func tmpfs(at, options string, flags uintptr) error {
	if err := unix.Mount("handrail", at, "tmpfs", unix.MS_NOSUID|flags, options); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// deviceNames are the nodes that programs expect; all are harmless.
var deviceNames = [...]struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// holdDevices clones the mounts of the host's nodes where new ones cannot be
// made, before lockDown makes nodes unusable.
func (v *view) holdDevices() ([]int, error) {
	if !v.trial {
		return nil, nil
	}
	var fds []int
	for _, d := range deviceNames {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+d.name, unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("cannot hold /dev/%s: %w", d.name, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// buildDev makes a /dev with a few nodes, pseudo terminals of its own and the
// folder that the other steps use.
func (v *view) buildDev(devices []int) error {
	if err := tmpfs("/dev", "mode=755,size=16m,nr_inodes=2k", 0); err != nil {
		return err
	}
	for i, d := range deviceNames {
		at := "/dev/" + d.name
		if devices == nil {
			if err := unix.Mknod(at, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			if err := unix.Chmod(at, 0o666); err != nil { // the umask
				return err
			}
			continue
		}
		if err := touch(at, 0o600); err != nil {
			return err
		}
		if err := unix.MoveMount(devices[i], "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		unix.Close(devices[i])
	}
	for _, l := range [...][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"},
		{"fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
	} {
		if err := unix.Symlink(l[0], l[1]); err != nil {
			return fmt.Errorf("%s: %w", l[1], err)
		}
	}
	for _, d := range []string{"/dev/pts", "/dev/shm", stageDir, blankDir} {
		if err := unix.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	if err := unix.Chmod("/dev/shm", 0o1777); err != nil {
		return err
	}
	if err := touch(blankFile, 0); err != nil {
		return err
	}
	if err := unix.Chmod(blankDir, 0); err != nil {
		return err
	}
	if err := v.ownTerminals(); err != nil {
		return err
	}
	v.stands("devices", "six nodes and its own terminals")
	return nil
}

// ownTerminals covers the host's pseudo terminals by the session's own, which
// nobody else can open. They are one budget for the host, so they are counted.
func (v *view) ownTerminals() error {
	options := "newinstance,ptmxmode=0666,mode=0620,max=64"
	if !v.trial {
		options += ",gid=5"
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("/dev/pts: %w", err)
	}
	return nil
}

func touch(path string, mode uint32) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, mode)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return unix.Close(fd)
}

// held is a path kept open before something is mounted over it.
type held struct {
	path string
	fd   int
	dir  bool
}

func holdOpen(paths ...string) []held {
	var all []held
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			unix.Close(fd)
			continue
		}
		all = append(all, held{p, fd, st.Mode&unix.S_IFMT == unix.S_IFDIR})
	}
	return all
}

// buildPrivate covers the places that hold other people's temporary files and
// sockets. What is read in them every day is put back, read-only.
func (v *view) buildPrivate(kept []held) error {
	for _, p := range [...]struct{ path, options string }{
		{"/tmp", "mode=1777,size=64m,nr_inodes=16k"},
		{"/var/tmp", "mode=1777,size=16m,nr_inodes=4k"},
		{"/run", "mode=755,size=1m,nr_inodes=256"},
	} {
		if !isRealDir(p.path) { // a link to one of the others
			continue
		}
		if err := tmpfs(p.path, p.options, unix.MS_NODEV); err != nil {
			return err
		}
	}
	for _, h := range kept {
		if err := v.putBack(h); err != nil {
			return fmt.Errorf("%s: %w", h.path, err)
		}
		unix.Close(h.fd)
	}
	v.stands("private /tmp, /var/tmp, /run, /dev/shm", "")
	return nil
}

func isRealDir(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func (v *view) putBack(h held) error {
	if err := os.MkdirAll(filepath.Dir(h.path), 0o755); err != nil {
		return err
	}
	if h.dir {
		if err := unix.Mkdir(h.path, 0o755); err != nil {
			return err
		}
	} else if err := touch(h.path, 0o644); err != nil {
		return err
	}
	return v.bind(fmt.Sprintf("/proc/self/fd/%d", h.fd), h.path)
}

// bind shows src at dst, read-only.
func (v *view) bind(src, dst string) error {
	if !v.newAPI {
		if err := unix.Mount(src, dst, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", dst, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: lockedDown | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dst, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// buildProc mounts the process list of the session's own pid namespace, which
// only the user namespace mode has. A root session reads the host's.
func (v *view) buildProc() error {
	if !v.trial {
		return nil
	}
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "")
	if err != nil {
		return fmt.Errorf("a fresh /proc is refused here (a container masks the old one?): %w", err)
	}
	v.stands("own process list", "pid namespace and /proc of its own")
	return nil
}
