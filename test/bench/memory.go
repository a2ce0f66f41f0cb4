package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// start measures a first start on an empty folder, and a later one.
func (b *bench) start(ctx context.Context) error {
	var page, greeting, again []float64
	page, greeting = append(page, millis(b.handrail.firstPage)), append(greeting, millis(b.handrail.greeted))
	for n := range b.starts {
		data := filepath.Join(b.dir, fmt.Sprintf("start-%d", n))
		for turn := range 2 {
			i, err := b.up(ctx, data)
			if err != nil {
				return err
			}
			if turn == 0 {
				page, greeting = append(page, millis(i.firstPage)), append(greeting, millis(i.greeted))
			} else {
				again = append(again, millis(i.firstPage))
			}
			if err := i.stop(); err != nil {
				return err
			}
		}
	}
	b.t.alone("start to first page, empty folder", ms, median(page), 100)
	b.t.alone("start to first page, later start", ms, median(again), 100)
	b.t.alone("start to greeting, host joined", ms, median(greeting), 0)
	return nil
}

// idleRoles measures what each role holds when nothing happens.
func (b *bench) idleRoles(ctx context.Context) error {
	i := b.handrail
	pids := map[string]int{"supervisor": i.cmd.Process.Pid}
	for _, role := range []string{"server", "link", "warden"} {
		pid, err := i.role(role)
		if err != nil {
			return err
		}
		pids[role] = pid
	}
	select { // one round of everything that is done each second
	case <-time.After(b.calm):
	case <-ctx.Done():
		return ctx.Err()
	}
	got := map[string]memory{}
	for role, pid := range pids {
		got[role] = memoryOf(pid)
	}
	for _, role := range []string{"server", "link", "warden", "supervisor"} {
		goal := 0.0
		if role == "server" {
			goal = 90
		}
		b.t.alone("idle "+role+", RSS", mib, got[role].rss/1024, goal)
		b.t.alone("idle "+role+", PSS", mib, got[role].pss/1024, 0)
	}
	b.t.alone("idle node (link + warden), RSS", mib, (got["link"].rss+got["warden"].rss)/1024, 25)
	b.t.alone("idle node (link + warden), PSS", mib, (got["link"].pss+got["warden"].pss)/1024, 25)
	for _, name := range []string{"handrail", "handrail-node"} {
		if info, err := os.Stat(filepath.Join(filepath.Dir(b.binary), name)); err == nil {
			b.t.alone("binary "+name, mib, float64(info.Size())/(1<<20), 60)
		}
	}
	return nil
}

// held are sessions that stay open.
type held []*typist

func (h held) close() {
	for _, t := range h {
		t.client.Close()
	}
}

// hold opens n pty sessions, each over a connection of its own.
func hold(w way, n int) (held, error) {
	all, errs := make(held, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			all[i], errs[i] = newTypist(w, typing)
		})
	}
	wg.Wait()
	all = slices.DeleteFunc(all, func(t *typist) bool { return t == nil })
	return all, errors.Join(errs...)
}

// idleSessions measures what an idle pty session costs, at the middle and on
// the host.
func (b *bench) idleSessions(ctx context.Context) error {
	const each = 50 // the most that one person may have
	var names []string
	for n := 0; n*each < b.idle; n++ {
		names = append(names, fmt.Sprintf("idle%d", n))
	}
	people, err := b.handrail.enterAll(ctx, names...)
	if err != nil {
		return err
	}
	server, err := b.handrail.role("server")
	if err != nil {
		return err
	}
	link, err := b.handrail.role("link")
	if err != nil {
		return err
	}
	warden, err := b.handrail.role("warden")
	if err != nil {
		return err
	}
	before := memoryOf(server)
	linkBefore, keepersBefore := memoryOf(link), descendants(warden)
	var all held
	defer func() { all.close() }()
	for n, p := range people {
		h, err := hold(p.way(), min(each, b.idle-n*each))
		all = append(all, h...)
		if err != nil {
			return err
		}
	}
	b.settle(ctx)
	gateway := memoryOf(server).minus(before).over(b.idle)
	onLink := memoryOf(link).minus(linkBefore).over(b.idle)
	keepers, programs := split(descendants(warden), keepersBefore, b.binary)
	onHost := memoryOf(keepers...).over(b.idle)
	inside := memoryOf(programs...).over(b.idle)

	jump, jumpEnd, direct, err := b.sshdSessions(ctx)
	if err != nil {
		return err
	}
	b.t.add(row{what: "idle session at the gateway, RSS", unit: kib, values: [3]value{known(gateway.rss), {}, known(jump.rss)}, goal: 250})
	// The keepers run the same binary, so the server's share of its pages falls
	// while they live: for its growth, what nobody shares is the truer PSS.
	b.t.add(row{what: "idle session at the gateway, private", unit: kib, values: [3]value{known(gateway.private), {}, known(jump.private)}, goal: 250})
	b.t.add(row{what: "idle session at the gateway, PSS", unit: kib, values: [3]value{known(gateway.pss), {}, known(jump.pss)}, goal: 250})
	b.t.add(row{what: "idle session on the host, PSS (keeper + link)", unit: kib,
		values: [3]value{known(onHost.pss + onLink.pss), known(direct.pss), known(jumpEnd.pss)}})
	b.t.note("on the host, of one session: keeper %.0f KiB PSS (%.0f private) in %.1f processes, link %.0f KiB, the person's programs %.0f KiB",
		onHost.pss, onHost.private, float64(len(keepers))/float64(b.idle), onLink.pss, inside.pss)
	return nil
}

// settle gives everybody time to give back what they needed to start.
func (b *bench) settle(ctx context.Context) {
	select {
	case <-time.After(b.calm):
	case <-ctx.Done():
	}
}

// split tells our own processes of sessions from the people's programs.
func split(now, before []int, binary string) (ours, theirs []int) {
	for _, pid := range now {
		if slices.Contains(before, pid) {
			continue
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if exe == binary || exe == "/" || strings.HasPrefix(exe, "/memfd:handrail") || filepath.Base(exe) == filepath.Base(binary) {
			ours = append(ours, pid)
		} else {
			theirs = append(theirs, pid)
		}
	}
	return ours, theirs
}

// sshdSessions is the same for OpenSSH: at the jump host, at its end, and
// direct.
func (b *bench) sshdSessions(ctx context.Context) (jump, end, direct memory, err error) {
	measure := func(w way) (memory, memory, error) {
		h, err := hold(w, b.idle)
		defer h.close()
		b.settle(ctx)
		return sshdMemory(b.peers.jump).over(b.idle), sshdMemory(b.peers.final).over(b.idle), err
	}
	if jump, end, err = measure(b.peers.proxyJump()); err != nil {
		return
	}
	b.settle(ctx)
	_, direct, err = measure(b.peers.direct())
	return
}

// sshdMemory counts the sshd processes below a daemon, not the programs.
func sshdMemory(d *daemon) memory {
	var pids []int
	for _, pid := range descendants(d.cmd.Process.Pid) {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if filepath.Base(exe) == "sshd" {
			pids = append(pids, pid)
		}
	}
	return memoryOf(pids...)
}
