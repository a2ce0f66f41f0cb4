package inspect

import (
	"cmp"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	sampleTime = time.Second // between the two looks
	topRows    = 25
	topThreads = 15
	ticks      = 100 // USER_HZ
)

// sample is what has been used up so far.
type sample struct {
	cpu           uint64 // ticks
	read, written int64
	name, state   string
}

// top shows who uses the processors, from two looks a second apart: the
// busiest processes of the host, or the target with its busiest threads.
func (p *plan) top(a *answer) error {
	a.end.Method = "two looks at /proc, one second apart; nothing is held"
	whom := map[int]bool{}
	for _, q := range p.Of {
		whom[q.PID] = true
	}
	all := len(whom) == 0
	began := time.Now()
	before := map[int]sample{}
	for _, pid := range pids() {
		if all || whom[pid] {
			if s, ok := take(procPath(pid, "")); ok {
				before[pid] = s
			}
		}
	}
	threads := p.threadSamples()
	wait := time.NewTimer(sampleTime - min(time.Since(began), sampleTime/2))
	defer wait.Stop()
	<-wait.C
	span := time.Since(began).Seconds()
	var rows []wire.InspectProcess
	for pid, was := range before {
		now, ok := take(procPath(pid, ""))
		if !ok {
			continue
		}
		rows = append(rows, wire.InspectProcess{PID: int64(pid), CPU: used(was, now, span),
			Read: rate(was.read, now.read, span), Written: rate(was.written, now.written, span)})
	}
	slices.SortFunc(rows, func(a, b wire.InspectProcess) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(resident(int(b.PID)), resident(int(a.PID))), cmp.Compare(a.PID, b.PID))
	})
	most := topRows
	if p.Spec.Lines > 0 {
		most = int(p.Spec.Lines)
	}
	if len(rows) > most {
		a.end.Cut = true
		rows = rows[:most]
	}
	groups := map[string]bool{}
	for i := range rows {
		group := describe(&rows[i])
		if !all && group != "" && !groups[group] && len(groups) < 8 {
			groups[group] = true
			if g, ok := groupAt(group); ok {
				a.put(wire.InspectRecord{Group: &g})
			}
		}
		if !a.put(wire.InspectRecord{Process: &rows[i]}) {
			return nil
		}
	}
	p.topThreads(a, threads, span)
	return nil
}

func used(was, now sample, span float64) float64 {
	if now.cpu < was.cpu || span <= 0 {
		return 0
	}
	return math.Round(float64(now.cpu-was.cpu)/ticks/span*1000) / 10
}

func rate(was, now int64, span float64) int64 {
	if now < was || span <= 0 {
		return 0
	}
	return int64(float64(now-was) / span)
}

// take reads one sample.
func take(dir string) (sample, bool) {
	b, err := readSome(dir+"stat", 4096)
	if err != nil {
		return sample{}, false
	}
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return sample{}, false
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 13 {
		return sample{}, false
	}
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	s := sample{cpu: user + system, name: text[open+1 : end], state: f[0]}
	if io, err := readSome(dir+"io", 4096); err == nil {
		s.read, s.written = number(io, "read_bytes:"), number(io, "write_bytes:")
	}
	return s, true
}

// number is the number after a word at the beginning of a line.
func number(b []byte, word string) int64 {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			f := strings.Fields(rest)
			if len(f) == 0 {
				return 0
			}
			n, _ := strconv.ParseInt(f[0], 10, 64)
			return n
		}
	}
	return 0
}

func resident(pid int) int64 {
	b, err := readSome(procPath(pid, "statm"), 256)
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(f[1], 10, 64)
	return n * int64(os.Getpagesize())
}

// describe fills in what is read only of those that are shown.
func describe(row *wire.InspectProcess) (group string) {
	pid := int(row.PID)
	q, err := readProcess(pid)
	if err != nil {
		row.State = "ended"
		return ""
	}
	row.Name, row.User, row.Unit, row.State, row.Threads = q.Name, userName(q.EUID), q.Unit, stateWord(q.State), int64(q.Threads)
	row.Command, _ = q.command()
	row.Started = q.started()
	row.Resident = resident(pid)
	if !q.Kernel {
		if b, err := readSome(procPath(pid, "smaps_rollup"), 8192); err == nil {
			row.PSS, row.Swap = number(b, "Pss:")*1024, number(b, "SwapPss:")*1024
		}
		row.Files = int64(countFiles(pid))
		if b, err := readSome(procPath(pid, "limits"), 8192); err == nil {
			row.FilesMax = number(b, "Max open files")
		}
	}
	return q.Cgroup
}

const maxCounted = 100_000

func countFiles(pid int) int {
	d, err := os.Open(procPath(pid, "fd"))
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxCounted)
	return len(names)
}

const maxSampled = 4096 // threads

func (p *plan) threadSamples() map[int]sample {
	if p.Process == nil {
		return nil
	}
	out := map[int]sample{}
	for _, tid := range tasks(p.Process.PID) {
		if s, ok := take(procPath(p.Process.PID, "task/"+strconv.Itoa(tid)+"/")); ok {
			out[tid] = s
		}
		if len(out) >= maxSampled {
			break
		}
	}
	return out
}

// tasks lists the threads of a process.
func tasks(pid int) []int {
	d, err := os.Open(procPath(pid, "task"))
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxProcs)
	var out []int
	for _, n := range names {
		if tid, err := strconv.Atoi(n); err == nil {
			out = append(out, tid)
		}
	}
	slices.Sort(out)
	return out
}

// topThreads shows the busiest threads of the target.
func (p *plan) topThreads(a *answer, before map[int]sample, span float64) {
	if len(before) < 2 {
		return
	}
	var rows []wire.InspectProcess
	for tid, was := range before {
		now, ok := take(procPath(p.Process.PID, "task/"+strconv.Itoa(tid)+"/"))
		if ok {
			rows = append(rows, wire.InspectProcess{PID: int64(p.Process.PID), Thread: int64(tid), Name: now.name, State: stateWord(now.state), CPU: used(was, now, span),
				Read: rate(was.read, now.read, span), Written: rate(was.written, now.written, span)})
		}
	}
	slices.SortFunc(rows, func(a, b wire.InspectProcess) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(a.Thread, b.Thread))
	})
	if len(rows) > topThreads {
		a.end.Cut = true
		rows = rows[:topThreads]
	}
	for i := range rows {
		if !a.put(wire.InspectRecord{Process: &rows[i]}) {
			return
		}
	}
}

const cgroupRoot = "/sys/fs/cgroup"
