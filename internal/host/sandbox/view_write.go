package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// buildWrite makes the little that a write session's view differs: the cgroup
// tree cannot be changed in it, and handrail's folders are empty.
func (v *view) buildWrite() error {
	powerful := v.spec.Sudo || v.spec.Root
	if !powerful {
		// Mounts of the host still arrive; the session's stay inside.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("cannot cut mount propagation: %w", err)
		}
		for _, dir := range v.spec.Hide {
			if !isRealDir(dir) {
				continue
			}
			if err := tmpfs(dir, "mode=000,size=4k,nr_inodes=2", unix.MS_RDONLY|unix.MS_NODEV); err != nil {
				return fmt.Errorf("cannot hide handrail's folder: %w", err)
			}
		}
		if err := v.buildApart(); err != nil {
			return err
		}
	}
	// With sudo or root this only guards against accidents, and mounts made by
	// the person take effect on the host where the host shares them.
	if v.trial {
		if err := v.buildProc(); err != nil {
			return fmt.Errorf("cannot mount /proc: %w", err)
		}
		return nil
	}
	if !isRealDir("/sys/fs/cgroup") {
		return nil
	}
	err := unix.MountSetattr(unix.AT_FDCWD, "/sys/fs/cgroup", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) { // old kernel, or not a mount here
		v.lack("The cgroup tree is writable in this session's view: root could move out of its cgroup.")
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot make the cgroup tree read-only: %w", err)
	}
	v.stands("read-only cgroup tree", "")
	return nil
}

// buildApart keeps what a write session types and stores from the other ones
// of its account: its terminals, and its home where the account is kept for
// such sessions. A person's own account, or a service's, keeps its home.
func (v *view) buildApart() error {
	if v.trial {
		return nil
	}
	if isRealDir("/dev/pts") {
		if err := v.ownTerminals(); err != nil {
			return fmt.Errorf("cannot make the session's terminals: %w", err)
		}
		v.stands("own terminals", "")
	}
	if !v.spec.Alone {
		v.lack("The home of account %s is that of all its sessions: what one leaves there can act in the next.", v.spec.User)
		return nil
	}
	home := v.home()
	if home == "/" || !isRealDir(home) {
		v.lack("The account %s has no folder for a home: the session has none either.", v.spec.User)
		return nil
	}
	options := fmt.Sprintf("mode=700,uid=%d,gid=%d,size=256m,nr_inodes=64k", v.spec.UID, v.spec.GID)
	if err := tmpfs(home, options, unix.MS_NODEV); err != nil {
		return fmt.Errorf("cannot make the session's home: %w", err)
	}
	v.stands("own home", "ends with the session")
	return nil
}

// runDir is for the sockets of a session that has a home of its own: what
// listens should do so where only this session can look. Empty: there is none.
func (v *view) runDir() string {
	if !v.spec.Alone || v.trial {
		return ""
	}
	dir := v.home() + "/.run"
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return ""
	}
	return dir
}

// part takes the session out of reach of the others of its account.
func (s *stage) part() error {
	v := &s.view
	if v.trial { // it has a pid namespace of its own
		return nil
	}
	s.abi = v.landlockABI()
	if s.abi < abiPart {
		v.lack("This kernel's Landlock does not keep write sessions apart (ABI 2, Linux 5.19): another session of account %s could trace and signal this one.", v.spec.User)
		return nil
	}
	if err := partByLandlock(s.abi, v.spec.Alone); err != nil {
		return fmt.Errorf("cannot part the session from others: %w", err)
	}
	v.stands("Landlock domain", fmt.Sprintf("ABI %d", s.abi))
	switch {
	case s.abi < abiScope:
		v.lack("This kernel's Landlock does not scope signals (ABI 6, Linux 6.12): another session of account %s could signal this one.", v.spec.User)
	case !v.spec.Alone:
		v.lack("Account %s has processes of its own, so signals are not scoped: another session of it could signal this one.", v.spec.User)
	default:
		s.parted = true
	}
	return nil
}
