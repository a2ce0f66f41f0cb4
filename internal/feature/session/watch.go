package session

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

// Mode is what an attachment may do.
type Mode string

// The modes.
const (
	ModeOwner Mode = "owner" // the session's own person
	ModeWatch Mode = "watch" // sees
	ModeJoin  Mode = "join"  // sees and types; what they type is recorded as theirs
)

// Attachment is one end of a live session: its owner over a WebSocket, a
// watcher, or somebody who joined. Close it when done.
type Attachment struct {
	l     *Live
	by    identity.Principal
	mode  Mode
	q     *queue
	since time.Time
	once  sync.Once
	out   atomic.Bool // sent out: nothing typed here acts any more
}

// Session is the session as it is now.
func (a *Attachment) Session() Info { return a.l.Info() }

// Mode is what this attachment may do.
func (a *Attachment) Mode() Mode { return a.mode }

// Recv returns the next event; io.EOF after the last. For an owner it is the
// back-pressure: while nobody calls it the session waits. A watcher that falls
// behind gets a notice and then the last screenful anew.
func (a *Attachment) Recv(ctx context.Context) (Event, error) {
	e, behind, err := a.q.pop(ctx)
	if err != nil || !behind {
		return e, err
	}
	a.l.mu.Lock()
	a.greet()
	a.l.mu.Unlock()
	return Event{Kind: Notice, Notice: NoticeBehind, Text: "You were behind; what follows is the end of what you missed."}, nil
}

// Send takes what this end types or asks for.
func (a *Attachment) Send(e Event) error {
	switch {
	case a.out.Load():
		return io.ErrClosedPipe
	case a.mode == ModeOwner:
		return a.l.Send(e)
	case a.mode == ModeJoin && (e.Kind == Input || e.Kind == Signal):
		return a.l.send(e, a.by.ID)
	case e.Kind == Resize:
		return nil // the owner's terminal sets the size
	}
	return fault.New(fault.Denied, "cannot type into session %s: you are watching", a.l.fixed.ID).
		WithHint("handrail join-session %s", a.l.fixed.ID)
}

// Close detaches. An owner who detaches ends the session; a required buddy who
// leaves pauses it.
func (a *Attachment) Close() error {
	a.once.Do(func() {
		a.q.close()
		if a.mode == ModeOwner {
			a.l.Hangup()
			return
		}
		a.l.leave(a)
	})
	return nil
}

// greet queues what a newcomer needs: the size and the last output. The caller
// holds l.mu, so that no output falls between it and what is offered next.
func (a *Attachment) greet() {
	var events []Event
	if a.l.tty && a.l.spec.Cols > 0 {
		events = append(events, Event{Kind: Resize, Cols: a.l.spec.Cols, Rows: a.l.spec.Rows})
	}
	if len(a.l.tail) > 0 {
		events = append(events, Event{Kind: Output, Data: a.l.tail})
	}
	a.q.restart(events...)
}

// act is one act on this session, with the circumstances that policy speaks of.
func (s *Sessions) act(ctx context.Context, by identity.Principal, action string, i Info) (doorway.Act, error) {
	host, err := s.d.Hosts.Get(ctx, i.Host)
	if fault.KindOf(err) == fault.NotFound {
		host = target.Host{ID: i.Host, Name: i.HostName, Environment: i.Environment, Scope: i.Scope}
	} else if err != nil {
		return doorway.Act{}, err
	}
	return doorway.Act{Action: action, By: by, Host: &host, Context: policy.Context{Level: i.Level, Self: by.ID == i.Person, FloorOK: true}}, nil
}

// watchedPayload is what session.watched, joined and left say.
type watchedPayload struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Mode    string `json:"mode"`
}

func watchEntry(action ledger.Action, by string, i Info, mode Mode) ledger.Entry {
	return ledger.Entry{Action: action, Subjects: []string{by, i.Person}, Session: i.ID, Target: "host/" + i.Host,
		Payload: watchedPayload{V: 1, Session: i.ID, Mode: string(mode)}}
}

// admitWatcher asks the doorway whether by may watch or join, and records it.
func (s *Sessions) admitWatcher(ctx context.Context, by identity.Principal, l *Live, mode Mode) error {
	action, entry := "sessions.watch", Watched
	if mode == ModeJoin {
		action, entry = "sessions.join", Joined
	}
	act, err := s.act(ctx, by, action, l.fixed)
	if err != nil {
		return err
	}
	act.Open = func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
		return []ledger.Entry{watchEntry(entry, by.ID, l.fixed, mode)}, nil
	}
	_, err = s.d.Door.Do(ctx, act, nil)
	return err
}

