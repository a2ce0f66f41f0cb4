package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// setup measures how long it takes until a command has run in a new session,
// and how much of the processors, which says more on a machine that does
// something else, too.
func (b *bench) setup(ctx context.Context) error {
	var all, open [3][]float64
	parts, err := b.handrailParts()
	if err != nil {
		return err
	}
	var used [3]float64
	split := map[string]float64{}
	for range b.turns {
		for column, w := range b.ways() {
			n := b.sequential
			if column > 0 {
				n /= 4
			}
			serving := b.serving(column, parts)
			before, apart := processor(serving...), apartOf(parts)
			for range n {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				began := time.Now()
				if err := setUp(w, "true"); err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
				all[column] = append(all[column], millis(time.Since(began)))
			}
			used[column] += processor(serving...) - before
			if column == 0 {
				for name, v := range apartOf(parts) {
					split[name] += v - apart[name]
				}
			}
			if err := onOpen(w, n, &open[column]); err != nil {
				return fmt.Errorf("%s, on an open connection: %w", w.name, err)
			}
		}
	}
	b.t.add(quantiles("session set-up p50", ms, all, 0.5, 15))
	b.t.add(quantiles("session set-up p99", ms, all, 0.99, 0))
	b.t.add(perSession("processor time of a session, without the client", used, all))
	for _, name := range roles {
		b.t.note("of a session's processor time: %s %.1f ms", name, split[name]/float64(len(all[0])))
	}
	b.t.add(quantiles("session on an open connection p50", ms, open, 0.5, 0))
	b.t.add(quantiles("session on an open connection p99", ms, open, 0.99, 0))
	rates, err := b.each(func(w way, _ int) (float64, error) { return parallel(w, 8, b.parallelFor) })
	if err != nil {
		return err
	}
	b.t.add(row{what: "sessions/s, 8 parallel", unit: perSecond, values: rates, goal: 300})
	return nil
}

// roles are those that a session goes through. What runs on the host for a
// session counts for the warden, which is its parent.
var roles = []string{"server", "link", "warden"}

func (b *bench) handrailParts() (map[string]int, error) {
	parts := map[string]int{}
	for _, name := range roles {
		pid, err := b.handrail.role(name)
		if err != nil {
			return nil, err
		}
		parts[name] = pid
	}
	return parts, nil
}

// serving are the processes that a way goes through, without the client's.
func (b *bench) serving(column int, parts map[string]int) (pids []int) {
	switch column {
	case 0:
		for _, pid := range parts {
			pids = append(pids, pid)
		}
	case 1:
		pids = []int{b.peers.final.cmd.Process.Pid}
	case 2:
		pids = []int{b.peers.final.cmd.Process.Pid, b.peers.jump.cmd.Process.Pid}
	}
	return pids
}

func apartOf(parts map[string]int) map[string]float64 {
	apart := map[string]float64{}
	for name, pid := range parts {
		apart[name] = processor(pid)
	}
	return apart
}

func perSession(what string, used [3]float64, samples [3][]float64) row {
	r := row{what: what, unit: ms}
	for column := range used {
		if n := len(samples[column]); n > 0 {
			r.values[column] = known(used[column] / float64(n))
		}
	}
	return r
}

func quantiles(what string, u unit, samples [3][]float64, q, goal float64) row {
	r := row{what: what, unit: u, goal: goal}
	for column := range samples {
		if len(samples[column]) > 0 {
			r.values[column] = known(quantile(samples[column], q))
		}
	}
	return r
}

// onOpen opens sessions one after another on one connection.
func onOpen(w way, n int, into *[]float64) error {
	client, err := w.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	for range n {
		began := time.Now()
		if err := runOn(client, "true"); err != nil {
			return err
		}
		*into = append(*into, millis(time.Since(began)))
	}
	return nil
}

// parallel is how many whole sessions a second several clients get.
func parallel(w way, clients int, span time.Duration) (float64, error) {
	var done atomic.Int64
	errs := make([]error, clients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			for time.Since(began) < span && errs[i] == nil {
				if errs[i] = setUp(w, "true"); errs[i] == nil {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}
