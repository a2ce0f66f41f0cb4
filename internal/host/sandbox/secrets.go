package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// defaultSecrets are masked in every read session. Most are closed to an
// ordinary uid anyway; the mask also holds where a mode or a group is wrong.
var defaultSecrets = [...]string{
	"/etc/shadow", "/etc/gshadow", "/etc/security/opasswd", "/etc/sudoers", "/etc/sudoers.d",
	"/etc/ssh/ssh_host_*_key", "/etc/ssl/private", "/etc/pki/tls/private", "/etc/letsencrypt/archive",
	"/etc/letsencrypt/keys", "/etc/krb5.keytab", "/etc/wireguard", "/etc/openvpn/server", "/etc/ipsec.secrets",
	"/etc/NetworkManager/system-connections", "/etc/cryptsetup-keys.d", "/etc/credstore", "/etc/credstore.encrypted",
	"/etc/kubernetes/pki", "/etc/kubernetes/admin.conf", "/etc/rancher/k3s/k3s.yaml", "/etc/docker/key.json",
	"/root", "/home/*/.ssh", "/home/*/.gnupg", "/home/*/.aws", "/home/*/.kube", "/home/*/.docker",
	"/home/*/.netrc", "/home/*/.pgpass", "/home/*/.my.cnf", "/home/*/.config/gcloud",
	"/var/lib/kubelet/pki", "/var/lib/systemd/credential.secret", "/var/lib/sss/secrets", "/var/lib/samba/private",
	"/var/lib/docker", "/var/lib/containers", "/var/spool/cron", "/proc/kcore", "/proc/sysrq-trigger",
}

// copySuffixes are what editors and packagers leave beside a file.
var copySuffixes = [...]string{"-", "~", ".bak", ".old", ".orig", ".save", ".backup", ".swp", ".1",
	".dpkg-old", ".dpkg-dist", ".dpkg-new", ".dpkg-bak", ".rpmsave", ".rpmorig", ".rpmnew", ".ucf-old", ".ucf-dist", ".pacnew"}

// backupDir is where Debian keeps copies of /etc's accounts.
const backupDir = "/var/backups"

// linkScanBound is how long a start may look for the other names of a secret
// with several hard links. What is not found by then is said in Missing.
const linkScanBound = 150 * time.Millisecond

// mask covers the secrets and handrail's own folders. A path is masked where
// it really lies, so links to it end at the mask too.
func (v *view) mask() error {
	found := v.secretPaths()
	v.masked = found
	for _, path := range found {
		if err := v.maskOne(path); err != nil {
			return err
		}
	}
	v.stands("masked secrets", fmt.Sprintf("%d", len(found)))
	return nil
}

