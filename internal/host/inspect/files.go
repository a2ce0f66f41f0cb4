package inspect

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// secret is a path that is not read, with what lies there now.
type secret struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev,omitempty"`
	Ino  uint64 `json:"ino,omitempty"`
}

// secretsOf notes what lies at each path, so that another name of it is known.
func secretsOf(paths []string) []secret {
	out := make([]secret, 0, len(paths))
	for _, path := range paths {
		s := secret{Path: path}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			s.Dev, s.Ino = uint64(st.Dev), st.Ino
		}
		out = append(out, s)
	}
	return out
}

// files shows what a process has open, or looks at a path.
func (p *plan) files(a *answer) error {
	if isPath(p.Spec.Target) {
		return p.path(a, p.Spec.Target)
	}
	a.end.Method = "the descriptors of the process in /proc; nothing is held, no content is read"
	pid := p.Process.PID
	d, err := os.Open(procPath(pid, "fd"))
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot look at the files of process %d", pid)
	}
	names, _ := d.Readdirnames(maxCounted)
	d.Close()
	var rows []wire.InspectFile
	for _, n := range names {
		if fd, err := strconv.ParseInt(n, 10, 64); err == nil {
			if f, ok := openFile(pid, fd); ok {
				rows = append(rows, f)
			}
		}
	}
	if err := p.still(); err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b wire.InspectFile) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.FD, b.FD))
	})
	for i := range rows {
		if !a.put(wire.InspectRecord{File: &rows[i]}) {
			break
		}
	}
	return nil
}

// rank puts deleted files first: they are what fills a disk unseen.
func rank(f wire.InspectFile) int {
	if f.Deleted && f.Kind == "file" {
		return 0
	}
	return 1
}

func openFile(pid int, fd int64) (wire.InspectFile, bool) {
	f := wire.InspectFile{FD: fd}
	at := procPath(pid, "fd/"+strconv.FormatInt(fd, 10))
	to, err := os.Readlink(at)
	if err != nil {
		return f, false
	}
	f.Path = to
	var st unix.Stat_t
	if unix.Stat(at, &st) == nil { // what is open, whatever its path leads to now
		f.Kind, f.Size = kindOf(st.Mode), st.Size
		f.Deleted = st.Nlink == 0 && (f.Kind == "file" || f.Kind == "folder")
	}
	switch {
	case strings.HasPrefix(to, "/memfd:"):
		f.Kind, f.Deleted = "memory", false
	case strings.HasPrefix(to, "anon_inode:"):
		f.Kind, f.Size = strings.Trim(strings.TrimPrefix(to, "anon_inode:"), "[]"), 0
	}
	f.Path = strings.TrimSuffix(f.Path, " (deleted)")
	if b, err := readSome(procPath(pid, "fdinfo/"+strconv.FormatInt(fd, 10)), 8192); err == nil {
		f.Offset = number(b, "pos:")
		for line := range strings.Lines(string(b)) {
			if octal, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, _ := strconv.ParseInt(strings.TrimSpace(octal), 8, 64)
				f.Mode = [...]string{"r", "w", "rw", ""}[flags&unix.O_ACCMODE]
			}
			f.Locked = f.Locked || strings.HasPrefix(line, "lock:")
		}
	}
	return f, true
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFLNK:
		return "link"
	}
	return "device"
}

// closed says whether a file may not be looked at: it is a secret, lies in
// one, or is another name of one.
func (p *plan) closed(path string, st *unix.Stat_t) bool {
	for _, s := range p.Secret {
		if path == s.Path || strings.HasPrefix(path, s.Path+"/") || s.Ino != 0 && s.Ino == st.Ino && s.Dev == uint64(st.Dev) {
			return true
		}
	}
	return false
}

// path looks at a path: a folder is listed, a file shown by its end, unless
// another part is asked for. It is done by somebody who may no more than a read
// session: the modes of the host hold.
func (p *plan) path(a *answer, path string) error {
	a.end.Method = "as an account of its own, which may no more than a read-only shell, outside of the secret paths"
	if p.Weak {
		a.end.Method = "as this node's own account, outside of the secret paths"
	}
	path = filepath.Clean(path)
	if err := unseen(path, path); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return unreadable(path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return unreadable(path, err)
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		real = path
	}
	if err := unseen(path, real); err != nil { // a link leads there: /var/run does
		return err
	}
	if p.closed(real, &st) || p.closed(path, &st) {
		return fault.New(fault.Denied, "cannot look at %s: it is a secret of this host", path).WithHint("ask somebody who may: a grant that says why")
	}
	kind := kindOf(st.Mode)
	switch {
	case p.Spec.Part == "stat":
		return p.listOne(a, filepath.Dir(real), filepath.Base(real), real)
	case kind == "folder" && (p.Spec.Part == "" || p.Spec.Part == "list"):
		return p.list(a, real)
	case kind != "file":
		return fault.New(fault.Invalid, "cannot read %s: it is a %s", path, kind)
	case p.Spec.Part == "list":
		return p.listOne(a, filepath.Dir(real), filepath.Base(real), real)
	}
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return unreadable(path, err)
	}
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil || now.Ino != st.Ino || now.Dev != st.Dev {
		return fault.New(fault.Conflict, "cannot read %s: it was replaced at this moment", path)
	}
	if p.Spec.Part == "head" {
		return p.head(a, f)
	}
	return p.tail(a, f, now.Size)
}

