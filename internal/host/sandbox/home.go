package sandbox

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MakeHome makes the folder that is the home of one session of an account that
// is kept for sessions.
func MakeHome(path string, uid, gid uint32) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Lchown(path, int(uid), int(gid))
}

// RemoveHome removes it with what is in it, once the session is dead. What
// somebody mounted there was taken from elsewhere on the host: it is unmounted
// first, or the home stays, so that nothing behind it is removed.
func RemoveHome(path string) error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	slices.Reverse(points) // the last one lies on top
	for _, p := range points {
		if p != path && !strings.HasPrefix(p, path+"/") {
			continue
		}
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return err
		}
	}
	return os.RemoveAll(path)
}
