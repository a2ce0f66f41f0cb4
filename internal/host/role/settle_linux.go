package role

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is when a process that serves has done what it only does once.
const settleAfter = 5 * time.Second

var settling sync.Once

// settleSoon gives back, once and a little later, what only the start needed.
func settleSoon() {
	settling.Do(func() { time.AfterFunc(settleAfter, settle) })
}

// settle gives back free heap, and unmaps the pages of the program that were
// touched while it started: it is one file for all roles, most of which a node
// never runs. Whatever is needed again comes back from the page cache.
func settle() {
	debug.FreeOSMemory()
	self, err := os.Readlink(Program)
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if from, to, ok := programPages(lines.Text(), self); ok {
			// A page that stays is no loss, and madvise(2) takes nothing from a
			// mapping that cannot be written but what the file has.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}

// programPages reads a line of /proc/self/maps: where the program's own file
// is mapped and cannot be written.
func programPages(line, program string) (from, to uintptr, ok bool) {
	words := strings.Fields(line)
	if len(words) < 6 || !strings.HasSuffix(line, " "+program) || !strings.HasPrefix(words[1], "r-") || !strings.HasSuffix(words[1], "p") {
		return 0, 0, false
	}
	first, last, _ := strings.Cut(words[0], "-")
	a, err := strconv.ParseUint(first, 16, strconv.IntSize)
	if err != nil {
		return 0, 0, false
	}
	b, err := strconv.ParseUint(last, 16, strconv.IntSize)
	return uintptr(a), uintptr(b), err == nil && a < b
}
