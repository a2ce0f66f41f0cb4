package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// lock measures from the moment somebody types `handrail lock` until the last
// process of each of a person's sessions is dead.
func (b *bench) lock(ctx context.Context) error {
	var names []string
	for n := range b.locks {
		names = append(names, fmt.Sprintf("lock%d", n))
	}
	people, err := b.handrail.enterAll(ctx, names...)
	if err != nil {
		return err
	}
	warden, err := b.handrail.role("warden")
	if err != nil {
		return err
	}
	var dead, command []float64
	for n, p := range people {
		before := descendants(warden)
		h, err := hold(p.way(), b.lockSessions)
		if err != nil {
			h.close()
			return err
		}
		b.settle(ctx)
		targets := ofSessions(warden, before)
		deaths, took, err := b.lockAndWatch(ctx, names[n], targets)
		h.close()
		if err != nil {
			return err
		}
		dead, command = append(dead, deaths...), append(command, took)
	}
	b.t.alone("lock a person with 50 sessions → process dead, p50", ms, quantile(dead, 0.5), 0)
	b.t.alone("lock a person with 50 sessions → process dead, p99", ms, quantile(dead, 0.99), 250)
	b.t.note("lock: %d processes; counted from the start of `handrail lock`, which itself returns after %.0f ms", len(dead), median(command))
	return nil
}

// ofSessions are the warden's new descendants but the keeper that it holds
// ready for the next session, which has no child yet.
func ofSessions(warden int, before []int) []int {
	children := family()
	return slices.DeleteFunc(descendants(warden), func(pid int) bool {
		spare := slices.Contains(children[warden], pid) && len(children[pid]) == 0
		return spare || slices.Contains(before, pid)
	})
}

// lockAndWatch returns after how long each of the processes was dead.
func (b *bench) lockAndWatch(ctx context.Context, name string, pids []int) (dead []float64, took float64, err error) {
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := b.handrail.first.run(ctx, "lock", name, "--reason", "bench")
		took = millis(time.Since(began))
		done <- err
	}()
	for left := slices.Clone(pids); len(left) > 0; {
		left = slices.DeleteFunc(left, func(pid int) bool {
			if alive(pid) {
				return false
			}
			dead = append(dead, millis(time.Since(began)))
			return true
		})
		if time.Since(began) > 10*time.Second {
			<-done
			return nil, 0, fmt.Errorf("%d processes outlived a lock by 10 s", len(left))
		}
		time.Sleep(time.Millisecond)
	}
	return dead, took, <-done
}
