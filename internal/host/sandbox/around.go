package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A mask is a mount, and the kernel takes a mount off a path when somebody
// outside puts another file there, as every rotation of a secret does. So
// Landlock reads around the secrets: a folder that holds one is opened name by
// name, as they are at the start, and nothing that comes later in its place is.
// The price: what is made or replaced right beside a secret after a session
// began can be read only in the next session.

// opening is what a session may read: all below a path, or the names in a folder.
type opening struct {
	path  string
	names bool
}

// openingsBound is how many names are opened apart. A host with more beside its
// secrets is told what that leaves.
const openingsBound = 16 << 10

// unreplaceable are file systems in which nobody puts a file in another's place.
var unreplaceable = [...]string{"/proc/", "/sys/", "/dev/"}

// openings is everything around the secrets. list names what is in a folder.
// whole are folders that were too large to be opened name by name.
func openings(secrets []string, list func(dir string) []string) (out []opening, whole []string) {
	holds, hidden := map[string]bool{"/": true}, map[string]bool{}
	for _, s := range secrets {
		if slices.ContainsFunc(unreplaceable[:], func(p string) bool { return strings.HasPrefix(s, p) }) {
			continue
		}
		hidden[s] = true
		for dir := filepath.Dir(s); dir != "/"; dir = filepath.Dir(dir) {
			holds[dir] = true
		}
	}
	dirs := make([]string, 0, len(holds))
	for dir := range holds {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs) // those near the root first
	for _, dir := range dirs {
		names := list(dir)
		if len(out)+len(names) > openingsBound && dir != "/" {
			out, whole = append(out, opening{path: dir}), append(whole, dir)
			continue
		}
		out = append(out, opening{path: dir, names: true})
		for _, name := range names {
			if path := filepath.Join(dir, name); !holds[path] && !hidden[path] {
				out = append(out, opening{path: path})
			}
		}
	}
	return out, whole
}

// namesIn lists a folder, up to more names than are opened; one that cannot be
// read has none for the session.
func namesIn(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(openingsBound + 1) // what could be read
	return names
}

// allow adds the opening to a ruleset. A symbolic link opens nothing: what it
// leads to is opened where it lies.
func (o opening) allow(ruleset int, handled uint64) error {
	fd, err := unix.Open(o.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
			return nil
		}
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	access := uint64(landlockRead)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return nil
	case o.names:
		access = unix.LANDLOCK_ACCESS_FS_READ_DIR
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		access &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	return landlockRule(ruleset, fd, access&handled)
}
