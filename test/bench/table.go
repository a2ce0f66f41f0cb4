package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// row is one line of the table. Values are in the unit that the row names;
// what was not measured is not ok.
type row struct {
	what   string
	unit   unit
	values [3]value // handrail, direct, ProxyJump
	goal   float64  // 0: none
	peer   string   // who the first peer is, where it is another than the table's
	load   string   // of the machine, as its kernel said when this was measured
}

type value struct {
	v  float64
	ok bool
}

func known(v float64) value { return value{v, true} }

// unit says how values read and whether more is better.
type unit struct {
	name   string
	more   bool
	format string
}

var (
	ms        = unit{"ms", false, "%.1f"}
	seconds   = unit{"s", false, "%.2f"}
	µs        = unit{"µs", false, "%.0f"}
	µsParts   = unit{"µs", false, "%.2f"}
	perSecond = unit{"/s", true, "%.0f"}
	mibs      = unit{"MiB/s", true, "%.0f"}
	kib       = unit{"KiB", false, "%.0f"}
	mib       = unit{"MiB", false, "%.1f"}
)

type table struct {
	peers [2]string // who is measured beside; "" has no column
	rows  []row
	notes []string
}

func (t *table) add(r row) {
	r.load = loadNow()
	t.rows = append(t.rows, r)
}

// alone adds a row that has no peer.
func (t *table) alone(what string, u unit, v, goal float64) {
	t.add(row{what: what, unit: u, values: [3]value{known(v)}, goal: goal})
}

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// print writes the table. A ratio above 1 is in handrail's favour.
func (t *table) print(w io.Writer, about ...string) {
	t.peers = t.named()
	cells := [][]string{{"what", "handrail", t.peers[0], t.peers[1], "× " + t.peers[0], "× " + t.peers[1], "goal"}}
	for _, r := range t.rows {
		line := []string{r.what}
		for _, v := range r.values {
			line = append(line, r.unit.show(v))
		}
		line = append(line, r.ratio(1), r.ratio(2), r.verdict())
		cells = append(cells, line)
	}
	for _, a := range about {
		fmt.Fprintln(w, a)
	}
	fmt.Fprintln(w, "ratios above 1 are in handrail's favour")
	align(w, cells)
	for _, n := range t.notes {
		fmt.Fprintln(w, "·", n)
	}
}

// align prints cells in columns; the first and the last begin at the left.
func align(w io.Writer, cells [][]string) {
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for n, line := range cells {
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 || i == len(line)-1 {
				fmt.Fprint(w, c+pad+"  ")
			} else {
				fmt.Fprint(w, pad+c+"  ")
			}
		}
		fmt.Fprintln(w)
		if n == 0 {
			for _, x := range width {
				fmt.Fprint(w, strings.Repeat("─", x)+"  ")
			}
			fmt.Fprintln(w)
		}
	}
}

func (u unit) show(v value) string {
	if !v.ok {
		return "–"
	}
	return fmt.Sprintf(u.format, v.v) + " " + u.name
}

func (r row) ratio(peer int) string {
	a, b := r.values[0], r.values[peer]
	if !a.ok || !b.ok || a.v <= 0 || b.v <= 0 {
		return ""
	}
	x := b.v / a.v
	if r.unit.more {
		x = a.v / b.v
	}
	if x >= 10 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func (r row) verdict() string {
	if r.goal == 0 || !r.values[0].ok {
		return ""
	}
	sign, met := "≤", r.values[0].v <= r.goal
	if r.unit.more {
		sign, met = "≥", r.values[0].v >= r.goal
	}
	word := "met"
	if !met {
		word = "SHORT"
	}
	return fmt.Sprintf("%s %g %s", sign, r.goal, word)
}

// machine is the line about where the numbers come from.
func machine() string {
	model := "unknown cpu"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	var u syscall.Utsname
	_ = syscall.Uname(&u) // cannot fail with a good pointer
	release := make([]byte, 0, len(u.Release))
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return fmt.Sprintf("machine: %d × %s, Linux %s, %s, load %s", runtime.NumCPU(), model, release, runtime.Version(), loadNow())
}

// loadNow is how many want a processor, over the last minute: the bench itself
// is among them.
func loadNow() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// median of what several turns gave.
func median(all []float64) float64 { return quantile(all, 0.5) }

// quantile by rank; all must not be empty.
func quantile(all []float64, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (t *table) named() [2]string {
	if t.peers == [2]string{} {
		return [2]string{"direct", "ProxyJump"}
	}
	return t.peers
}

// goals are the lines of a table that have one, each with all that it takes to
// read it alone: ours, the peers', the goal, and the machine's load.
func (t *table) goals() (cells [][]string) {
	for _, r := range t.rows {
		if r.goal == 0 {
			continue
		}
		var peers []string
		names := t.named()
		names[0] = cmp.Or(r.peer, names[0])
		for i, name := range names {
			if v := r.values[i+1]; v.ok {
				peers = append(peers, name+" "+r.unit.show(v))
			}
		}
		if peers == nil {
			peers = []string{"–"}
		}
		cells = append(cells, []string{r.what, r.unit.show(r.values[0]), strings.Join(peers, ", "), r.load, r.verdict()})
	}
	return cells
}
