package sandbox

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Groups reaches the cgroups of sessions by their names, for whoever must end
// them at once and has not made them. The hierarchies are held open, since
// whoever is root in a session can unmount them.
type Groups struct {
	unified, pids *os.File // hold the groups of all sessions; nil: not here
}

// HoldGroups opens the hierarchies as this process, and what it starts, is in
// them. It holds nothing on a host that has none.
func HoldGroups() *Groups {
	g := &Groups{}
	m, err := cgroupMounts()
	if err != nil || m.unified == "" {
		return g
	}
	at := filepath.Join(m.unifiedBase(), parentName)
	g.unified = holdFolder(at)
	if top, ok := m.legacy["pids"]; ok {
		at = filepath.Join(top, m.own["pids"], parentName)
	}
	g.pids = holdFolder(at)
	return g
}

// holdFolder makes and opens a folder.
func holdFolder(path string) *os.File {
	_ = os.MkdirAll(path, 0o755)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), path)
}

// Close lets the hierarchies go.
func (g *Groups) Close() {
	for _, f := range [...]*os.File{g.unified, g.pids} {
		if f != nil {
			f.Close()
		}
	}
}

// condemned is the number of processes that a group may have once its end was
// decided. It is the mark, too, by which the session's keeper knows that.
const condemned = "0"

// Condemn has the kernel kill every process of a session, and returns without
// waiting for their end. Nothing of the session has to run for it: where fifty
// keepers would first take turns on the processor, their sessions are dead
// already. killed counts those that it met; ok is false where this kernel cannot
// do that: the keeper can.
func (g *Groups) Condemn(name string) (killed int, ok bool) {
	if g == nil || g.unified == nil || g.pids == nil || name == "" || strings.Contains(name, "/") {
		return 0, false
	}
	// The mark comes first: whoever sees the death must find it.
	if writeAt(g.pids, name+"/pids.max", condemned) != nil {
		return 0, false
	}
	if f, err := openAt(g.unified, name+"/cgroup.procs", unix.O_RDONLY); err == nil {
		b, _ := io.ReadAll(f)
		f.Close()
		killed = bytes.Count(b, []byte("\n"))
	}
	return killed, writeAt(g.unified, name+"/cgroup.kill", "1") == nil
}

func writeAt(dir *os.File, name, value string) error {
	f, err := openAt(dir, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	return writeAll(f, value)
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Condemned reports whether the end of this session was decided elsewhere, or
// by Kill.
func (c *Cgroup) Condemned() bool {
	dir := c.legacy["pids"]
	if dir == "" {
		dir = c.unified
	}
	b, err := c.read(dir, "pids.max")
	return err == nil && strings.TrimSpace(string(b)) == condemned
}
