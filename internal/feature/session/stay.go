package session

import (
	"context"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

// Who watches or has joined was let in once. This file sends them out when that
// would not be decided so again: their login ended, they were locked, they left
// a group, the rules changed.

// recheckEvery finds what no entry tells of: a login whose time is up.
const recheckEvery = 20 * time.Second

// seat adds a watcher who was let through, and decides once more: a lock that
// came between the decision and the seat has swept already.
func (s *Sessions) seat(l *Live, by identity.Principal, mode Mode) (*Attachment, error) {
	a, err := l.enter(by, mode)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
	defer cancel()
	if err := s.mayStay(ctx, a); err != nil {
		_ = a.Close()
		return nil, err
	}
	return a, nil
}

// mayStay decides on a watcher anew. It records nothing: who leaves is recorded.
func (s *Sessions) mayStay(ctx context.Context, a *Attachment) error {
	if err := s.d.People.Still(ctx, a.by); err != nil {
		return err
	}
	action := "sessions.watch"
	if a.mode == ModeJoin {
		action = "sessions.join"
	}
	act, err := s.act(ctx, a.by, action, a.l.fixed)
	if err != nil {
		return err
	}
	d, err := s.d.Door.Explain(ctx, act)
	if err == nil && !d.Allowed {
		err = fault.New(fault.Denied, "cannot go on with session %s: %s", a.l.fixed.ID, d.Text)
	}
	return err
}

// Recheck makes RecheckLoop look at once. Whoever follows the ledger calls it
// after people, logins or rules have changed.
func (s *Sessions) Recheck() { poke(s.recheck) }

// RecheckLoop sends out who may no longer watch or join, until ctx ends.
// Without a database nothing is decided, and nobody is sent out.
func (s *Sessions) RecheckLoop(ctx context.Context) error {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.recheck:
		}
		for _, a := range s.seated(func(*Attachment) bool { return true }) {
			err := s.mayStay(ctx, a)
			switch fault.KindOf(err) {
			case fault.Denied, fault.Unauthenticated:
				a.sendOut(fault.From(err).Text)
			}
		}
	}
}

// sendOutPerson is the part of a lock that concerns what a person watches:
// nothing is decided, so it needs no database.
func (s *Sessions) sendOutPerson(person, text string) {
	s.tickets.mu.Lock()
	for word, t := range s.tickets.open {
		if t.by.ID == person {
			delete(s.tickets.open, word)
		}
	}
	s.tickets.mu.Unlock()
	for _, a := range s.seated(func(a *Attachment) bool { return a.by.ID == person }) {
		a.sendOut(text)
	}
}

// seated returns the watchers for whom keep is true.
func (s *Sessions) seated(keep func(*Attachment) bool) (out []*Attachment) {
	for _, l := range s.all(func(Info) bool { return true }) {
		l.mu.Lock()
		for a := range l.watchers {
			if keep(a) {
				out = append(out, a)
			}
		}
		l.mu.Unlock()
	}
	return out
}

// sendOut ends an attachment from this side; the person reads why. From now on
// nothing that they type acts.
func (a *Attachment) sendOut(why string) {
	a.out.Store(true)
	a.q.offer(Event{Kind: Notice, Notice: NoticeEnding, Text: why})
	_ = a.Close()
}