func (s *Sessions) need(ctx context.Context, id string) (*Live, error) {
	if l, ok := s.find(id); ok {
		return l, nil
	}
	i, err := s.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if l, ok := s.find(i.ID); ok {
		return l, nil
	}
	if !s.mine(i) && i.State != StateEnded {
		return nil, fault.New(fault.Unavailable, "cannot reach session %s: its server %s does not answer", i.ID, i.Home).WithHint("handrail servers")
	}
	return nil, fault.New(fault.Conflict, "cannot attach to session %s: it has ended (%s)", i.ID, i.EndedWhy).WithHint("handrail replay %s", i.ID)
}

// Watch lets by see a live session; with ModeJoin also type.
func (s *Sessions) Watch(ctx context.Context, by identity.Principal, id string, mode Mode) (*Attachment, error) {
	l, err := s.need(ctx, id)
	if err != nil {
		return nil, err
	}
	if mode != ModeWatch && mode != ModeJoin {
		return nil, fault.New(fault.Invalid, "cannot attach as %q: it is watch or join", mode)
	}
	if err := s.admitWatcher(ctx, by, l, mode); err != nil {
		return nil, err
	}
	return s.seat(l, by, mode)
}

// enter adds a watcher who was let through.
func (l *Live) enter(by identity.Principal, mode Mode) (*Attachment, error) {
	a := &Attachment{l: l, by: by, mode: mode, q: newQueue(l.s.b.WatcherQueue), since: time.Now()}
	l.mu.Lock()
	if l.stream == nil || l.watchers == nil {
		l.mu.Unlock()
		return nil, fault.New(fault.Conflict, "cannot attach to session %s: it is not live", l.fixed.ID)
	}
	if len(l.watchers) >= l.s.b.Watchers {
		l.mu.Unlock()
		return nil, fault.New(fault.Exhausted, "cannot watch session %s: %d watch it already", l.fixed.ID, len(l.watchers))
	}
	l.mu.Unlock()
	verb := " watches this session."
	if mode == ModeJoin {
		verb = " joined this session and can type."
	}
	if err := l.record(recording.Join, by.ID, []byte(string(mode)+" "+by.Name)); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.watchers == nil {
		l.mu.Unlock()
		return nil, fault.New(fault.Conflict, "cannot attach to session %s: it has ended", l.fixed.ID)
	}
	a.greet()
	l.watchers[a] = struct{}{}
	l.mu.Unlock()
	l.tell(NoticeWatching, by.Name+verb)
	l.changed()
	if by.ID != l.fixed.Person {
		go l.buddyCame(by)
	}
	return a, nil
}

func (l *Live) leave(a *Attachment) {
	l.mu.Lock()
	_, there := l.watchers[a]
	delete(l.watchers, a)
	alone := !l.hasBuddy()
	required := l.spec.BuddyRequired
	l.mu.Unlock()
	if !there {
		return // the session ended first; its closing entry covers everybody
	}
	_ = l.rec.WriteBy(recording.Join, a.by.ID, []byte("left "+a.by.Name))
	if required && alone && a.by.ID != l.fixed.Person {
		l.pause(a.by, a.by.Name+", your buddy, left", true)
	}
	l.tell(NoticeLeft, a.by.Name+" left.")
	l.changed()
	go l.s.record(store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{watchEntry(Left, a.by.ID, l.fixed, a.mode)}, nil
	})
}

// hasBuddy says whether somebody other than the owner watches.
func (l *Live) hasBuddy() bool {
	for a := range l.watchers {
		if a.by.ID != l.fixed.Person {
			return true
		}
	}
	return false
}

// buddyCame lets a session go on that waited for a buddy. The buddy is who
// gives the power back, so it is decided on the buddy.
func (l *Live) buddyCame(by identity.Principal) {
	l.mu.Lock()
	waits := l.spec.BuddyRequired && l.away != nil
	l.mu.Unlock()
	if !waits {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, 30*time.Second)
	defer cancel()
	if _, err := l.s.Resume(ctx, by, l.fixed.ID); err != nil && l.ctx.Err() == nil {
		l.tell(NoticePaused, by.Name+" watches, but this session stays paused: "+fault.From(err).Text)
	}
}

// Join, watch and own by ticket: the page and the command line attach with a
// WebSocket, which cannot carry a login in its head.

const (
	ticketFor  = 30 * time.Second
	maxTickets = 10_000
)

type ticket struct {
	l       *Live
	by      identity.Principal
	mode    Mode
	expires time.Time
}

