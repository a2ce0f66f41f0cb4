package inspect

import (
	"path/filepath"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/wire"
)

// noLimit is what version 1 says where there is none.
const noLimit = 1 << 60

// groupAt reads the limits of a control group, of either version.
func groupAt(path string) (g wire.InspectGroup, ok bool) {
	g.Path = path
	if !filepath.IsAbs(path) || strings.Contains(path, "..") || path == "/" {
		return g, false
	}
	v2 := filepath.Join(cgroupRoot, path)
	if _, err := readSome(filepath.Join(v2, "cgroup.procs"), 1); err == nil {
		groupV2(&g, v2)
		return g, true
	}
	for _, c := range []string{"memory", "cpu,cpuacct", "cpu", "pids"} {
		dir := filepath.Join(cgroupRoot, c, path)
		if _, err := readSome(filepath.Join(dir, "cgroup.procs"), 1); err == nil {
			groupV1(&g, c, dir)
			ok = true
		}
	}
	return g, ok
}

// value is the one number in a file; "max" and what is missing are 0.
func value(path string) int64 {
	b, err := readSome(path, 256)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if n >= noLimit {
		return 0
	}
	return n
}

func groupV2(g *wire.InspectGroup, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	if b, err := readSome(at("cpu.max"), 256); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 && f[0] != "max" {
			g.CPUQuota = quota(f[0], f[1])
		}
	}
	if b, err := readSome(at("cpu.stat"), 4096); err == nil {
		g.Throttled, g.ThrottledUS = number(b, "nr_throttled"), number(b, "throttled_usec")
	}
	g.Memory, g.MemoryMax, g.MemoryHigh = value(at("memory.current")), value(at("memory.max")), value(at("memory.high"))
	if b, err := readSome(at("memory.events"), 4096); err == nil {
		g.OOMKills = number(b, "oom_kill ")
	}
	g.PIDs, g.PIDsMax = value(at("pids.current")), value(at("pids.max"))
}

func groupV1(g *wire.InspectGroup, controller, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	switch controller {
	case "memory":
		g.Memory, g.MemoryMax = value(at("memory.usage_in_bytes")), value(at("memory.limit_in_bytes"))
		if b, err := readSome(at("memory.oom_control"), 4096); err == nil {
			g.OOMKills = number(b, "oom_kill ")
		}
	case "pids":
		g.PIDs, g.PIDsMax = value(at("pids.current")), value(at("pids.max"))
	default:
		if q := value(at("cpu.cfs_quota_us")); q > 0 {
			g.CPUQuota = quota(strconv.FormatInt(q, 10), strconv.FormatInt(value(at("cpu.cfs_period_us")), 10))
		}
		if b, err := readSome(at("cpu.stat"), 4096); err == nil {
			g.Throttled, g.ThrottledUS = number(b, "nr_throttled"), number(b, "throttled_time")/1000
		}
	}
}

func quota(part, of string) float64 {
	p, err1 := strconv.ParseFloat(part, 64)
	o, err2 := strconv.ParseFloat(of, 64)
	if err1 != nil || err2 != nil || o <= 0 || p <= 0 {
		return 0
	}
	return float64(int64(p/o*100)) / 100
}