// unseen refuses a path that really is one of which a read session sees another.
func unseen(path, real string) error {
	for _, tree := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp"} {
		if real == tree || strings.HasPrefix(real, tree+"/") {
			return fault.New(fault.Denied, "cannot look at %s: %s is not seen by a read session either", path, tree).WithHint("handrail inspect HOST top, env, files PID, ports")
		}
	}
	return nil
}

func unreadable(path string, err error) error {
	switch {
	case os.IsNotExist(err) || err == unix.ENOENT || err == unix.ENOTDIR:
		return fault.New(fault.NotFound, "cannot look at %s: there is nothing", path)
	case err == unix.EACCES || err == unix.EPERM || os.IsPermission(err):
		return fault.New(fault.Denied, "cannot look at %s: its mode does not let a read session", path)
	}
	return fault.Wrap(fault.Unavailable, err, "cannot look at %s", path)
}

const maxListed = 20_000

func (p *plan) list(a *answer, dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return unreadable(dir, err)
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxListed)
	slices.Sort(names)
	hidden := 0
	for _, name := range names {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			continue
		}
		if p.closed(path, &st) {
			hidden++
			continue
		}
		f := listed(path, name, &st)
		if !a.put(wire.InspectRecord{File: &f}) {
			break
		}
	}
	if hidden > 0 {
		a.note(fmt.Sprintf("%d secret paths in this folder are left out.", hidden))
	}
	if len(names) == maxListed {
		a.end.Cut = true
	}
	return nil
}

func (p *plan) listOne(a *answer, dir, name, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return unreadable(path, err)
	}
	f := listed(path, path, &st)
	a.put(wire.InspectRecord{File: &f})
	return nil
}

func listed(path, shown string, st *unix.Stat_t) wire.InspectFile {
	f := wire.InspectFile{FD: -1, Path: shown, Kind: kindOf(st.Mode), Size: st.Size, User: userName(int(st.Uid)),
		Changed: st.Mtim.Nano() / 1000, Mode: permissions(st.Mode)}
	if f.Kind == "link" {
		f.LinkedTo, _ = os.Readlink(path)
	}
	return f
}

func permissions(mode uint32) string {
	m := fs.FileMode(mode & 0o777)
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		m |= fs.ModeDir
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m.String()
}

const (
	defaultLines = 100
	maxLineText  = 16 << 10
	maxTail      = 2 << 20
)

func (p *plan) wanted() int {
	if p.Spec.Lines > 0 {
		return int(p.Spec.Lines)
	}
	return defaultLines
}

func (p *plan) head(a *answer, f io.Reader) error {
	r := bufio.NewReaderSize(io.LimitReader(f, maxTail), 64<<10)
	for n := 0; n < p.wanted(); {
		line, err := r.ReadString('\n')
		if line != "" && p.matches(line) {
			n++
			if !a.put(textLine(line)) {
				return nil
			}
		}
		if err != nil {
			return nil
		}
	}
	a.end.Cut = true
	return nil
}

// tail shows the last lines. Those before are read too, so that a key that
// began above is known for one.
func (p *plan) tail(a *answer, f io.ReaderAt, size int64) error {
	from := max(0, size-maxTail)
	b := make([]byte, size-from)
	n, err := f.ReadAt(b, from)
	if err != nil && err != io.EOF {
		return fault.Wrap(fault.Unavailable, err, "cannot read the end of the file")
	}
	b = b[:n]
	if from > 0 {
		a.end.Cut = true
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	var kept []int
	for i, l := range lines {
		if (l != "" || len(lines) > 1) && p.matches(l) {
			kept = append(kept, i)
		}
	}
	if len(kept) > p.wanted() {
		kept = kept[len(kept)-p.wanted():]
		a.end.Cut = true
	}
	at := 0
	for _, i := range kept {
		for ; at < i; at++ {
			a.lines.Line(lines[at])
		}
		if !a.put(textLine(lines[i])) {
			return nil
		}
		at = i + 1
	}
	return nil
}

func (p *plan) matches(line string) bool {
	return p.Spec.Grep == "" || strings.Contains(strings.ToLower(line), strings.ToLower(p.Spec.Grep))
}

func textLine(line string) wire.InspectRecord {
	line = strings.TrimRight(line, "\r\n")
	cut(&line, maxLineText)
	return wire.InspectRecord{Line: &wire.InspectLine{Text: line}}
}
