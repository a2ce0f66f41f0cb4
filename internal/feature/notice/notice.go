// Package notice says who is told what. It keeps nothing that matters: what
// somebody must do now, and which banners hang, is asked anew from the state
// each time; the hub only wakes those who look.
//
// What must stay true: whoever is slow misses wake-ups, never state. A
// subscriber's queue is bounded; what does not fit is folded into one event
// that says "look at everything again".
package notice

import (
	"context"
	"slices"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

// Topic is what changed.
type Topic string

// The topics of the page's event stream.
const (
	Hosts        Topic = "hosts"
	Sessions     Topic = "sessions"
	Approvals    Topic = "approvals"
	Grants       Topic = "grants"
	People       Topic = "people"
	Ledger       Topic = "ledger"
	Policy       Topic = "policy"
	Installation Topic = "installation"
	// Everything means that events were missed: fetch all of it again.
	Everything Topic = "everything"
)

// Urgency says how loud an event is.
type Urgency uint8

// The urgencies.
const (
	Quiet Urgency = iota // something to fetch again
	Told                 // worth a line: an approval is wanted
	Paged                // break-glass, a buddy is needed
)

// Event says that something changed, and to whom that matters.
type Event struct {
	Topic   Topic
	ID      string // of what changed; may be empty
	Person  string // only for this person; empty is everybody
	Group   string // only for people of this group; empty is everybody
	Not     string // not for this person (who asked needs no telling)
	Urgency Urgency
	Text    string // one line, for Told and Paged
}

func (e Event) isFor(p identity.Principal) bool {
	return (e.Person == "" || e.Person == p.ID) && (e.Group == "" || slices.Contains(p.Groups, e.Group)) && (e.Not == "" || e.Not != p.ID)
}

// Banner hangs on every page and in every status until its state ends.
type Banner struct {
	Text string
	Loud bool // break-glass, a full disk
}

// Source says what follows from the state of one feature now.
type Source struct {
	// Banners hang for everybody. It may be nil.
	Banners func(ctx context.Context) ([]Banner, error)
	// Attention is what needs this person now, one line each. It may be nil.
	Attention func(ctx context.Context, by identity.Principal) ([]string, error)
}

// Bounds of the hub.
const (
	maxQueue       = 64
	maxSubscribers = 20_000
	maxPerPerson   = 64
)

// Hub wakes subscribers and asks sources.
type Hub struct {
	sources []Source

	mu   sync.Mutex
	subs map[*Subscription]struct{}
}

// New returns a hub over the state of these features.
func New(sources ...Source) *Hub {
	return &Hub{sources: sources, subs: map[*Subscription]struct{}{}}
}

// Subscription is one page or command that listens.
type Subscription struct {
	hub *Hub
	by  identity.Principal

	mu     sync.Mutex
	queue  []Event
	missed bool
	more   chan struct{}
}

// Subscribe listens for a person until Close.
func (h *Hub) Subscribe(by identity.Principal) (*Subscription, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := 0
	for s := range h.subs {
		if s.by.ID == by.ID {
			mine++
		}
	}
	if mine >= maxPerPerson || len(h.subs) >= maxSubscribers {
		return nil, fault.New(fault.Exhausted, "cannot listen for events: %d pages or commands of yours listen already", mine)
	}
	s := &Subscription{hub: h, by: by, more: make(chan struct{}, 1)}
	h.subs[s] = struct{}{}
	return s, nil
}

// Publish tells everybody whom it concerns. It never blocks.
func (h *Hub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if e.isFor(s.by) {
			s.put(e)
		}
	}
}

func (s *Subscription) put(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Urgency == Quiet {
		// The same thing twice is one reason to fetch it.
		if slices.ContainsFunc(s.queue, func(q Event) bool { return q.Urgency == Quiet && q.Topic == e.Topic && q.ID == e.ID }) {
			return
		}
	}
	if len(s.queue) >= maxQueue {
		s.missed = true
	} else {
		s.queue = append(s.queue, e)
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// Next returns the next event; after a queue that ran over it is Everything.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			e := s.queue[0]
			if s.queue = s.queue[1:]; len(s.queue) == 0 {
				s.queue = nil
			}
			s.mu.Unlock()
			return e, nil
		}
		if s.missed {
			s.missed = false
			s.mu.Unlock()
			return Event{Topic: Everything}, nil
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close stops listening.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	delete(s.hub.subs, s)
	s.hub.mu.Unlock()
}

// Banners is what hangs now. A source that cannot be asked says so in a banner:
// silence would look like calm.
func (h *Hub) Banners(ctx context.Context) []Banner {
	var all []Banner
	for _, s := range h.sources {
		if s.Banners == nil {
			continue
		}
		b, err := s.Banners(ctx)
		if err != nil {
			b = []Banner{{Text: "Something that should be shown here cannot be read: " + fault.From(err).Text, Loud: true}}
		}
		all = append(all, b...)
	}
	slices.SortStableFunc(all, func(a, b Banner) int {
		switch {
		case a.Loud == b.Loud:
			return 0
		case a.Loud:
			return -1
		}
		return 1
	})
	return all
}

// Attention is what needs this person now, one line each.
func (h *Hub) Attention(ctx context.Context, by identity.Principal) ([]string, error) {
	var all []string
	for _, s := range h.sources {
		if s.Attention == nil {
			continue
		}
		lines, err := s.Attention(ctx, by)
		if err != nil {
			return all, err
		}
		all = append(all, lines...)
	}
	return all, nil
}
