package sandbox

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// landlockABI asks the kernel; 0 is none. It is asked and stated, never
// assumed: a library that silently does its best would hide a missing layer.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// landlockABI is the kernel's, or an older one that the attack suite plays.
func (v *view) landlockABI() int {
	abi := landlockABI()
	if v.omitted("landlock") {
		return 0
	}
	for n := range abi {
		if v.omitted(OlderLandlock(n)) {
			return n
		}
	}
	return abi
}

// OlderLandlock names, for StartWithout, everything that Landlock's version n
// did not have yet; 0 is none.
func OlderLandlock(n int) string { return "landlock after " + strconv.Itoa(n) }

const (
	landlockRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockDev  = landlockRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	landlockNode = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
)

// landlockHandled is the set of rights that this ABI knows about files.
func landlockHandled(abi int) uint64 {
	switch {
	case abi >= 5:
		return 1<<16 - 1 // + IOCTL_DEV
	case abi >= 3:
		return 1<<15 - 1 // + TRUNCATE
	case abi == 2:
		return 1<<14 - 1 // + REFER
	}
	return 1<<13 - 1
}

// restrictByLandlock restricts this thread: what is open for reading, one program
// wherever it lies (-1: none), the private places for writing, no TCP, no signals
// and no abstract sockets beyond the session. no_new_privs must be set.
func restrictByLandlock(abi int, open []opening, program int, private []string) error {
	handled := landlockHandled(abi)
	attr := unix.LandlockRulesetAttr{Handled_access_fs: handled}
	size := uintptr(8)
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		size = 16
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = 24
	}
	ruleset, err := landlockRuleset(&attr, size)
	if err != nil {
		return err
	}
	defer unix.Close(ruleset)
	for _, o := range open {
		if err := o.allow(ruleset, handled); err != nil {
			return fmt.Errorf("%s: %w", o.path, err)
		}
	}
	if program >= 0 {
		// A program in memory lies on no file system that Landlock rules over.
		err := landlockRule(ruleset, program, (landlockRead&^unix.LANDLOCK_ACCESS_FS_READ_DIR)&handled)
		if err != nil && !errors.Is(err, unix.EBADFD) {
			return err
		}
	}
	if err := landlockAllow(ruleset, "/dev", landlockDev&handled); err != nil {
		return err
	}
	for _, dir := range private {
		err := landlockAllow(ruleset, dir, handled&^landlockNode)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return landlockEnforce(ruleset)
}

// Landlock's versions that partByLandlock speaks of.
const (
	abiPart  = 2 // before it, a domain forbids to move files between folders
	abiScope = 6
)

// partByLandlock puts this thread into a domain of its own that forbids nothing
// about files: from inside a domain no process outside of it can be traced, nor
// its memory, descriptors or environment reached. Where the kernel knows scopes,
// abstract sockets end at its border, and signals if wanted. no_new_privs must
// be set.
func partByLandlock(abi int, signals bool) error {
	attr, size := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET}, uintptr(24)
	if signals {
		attr.Scoped |= unix.LANDLOCK_SCOPE_SIGNAL
	}
	if abi < abiScope { // a domain has to handle something
		attr, size = unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER}, 8
	}
	ruleset, err := landlockRuleset(&attr, size)
	if err != nil {
		return err
	}
	defer unix.Close(ruleset)
	if attr.Handled_access_fs != 0 {
		if err := landlockAllow(ruleset, "/", attr.Handled_access_fs); err != nil {
			return err
		}
	}
	return landlockEnforce(ruleset)
}

func landlockRuleset(attr *unix.LandlockRulesetAttr, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func landlockEnforce(ruleset int) error {
	return raw(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0)
}

func landlockAllow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return landlockRule(ruleset, fd, access)
}

func landlockRule(ruleset, fd int, access uint64) error {
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
