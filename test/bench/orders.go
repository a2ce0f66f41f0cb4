package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// scale is what the test of package fleet prints, which has a real server's end
// and, in a process of their own, as many nodes.
type scale struct {
	Nodes, Answered                                 int
	Connect, KiB, Order, OrderCPU, Probe, Broadcast float64
}

// spareFiles are those that a process has open beside one for each node.
const spareFiles = 500

// crowds are how many nodes, with the goal in ms.
func (b *bench) crowds() map[int]float64 {
	if b.quick {
		return map[int]float64{1000: 50}
	}
	return map[int]float64{1000: 50, 10_000: 300}
}

// orders prints how long an order to many takes: one leaf, one proof, and every
// node verifies both and answers.
func (b *bench) orders(ctx context.Context) error {
	test := filepath.Join(b.dir, "fleet.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", test, "handrail.dev/handrail/internal/foundation/fleet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the nodes: %w\n%s", err, text)
	}
	for _, nodes := range []int{1000, 10_000} {
		goal, wanted := b.crowds()[nodes]
		if !wanted {
			continue
		}
		if most := openFiles() - spareFiles; nodes > most {
			b.t.note("%d nodes are more than the %d that the limit of open files allows (ulimit -n): measured with those", nodes, most)
			nodes, goal = most, 0
		}
		s, err := atScale(ctx, test, nodes)
		if err != nil {
			return err
		}
		if s.Answered < s.Nodes {
			b.t.note("of %d nodes only %d answered every time: this machine starves the others' connections", s.Nodes, s.Answered)
			goal = 0
		}
		of := fmt.Sprintf("%d nodes: ", s.Nodes)
		b.t.alone(of+"an order, verified and answered by all", ms, s.Order, goal)
		b.t.alone(of+"the server's processor time in that", ms, s.OrderCPU, 0)
		b.t.alone(of+"the same, answered without verifying", ms, s.Probe, 0)
		b.t.alone(of+"one message to all instead of one to each", ms, s.Broadcast, 0)
		b.t.alone(of+"memory of the server for each, over TLS", kib, s.KiB, 50)
		b.t.alone(of+"all connected, from nothing", seconds, s.Connect, 0)
		if s.Nodes == 1000 {
			b.t.add(row{what: "processor time of the asking side for each host", unit: ms, values: [3]value{known(s.OrderCPU / float64(s.Nodes)), b.clush(ctx)}})
		}
	}
	b.t.note("all nodes verify on the processors that the server runs on; each has its own in real life")
	return nil
}

func atScale(ctx context.Context, test string, nodes int) (s scale, err error) {
	cmd := exec.CommandContext(ctx, test, "-test.run=^TestOrdersAtScale$", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), fmt.Sprint("HANDRAIL_BENCH_NODES=", nodes))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	text := out.String()
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		if body, ok := strings.CutPrefix(lines.Text(), "scale "); ok {
			return s, json.Unmarshal([]byte(body), &s)
		}
	}
	return s, fmt.Errorf("no figures of %d nodes: %w\n%s", nodes, err, text)
}

// openFiles is how many files a process may have open, after asking for as many
// as the largest crowd needs.
func openFiles() int {
	l := syscall.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) // refused without root: then what is there must do
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// clush is what it costs per host to run nothing with clush over ssh, on this
// machine's own sshd under many names.
func (b *bench) clush(ctx context.Context) value {
	const hosts = 50
	if _, err := exec.LookPath("clush"); err != nil {
		b.t.note("clush is missing (Debian: clustershell): no peer")
		return value{}
	}
	dir := filepath.Join(b.dir, "clush") // the others' peers have b.dir
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.note("clush: %v", err)
		return value{}
	}
	p, err := startPeers(ctx, dir)
	if err != nil {
		b.t.note("clush has no sshd: %v", err)
		return value{}
	}
	defer p.stop()
	config, err := p.everywhere()
	if err != nil {
		b.t.note("clush: %v", err)
		return value{}
	}
	var used []float64
	for range b.turns {
		cmd := exec.CommandContext(ctx, "clush", "-f", "50", "-q", "-b", "-o", "-F "+config, "-w", fmt.Sprintf("127.0.1.[1-%d]", hosts), "true")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.t.note("clush: %v: %s", err, bytes.TrimSpace(out))
			return value{}
		}
		used = append(used, millis(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())/hosts)
	}
	return known(median(used))
}

// everywhere is a configuration for ssh(1) that knows the first sshd by every
// name.
func (p *peers) everywhere() (string, error) {
	text, err := os.ReadFile(p.config)
	if err != nil {
		return "", err
	}
	all := strings.ReplaceAll(string(text), "Host direct\n", "Host 127.0.1.*\n")
	path := filepath.Join(p.dir, "everywhere")
	return path, os.WriteFile(path, []byte(all), 0o600)
}
