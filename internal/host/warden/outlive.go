package warden

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

// A session with root or sudo can leave its cgroup, stop or kill its keeper, and
// ask other daemons to act for it. What is done about it:
//
//   - who left the cgroup carries the audit session and is killed by it;
//   - a keeper that says nothing, or is past its deadline, is ended with all
//     that it held, by the warden;
//   - the audit session is remembered on disk, for the next warden;
//   - places from which another daemon could start something are compared
//     before and after, and a difference is an event.

const (
	sweepTime     = 3 * time.Second
	deadlineGrace = 3 * time.Second // for the keeper, which comes first
	keeperSilence = time.Minute     // a busy machine is not a stopped keeper
)

// powerful is what the warden knows of a session that can leave its cgroup.
type powerful struct {
	Session string `json:"session"`
	BootID  string `json:"boot_id"`
	Audit   int64  `json:"audit"`

	before places
}

func (s *sessions) markPath(session string) string { return filepath.Join(s.heldLive, session) }

// mark remembers the session on disk.
func (s *sessions) mark(l *live, a wire.SessionAnswer) error {
	if l.power == nil {
		return nil
	}
	l.power.BootID, l.power.Audit = a.BootID, a.AuditSession
	b, err := json.Marshal(l.power)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.markPath(l.id), b, 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot start session %s: what could outlive it cannot be remembered", l.id)
	}
	return nil
}

func (s *sessions) unmark(l *live) {
	if l.power != nil {
		_ = os.Remove(s.markPath(l.id))
	}
}

// sweep kills whoever carries the audit session.
func (s *sessions) sweep(p *powerful) []string {
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), sweepTime)
	defer cancel()
	return s.procs.KillAudited(ctx, p.Audit)
}

// clearEarlier ends what sessions of an earlier warden left: their cgroups, and
// who had left those, if it was since this boot.
func (s *sessions) clearEarlier() {
	met := map[string]int{}
	for name := range leftovers(s.prefix) {
		if id := name[len(s.prefix):]; s.live[id] == nil {
			met[id] += killResidue(name)
		}
	}
	marks, _ := os.ReadDir(s.heldLive)
	for _, m := range marks {
		if s.live[m.Name()] != nil {
			continue // it runs on, see handover.go
		}
		var p powerful
		b, err := os.ReadFile(s.markPath(m.Name()))
		if err == nil && json.Unmarshal(b, &p) == nil && p.BootID == bootID() {
			if names := s.sweep(&p); len(names) > 0 {
				met[p.Session] += len(names)
			}
		}
		_ = os.Remove(s.markPath(m.Name()))
	}
	for session, n := range met {
		s.tell(&live{id: session, alone: s.hasJournal(session)}, wire.Event{Kind: wire.EventResidue, Session: session, Count: int64(n),
			Text: "an earlier warden ended without ending this session; what it left was killed"})
	}
}

// overdue ends sessions whose keeper does not do its work.
func (s *sessions) overdue(now, silence time.Duration) {
	for _, l := range s.where(func(l *live) bool { return l.handle != nil && !l.given }) {
		switch {
		case l.handle.Silent() > silence:
			if l.silent++; l.silent > 1 { // once more, in case it was this process that stood still
				s.giveUp(l, "the keeper of this session stopped answering; it was killed, and all that it held")
			}
		case now > l.deadline+deadlineGrace:
			s.giveUp(l, "the keeper of this session did not end it at its deadline; it was killed, and all that it held")
		default:
			l.silent = 0
		}
	}
}

// giveUp kills a keeper and its session; await does the rest, and says why.
func (s *sessions) giveUp(l *live, why string) {
	s.mu.Lock()
	l.given, l.lost = true, why
	s.mu.Unlock()
	go func() {
		l.handle.Kill()
		killResidue(l.cgroup) // also where the keeper cannot die
		s.sweep(l.power)
	}()
}

// clearUp kills what a session left, and says in one event what it was.
func (s *sessions) clearUp(l *live) keeper.Ended {
	e, told := l.handle.Ended()
	s.mu.Lock()
	if told && e.Exit.Why == "" {
		e.Exit.Why = l.condemned
	}
	s.mu.Unlock()
	var said []string
	count := 0
	if !told { // the keeper was killed; its cgroup is not
		s.mu.Lock()
		why := l.lost
		s.mu.Unlock()
		if why == "" {
			why = "the keeper of this session died; what it left was killed"
		}
		count, said = killResidue(l.cgroup), append(said, why)
	}
	if left := append(e.Left, s.sweep(l.power)...); len(left) > 0 {
		count, said = count+len(left), append(said, "processes had left the session's cgroup and were killed: "+some(left))
	}
	if l.power != nil {
		if paths := l.power.before.changed(lookAtPlaces()); len(paths) > 0 {
			count, said = count+len(paths), append(said, "changed meanwhile, and able to start something later: "+some(paths))
		}
	}
	if len(said) > 0 {
		s.tell(l, wire.Event{Kind: wire.EventResidue, Session: l.id, Person: l.person, Count: int64(count), Text: strings.Join(said, "; ")})
	}
	return e
}
