package warden

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	groupDepth   = 6   // folders below the top of a hierarchy in which sessions' groups can lie
	residueTries = 250 // of 10 ms
)

// killResidue kills and removes what a dead keeper or an earlier warden left:
// every cgroup, in every hierarchy, that has that name. It returns how many
// processes it met. It works on paths alone, since whoever made them is gone.
func killResidue(name string) int {
	if name == "" {
		return 0
	}
	met := 0
	for _, dir := range cgroupsNamed(func(base string) bool { return base == name }) {
		met += emptyGroup(dir)
	}
	return met
}

// leftovers are the cgroups of an earlier warden of this folder.
func leftovers(prefix string) map[string]bool {
	names := map[string]bool{}
	cgroupsNamed(func(base string) bool {
		if strings.HasPrefix(base, prefix) {
			names[base] = true
		}
		return false
	})
	return names
}

func cgroupsNamed(match func(base string) bool) (out []string) {
	for _, top := range sandbox.CgroupTops() {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return fs.SkipDir
			}
			if !d.IsDir() {
				return nil
			}
			if match(d.Name()) {
				out = append(out, path)
				return fs.SkipDir
			}
			if strings.Count(path[len(top):], "/") > groupDepth {
				return fs.SkipDir
			}
			return nil
		})
	}
	return out
}

// emptyGroup kills a cgroup and all below it, until none is left, and removes it.
func emptyGroup(dir string) (met int) {
	write := func(file, value string) { _ = os.WriteFile(filepath.Join(dir, file), []byte(value), 0) }
	pids := tasks(dir)
	met = len(pids)
	if len(pids) > 0 {
		write("pids.max", "0")
		write("cgroup.kill", "1")
		for i := 0; i < residueTries && len(pids) > 0; i++ {
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			write("freezer.state", "THAWED")
			write("cgroup.freeze", "0")
			if pids = tasks(dir); len(pids) > 0 {
				time.Sleep(10 * time.Millisecond)
				pids = tasks(dir)
			}
		}
	}
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = syscall.Rmdir(dirs[i])
	}
	return met
}

func tasks(dir string) (pids []int) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}
