package app

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// ownProgram runs this very file again. Through /proc the kernel does not walk
// the folders above it, so a role whose account may not enter them still starts.
const ownProgram = "/proc/self/exe"

// enterPlace is where a role without root sees the data folder when its
// account may not enter the folders above it.
const enterPlace = "/mnt"

// Enter gives up root for good and becomes the role in args. It is the first
// thing that the supervisor's child does, so that nothing of the role ever
// runs as root. With bind, the folder is mounted at enterPlace in a mount
// namespace of the role's own. Enter returns only if something failed.
func Enter(uid, gid int, bind string, args []string) error {
	runtime.LockOSThread()
	supervisor := os.Getppid()
	if bind != "" {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot make a mount namespace for account %d", uid)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot make mounts private")
		}
		if err := unix.Mount(bind, enterPlace, "", unix.MS_BIND, ""); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot show %s to account %d", bind, uid)
		}
	}
	if err := dropTo(uid, gid); err != nil {
		return err
	}
	// Changing the account made the kernel forget what the supervisor asked
	// for (prctl(2), PR_SET_PDEATHSIG); a role that outlives it would hold its
	// ports and locks.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot ask to end with the supervisor")
	}
	if os.Getppid() != supervisor {
		return fault.New(fault.Unavailable, "cannot start %q: the supervisor has ended", args)
	}
	env := append(os.Environ(), "HOME=/nonexistent")
	err := unix.Exec(ownProgram, append([]string{"handrail"}, args...), env)
	return fault.Wrap(fault.Internal, err, "cannot start %q", args)
}

// dropTo changes to an ordinary account. The kernel clears the permitted and
// effective capability sets when the last uid leaves 0 (capabilities(7));
// the bounding set and no_new_privs close the way back.
func dropTo(uid, gid int) error {
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0) // an unknown capability is no loss
	}
	if err := unix.Setgroups([]int{gid}); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot drop groups")
	}
	if err := unix.Setresgid(gid, gid, gid); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot become group %d", gid)
	}
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot become account %d", uid)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot give up new privileges")
	}
	if unix.Setuid(0) == nil {
		return fault.New(fault.Internal, "cannot give up root: account %d could take it back", uid)
	}
	return nil
}

// mayEnter says whether account uid can reach dir: each folder above it lets
// others pass, or belongs to that account.
func mayEnter(uid int, dir string) bool {
	for d := dir; ; {
		var st unix.Stat_t
		if unix.Stat(d, &st) != nil {
			return false
		}
		own := int(st.Uid) == uid && st.Mode&0o100 != 0
		if !own && st.Mode&0o001 == 0 {
			return false
		}
		if d == "/" {
			return true
		}
		d = parentOf(d)
	}
}

func enterArgs(uid, gid int, bind string, args []string) []string {
	head := []string{"enter", "--uid", strconv.Itoa(uid), "--gid", strconv.Itoa(gid)}
	if bind != "" {
		head = append(head, "--bind", bind)
	}
	return append(append(head, "--"), args...)
}
