package fleet

import (
	"fmt"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// A node that lies also floods. What one host may ask, hold and have written
// is bounded here, so that it costs the others nothing.

// noteRate is how many entries about one host fleet writes in a minute.
const noteRate = 20

// budget bounds entries about one host.
type budget struct {
	since time.Time
	used  int
	left  int // refused since the last that passed
}

func (b *budget) take(now time.Time) (leftOut int, ok bool) {
	if now.Sub(b.since) > time.Minute {
		b.since, b.used = now, 0
	}
	if b.used >= noteRate {
		b.left++
		return 0, false
	}
	b.used++
	leftOut, b.left = b.left, 0
	return leftOut, true
}

// mayNote says whether another entry about a host may be written now, and how
// many were left out before it.
func (f *Fleet) mayNote(host string) (leftOut int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodeLocked(host).budget.take(time.Now())
}

// rate is how often a host may do a thing: burst at once, then one each time.
type rate struct {
	each  time.Duration
	burst int
}

// rates are far above what an honest node does.
var rates = map[string]rate{
	wire.UpLease:       {200 * time.Millisecond, 20},
	wire.UpConsistency: {10 * time.Millisecond, 200},
	wire.UpBundle:      {time.Second, 5},
	wire.UpFacts:       {time.Second, 10},
	wire.UpEvent:       {5 * time.Millisecond, 200},
	wire.UpRenew:       {time.Minute, 3},
	wire.UpServers:     {time.Second, 10},
	wire.UpEntrance:    {time.Minute, 5},
	wire.UpJournal:     {20 * time.Millisecond, 100},
	connecting:         {500 * time.Millisecond, 20},
}

const (
	// connecting is the rate of connections.
	connecting = "connect"
	// maxWait is how long what comes too fast is held back before it is
	// dropped: an honest node that hurries is slowed down, not refused.
	maxWait = time.Second
	// maxConns is how many connections one host may have: two, and those that
	// it gave up but that have not ended here.
	maxConns = 8
)

// take says how long to wait for the next turn, from the time at which all
// earlier ones are used up (the generic cell rate algorithm).
func (r rate) take(used *time.Time, now time.Time) (wait time.Duration, ok bool) {
	if used.Before(now) {
		*used = now
	}
	wait = max(used.Sub(now)-time.Duration(r.burst-1)*r.each, 0)
	if wait > maxWait {
		return 0, false
	}
	*used = used.Add(r.each)
	return wait, true
}

// pace says how long that of a host has to wait, or that it is dropped. A
// flood is one entry a minute.
func (f *Fleet) pace(host, what string) (wait time.Duration, ok bool) {
	now := time.Now()
	f.mu.Lock()
	n := f.nodeLocked(host)
	if n.used == nil {
		n.used = map[string]*time.Time{}
	}
	used := n.used[what]
	if used == nil {
		used = new(time.Time)
		n.used[what] = used
	}
	wait, ok = rates[what].take(used, now)
	tell, dropped := false, 0
	if !ok {
		n.dropped++
		if tell = now.Sub(n.flooded) > time.Minute; tell {
			n.flooded, dropped, n.dropped = now, n.dropped, 0
		}
	}
	f.mu.Unlock()
	if tell {
		go f.alarm(host, "flood", fmt.Sprintf("sends more than an honest node does (%s); dropped since the last of these: %d", what, dropped))
	}
	return wait, ok
}

// trespassed hears of a node that used a subject of others. The bus refused it.
func (f *Fleet) trespassed(host string) {
	f.mu.Lock()
	n := f.nodeLocked(host)
	tell := time.Since(n.trespassed) > time.Minute
	if tell {
		n.trespassed = time.Now()
	}
	f.mu.Unlock()
	if tell {
		go f.alarm(host, "subject", "used a subject that is not its own")
	}
}

// enter counts a connection of a host in; leave must follow if ok.
func (f *Fleet) enter(host string) (ok bool) {
	if _, ok := f.pace(host, connecting); !ok {
		return false
	}
	f.mu.Lock()
	n := f.nodeLocked(host)
	ok = n.conns < maxConns
	if ok {
		n.conns++
	}
	f.mu.Unlock()
	if !ok {
		f.alarm(host, "connections", fmt.Sprintf("has %d connections already", maxConns))
	}
	return ok
}

func (f *Fleet) leave(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodeLocked(host).conns--
}
