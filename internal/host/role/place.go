package role

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// Place is a data folder of this machine with the accounts of its roles. Each
// role has a folder of its own, which the others may not enter:
//
//	DIR/up.json          what runs here (owner only)
//	DIR/root/            the root key; no role reads it after the first start
//	DIR/server/          keys, database, recordings       (the server's account)
//	DIR/warden/          the node's trust and its journal (root)
//	DIR/link/            the node's certificate           (the link's account)
//	DIR/run/             sockets between them
type Place struct {
	Dir          string
	Root         bool // the roles have accounts of their own
	Server, Link int  // these
}

// At is a path below the folder.
func (p Place) At(part ...string) string {
	return filepath.Join(append([]string{p.Dir}, part...)...)
}

// Seen is the same path as a role of that account sees it.
func (p Place) Seen(account int, part ...string) string {
	if p.bindFor(account) != "" {
		p.Dir = enterPlace
	}
	return p.At(part...)
}

// bindFor is the folder to bind for a role whose account may not reach it.
func (p Place) bindFor(account int) string {
	if p.Root && !mayEnter(account, p.Dir) {
		return p.Dir
	}
	return ""
}

// DefaultDir is where data lies when nobody says otherwise: /var/lib for root,
// XDG's data home for everybody else.
func DefaultDir() (string, error) {
	if dir := os.Getenv("HANDRAIL_DATA"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/handrail", nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "handrail"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot find a place for data").WithHint("name a folder: --data DIR")
	}
	return filepath.Join(home, ".local", "share", "handrail"), nil
}

// rangeStart is where the accounts of roles lie, below those of sessions; the
// range is used by nobody on a machine that follows login.defs(5).
const rangeStart = 1_879_040_000

// containerStart is where they lie in a container that has no such number: in
// a gap that neither login.defs(5) nor systemd gives to anybody.
const containerStart = 60_580

// isRoot says whether this process may give files to accounts of its own and
// become them. Root of a namespace with a single account may not: there the
// roles are told apart as those of an ordinary user.
func isRoot() bool {
	return os.Geteuid() == 0 && sandbox.Mapped(containerStart+1)
}

// Prepare makes the folders with their owners: those of the node, and those of
// the server too where there is one. As an ordinary user all belong to that
// user, and the roles are told apart by process only; that is part of what
// makes such an installation a trial.
func Prepare(dir string, server bool) (Place, error) {
	self := os.Geteuid()
	p := Place{Dir: dir, Root: isRoot(), Server: self, Link: self}
	if p.Root {
		p.Server = rangeStart
		if !sandbox.Mapped(rangeStart + 1) {
			p.Server = containerStart
		}
		p.Link = p.Server + 1
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return p, fault.Wrap(fault.Unavailable, err, "cannot make the data folder").WithHint("name a folder of your own: --data DIR")
	}
	if err := refuseForeign(dir); err != nil {
		return p, err
	}
	if p.Root {
		if err := os.Chmod(dir, 0o711); err != nil {
			return p, fault.Wrap(fault.Unavailable, err, "cannot open the data folder to its roles")
		}
	}
	type folder struct {
		dir  string
		mode fs.FileMode
		uid  int
	}
	folders := []folder{
		{p.At("warden"), 0o700, self},
		{p.At("link"), 0o700, p.Link},
		{p.At("run"), 0o711, self},
		{p.At("run", "warden"), 0o711, self},
	}
	if server {
		folders = append(folders,
			folder{p.At("root"), 0o700, self},
			folder{p.At("server"), 0o700, p.Server},
			folder{p.At("run", "server"), 0o711, p.Server})
	}
	for _, f := range folders {
		if err := p.own(f.dir, f.mode, f.uid); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p Place) own(dir string, mode fs.FileMode, uid int) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot make %s", dir)
	}
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return fault.New(fault.Denied, "cannot use %s: not a folder of handrail's own", dir)
	}
	if p.Root {
		if err := os.Lchown(dir, uid, uid); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot give %s to account %d", dir, uid)
		}
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot set the mode of %s", dir)
	}
	return nil
}

// refuseForeign refuses a data folder that others could have prepared: who
// may write there could swap a role's folder before it is used.
func refuseForeign(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot use the data folder")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && int(st.Uid) != os.Geteuid() {
		return fault.New(fault.Denied, "cannot use %s: it belongs to account %d, not to yours (%d)", dir, st.Uid, os.Geteuid()).
			WithHint("name a folder of your own: --data DIR")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fault.New(fault.Denied, "cannot use %s: others may write there", dir).WithHint("chmod go-w %s", dir)
	}
	return nil
}

// Running is what a second start on a folder says of the first.
type Running struct {
	PID     int    `json:"pid"`
	Listen  string `json:"listen,omitempty"`
	SSH     string `json:"ssh,omitempty"`
	Version string `json:"version"`
}

// Lock is a data folder in use. It goes with the process, so a crash leaves
// nothing behind.
type Lock struct{ f *os.File }

// Lock takes the folder for this process, or says who has it.
func (p Place) Lock() (*Lock, error) {
	f, err := os.OpenFile(p.At("up.json"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot lock the data folder")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		var r Running
		_ = json.NewDecoder(f).Decode(&r)
		f.Close()
		who, hint := "another handrail", "name another folder: --data DIR"
		switch {
		case r.PID > 0 && r.Listen != "":
			who = fmt.Sprintf("another handrail (process %d, http://%s)", r.PID, r.Listen)
			hint = fmt.Sprintf("open that one, stop it with `kill %d`, or use another folder: --data DIR", r.PID)
		case r.PID > 0:
			who = fmt.Sprintf("another handrail (process %d)", r.PID)
			hint = fmt.Sprintf("stop it with `kill %d`, or use another folder: --data DIR", r.PID)
		}
		return nil, fault.New(fault.Conflict, "cannot use %s: %s runs on it", p.Dir, who).WithHint("%s", hint)
	}
	return &Lock{f}, nil
}

// Say writes down who has the folder.
func (l *Lock) Say(r Running) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = l.f.Truncate(0)
	}
	if err == nil {
		_, err = l.f.WriteAt(append(data, '\n'), 0)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write to the data folder")
	}
	return nil
}

// Close gives the folder up.
func (l *Lock) Close() { l.f.Close() }
