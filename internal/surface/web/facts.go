package web

import (
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// factOrder is what people look for first; the rest is folded away.
var factOrder = []string{
	"os", "kernel", "arch", "cpus", "cpu_model", "load", "memory", "disk", "load1", "load5", "load15", "memory_total_bytes", "memory_available_bytes",
	"disk_root_total_bytes", "disk_root_free_bytes", "uptime_seconds", "addresses", "hostname", "processes", "timezone",
}

// together says in one line what belongs together: the three loads, and what is
// free of a whole.
func together(facts []*v1.Fact) []*v1.Fact {
	value := map[string]*v1.Fact{}
	for _, f := range facts {
		value[f.Name] = f
	}
	said := map[string]*v1.Fact{}
	if a, b, c := value["load1"], value["load5"], value["load15"]; a != nil && b != nil && c != nil {
		said["load1"] = &v1.Fact{Name: "load", Value: a.Value + ", " + b.Value + ", " + c.Value, Source: a.Source, At: a.At}
		said["load5"], said["load15"] = nil, nil
	}
	for _, of := range [][3]string{{"memory", "memory_total_bytes", "memory_available_bytes"}, {"disk", "disk_root_total_bytes", "disk_root_free_bytes"}} {
		if all, free := value[of[1]], value[of[2]]; all != nil && free != nil {
			said[of[1]] = &v1.Fact{Name: of[0], Value: factValue(all) + ", " + factValue(free) + " free", Source: all.Source, At: all.At}
			said[of[2]] = nil
		}
	}
	var out []*v1.Fact
	for _, f := range facts {
		if one, ok := said[f.Name]; !ok {
			out = append(out, f)
		} else if one != nil {
			out = append(out, one)
		}
	}
	return out
}

// sortFacts splits the facts into those that people look for, in order, and
// the rest.
func sortFacts(facts []*v1.Fact) (first, rest []*v1.Fact) {
	for _, name := range factOrder {
		for _, f := range facts {
			if f.Name == name {
				first = append(first, f)
			}
		}
	}
	for _, f := range facts {
		if !slices.Contains(factOrder, f.Name) {
			rest = append(rest, f)
		}
	}
	return first, rest
}

// factNames says the facts that have a better name than their own.
var factNames = map[string]string{
	"os": "System", "kernel": "Kernel", "cpus": "CPUs", "memory_total_bytes": "Memory", "memory_available_bytes": "Memory free",
	"load": "Load (1, 5, 15 min)", "memory": "Memory", "disk": "Disk", "load1": "Load (1 min)", "load5": "Load (5 min)", "load15": "Load (15 min)", "uptime_seconds": "Up for", "addresses": "Addresses",
	"disk_root_total_bytes": "Disk", "disk_root_free_bytes": "Disk free", "arch": "Architecture", "hostname": "Host name",
	"boot_id": "Boot", "machine_id": "Machine id", "cpu_model": "CPU", "os_id": "System id", "timezone": "Time zone", "product": "Product",
	"swap_total_bytes": "Swap", "swap_free_bytes": "Swap free", "virtualization": "Virtualisation",
}

func factName(f *v1.Fact) string {
	if n, ok := factNames[f.Name]; ok {
		return n
	}
	return strings.ToUpper(f.Name[:min(1, len(f.Name))]) + strings.ReplaceAll(f.Name[min(1, len(f.Name)):], "_", " ")
}

// factValue says a fact in words; what is not a number stays as it is.
func factValue(f *v1.Fact) string {
	n, err := strconv.ParseFloat(f.Value, 64)
	if err != nil {
		return f.Value
	}
	switch {
	case strings.HasSuffix(f.Name, "_bytes"):
		return size(uint64(n))
	case strings.HasSuffix(f.Name, "_seconds"):
		return span(time.Duration(n) * time.Second)
	}
	return f.Value
}

func fact(h *v1.Host, name string) string {
	for _, f := range h.GetFacts() {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// share is how much of a total is used, in percent; false when unknown.
func share(h *v1.Host, total, free string) (int, bool) {
	t, err1 := strconv.ParseFloat(fact(h, total), 64)
	f, err2 := strconv.ParseFloat(fact(h, free), 64)
	if err1 != nil || err2 != nil || t <= 0 {
		return 0, false
	}
	return max(0, min(100, int(100*(t-f)/t+0.5))), true
}

// missingOf says which layer a host without shells lacks.
func missingOf(f frame, h *v1.Host) []string {
	switch {
	case len(h.GetFloorMissing()) > 0:
		return h.FloorMissing
	case len(f.Inst.Missing) > 0:
		return f.Inst.Missing
	case h.GetState() != "online":
		return []string{"The host is " + stateWord(h.GetState()) + ": start its node, or look at its log."}
	}
	return []string{"The node did not say."}
}

func osOf(h *v1.Host) string {
	if os := fact(h, "os"); os != "" {
		return os
	}
	return h.GetId()
}

func canShell(h *v1.Host) bool {
	return agentless(h) || h.GetState() == "online" && h.GetMode() != "no-shells" && h.GetFloor() != "brokered"
}

func floorWord(h *v1.Host) string {
	switch h.GetFloor() {
	case "full":
		return "full: the kernel keeps read-only sessions read-only"
	case "reduced":
		return "reduced: " + strings.Join(h.FloorMissing, "; ")
	case "account":
		return "none: only the rights of the account limit a session"
	case "brokered":
		return "brokered reads only: " + strings.Join(h.FloorMissing, "; ")
	}
	return "not known yet"
}