type tickets struct {
	mu   *sync.Mutex
	open map[string]ticket
}

func newTickets() tickets { return tickets{mu: new(sync.Mutex), open: map[string]ticket{}} }

// Ticket lets by attach once, within 30 s. For watch and join it asks the
// doorway and records; an owner gets one for the session that they opened.
func (s *Sessions) Ticket(ctx context.Context, by identity.Principal, id string, mode Mode) (string, error) {
	l, err := s.need(ctx, id)
	if err != nil {
		return "", err
	}
	switch mode {
	case ModeOwner:
		if l.by.ID != by.ID || l.by.Login != by.Login {
			return "", fault.New(fault.Denied, "cannot attach to session %s as its owner: another login opened it", id)
		}
	case ModeWatch, ModeJoin:
		if err := s.admitWatcher(ctx, by, l, mode); err != nil {
			return "", err
		}
	default:
		return "", fault.New(fault.Invalid, "cannot attach as %q: it is watch or join", mode)
	}
	word := randomWord()
	s.tickets.mu.Lock()
	defer s.tickets.mu.Unlock()
	now := time.Now()
	for w, t := range s.tickets.open {
		if now.After(t.expires) {
			delete(s.tickets.open, w)
		}
	}
	if len(s.tickets.open) >= maxTickets {
		return "", fault.New(fault.Exhausted, "cannot attach: too many tickets are open")
	}
	s.tickets.open[word] = ticket{l: l, by: by, mode: mode, expires: now.Add(ticketFor)}
	return word, nil
}

// Attach redeems a ticket for the session of that id.
func (s *Sessions) Attach(id, word string) (*Attachment, error) {
	s.tickets.mu.Lock()
	t, ok := s.tickets.open[word]
	delete(s.tickets.open, word)
	s.tickets.mu.Unlock()
	if !ok || time.Now().After(t.expires) || t.l.fixed.ID != id {
		return nil, fault.New(fault.Unauthenticated, "cannot attach: the ticket is unknown, used or older than %s", brief(ticketFor))
	}
	if t.mode != ModeOwner {
		return s.seat(t.l, t.by, t.mode)
	}
	a := &Attachment{l: t.l, by: t.by, mode: ModeOwner, q: newQueue(s.b.OwnerQueue), since: time.Now()}
	if err := t.l.Own(queueOwner{a.q}); err != nil {
		return nil, err
	}
	go func() { // after the last event the reader sees the end
		<-t.l.done
		a.q.close()
	}()
	return a, nil
}

// Replay opens the recording of a session; every replay is an entry.
func (s *Sessions) Replay(ctx context.Context, by identity.Principal, id string) (*recording.Reader, Info, error) {
	i, err := s.Get(ctx, id)
	if err != nil {
		return nil, i, err
	}
	act, err := s.act(ctx, by, "sessions.replay", i)
	if err != nil {
		return nil, i, err
	}
	act.Open = func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
		return []ledger.Entry{watchEntry(Replayed, by.ID, i, "replay")}, nil
	}
	if _, err := s.d.Door.Do(ctx, act, nil); err != nil {
		return nil, i, err
	}
	r, err := s.d.Recordings.Open(ctx, i.ID)
	return r, i, err
}

// Abilities are what a person may do with a session.
type Abilities struct{ Watch, Join, Control, Replay bool }

// May says what by may do with a session now; it decides nothing.
func (s *Sessions) May(ctx context.Context, by identity.Principal, i Info) (Abilities, error) {
	var out Abilities
	for action, may := range map[string]*bool{"sessions.watch": &out.Watch, "sessions.join": &out.Join,
		"sessions.control": &out.Control, "sessions.replay": &out.Replay} {
		act, err := s.act(ctx, by, action, i)
		if err != nil {
			return out, err
		}
		d, err := s.d.Door.Explain(ctx, act)
		if err != nil {
			return out, err
		}
		*may = d.Allowed
	}
	live := i.State == StateLive || i.State == StatePaused
	out.Watch, out.Join, out.Control = out.Watch && live, out.Join && live, out.Control && live
	return out, nil
}

// TellGrant shows a line in every live session of a grant, and TellAll in all.
func (s *Sessions) TellGrant(grant, text string) {
	for _, l := range s.all(func(i Info) bool { return grant != "" && i.Grant == grant }) {
		l.Tell(text)
	}
}

// TellHost shows a line in every live session on a host; "" is every host.
func (s *Sessions) TellHost(host, text string) {
	for _, l := range s.all(func(i Info) bool { return (host == "" || i.Host == host) && i.State != StateStarting }) {
		l.Tell(text)
	}
}
