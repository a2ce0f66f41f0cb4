package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/sandbox"
)

// place is the data folder of an installation on this machine. Each role has
// a folder of its own, which the others may not enter:
//
//	DIR/up.json          what `up` runs (owner only)
//	DIR/keys-made        the ring is made: root does nothing more in server/
//	DIR/root/            the root key; no role reads it after the first start
//	DIR/server/          keys, database, recordings       (the server's account)
//	DIR/warden/          the node's trust and its journal (root)
//	DIR/link/            the node's certificate           (the link's account)
//	DIR/run/             sockets between them
type place string

func (p place) at(part ...string) string {
	return filepath.Join(append([]string{string(p)}, part...)...)
}
func (p place) server() string     { return p.at("server") }
func (p place) keys() string       { return p.at("server", "keys") }
func (p place) keysMade() string   { return p.at("keys-made") }
func (p place) rootKey() string    { return p.at("root") }
func (p place) warden() string     { return p.at("warden") }
func (p place) link() string       { return p.at("link") }
func (p place) control() string    { return p.at("run", "server", "control.sock") }
func (p place) wardenSock() string { return p.at("run", "warden", "warden.sock") }

// noteKeysMade writes down, for good, that the ring is made.
func (p place) noteKeysMade() error {
	f, err := os.OpenFile(p.keysMade(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(string(p)); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write to the data folder")
	}
	return nil
}

func parentOf(dir string) string { return filepath.Dir(dir) }

// defaultPlace is where data lies when nobody says otherwise: /var/lib for
// root, XDG's data home for everybody else.
func defaultPlace() (string, error) {
	given, err := settings()
	if err != nil {
		return "", err
	}
	if dir := given["data"].Value; dir != "" {
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
		return "", fault.Wrap(fault.Invalid, err, "cannot find a place for data").WithHint("handrail up --data DIR")
	}
	return filepath.Join(home, ".local", "share", "handrail"), nil
}

// accounts are the numeric accounts of the roles, kept so that a later start
// finds its files readable.
type accounts struct {
	Server int `json:"server"`
	Link   int `json:"link"`
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

// roleAccounts are the accounts of the roles when root starts them.
func roleAccounts() accounts {
	first := rangeStart
	if !sandbox.Mapped(rangeStart + 1) {
		first = containerStart
	}
	return accounts{Server: first, Link: first + 1}
}

// prepare makes the folders with their owners. As an ordinary user all belong
// to that user, and the roles are told apart by process only; that is part of
// what makes such an installation a trial.
func (p place) prepare(root bool) (accounts, error) {
	own := accounts{Server: os.Geteuid(), Link: os.Geteuid()}
	if root {
		own = roleAccounts()
	}
	if err := os.MkdirAll(string(p), 0o711); err != nil {
		return own, fault.Wrap(fault.Unavailable, err, "cannot make the data folder").WithHint("handrail up --data DIR")
	}
	if err := refuseForeign(string(p)); err != nil {
		return own, err
	}
	if root {
		if err := os.Chmod(string(p), 0o711); err != nil {
			return own, fault.Wrap(fault.Unavailable, err, "cannot open the data folder to its roles")
		}
	}
	for _, d := range []struct {
		dir  string
		mode fs.FileMode
		uid  int
	}{
		{p.rootKey(), 0o700, os.Geteuid()},
		{p.server(), 0o700, own.Server},
		{p.warden(), 0o700, os.Geteuid()},
		{p.link(), 0o700, own.Link},
		{p.at("run"), 0o711, os.Geteuid()},
		{p.at("run", "server"), 0o711, own.Server},
		{p.at("run", "warden"), 0o711, os.Geteuid()},
	} {
		if err := ownDir(d.dir, d.mode, d.uid); err != nil {
			return own, err
		}
	}
	return own, nil
}

func ownDir(dir string, mode fs.FileMode, uid int) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fault.Wrap(fault.Unavailable, err, "cannot make %s", dir)
	}
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return fault.New(fault.Denied, "cannot use %s: not a folder of handrail's own", dir)
	}
	if isRoot() {
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
			WithHint("handrail up --data DIR  with a folder of your own")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fault.New(fault.Denied, "cannot use %s: others may write there", dir).WithHint("chmod go-w %s", dir)
	}
	return nil
}

// running is what DIR/up.json tells a second start, and `login --local`.
type running struct {
	PID     int    `json:"pid"`
	Listen  string `json:"listen"`
	SSH     string `json:"ssh"`
	Version string `json:"version"`
}

// lock takes the data folder for this process, or says who has it.
func (p place) lock() (*os.File, error) {
	f, err := os.OpenFile(p.at("up.json"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot lock the data folder")
	}
	if err := lockFolder(int(f.Fd())); err != nil {
		var r running
		_ = json.NewDecoder(f).Decode(&r)
		f.Close()
		who := "another handrail"
		if r.PID > 0 {
			who = fmt.Sprintf("another handrail (process %d, http://%s)", r.PID, r.Listen)
		}
		return nil, fault.New(fault.Conflict, "cannot use %s: %s runs on it", p, who).
			WithHint("open that one, stop it with `kill %d`, or use another folder: handrail up --data DIR", r.PID)
	}
	return f, nil
}

func (r running) write(f *os.File) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(append(data, '\n'), 0)
	return err
}
