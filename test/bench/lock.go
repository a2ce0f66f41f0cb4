package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// lockHosts are the hosts over which a person's sessions lie.
const lockHosts = 20

// lock measures from the moment somebody types `handrail lock` until the last
// process of each of a person's sessions is dead: first with all of them on one
// host, then with as many over twenty, each with a node of its own.
func (b *bench) lock(ctx context.Context) error {
	if err := b.lockOver(ctx, "one", []string{b.handrail.host}, 250); err != nil {
		return err
	}
	hosts, stop, err := b.moreHosts(ctx, lockHosts)
	defer stop()
	if err != nil {
		return err
	}
	return b.lockOver(ctx, "many", hosts, 250)
}

// lockOver locks people with sessions over hosts.
func (b *bench) lockOver(ctx context.Context, word string, hosts []string, goal float64) error {
	var names []string
	for n := range b.locks {
		names = append(names, fmt.Sprintf("lock-%s%d", word, n))
	}
	people, err := b.handrail.enterAll(ctx, names...)
	if err != nil {
		return err
	}
	var dead, command []float64
	for n, p := range people {
		before := inSessions()
		h, err := p.flee(hosts, b.lockSessions)
		if err != nil {
			h.close()
			return err
		}
		b.settle(ctx)
		targets := slices.DeleteFunc(inSessions(), func(pid int) bool { return slices.Contains(before, pid) })
		deaths, took, err := b.lockAndWatch(ctx, names[n], targets)
		h.close()
		if err != nil {
			return err
		}
		dead, command = append(dead, deaths...), append(command, took)
	}
	what := fmt.Sprintf("lock a person with %d sessions on %d host(s) → process dead", b.lockSessions, len(hosts))
	b.t.alone(what+", p50", ms, quantile(dead, 0.5), 0)
	b.t.alone(what+", p99", ms, quantile(dead, 0.99), goal)
	b.t.note("lock on %d host(s): %d processes in %d locks, the last dead after %.0f ms; counted from the start of `handrail lock`, which itself returns after %.0f ms",
		len(hosts), len(dead), len(people), slices.Max(dead), median(command))
	return nil
}

// fleeing leaves children behind that are in no group and no session of its
// own, and one that hears no hang-up.
const fleeing = `for i in 1 2; do setsid sh -c 'sleep 1000 & sleep 1000' >/dev/null 2>&1 & done; nohup sleep 1000 >/dev/null 2>&1 & ` +
	`stty raw -echo; echo typist-is-ready; exec cat`

// flee opens sessions, in turns on the hosts, whose processes would outlive them.
func (p person) flee(hosts []string, n int) (held, error) {
	all, errs := make(held, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			all[i], errs[i] = newTypist(p.on(hosts[i%len(hosts)]), fleeing)
		})
	}
	wg.Wait()
	all = slices.DeleteFunc(all, func(t *typist) bool { return t == nil })
	return all, errors.Join(errs...)
}

// on is the way to a host.
func (p person) on(host string) way {
	config := &ssh.ClientConfig{User: host, Auth: []ssh.AuthMethod{ssh.PublicKeys(p.signer)}, HostKeyCallback: p.known, Timeout: dialTime}
	return way{name: "handrail", dial: func() (*ssh.Client, error) { return ssh.Dial("tcp", p.i.ssh, config) }}
}

var sessionGroup = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`/handrail/handrail-[0-9a-f]{8}-s-`) })

// inSessions lists the processes in cgroups of sessions.
func inSessions() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil || !sessionGroup().Match(text) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// lockAndWatch returns after how long each of the processes was dead. The
// kernel tells of each death, so that watching takes no time from dying.
func (b *bench) lockAndWatch(ctx context.Context, name string, pids []int) (dead []float64, took float64, err error) {
	watched := make([]unix.PollFd, 0, len(pids))
	defer func() {
		for _, w := range watched {
			unix.Close(int(w.Fd))
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("cannot watch process %d: %w", pid, err)
		}
		watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := b.handrail.first.run(ctx, "lock", name, "--reason", "bench")
		took = millis(time.Since(began))
		done <- err
	}()
	for left := slices.Clone(watched); len(left) > 0; {
		if _, err := unix.Poll(left, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, 0, err
		}
		at := millis(time.Since(began))
		left = slices.DeleteFunc(left, func(w unix.PollFd) bool {
			if w.Revents != 0 {
				dead = append(dead, at)
			}
			return w.Revents != 0
		})
		if time.Since(began) > 10*time.Second {
			<-done
			return nil, 0, fmt.Errorf("%d processes outlived a lock by 10 s", len(left))
		}
	}
	return dead, took, <-done
}

// moreHosts lets nodes join and serve, each with a data folder of its own, and
// waits until all are connected.
func (b *bench) moreHosts(ctx context.Context, n int) (names []string, stop func(), err error) {
	var nodes []*exec.Cmd
	stop = func() {
		for _, node := range nodes {
			_ = node.Process.Signal(os.Interrupt)
		}
		for _, node := range nodes {
			_ = node.Wait()
		}
	}
	for i := range n {
		name := fmt.Sprintf("bench-%d", i)
		node, err := b.joinHost(ctx, name)
		if err != nil {
			return nil, stop, err
		}
		nodes, names = append(nodes, node), append(names, name)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var list struct {
			Hosts []struct{ Name, State string }
		}
		out, err := b.handrail.first.run(ctx, "hosts", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		online := 0
		for _, h := range list.Hosts {
			if h.State == "online" && slices.Contains(names, h.Name) {
				online++
			}
		}
		if err == nil && online == n {
			return names, stop, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, stop, fmt.Errorf("%d of %d hosts are online: %w", online, n, err)
		}
	}
}

func (b *bench) joinHost(ctx context.Context, name string) (*exec.Cmd, error) {
	out, err := b.handrail.first.run(ctx, "host", "invite", name, "--env", "dev", "-o", "json")
	if err != nil {
		return nil, err
	}
	var invited struct{ Token string }
	if err := json.Unmarshal([]byte(out), &invited); err != nil {
		return nil, err
	}
	data, token := filepath.Join(b.dir, name), filepath.Join(b.dir, "token-"+name)
	if err := os.WriteFile(token, []byte(invited.Token+"\n"), 0o600); err != nil {
		return nil, err
	}
	if _, err := b.handrail.first.run(ctx, "join", "--data", data, "--name", name, "--token-file", token); err != nil {
		return nil, err
	}
	node := exec.Command(b.binary, "node", "--data", data, "--entrance", "none")
	node.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
	return node, node.Start()
}
