package inspect

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// ports shows listeners and connections with the processes that hold them. It
// reads the kernel's tables as a process of that network namespace sees them,
// so that those inside a container are seen without entering it.
func (p *plan) ports(a *answer) error {
	a.end.Method = "the kernel's tables of sockets in /proc, of the target's own network; nothing is held"
	of := map[int]bool{}
	for _, q := range p.Of {
		of[q.PID] = true
	}
	view := "self"
	foreign := false
	if len(p.Of) > 0 {
		view = strconv.Itoa(p.Of[0].PID)
		mine, _ := os.Readlink("/proc/self/ns/net")
		its, _ := os.Readlink("/proc/" + view + "/ns/net")
		foreign = its != "" && its != mine
	}
	var found []socket
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := readSome("/proc/"+view+"/net/"+table, maxProcFil*4)
		if err != nil && view != "self" {
			return fault.New(fault.NotFound, "cannot look at the ports of process %s: it has ended", view)
		}
		found = append(found, parseSockets(table, string(b))...)
	}
	owners := socketOwners(of)
	var listen, rest []wire.InspectSocket
	for _, s := range found {
		held := owners[s.inode]
		if len(of) > 0 && len(held) == 0 {
			continue
		}
		row := s.row
		row.Foreign = foreign
		owned(&row, held)
		if row.State == "listening" || row.State == "open" {
			listen = append(listen, row)
		} else {
			rest = append(rest, row)
		}
	}
	slices.SortFunc(listen, func(a, b wire.InspectSocket) int {
		return strings.Compare(a.Protocol+padded(a.Local), b.Protocol+padded(b.Local))
	})
	rest = fold(rest)
	for _, row := range append(listen, rest...) {
		if !a.put(wire.InspectRecord{Socket: &row}) {
			return nil
		}
	}
	if len(of) == 0 {
		a.note("Sockets of containers with a network of their own are not in this list: name a process in the container.")
	}
	return nil
}

type socket struct {
	inode uint64
	row   wire.InspectSocket
}

type owner struct {
	pid  int
	name string
}

var tcpStates = map[string]string{"01": "established", "02": "syn-sent", "03": "syn-received", "04": "fin-wait-1", "05": "fin-wait-2",
	"06": "time-wait", "07": "closed", "08": "close-wait", "09": "last-ack", "0A": "listening", "0B": "closing", "0C": "syn-received"}

const maxSockets = 200_000

// parseSockets reads one table of /proc/PID/net.
func parseSockets(table, text string) []socket {
	var out []socket
	first := true
	for line := range strings.Lines(text) {
		if first {
			first = false
			continue
		}
		f := strings.Fields(line)
		if len(f) < 10 || len(out) >= maxSockets {
			continue
		}
		local, ok1 := parseAddress(f[1])
		remote, ok2 := parseAddress(f[2])
		if !ok1 || !ok2 {
			continue
		}
		s := socket{row: wire.InspectSocket{Protocol: table, Local: local.String(), State: tcpStates[f[3]]}}
		if strings.HasPrefix(table, "udp") {
			s.row.State = "connected"
			if remote.Port() == 0 {
				s.row.State = "open"
			}
		}
		if remote.Port() != 0 {
			s.row.Remote = remote.String()
		}
		if tx, rx, ok := strings.Cut(f[4], ":"); ok {
			s.row.Unsent, _ = strconv.ParseInt(tx, 16, 64)
			s.row.Queued, _ = strconv.ParseInt(rx, 16, 64)
		}
		if uid, err := strconv.Atoi(f[7]); err == nil {
			s.row.User = userName(uid)
		}
		s.inode, _ = strconv.ParseUint(f[9], 10, 64)
		out = append(out, s)
	}
	return out
}

// parseAddress reads "0100007F:1F90": words in the host's order of bytes.
func parseAddress(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}

// socketOwners finds who holds which socket; of is whom to look at, all if empty.
func socketOwners(of map[int]bool) map[uint64][]owner {
	out := map[uint64][]owner{}
	for _, pid := range pids() {
		if len(of) > 0 && !of[pid] {
			continue
		}
		d, err := os.Open(procPath(pid, "fd"))
		if err != nil {
			continue
		}
		names, _ := d.Readdirnames(maxCounted)
		d.Close()
		for _, n := range names {
			to, err := os.Readlink(procPath(pid, "fd/"+n))
			if err != nil {
				continue
			}
			var inode uint64
			if _, err := fmt.Sscanf(to, "socket:[%d]", &inode); err != nil {
				continue
			}
			held := out[inode]
			if len(held) == 0 || held[len(held)-1].pid != pid {
				out[inode] = append(held, owner{pid: pid})
			}
		}
	}
	return out
}

func owned(row *wire.InspectSocket, held []owner) {
	if len(held) == 0 {
		return
	}
	slices.SortFunc(held, func(a, b owner) int { return a.pid - b.pid })
	q, err := readProcess(held[0].pid)
	if err != nil {
		return
	}
	row.PID, row.Name, row.Unit, row.Others = int64(q.PID), q.Name, q.Unit, int64(len(held)-1)
}

// fold puts connections of one process to one place into one line.
func fold(rows []wire.InspectSocket) []wire.InspectSocket {
	at := map[string]int{}
	var out []wire.InspectSocket
	for _, r := range rows {
		outward := !strings.HasSuffix(r.Remote, "]:0")
		where := r.Remote
		if local, err := netip.ParseAddrPort(r.Local); err == nil && local.Port() < ephemeral {
			where = r.Local // they come to us
			if remote, err := netip.ParseAddrPort(r.Remote); err == nil {
				where += "<" + remote.Addr().String()
			}
		}
		key := fmt.Sprint(r.Protocol, r.State, r.PID, where, outward)
		if i, ok := at[key]; ok {
			out[i].Count++
			out[i].Queued += r.Queued
			out[i].Unsent += r.Unsent
			continue
		}
		at[key] = len(out)
		r.Count = 1
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b wire.InspectSocket) int { return int(b.Count - a.Count) })
	return out
}

// ephemeral is the first port that connections take for themselves.
const ephemeral = 32768

// padded sorts addresses by port as a number.
func padded(address string) string {
	i := strings.LastIndexByte(address, ':')
	return fmt.Sprintf("%6s %s", address[i+1:], address)
}
