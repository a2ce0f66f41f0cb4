package session

import (
	"context"
	"io"
	"sync"
)

// queue hands events from the hub to one attachment. It is bounded in bytes.
// An owner's queue blocks the hub; a watcher's falls behind instead, and is
// told to begin anew from what the hub remembers.
type queue struct {
	limit int

	mu      sync.Mutex
	items   []Event
	bytes   int
	closed  bool
	skipped int64         // bytes not queued since the watcher fell behind
	more    chan struct{} // capacity 1: something to read
	room    chan struct{} // capacity 1: something was read
}

func newQueue(limit int) *queue {
	return &queue{limit: limit, more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func weight(e Event) int { return len(e.Data) + len(e.Text) + 64 }

// push copies the event in. It reports false when the queue is full or closed.
func (q *queue) push(e Event) (ok, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, true
	}
	if q.bytes > 0 && q.bytes+weight(e) > q.limit {
		return false, false
	}
	e.Data = append([]byte(nil), e.Data...)
	q.items = append(q.items, e)
	q.bytes += weight(e)
	poke(q.more)
	return true, false
}

// offer queues the event, or counts it as skipped. A queue that fell behind
// takes nothing more until its reader has caught up and resync is called.
func (q *queue) offer(e Event) {
	q.mu.Lock()
	behind := q.skipped > 0
	if behind {
		q.skipped += int64(len(e.Data))
	}
	q.mu.Unlock()
	if behind && e.Kind != Exit {
		return
	}
	if ok, closed := q.push(e); !ok && !closed {
		q.mu.Lock()
		q.skipped += int64(len(e.Data)) + 1
		if e.Kind == Exit { // the end is told in any case
			q.items = append(q.items, e)
			q.bytes += weight(e)
		}
		poke(q.more)
		q.mu.Unlock()
	}
}

// restart ends being behind: what follows begins with these events, whatever
// their size. Nothing may be offered meanwhile, so the caller holds the hub.
func (q *queue) restart(events ...Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.skipped = 0
	for _, e := range events {
		e.Data = append([]byte(nil), e.Data...)
		q.items = append(q.items, e)
		q.bytes += weight(e)
	}
	poke(q.more)
}

// pop returns the next event. behind means that the reader has read all that
// was queued before it fell behind; it stays so until restart.
func (q *queue) pop(ctx context.Context) (e Event, behind bool, err error) {
	for {
		q.mu.Lock()
		if len(q.items) > 0 {
			e = q.items[0]
			q.items[0] = Event{}
			if q.items = q.items[1:]; len(q.items) == 0 {
				q.items = nil
			}
			q.bytes -= weight(e)
			poke(q.room)
			q.mu.Unlock()
			return e, false, nil
		}
		behind, closed := q.skipped > 0, q.closed
		q.mu.Unlock()
		if behind {
			return Event{}, true, nil
		}
		if closed {
			return Event{}, false, io.EOF
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			return Event{}, false, ctx.Err()
		}
	}
}

// close lets the reader finish what is queued.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	poke(q.more)
	poke(q.room)
}

// queueOwner is an Owner that somebody reads from, with back-pressure.
type queueOwner struct{ q *queue }

// Deliver blocks while the reader is slow.
func (o queueOwner) Deliver(e Event) error {
	for {
		ok, closed := o.q.push(e)
		if ok {
			return nil
		}
		if closed {
			poke(o.q.room) // another Deliver may wait, too
			return io.ErrClosedPipe
		}
		<-o.q.room
	}
}

// Abort makes Deliver fail from now on.
func (o queueOwner) Abort() { o.q.close() }
