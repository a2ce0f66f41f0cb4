// Package stack reads where the threads of a process stand, each runtime in its
// own way, and holds the process for as short as it can. What is copied while
// it is held is only memory and registers; everything else is worked out after
// it goes on.
//
// House rules of this package:
//
//   - every byte of the target is hostile: its files, its memory, its numbers.
//     Every loop, length and depth has a bound, and nothing that is read decides
//     where to write;
//   - the target is never written to; a tracer that dies lets it go on;
//   - an answer says what it does not show.
package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// Bounds of one dump.
const (
	maxThreads    = 10_000
	maxFrames     = 128
	maxStack      = 256 << 10 // bytes of one thread's stack that are copied
	maxCopied     = 96 << 20  // bytes of all
	maxGoroutines = 50_000
)

// Dump is where everybody stands.
type Dump struct {
	Stacks  []wire.InspectStack
	Method  string
	Pause   time.Duration
	AtMost  bool // Pause is a bound, not a measurement
	Notes   []string
	Partial bool
}

// Request says whom to look at.
type Request struct {
	PID   int
	Inner int           // its number in its own namespace
	Limit time.Duration // the longest pause
	// Still says whether the process is the one that was meant.
	Still func() error
}

func (d *Dump) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// fold puts threads that stand in the same place into one stack; those where
// most stand come first.
func fold(stacks []wire.InspectStack) []wire.InspectStack {
	at := map[string]int{}
	var out []wire.InspectStack
	var key strings.Builder
	for _, s := range stacks {
		key.Reset()
		key.WriteString(s.State)
		for _, f := range s.Frames {
			key.WriteByte(0)
			key.WriteString(f.Function)
			key.WriteByte(1)
			key.WriteString(f.File)
			key.WriteString(strconv.FormatInt(f.Line, 10))
			key.WriteString(f.Note)
		}
		if i, ok := at[key.String()]; ok {
			if len(out[i].Threads) < 200 {
				out[i].Threads = append(out[i].Threads, s.Threads...)
			} else {
				out[i].More += int64(len(s.Threads))
			}
			continue
		}
		at[key.String()] = len(out)
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b wire.InspectStack) int {
		return int(int64(len(b.Threads)) + b.More - int64(len(a.Threads)) - a.More)
	})
	return out
}

// threadInfo is what the kernel says of one thread, without holding it.
func threadInfo(pid, tid int) wire.InspectThread {
	t := wire.InspectThread{ID: int64(tid)}
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(tid))
	if b, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
		t.Name = strings.TrimSuffix(string(b), "\n")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "wchan")); err == nil && string(b) != "0" {
		t.Wait = strings.TrimSpace(string(b))
	}
	return t
}

func threadIDs(pid int) ([]int, error) {
	d, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxThreads)
	var out []int
	for _, n := range names {
		if tid, err := strconv.Atoi(n); err == nil {
			out = append(out, tid)
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return nil, err
	}
	return out, nil
}
