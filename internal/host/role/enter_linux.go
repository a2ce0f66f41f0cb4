package role

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Program runs this very file again. Through /proc the kernel does not walk
// the folders above it, so a role whose account may not enter them still starts.
const Program = "/proc/self/exe"

// enterArg0 is argv[0] of a process that is about to become a role.
const enterArg0 = "handrail-enter"

// enterPlace is where a role without root sees the data folder when its
// account may not enter the folders above it.
const enterPlace = "/mnt"

// enterWords are argv of the process that becomes the role with these args.
func enterWords(account int, bind string, args []string) []string {
	return append([]string{enterArg0, strconv.Itoa(account), bind}, args...)
}

// Main returns at once unless this process was started to become a role under
// an account of its own; then it gives up root for good and never returns. It
// is the first thing that the supervisor's child does, so that nothing of the
// role ever runs as root.
func Main() {
	if len(os.Args) < 4 || os.Args[0] != enterArg0 {
		return
	}
	err := error(fault.New(fault.Invalid, "cannot become account %q", os.Args[1]))
	if account, aerr := strconv.Atoi(os.Args[1]); aerr == nil && account > 0 {
		err = enter(account, os.Args[2], os.Args[3:])
	}
	fmt.Fprintln(os.Stderr, "handrail:", err)
	os.Exit(1)
}

// enter becomes the role in args; it returns only if something failed. With
// bind, the folder is mounted at enterPlace in a mount namespace of the role's
// own.
func enter(account int, bind string, args []string) error {
	runtime.LockOSThread()
	supervisor := os.Getppid()
	if bind != "" {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot make a mount namespace for account %d", account)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot make mounts private")
		}
		if err := unix.Mount(bind, enterPlace, "", unix.MS_BIND, ""); err != nil {
			return fault.Wrap(fault.Internal, err, "cannot show %s to account %d", bind, account)
		}
	}
	if err := dropTo(account); err != nil {
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
	err := unix.Exec(Program, append([]string{"handrail"}, args...), os.Environ())
	return fault.Wrap(fault.Internal, err, "cannot start %q", args)
}

// dropTo changes to an ordinary account. The kernel clears the permitted and
// effective capability sets when the last uid leaves 0 (capabilities(7));
// the bounding set and no_new_privs close the way back.
func dropTo(account int) error {
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0) // an unknown capability is no loss
	}
	if err := unix.Setgroups([]int{account}); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot drop groups")
	}
	if err := unix.Setresgid(account, account, account); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot become group %d", account)
	}
	if err := unix.Setresuid(account, account, account); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot become account %d", account)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot give up new privileges")
	}
	if unix.Setuid(0) == nil {
		return fault.New(fault.Internal, "cannot give up root: account %d could take it back", account)
	}
	return nil
}

// mayEnter says whether an account can reach dir: each folder above it lets
// others pass, or belongs to that account.
func mayEnter(account int, dir string) bool {
	for d := dir; ; d = filepath.Dir(d) {
		var st unix.Stat_t
		if unix.Stat(d, &st) != nil {
			return false
		}
		own := int(st.Uid) == account && st.Mode&0o100 != 0
		if !own && st.Mode&0o001 == 0 {
			return false
		}
		if d == "/" {
			return true
		}
	}
}
