package spine_test

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// marks makes each marker another.
var marks atomic.Uint32

// marker is a number of seconds that no other sleep on this machine sleeps.
func marker(t *testing.T) string {
	h := fnv.New32a()
	fmt.Fprint(h, t.Name(), os.Getpid(), marks.Add(1))
	return "3" + strconv.Itoa(int(h.Sum32()%100_000_000)+100_000_000)
}

// found is one process.
type found struct {
	pid, parent int
	args        []string
}

func (f found) String() string { return fmt.Sprintf("%d %s", f.pid, strings.Join(f.args, " ")) }

// everything is every process that this one can see.
func everything() (all []found) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue // ended meanwhile, a zombie, or the kernel's
		}
		f := found{args: strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")}
		f.pid, _ = strconv.Atoi(filepath.Base(dir))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		f.parent, _ = strconv.Atoi(rest[1])
		all = append(all, f)
	}
	return all
}

// running are the processes whose last argument is the marker: the sleeps
// themselves, and not who only speaks of them.
func running(mark string) (out []found) {
	for _, f := range everything() {
		if len(f.args) == 2 && f.args[0] == "sleep" && f.args[1] == mark {
			out = append(out, f)
		}
	}
	return out
}

// processesOf are those that name a data folder.
func processesOf(data string) (out []found) {
	for _, f := range everything() {
		if strings.Contains(strings.Join(f.args, " "), data) {
			out = append(out, f)
		}
	}
	return out
}

// below are the descendants of a process.
func below(pid int) (out []found) {
	all := everything()
	in := map[int]bool{pid: true}
	for grew := true; grew; {
		grew = false
		for _, f := range all {
			if in[f.parent] && !in[f.pid] {
				in[f.pid], grew = true, true
				out = append(out, f)
			}
		}
	}
	return out
}
