package inspect

import (
	"debug/buildinfo"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/inspect/stack"
)

// isGo says whether a process was built by Go: its file says so.
func isGo(pid int) bool {
	f, err := os.Open(procPath(pid, "exe"))
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = buildinfo.Read(f)
	return err == nil
}

// stacks shows where every thread stands, in the way of its runtime. What the
// kernel says is left where nothing else can be had.
func (p *plan) stacks(a *answer) error {
	r := stack.Request{PID: p.Process.PID, Inner: p.Process.Inner, Limit: time.Duration(p.Spec.PauseMS) * time.Millisecond, Still: p.still}
	if r.Limit <= 0 {
		r.Limit = defaultPause
	}
	var d stack.Dump
	var err error
	switch p.Runtime {
	case runtimeKernel:
		return p.kernelStacks(a, "")
	case runtimeGo:
		d, err = stack.Go(r)
	case runtimePython:
		d, err = stack.Python(r)
	case runtimeNode:
		d, err = stack.Node(r)
	case runtimeJVM:
		d, err = stack.JVM(stack.JVMRequest{Request: r, Root: rootFD, Pidfd: pidFD, EUID: p.Process.EUID,
			Catches: p.Process.catches(unix.SIGQUIT), Args: p.Process.Args})
	default:
		d, err = stack.Native(r)
	}
	a.end.PauseNS, a.end.Bound = d.Pause.Nanoseconds(), d.AtMost
	if err != nil {
		if gone := p.still(); gone != nil {
			return gone
		}
		return p.kernelStacks(a, fault.From(err).Text+".")
	}
	a.end.Method, a.end.Cut = d.Method, d.Partial
	for _, n := range d.Notes {
		a.note(n)
	}
	for i := range d.Stacks {
		if !a.put(wire.InspectRecord{Stack: &d.Stacks[i]}) {
			break
		}
	}
	return nil
}

const defaultPause = 200 * time.Millisecond

// kernelStacks is what the kernel says of each thread, which needs no pause.
func (p *plan) kernelStacks(a *answer, why string) error {
	a.end.Method = "what the kernel says of each thread (state, where it waits), which needs no pause. The program's own stack is not seen"
	if why != "" {
		a.note(why)
	}
	type spot struct {
		state, wait string
		frames      []wire.InspectFrame
	}
	var order []string
	groups := map[string]*wire.InspectStack{}
	pid := p.Process.PID
	for _, tid := range tasks(pid) {
		dir := "task/" + strconv.Itoa(tid) + "/"
		s, ok := take(procPath(pid, dir))
		if !ok {
			continue
		}
		at := spot{state: stateWord(s.state)}
		if b, err := readSome(procPath(pid, dir+"wchan"), 256); err == nil && string(b) != "0" {
			at.wait = strings.TrimSpace(string(b))
		}
		if b, err := readSome(procPath(pid, dir+"stack"), 16<<10); err == nil {
			at.frames = kernelFrames(string(b))
		}
		key := at.state + "\x00" + at.wait
		for _, f := range at.frames {
			key += "\x00" + f.Function
		}
		g := groups[key]
		if g == nil {
			g = &wire.InspectStack{Kind: "kernel", State: at.state, Frames: at.frames}
			groups[key] = g
			order = append(order, key)
		}
		g.Threads = append(g.Threads, wire.InspectThread{ID: int64(tid), Name: s.name, State: at.state, Wait: at.wait})
	}
	for _, key := range order {
		if !a.put(wire.InspectRecord{Stack: groups[key]}) {
			break
		}
	}
	return p.still()
}

// kernelFrames reads lines of "[<0>] function+0x1/0x2 [module]".
func kernelFrames(text string) []wire.InspectFrame {
	var out []wire.InspectFrame
	for line := range strings.Lines(text) {
		_, rest, ok := strings.Cut(strings.TrimSpace(line), "] ")
		if !ok || len(out) >= 64 {
			continue
		}
		name, _, _ := strings.Cut(rest, "+0x")
		f := wire.InspectFrame{Function: name, Module: "kernel"}
		if _, module, ok := strings.Cut(rest, " ["); ok {
			f.Module = strings.TrimSuffix(module, "]")
		}
		out = append(out, f)
	}
	return out
}
