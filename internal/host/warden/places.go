package warden

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// startingPlaces are where somebody with root can have another program act for
// them later: jobs, units, containers, start files, keys, accounts. What is
// there is looked at one level deep, and two where the pattern says so.
var startingPlaces = [...]string{
	"/etc/crontab", "/etc/cron*/*", "/etc/anacrontab", "/var/spool/cron", "/var/spool/cron/*", "/var/spool/cron/*/*", "/var/spool/at", "/var/spool/at/*",
	"/etc/systemd/system", "/etc/systemd/system/*", "/etc/systemd/system/*/*", "/run/systemd/system", "/run/systemd/system/*",
	"/run/systemd/transient", "/run/systemd/transient/*", "/usr/local/lib/systemd/system/*", "/etc/systemd/user/*",
	"/var/lib/docker/containers", "/var/lib/containers/storage/overlay-containers",
	"/etc/rc.local", "/etc/init.d/*", "/etc/inittab", "/etc/ld.so.preload", "/etc/udev/rules.d/*", "/etc/modules-load.d/*",
	"/etc/profile", "/etc/profile.d/*", "/etc/bash.bashrc", "/etc/environment", "/root/.*", "/root/.ssh/*",
	"/etc/ssh/*", "/etc/ssh/sshd_config.d/*", "/etc/pam.d/*", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/sudoers.d/*",
}

// maxPlaces bounds how many files are looked at.
const maxPlaces = 4096

// places is what lay there at one moment. A file's time of change cannot be
// set, but a clock can, so it is compared for being the same, not for its age.
type places map[string]string

func lookAtPlaces() places {
	seen := places{}
	for _, pattern := range startingPlaces {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if base := filepath.Base(path); base == "." || base == ".." || len(seen) >= maxPlaces {
				continue
			}
			i, err := os.Lstat(path)
			if err != nil {
				continue
			}
			if st, ok := i.Sys().(*syscall.Stat_t); ok {
				seen[path] = fmt.Sprint(st.Ino, st.Size, st.Mode, st.Uid, st.Ctim)
			}
		}
	}
	return seen
}

// noise changes by itself while somebody works.
func noise(path string) bool {
	switch filepath.Base(path) {
	case ".bash_history", ".lesshst", ".viminfo", ".cache", ".local", ".python_history", ".wget-hsts":
		return filepath.Dir(path) == "/root"
	}
	return false
}

// changed names what is not as it was.
func (before places) changed(now places) (paths []string) {
	for path, was := range before {
		if now[path] != was && !noise(path) {
			paths = append(paths, path)
		}
	}
	for path := range now {
		if _, ok := before[path]; !ok && !noise(path) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// some joins the first of many names.
func some(names []string) string {
	const most = 8
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
