package warden

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	maxSessions = 512
	stopTimeout = 3 * time.Second  // a keeper that has not stopped its session by then is killed with it
	staleKill   = 30 * time.Second // sessions end when no server was heard of for so long
	keepSpools  = 64
)

// live is one session of this warden.
type live struct {
	id, person string
	epochs     map[string]int64
	uid        uint32
	cgroup     string
	handle     *keeper.Handle // nil while it starts
	stopped    string         // why, if it was stopped while it started

	deadline time.Duration // boot time
	power    *powerful     // of a session with root or sudo
	silent   int           // looks at which its keeper had said nothing for too long
	given    bool          // its keeper was given up, for the reason in lost
	lost     string
	// condemned is why it was killed before its keeper knew: one of an older
	// program takes the death for the end of the person's own doing.
	condemned string
	alone     bool // no server ordered it: nothing is said of it but in its journal
}

// sessions are those that run here.
type sessions struct {
	dir string // of spools, for keepers
	// heldDir is dir as the confined warden itself reaches it.
	heldDir string
	// heldLive remembers sessions with root, likewise.
	heldLive string
	procs    *sandbox.Processes
	groups   *sandbox.Groups
	prefix   string // of cgroup names: of this warden alone
	mode     sandbox.Mode
	spawn    *keeper.Spawner
	policy   hostPolicy
	hide     []string
	events   *events

	mu   sync.Mutex
	live map[string]*live
	uids *uidRange
}

func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// start runs the session of an accepted order.
func (s *sessions) start(ctx context.Context, a accepted) (wire.SessionAnswer, *os.File, error) {
	l, err := s.reserve(a)
	if err != nil {
		return wire.SessionAnswer{}, nil, err
	}
	if l.uid != 0 {
		defer func() { go s.uids.prepare() }()
	}
	if a.Session.Level == wire.LevelWrite && (a.Session.Root || a.Session.Sudo) {
		l.power = &powerful{Session: l.id, before: lookAtPlaces()}
	}
	spec, err := s.specOf(a, l)
	var h *keeper.Handle
	var f *os.File
	if err == nil {
		h, f, err = s.spawn.Start(ctx, spec)
	}
	if err == nil {
		if err = s.mark(l, h.Answer); err != nil {
			f.Close()
			h.Kill()
		}
	}
	if err != nil {
		killResidue(l.cgroup) // the keeper may have died before it cleaned up
		s.clear(l)
		return wire.SessionAnswer{}, nil, err
	}
	s.mu.Lock()
	l.handle = h
	why := l.stopped
	s.mu.Unlock()
	s.tell(l, wire.Event{Kind: wire.EventSessionStarted, Session: l.id, Person: l.person, Order: a.Order,
		BootID: h.Answer.BootID, AuditSession: h.Answer.AuditSession})
	go s.await(l)
	if why != "" { // a brake came in between
		s.stop(l, why)
		f.Close()
		return wire.SessionAnswer{}, nil, fault.New(fault.Denied, "cannot start session %s: %s", l.id, why)
	}
	return h.Answer, f, nil
}

// reserve takes the session's place and uid before anything is started, so
// that a brake finds it.
func (s *sessions) reserve(a accepted) (*live, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := a.Session.ID
	if _, ok := s.live[id]; ok {
		return nil, refuse(RuleReplay, "cannot start session %s: it runs here already", id)
	}
	if len(s.live) >= maxSessions {
		return nil, fault.New(fault.Exhausted, "cannot start session %s: %d sessions run on this host", id, len(s.live))
	}
	l := &live{id: id, person: a.Session.Person, epochs: a.Epochs.Person, deadline: a.deadline, alone: a.journal != nil}
	if s.mode == sandbox.RootMode {
		l.cgroup = s.prefix + id
		if a.Session.Level == wire.LevelRead {
			uid, err := s.uids.take()
			if err != nil {
				return nil, err
			}
			l.uid = uid
		}
	}
	s.live[id] = l
	return l, nil
}

// await cleans up after a session, whatever way it ended.
func (s *sessions) await(l *live) {
	<-l.handle.Done()
	e := s.clearUp(l)
	s.clear(l)
	s.tell(l, wire.Event{Kind: wire.EventSessionEnded, Session: l.id, Person: l.person, Why: e.Exit.Why,
		Status: e.Status, Signal: e.Exit.Signal, Bytes: e.Bytes, Tail: e.Tail})
	s.prune()
}

func (s *sessions) clear(l *live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unmark(l)
	delete(s.live, l.id)
	s.uids.release(l.uid)
}

// stop kills one session; it returns when it is dead.
func (s *sessions) stop(l *live, why string) (killed int) {
	s.mu.Lock()
	h := l.handle
	if h == nil {
		l.stopped = why
	}
	s.mu.Unlock()
	if h == nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	n, err := h.Stop(ctx, why)
	if err != nil {
		h.Kill()
		n = killResidue(l.cgroup) + len(s.sweep(l.power))
	}
	return n
}

// stopWhere stops all sessions that match, at once. The kernel kills them all
// before their keepers are asked, which take turns on the processors.
func (s *sessions) stopWhere(why string, match func(*live) bool) (met, killed int) {
	found := s.where(match)
	counts := make([]int, len(found))
	for i, l := range found {
		counts[i] = s.condemn(l, why)
	}
	var wg sync.WaitGroup
	for i, l := range found {
		wg.Go(func() { counts[i] = max(counts[i], s.stop(l, why)) })
	}
	wg.Wait()
	for _, n := range counts {
		killed += n
	}
	return len(found), killed
}

// condemn has the kernel kill a session that has a keeper, which hears why
// afterwards.
func (s *sessions) condemn(l *live, why string) (killed int) {
	s.mu.Lock()
	started := l.handle != nil
	if started && l.condemned == "" {
		l.condemned = why
	}
	s.mu.Unlock()
	if started {
		killed, _ = s.groups.Condemn(l.cgroup)
	}
	return killed
}

func (s *sessions) where(match func(*live) bool) []*live {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*live
	for _, l := range s.live {
		if match(l) {
			out = append(out, l)
		}
	}
	return out
}

// handleOf returns the handle of a running session.
func (s *sessions) handleOf(id string) (*keeper.Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.live[id]; ok && l.handle != nil {
		return l.handle, nil
	}
	return nil, fault.New(fault.NotFound, "cannot find session %s on this host: it has ended", id)
}

// prune keeps the newest spools only.
func (s *sessions) prune() {
	entries, err := os.ReadDir(s.heldDir)
	if err != nil || len(entries) <= 2*keepSpools {
		return
	}
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			all = append(all, aged{e.Name(), info.ModTime()})
		}
	}
	for len(all) > keepSpools {
		oldest := 0
		for i := range all {
			if all[i].at.Before(all[oldest].at) {
				oldest = i
			}
		}
		_ = os.Remove(filepath.Join(s.heldDir, all[oldest].name))
		all = append(all[:oldest], all[oldest+1:]...)
	}
}