func (v *view) maskOne(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, unix.EACCES) && v.trial {
			return nil // closed to us is closed to the session
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	src := blankFile
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		src = blankDir
	case unix.S_IFLNK:
		return nil // a link made since; its target was resolved before
	}
	if err := v.bind(src, path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// secretPaths lists what to mask: the default list, the spec's, their known
// copies and other names, sorted so that a folder comes before what is in it,
// which is then left out.
func (v *view) secretPaths() []string {
	declared := expand(v.spec.Secrets)
	all := append(expand(defaultSecrets[:]), declared...)
	all = append(all, copiesByName(all)...)
	all = append(all, copiesByContent(declared)...)
	all = append(all, v.otherNames(all)...)
	for _, dir := range v.spec.Hide {
		all = append(all, real(dir)...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	kept := all[:0]
	for _, p := range all {
		if n := len(kept); n > 0 && strings.HasPrefix(p, kept[n-1]+"/") || covered(p) {
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// covered reports whether the path lies under a private folder, so that the
// session cannot name it anyway.
func covered(path string) bool {
	for _, dir := range [...]string{"/tmp/", "/var/tmp/", "/run/", "/dev/"} {
		if strings.HasPrefix(path, dir) {
			return true
		}
	}
	return false
}

// expand resolves patterns and symbolic links to paths that exist.
func expand(patterns []string) []string {
	var out []string
	for _, p := range patterns {
		if !filepath.IsAbs(p) {
			continue
		}
		matches := []string{p}
		if strings.ContainsAny(p, "*?[") {
			matches, _ = filepath.Glob(p) // a bad pattern was refused by Validate
		}
		for _, m := range matches {
			out = append(out, real(m)...)
		}
	}
	return out
}

// real is the path where p really lies, or nothing where nothing is.
func real(p string) []string {
	var st unix.Stat_t
	if unix.Lstat(p, &st) != nil {
		return nil
	}
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return []string{r}
	}
	return nil
}

// copiesByName finds what tools leave beside a secret, and in /var/backups.
func copiesByName(paths []string) []string {
	backups := map[string]bool{}
	if entries, err := os.ReadDir(backupDir); err == nil {
		for _, e := range entries {
			backups[e.Name()] = true
		}
	}
	byDir := map[string]map[string]bool{}
	var out []string
	for _, p := range paths {
		dir, base := filepath.Split(p)
		names, ok := byDir[dir]
		if !ok {
			names = map[string]bool{}
			if entries, err := os.ReadDir(dir); err == nil {
				for _, e := range entries {
					names[e.Name()] = true
				}
			}
			byDir[dir] = names
		}
		for _, suffix := range copySuffixes {
			for _, name := range [...]string{base + suffix, "." + base + suffix} {
				if names[name] {
					out = append(out, dir+name)
				}
				if backups[name] {
					out = append(out, backupDir+"/"+name)
				}
			}
		}
		if backups[base] {
			out = append(out, backupDir+"/"+base)
		}
	}
	return out
}

// Bounds of the search for copies by content.
const (
	copyScanEntries = 512
	copyScanSize    = 1 << 20
)

// copiesByContent finds files beside a declared secret, or in /var/backups,
// that hold the same bytes under whatever name.
func copiesByContent(declared []string) []string {
	listed := map[string]map[int64][]string{} // folder → size → regular files
	var out []string
	for _, p := range declared {
		st, err := os.Lstat(p)
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > copyScanSize {
			continue
		}
		var want []byte
		for _, dir := range [...]string{filepath.Dir(p), backupDir} {
			bySize, ok := listed[dir]
			if !ok {
				bySize = regularIn(dir)
				listed[dir] = bySize
			}
			for _, path := range bySize[st.Size()] {
				if path == p {
					continue
				}
				if want == nil {
					if want, err = os.ReadFile(p); err != nil {
						break
					}
				}
				if got, err := os.ReadFile(path); err == nil && bytes.Equal(got, want) {
					out = append(out, path)
				}
			}
		}
	}
	return out
}

// regularIn lists the regular files in a folder by size, within copyScanEntries.
func regularIn(dir string) map[int64][]string {
	bySize := map[int64][]string{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries[:min(len(entries), copyScanEntries)] {
		if !e.Type().IsRegular() {
			continue
		}
		if i, err := e.Info(); err == nil {
			bySize[i.Size()] = append(bySize[i.Size()], filepath.Join(dir, e.Name()))
		}
	}
	return bySize
}

// otherNames finds the other hard links of the secrets, within linkScanBound.
// Almost no secret has any, and then nothing is scanned.
func (v *view) otherNames(paths []string) []string {
	ctx, cancel := context.WithTimeout(context.Background(), linkScanBound)
	defer cancel()
	found, unfound := FindLinks(ctx, paths)
	for _, p := range unfound {
		v.lack("%s has further names (hard links) that were not found in time; they can be read under those, as far as their mode lets the session.", p)
	}
	return found
}

// file is one file of the host, whatever its name.
type file struct{ dev, ino uint64 }

// FindLinks looks for the other names of the regular files at paths. Those
// whose names were not all found when ctx ended are returned as unfound. The
// nearest places are searched first: its folder, then where copies are kept,
// then the rest of its file system.
func FindLinks(ctx context.Context, paths []string) (found, unfound []string) {
	left := map[file]int{} // names still to be found
	name := map[file]string{}
	known := map[string]bool{}
	var roots []string
	for _, p := range paths {
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink < 2 {
			continue
		}
		f := file{uint64(st.Dev), st.Ino}
		if _, seen := left[f]; !seen {
			left[f] = int(st.Nlink)
			roots = append(roots, filepath.Dir(p))
		}
		left[f]--
		known[p], name[f] = true, p
	}
	if len(left) == 0 {
		return nil, nil
	}
	open := func() bool {
		for _, n := range left {
			if n > 0 {
				return true
			}
		}
		return false
	}
	roots = append(roots, "/etc", backupDir, "/home", "/root", "/srv", "/opt", "/var", "/")
	for i, root := range roots {
		if slices.Contains(roots[:i], root) {
			continue
		}
		if !open() || ctx.Err() != nil {
			break
		}
		scanLinks(ctx, root, left, func(p string) {
			if !known[p] {
				known[p] = true
				found = append(found, p)
			}
		}, known, open)
	}
	for f, n := range left {
		if n > 0 {
			unfound = append(unfound, name[f])
		}
	}
	slices.Sort(unfound)
	return found, unfound
}

// scanLinks walks one folder without leaving its file system.
func scanLinks(ctx context.Context, root string, left map[file]int, add func(string), known map[string]bool, open func() bool) {
	var top unix.Stat_t
	if unix.Lstat(root, &top) != nil {
		return
	}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil || !open() {
			return filepath.SkipAll
		}
		if err != nil {
			return nil // unreadable is unreadable for the session too
		}
		var st unix.Stat_t
		if !d.IsDir() && !d.Type().IsRegular() || unix.Lstat(path, &st) != nil {
			return nil
		}
		if d.IsDir() {
			if st.Dev != top.Dev {
				return filepath.SkipDir
			}
			return nil
		}
		f := file{uint64(st.Dev), st.Ino}
		if n, wanted := left[f]; wanted && n > 0 && !known[path] {
			left[f]--
			add(path)
		}
		return nil
	})
}
