package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

func brakeID() string { return store.NewID('b') }

func randomWord() string {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// mayBrake decides whether by may pause or stop. A brake always works: when
// nothing can be decided because the database is away, being logged in is
// enough, since a brake only takes power away and is recorded.
func (s *Sessions) mayBrake(ctx context.Context, by identity.Principal, i Info) error {
	if by.ID == "" || by.Locked {
		return fault.New(fault.Unauthenticated, "cannot brake session %s: nobody is logged in", i.ID)
	}
	act, err := s.act(ctx, by, "sessions.control", i)
	if err == nil {
		err = s.d.Door.Read(ctx, act)
	}
	switch fault.KindOf(err) {
	case fault.Internal, fault.Unavailable, fault.Exhausted:
		if err != nil {
			s.d.Log.Warn("braking without a decision", "session", i.ID, "error", err)
		}
		return nil
	}
	return err
}

// brakePayload is what session.paused, resumed and stopped say.
type brakePayload struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Reason  string `json:"reason,omitempty"`
}

// recordBrake records a brake after it acted; with the database away it goes
// to the spool.
func (s *Sessions) recordBrake(action ledger.Action, by string, i Info, reason string) {
	e := ledger.Entry{Action: action, Subjects: []string{by, i.Person}, Session: i.ID, Target: "host/" + i.Host,
		Payload: brakePayload{V: 1, Session: i.ID, Reason: reason}}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := s.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return []ledger.Entry{e}, nil })
	if err == nil {
		return
	}
	if err := s.d.Store.Spool().Append(e); err != nil {
		s.d.Log.Error("cannot record a brake", "session", i.ID, "action", string(action), "error", err)
	}
}

// Pause stops a session where it is, at once; it can go on. reason is shown.
func (s *Sessions) Pause(ctx context.Context, by identity.Principal, id, reason string) (Info, error) {
	l, err := s.need(ctx, id)
	if err != nil {
		return Info{}, err
	}
	if err := s.mayBrake(ctx, by, l.Info()); err != nil {
		return Info{}, err
	}
	l.pause(by, by.Name+" paused it"+colon(reason), false)
	return l.Info(), nil
}

// pause brakes first, then shows, then records. With awaiting set the session
// ends if no buddy comes back in time.
func (l *Live) pause(by identity.Principal, why string, awaiting bool) {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.brake(wire.BrakePauseSession, why)
	l.setPaused(why)
	limit := l.s.b.PauseFor
	if awaiting {
		limit = l.s.b.BuddyAway
	}
	l.mu.Lock()
	if l.away == nil {
		l.away = time.AfterFunc(limit, func() { l.end(WhyPauseTimeout, "") })
	}
	l.mu.Unlock()
	l.s.recordBrake(Paused, by.ID, l.fixed, why)
}

// Resume lets a paused session go on. Giving power back takes the full path:
// decision, entry, order with its proof.
func (s *Sessions) Resume(ctx context.Context, by identity.Principal, id string) (Info, error) {
	l, err := s.need(ctx, id)
	if err != nil {
		return Info{}, err
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.Lock()
	paused, alone := l.info.State == StatePaused, l.spec.BuddyRequired && !l.hasBuddy()
	l.mu.Unlock()
	if !paused {
		return l.Info(), nil
	}
	if alone {
		return Info{}, fault.New(fault.Conflict, "cannot resume session %s: it needs a buddy who watches", l.fixed.ID).
			WithHint("somebody else: handrail watch %s", l.fixed.ID)
	}
	act, err := s.act(ctx, by, "sessions.control", l.fixed)
	if err != nil {
		return Info{}, err
	}
	act.Context.BuddyPresent = true
	order := store.NewID('o')
	act.Open = func(tx *store.Tx, d policy.Decision) ([]ledger.Entry, error) {
		engine, err := s.d.Rules.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		p := wire.OrderPayload{V: 1, Order: order, Kind: wire.KindSessionResume, Node: l.fixed.Host, Issued: tx.Now().UnixMicro(),
			ValidMS: s.b.ValidFor.Milliseconds(), Session: &wire.SessionSpec{ID: l.fixed.ID}}
		if p.Epochs, err = s.epochs(tx, engine, l.fixed.Person, nil); err != nil {
			return nil, err
		}
		payload, err := p.Marshal()
		if err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: Resumed, Subjects: []string{by.ID, l.fixed.Person}, Session: l.fixed.ID,
			Target: "host/" + l.fixed.Host, Payload: payload}}, nil
	}
	_, err = s.d.Door.Do(ctx, act, func(ctx context.Context, pass doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		if err := s.d.Nodes.Resume(ctx, pass, l.fixed.Host); err != nil {
			return ledger.Failed, nil, err
		}
		l.mu.Lock()
		if l.away != nil {
			l.away.Stop()
			l.away = nil
		}
		l.mu.Unlock()
		l.setRunning()
		return ledger.OK, nil, nil
	})
	return l.Info(), err
}

