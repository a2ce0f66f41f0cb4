// Package sensor reads facts of this host, without privilege. A fact that
// cannot be read has a value that says so: silence would look like absence.
package sensor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	// maxRead bounds what is taken of any one file.
	maxRead = 1 << 20
	// maxValue bounds a fact, well below what a server takes.
	maxValue = 1 << 10
)

// source is one fact: its name, where it comes from, how it is read.
type source struct {
	name, from string
	read       func(root string) (string, error)
}

// sources are all facts, in the order in which they are reported.
var sources = []source{
	{"os", "/etc/os-release", func(root string) (string, error) { return osRelease(root, "PRETTY_NAME") }},
	{"os_id", "/etc/os-release", func(root string) (string, error) { return osRelease(root, "ID") }},
	{"kernel", "/proc/sys/kernel/osrelease", line("/proc/sys/kernel/osrelease")},
	{"architecture", "runtime", func(string) (string, error) { return runtime.GOARCH, nil }},
	{"hostname", "/proc/sys/kernel/hostname", line("/proc/sys/kernel/hostname")},
	{"machine_id", "/etc/machine-id", line("/etc/machine-id")},
	{"boot_id", "/proc/sys/kernel/random/boot_id", line("/proc/sys/kernel/random/boot_id")},
	{"product", "/sys/class/dmi/id/product_name", line("/sys/class/dmi/id/product_name")},
	{"cpus", "/proc/cpuinfo", cpus},
	{"cpu_model", "/proc/cpuinfo", cpuModel},
	{"memory_total_bytes", "/proc/meminfo", meminfo("MemTotal")},
	{"memory_available_bytes", "/proc/meminfo", meminfo("MemAvailable")},
	{"swap_total_bytes", "/proc/meminfo", meminfo("SwapTotal")},
	{"swap_free_bytes", "/proc/meminfo", meminfo("SwapFree")},
	{"load1", "/proc/loadavg", field("/proc/loadavg", 0)},
	{"load5", "/proc/loadavg", field("/proc/loadavg", 1)},
	{"load15", "/proc/loadavg", field("/proc/loadavg", 2)},
	{"processes", "/proc/loadavg", processes},
	{"uptime_seconds", "/proc/uptime", uptime},
	{"addresses", "interfaces", func(string) (string, error) { return addresses() }},
	{"disk_root_total_bytes", "statfs /", disk(func(s unix.Statfs_t) uint64 { return s.Blocks * uint64(s.Bsize) })},
	{"disk_root_free_bytes", "statfs /", disk(func(s unix.Statfs_t) uint64 { return s.Bavail * uint64(s.Bsize) })},
	{"timezone", "/etc/localtime", timezone},
}

// Read returns all facts of the machine whose root is at root ("/").
func Read(root string) []wire.Fact {
	facts := make([]wire.Fact, len(sources))
	for i, s := range sources {
		value, err := s.read(root)
		if err != nil {
			value = unreadable(err)
		}
		facts[i] = wire.Fact{Name: s.name, Value: wire.Plain(value, maxValue), Source: s.from}
	}
	return facts
}

// Delta returns the facts of now that differ from those of before.
func Delta(before, now []wire.Fact) []wire.Fact {
	old := make(map[string]string, len(before))
	for _, f := range before {
		old[f.Name] = f.Value
	}
	var out []wire.Fact
	for _, f := range now {
		if v, ok := old[f.Name]; !ok || v != f.Value {
			out = append(out, f)
		}
	}
	return out
}

// unreadable says why there is no value, by the kernel's own name.
func unreadable(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return "unreadable: " + unix.ErrnoName(errno)
	case errors.Is(err, fs.ErrNotExist):
		return "unreadable: ENOENT"
	case errors.Is(err, fs.ErrPermission):
		return "unreadable: EACCES"
	}
	return "unreadable: " + err.Error()
}

func read(root, path string) (string, error) {
	f, err := os.Open(filepath.Join(root, path))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 0, 4096)
	for len(b) < maxRead {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil || n == 0 {
			break
		}
	}
	return string(b), nil
}

func line(path string) func(string) (string, error) {
	return func(root string) (string, error) {
		s, err := read(root, path)
		return clean(s), err
	}
}

// clean keeps one line.
func clean(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

func field(path string, n int) func(string) (string, error) {
	return func(root string) (string, error) {
		s, err := read(root, path)
		if err != nil {
			return "", err
		}
		f := strings.Fields(s)
		if n >= len(f) {
			return "", fmt.Errorf("%s has %d fields", path, len(f))
		}
		return f[n], nil
	}
}

func osRelease(root, key string) (string, error) {
	s, err := read(root, "/etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		s, err = read(root, "/usr/lib/os-release")
	}
	if err != nil {
		return "", err
	}
	for _, l := range strings.Split(s, "\n") {
		if k, v, ok := strings.Cut(l, "="); ok && k == key {
			return clean(strings.Trim(v, `"'`)), nil
		}
	}
	return "", fmt.Errorf("no %s", key)
}

func cpus(root string) (string, error) {
	s, err := read(root, "/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	n := strings.Count("\n"+s, "\nprocessor")
	if n == 0 {
		n = runtime.NumCPU()
	}
	return strconv.Itoa(n), nil
}

func cpuModel(root string) (string, error) {
	s, err := read(root, "/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	for _, l := range strings.Split(s, "\n") {
		if k, v, ok := strings.Cut(l, ":"); ok && (strings.TrimSpace(k) == "model name" || strings.TrimSpace(k) == "Model") {
			return clean(v), nil
		}
	}
	return "", errors.New("the kernel does not say")
}

func meminfo(key string) func(string) (string, error) {
	return func(root string) (string, error) {
		s, err := read(root, "/proc/meminfo")
		if err != nil {
			return "", err
		}
		for sc := bufio.NewScanner(strings.NewReader(s)); sc.Scan(); {
			f := strings.Fields(sc.Text())
			if len(f) >= 2 && f[0] == key+":" {
				kb, err := strconv.ParseUint(f[1], 10, 53)
				return strconv.FormatUint(kb*1024, 10), err
			}
		}
		return "", fmt.Errorf("no %s", key)
	}
}

func processes(root string) (string, error) {
	s, err := field("/proc/loadavg", 3)(root)
	if err != nil {
		return "", err
	}
	_, total, ok := strings.Cut(s, "/")
	if !ok {
		return "", errors.New("bad form")
	}
	return total, nil
}

func uptime(root string) (string, error) {
	s, err := field("/proc/uptime", 0)(root)
	whole, _, _ := strings.Cut(s, ".")
	return whole, err
}

func timezone(root string) (string, error) {
	to, err := os.Readlink(filepath.Join(root, "/etc/localtime"))
	if errors.Is(err, fs.ErrNotExist) {
		return "UTC", nil
	}
	if err != nil {
		return "", err
	}
	if _, zone, ok := strings.Cut(to, "zoneinfo/"); ok {
		return clean(zone), nil
	}
	return clean(to), nil
}

func addresses() (string, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	var out []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	sort.Strings(out)
	return strings.Join(out, " "), nil
}

func disk(value func(unix.Statfs_t) uint64) func(string) (string, error) {
	return func(root string) (string, error) {
		var s unix.Statfs_t
		if err := unix.Statfs(root, &s); err != nil {
			return "", err
		}
		return strconv.FormatUint(value(s), 10), nil
	}
}
