package doorway

import (
	"context"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	// deniedPerMinute is how many refusals of one person get an entry of their
	// own in a minute.
	deniedPerMinute = 10
	// maxCounted bounds the people counted apart; the rest are counted together.
	maxCounted = 4096
	// flushEvery is how often counts reach the ledger.
	flushEvery = time.Minute
)

// counter counts per person and action since the last flush.
type counter struct {
	mu    sync.Mutex
	count map[string]map[string]int64
}

// add counts one, and returns how many the person has now in all.
func (c *counter) add(person, action string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(person, action)
}

func (c *counter) addLocked(person, action string) {
	if c.count == nil {
		c.count = map[string]map[string]int64{}
	}
	if c.count[person] == nil && len(c.count) >= maxCounted {
		person = ledger.System
	}
	if c.count[person] == nil {
		c.count[person] = map[string]int64{}
	}
	c.count[person][action]++
}

// first counts one and says whether it is among the person's first n since the
// last flush.
func (c *counter) first(person, action string, n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var total int64
	for _, k := range c.count[person] {
		total += k
	}
	c.addLocked(person, action)
	return total < n
}

func (c *counter) take() map[string]map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.count
	c.count = nil
	return taken
}

// putBack returns counts that could not be written: loss must not be silent.
func (c *counter) putBack(counts map[string]map[string]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for person, actions := range counts {
		for action, n := range actions {
			c.addLocked(person, action)
			who := person
			if c.count[who] == nil {
				who = ledger.System
			}
			c.count[who][action] += n - 1
		}
	}
}

// countedPayload is the ledger's form of a count.
type countedPayload struct {
	V      int              `json:"v"`
	Since  int64            `json:"since"` // µs
	Counts map[string]int64 `json:"counts"`
}

// Run writes the counts of reads and refusals once a minute until ctx ends, and
// then once more. What a kill -9 loses is at most a minute of counts.
func (d *Door) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return d.flush(last, since)
		case now := <-tick.C:
			if d.flush(ctx, since) == nil {
				since = now
			}
		}
	}
}

// flush writes one entry per person.
func (d *Door) flush(ctx context.Context, since time.Time) error {
	reads, denials := d.reads.take(), d.denials.take()
	for _, counts := range denials {
		var total int64
		for _, n := range counts {
			total += n
		}
		if total <= deniedPerMinute { // each has an entry of its own
			clear(counts)
		}
	}
	var entries []ledger.Entry
	for action, counts := range map[ledger.Action]map[string]map[string]int64{ReadsCounted: reads, DenialCounted: denials} {
		for person, n := range counts {
			if len(n) > 0 {
				entries = append(entries, ledger.Entry{Action: action, Subjects: []string{person}, Payload: countedPayload{V: 1, Since: since.UnixMicro(), Counts: n}})
			}
		}
	}
	if len(entries) == 0 {
		return nil
	}
	_, err := d.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return entries, nil })
	if err != nil {
		d.reads.putBack(reads)
		d.denials.putBack(denials)
	}
	return err
}
