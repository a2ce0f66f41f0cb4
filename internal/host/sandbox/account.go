package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Account is a named account of the host, for write sessions.
type Account struct {
	Name        string
	UID, GID    uint32
	Home, Shell string
}

// nameServiceTime bounds the host's name service, which may ask a network.
const nameServiceTime = 5 * time.Second

// LookupAccount finds a named account in /etc/passwd, else where the host's
// name service knows it (directory accounts).
func LookupAccount(name string) (Account, error) {
	if name == "" || strings.ContainsAny(name, ":\n\x00") || strings.HasPrefix(name, "-") {
		return Account{}, fault.New(fault.Invalid, "cannot use account %q: not an account name", name)
	}
	b, _ := os.ReadFile("/etc/passwd")
	if a, ok := findAccount(b, name); ok {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), nameServiceTime)
	defer cancel()
	if b, err := exec.CommandContext(ctx, "getent", "passwd", name).Output(); err == nil {
		if a, ok := findAccount(b, name); ok {
			return a, nil
		}
	}
	return Account{}, fault.New(fault.NotFound, "cannot use account %q: this host has none of that name", name).
		WithHint("create the account on the host, or name another in the policy's settings")
}

func findAccount(passwd []byte, name string) (Account, bool) {
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			return Account{name, uint32(uid), uint32(gid), f[5], f[6]}, true
		}
	}
	return Account{}, false
}

// Mapped reports whether this user namespace has an account and a group of
// that number. In a container most numbers exist for nobody, not even for root.
func Mapped(id uint32) bool {
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // a kernel without user namespaces has every number
		}
		if !inMap(b, id) {
			return false
		}
	}
	return true
}

// inMap reads lines of "first outside count".
func inMap(b []byte, id uint32) bool {
	for line := range strings.Lines(string(b)) {
		var first, outside, count uint64
		if n, err := fmt.Sscan(line, &first, &outside, &count); n != 3 || err != nil {
			continue
		}
		if uint64(id) >= first && uint64(id) < first+count {
			return true
		}
	}
	return false
}

// refusedGroups give more than reading: root in disguise, raw devices, secrets.
var refusedGroups = map[string]bool{
	"root": true, "docker": true, "podman": true, "disk": true, "shadow": true, "sudo": true, "wheel": true,
	"admin": true, "lxd": true, "lxc": true, "incus": true, "incus-admin": true, "kvm": true, "libvirt": true,
	"libvirt-qemu": true, "libvirt-admin": true, "kmem": true, "mem": true, "tty": true, "dialout": true,
	"input": true, "render": true, "tape": true, "floppy": true, "backup": true, "operator": true,
	"ssh_keys": true, "_ssh": true, "ssl-cert": true, "tss": true, "sgx": true, "vboxusers": true,
	"wireshark": true, "crontab": true, "messagebus": true, "systemd-network": true, "utmp": true,
	"plugdev": true, "netdev": true, "lpadmin": true, "sambashare": true, "microk8s": true, "containerd": true,
	"handrail": true,
}

// groupIDs turns the spec's groups into numbers. A name that this host does
// not have is left out: policy is written for many hosts.
func groupIDs(spec *Spec, groupFile []byte) ([]uint32, error) {
	names := map[string]uint32{}
	var member []uint32
	for line := range strings.Lines(string(groupFile)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		names[f[0]] = uint32(gid)
		if slices.Contains(strings.Split(f[3], ","), spec.User) {
			member = append(member, uint32(gid))
		}
	}
	var ids []uint32
	for _, g := range spec.Groups {
		gid, known := names[g]
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			gid, known = uint32(n), true
		}
		if spec.Level == Read && (refusedGroups[g] || known && dangerous(gid, names)) {
			return nil, fault.New(fault.Denied, "cannot give group %q to a read session: it can do more than read", g).
				WithHint("take %q out of the groups in the policy's settings", g)
		}
		if known && !slices.Contains(ids, gid) {
			ids = append(ids, gid)
		}
	}
	if spec.Level == Write && !spec.Root {
		for _, gid := range member {
			if !slices.Contains(ids, gid) {
				ids = append(ids, gid)
			}
		}
	}
	return ids, nil
}

func dangerous(gid uint32, names map[string]uint32) bool {
	if gid == 0 {
		return true
	}
	for name, id := range names {
		if id == gid && refusedGroups[name] {
			return true
		}
	}
	return false
}

// buildAccount gives the session's number the person's name, for whoami, ls
// and ps. The line goes first, so that it wins over an account of that name.
func (v *view) buildAccount() error {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return err
	}
	if owner := ownerOf(passwd, v.spec.UID); owner != "" && !v.trial {
		return fault.New(fault.Conflict, "cannot use uid %d for a session: it belongs to account %q", v.spec.UID, owner).
			WithHint("set a uid range that no account uses")
	}
	line := fmt.Sprintf("%s:x:%d:%d:read-only session:%s:%s\n", v.spec.User, v.spec.UID, v.spec.GID, v.home(), v.shell())
	if err := v.overlayFile("/etc/passwd", "passwd", append([]byte(line), passwd...)); err != nil {
		return err
	}
	group, err := os.ReadFile("/etc/group")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	line = fmt.Sprintf("%s:x:%d:\n", v.spec.User, v.spec.GID)
	return v.overlayFile("/etc/group", "group", append([]byte(line), group...))
}

func ownerOf(passwd []byte, uid uint32) string {
	for line := range bytes.Lines(passwd) {
		f := bytes.Split(line, []byte(":"))
		if len(f) > 2 && string(f[2]) == strconv.FormatUint(uint64(uid), 10) {
			return string(f[0])
		}
	}
	return ""
}

// overlayFile shows content in place of the file at path.
func (v *view) overlayFile(path, name string, content []byte) error {
	tmp := stageDir + "/" + name
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	if err := unix.Chmod(tmp, 0o644); err != nil {
		return err
	}
	return v.bind(tmp, path)
}

// accountName makes a person's name fit for /etc/passwd.
func accountName(person string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(person) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9' && b.Len() > 0, r == '_',
			(r == '-' || r == '.' || r == '@') && b.Len() > 0:
			b.WriteRune(r)
		case b.Len() > 0:
			b.WriteByte('_')
		}
		if b.Len() == 32 {
			break
		}
	}
	if b.Len() == 0 {
		return "person"
	}
	return b.String()
}