// Stop ends a session at once.
func (s *Sessions) Stop(ctx context.Context, by identity.Principal, id, reason string) (Info, error) {
	l, err := s.need(ctx, id)
	if err != nil {
		return Info{}, err
	}
	if err := s.mayBrake(ctx, by, l.Info()); err != nil {
		return Info{}, err
	}
	l.end(WhyStopped, by.Name+colon(reason))
	s.recordBrake(Stopped, by.ID, l.fixed, reason)
	return l.Info(), nil
}

// EndByGrant ends every session of a grant that ended; why is WhyRevoked,
// WhyExpired or WhyLocked. It returns how many there were.
func (s *Sessions) EndByGrant(grant, why, text string) int {
	if grant == "" {
		return 0
	}
	all := s.all(func(i Info) bool { return i.Grant == grant })
	for _, l := range all {
		l.end(why, text)
	}
	return len(all)
}

// EndByPerson ends every session of a person who was locked: one brake to every
// node, which kills and remembers the epoch, then each session here, and sends
// them out of the sessions of others. Whoever locks calls it after the lock has
// committed.
func (s *Sessions) EndByPerson(ctx context.Context, person string, epoch int64, reason string) int {
	if person == "" {
		return 0
	}
	all := s.all(func(i Info) bool { return i.Person == person })
	done := make(chan struct{})
	met := map[string]int{} // by each node that answered, sessions of other homes too
	go func() {
		defer close(done)
		answers, err := s.d.Nodes.Brake(ctx, wire.Brake{V: 1, ID: brakeID(), Kind: wire.BrakeLockPerson, Node: wire.EveryNode,
			Person: person, Epoch: epoch, Reason: reason, Issued: time.Now().UnixMicro()})
		if err != nil {
			s.d.Log.Warn("cannot tell every node about a lock", "person", person, "error", err)
		}
		for _, a := range answers {
			if a.Error == "" {
				met[a.Node] += a.Sessions
			}
		}
	}()
	n := 0
	for _, l := range all {
		if l.endBy(WhyLocked, reason, func() { l.brakeUnless(done, met) }) { // a lock brakes twice, and counts once
			n++
		}
	}
	s.sendOutPerson(person, endingText(WhyLocked, reason))
	<-done
	if away := len(s.elsewhere(func(i Info) bool { return i.Person == person })); away > 0 {
		all := 0
		for _, sessions := range met {
			all += sessions
		}
		n += min(away, max(all-n, 0)) // what a node says counts no more than what rows say
	}
	return n
}

// answersSoon is how long each session's own brake waits for the answers to one
// that all nodes got: fifty more, each checked by a node, would take the processors
// from those that kill.
const answersSoon = 250 * time.Millisecond

// brakeUnless brakes the session unless its node has answered a brake that meets
// it. done is closed when all answers that come are in met.
func (l *Live) brakeUnless(done <-chan struct{}, met map[string]int) {
	late := time.NewTimer(answersSoon)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
	select {
	case <-done:
		if met[l.fixed.Host] > 0 {
			return
		}
	default: // nobody knows yet
	}
	l.brake(wire.BrakeStopSession, WhyLocked)
}

// Shorten makes every session of a grant end no later than that; the keepers
// are told. A deadline is never moved later.
func (s *Sessions) Shorten(grant string, until time.Time) int {
	if grant == "" {
		return 0
	}
	all := s.all(func(i Info) bool { return i.Grant == grant && i.Deadline > until.UnixMicro() })
	for _, l := range all {
		l.mu.Lock()
		l.info.Deadline = until.UnixMicro()
		stream := l.stream
		l.timers = append(l.timers, time.AfterFunc(time.Until(until), func() { l.end(WhyExpired, "") }))
		l.mu.Unlock()
		if stream != nil {
			_ = stream.Write(wire.FrameDeadline, wire.EncodeDeadline(max(time.Until(until).Milliseconds(), 0)))
		}
		l.tell(NoticeEnding, "This session now ends in "+brief(max(time.Until(until), 0))+".")
		l.changed()
	}
	return len(all)
}
