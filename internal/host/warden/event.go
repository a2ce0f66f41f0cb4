package warden

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	maxEvents    = 1024
	maxEventText = 1024
	eventWait    = 25 * time.Second
)

// events is the queue of what must go up. An event is forgotten when the link
// says that a server has it. When the queue is full, the newest are counted
// and the count becomes an event itself: loss is recorded.
type events struct {
	mu      sync.Mutex
	queue   []wire.Event
	dropped int64
	wake    chan struct{} // closed at the next event: every waiter wakes, the one whose link is gone too
}

func newEvents() *events { return &events{wake: make(chan struct{})} }

// eventID is 8 random letters of Crockford's base32.
func eventID() string {
	const letters = "0123456789abcdefghjkmnpqrstvwxyz"
	var b [8]byte
	_, _ = rand.Read(b[:])
	for i := range b {
		b[i] = letters[b[i]&31]
	}
	return "e-" + string(b[:])
}

func (q *events) put(e wire.Event) {
	e.V, e.ID, e.At, e.Text = 1, eventID(), time.Now().UnixMicro(), wire.Plain(e.Text, maxEventText)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dropped > 0 && len(q.queue) < maxEvents-1 {
		q.queue = append(q.queue, wire.Event{V: 1, ID: eventID(), At: e.At, Kind: wire.EventGap, Count: q.dropped,
			Text: "events of this node were dropped because no server took them"})
		q.dropped = 0
	}
	if len(q.queue) >= maxEvents {
		q.dropped++
		return
	}
	q.queue = append(q.queue, e)
	close(q.wake)
	q.wake = make(chan struct{})
}

// next drops the event with id ack and returns the oldest one left, waiting
// for one if need be.
func (q *events) next(ctx context.Context, ack string) *wire.Event {
	timer := time.NewTimer(eventWait)
	defer timer.Stop()
	for {
		q.mu.Lock()
		if len(q.queue) > 0 && ack != "" && q.queue[0].ID == ack {
			q.queue = append(q.queue[:0], q.queue[1:]...)
		}
		if len(q.queue) > 0 {
			e := q.queue[0]
			q.mu.Unlock()
			return &e
		}
		wake := q.wake
		q.mu.Unlock()
		select {
		case <-wake:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
