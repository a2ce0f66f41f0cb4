package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"crypto/rand"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

const (
	hosts = 200
	week  = 7 * 24 * time.Hour
	// pace is the mean time between two things that people or the world do.
	pace = 2 * time.Minute
	// tolerance is how long something may run that has no right to any more: the
	// lease, the wait for a node that does not answer, and the look at the rows.
	tolerance = lease + 3*time.Second + 10*time.Second
)

// workday is how long people work each day. Nights are skipped: the server is
// stopped, and the next morning starts it.
func workday() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("HANDRAIL_SIM_HOURS")); err == nil {
		return time.Duration(n) * time.Hour
	}
	return 2 * time.Hour
}

func TestAWeekWith200HostsKeepsEveryPromise(t *testing.T) {
	seeds := []uint64{1}
	if word := os.Getenv("HANDRAIL_SIM_SEED"); word != "" {
		seed, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			t.Fatalf("HANDRAIL_SIM_SEED is %q, which is no number", word)
		}
		seeds = []uint64{seed}
	} else if word := os.Getenv("HANDRAIL_SIM_SEEDS"); word != "" {
		n, err := strconv.Atoi(word)
		if err != nil {
			t.Fatalf("HANDRAIL_SIM_SEEDS is %q, which is no number", word)
		}
		seeds = seeds[:0]
		for range n {
			seeds = append(seeds, uint64(time.Now().UnixNano()))
		}
	}
	if os.Getenv("HANDRAIL_SIM_SEED") == "" && os.Getenv("HANDRAIL_SIM_SEEDS") == "" {
		t.Skip("run it with make test-sim: in some weeks it still names a violation that is not understood (docs/known-gaps.md)")
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed) })
	}
}

// simulate runs a week.
func simulate(t *testing.T, seed uint64) {
	w := newWorld(t, seed)
	for w.at < week && len(w.failures) == 0 {
		w.began = time.Time{}
		ok := t.Run("life", func(t *testing.T) { synctest.Test(t, w.life) })
		if !ok {
			break
		}
		// Days end, nights pass.
		if into := w.at % (24 * time.Hour); into >= workday() {
			w.at += 24*time.Hour - into
		} else {
			w.at += time.Duration(1+w.rnd.IntN(60)) * time.Second
		}
	}
	line := func(v any) string { b, _ := json.Marshal(v); return strings.ReplaceAll(string(b), `"`, "") }
	t.Logf("HANDRAIL_SIM_SEED=%d: %s, %d hosts, %d entries; did %s; crashed at %s; nodes refused %s; %d acknowledged changes were found once",
		seed, w.at, len(w.nodes), w.head.N, line(w.counts), line(w.crashes), line(w.refusals), w.confirmed)
	for _, f := range w.failures {
		t.Errorf("HANDRAIL_SIM_SEED=%d: %s", seed, f)
	}
}

// life is the server from a start to a crash or an evening.
func (w *world) life(t *testing.T) {
	// The server's clock is set before it starts: some minutes ahead or behind,
	// so that it jumps between two lives. True time and boot time do not.
	skew := time.Duration(w.rnd.IntN(20)-10) * time.Minute
	<-time.After(30*24*time.Hour + w.at + skew)
	w.began, w.lives = time.Now(), w.lives+1
	s := w.open(w.dir)
	defer func() {
		s.bury()
		w.at, w.began, w.dir = w.now(), time.Time{}, s.image
		w.slow.Store(0)
	}()
	if w.nodes == nil {
		w.found(s, hosts)
	}
	w.check(s)
	w.nothingOpen(s)
	evening := w.at - w.at%(24*time.Hour) + workday()
	w.arm(s)
	for n := 0; !s.dead() && w.now() < evening && len(w.failures) == 0; n++ {
		w.step(s)
		synctest.Wait()
		w.look(s)
	}
	<-time.After(tolerance)
	synctest.Wait()
	w.check(s)
	w.keptPromises(s)
	w.crashed(s)
}

// arm sets where the server will crash, most lives.
func (w *world) arm(s *server) {
	points := []struct {
		at   string
		most int
	}{{"sealing", 1500}, {"signing", 700}, {"ordered", 50}, {"started", 50}, {"braking", 25}}
	p := points[w.rnd.IntN(len(points))]
	f := &fuse{at: p.at}
	f.left.Store(int64(1 + w.rnd.IntN(p.most)))
	s.armed.Store(f)
}

// crashed ends the sessions of a server that is gone: a node that is connected
// sees it, one that is not runs out of its lease. Then the streams are no more.
func (w *world) crashed(s *server) {
	s.crash("evening")
	<-time.After(lease)
	for _, n := range w.nodes {
		for _, r := range n.sessions() {
			n.end(r, "gateway", 137)
			r.stream.gone()
		}
		n.mu.Lock()
		n.cut = min(n.cut, w.now())
		n.mu.Unlock()
	}
}

// step lets time pass until the next thing happens, and does it: what was
// planned, or up to three things at once.
func (w *world) step(s *server) {
	next := w.now() + time.Duration(-math.Log(1-w.rnd.Float64())*float64(pace))
	slices.SortStableFunc(w.plans, func(a, b plan) int { return int(a.at - b.at) })
	var todo []func(*server)
	if len(w.plans) > 0 && w.plans[0].at <= next {
		next, todo = w.plans[0].at, append(todo, w.plans[0].do)
		w.plans = w.plans[1:]
	} else {
		for range 1 + w.rnd.IntN(3) {
			todo = append(todo, w.something())
		}
	}
	if d := next - w.now(); d > 0 {
		select {
		case <-time.After(d):
		case <-s.over.Done():
			return
		}
	}
	var all sync.WaitGroup
	for _, do := range todo {
		all.Go(func() { do(s) })
	}
	all.Wait()
}

// later plans something.
func (w *world) later(within time.Duration, do func(s *server)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plans = append(w.plans, plan{w.now() + within, do})
}

func (w *world) someNode() *node { return w.nodes[w.rnd.IntN(len(w.nodes))] }
func (w *world) someone(group string) *person {
	all := w.in(group)
	return all[w.rnd.IntN(len(all))]
}
func (w *world) minutes(most int) time.Duration {
	return time.Duration(1+w.rnd.IntN(most*60)) * time.Second
}

// something is one thing that happens, with all its dice thrown.
func (w *world) something() func(*server) {
	n, p, long := w.someNode(), w.someone("developer"), w.minutes(20)
	boss := w.someone("operator")
	switch dice := w.rnd.IntN(1000); {
	case dice < 380:
		return func(s *server) { w.opens(s, p, n, wire.LevelRead, long) }
	case dice < 640:
		others := []*node{n, w.someNode()}
		d := decision{by: boss, after: w.minutes(8), yes: w.rnd.IntN(10) < 8, answers: w.rnd.IntN(10) < 9,
			starts: w.minutes(3), long: long, ends: w.rnd.IntN(3), early: w.minutes(15), lasts: w.minutes(30) + time.Minute}
		return func(s *server) { w.asks(s, p, others, d) }
	case dice < 690:
		late := w.minutes(40)
		return func(s *server) { w.breaksGlass(s, p, n, boss, late, long) }
	case dice < 840:
		cut, more := w.minutes(10), w.rnd.IntN(30)
		if w.rnd.IntN(3) == 0 {
			cut = time.Duration(1+w.rnd.IntN(30)) * time.Second
		}
		var all []*node
		for range 1 + more {
			all = append(all, w.someNode())
		}
		return func(s *server) {
			w.count("partitions")
			for _, n := range all {
				n.isolate(s, cut)
			}
		}
	case dice < 890:
		return func(*server) { w.count("wardens killed"); n.killWarden() }
	case dice < 915:
		return func(*server) {
			w.slow.Store(int64(time.Duration(w.seed%7+1) * 300 * time.Millisecond))
			w.count("slow disks")
		}
	case dice < 955:
		return func(*server) { w.slow.Store(0) }
	case dice < 965:
		name := fmt.Sprintf("new-%d", w.rnd.Uint64())
		return func(s *server) { w.leaves(s, p, boss, name) }
	case dice < 968:
		return func(s *server) { s.crash("idle") }
	}
	return func(*server) {}
}

// opens opens a session that ends by itself after a while.
func (w *world) opens(s *server, p *person, n *node, level string, long time.Duration) {
	live, err := s.sessions.Open(s.over, p.principal(), session.OpenRequest{Host: n.host.Name, Level: level, Command: "true", Client: "cli", Source: "192.0.2.7"})
	if err != nil {
		w.count("sessions refused")
		return
	}
	w.ack(s, session.Opened, live.ID())
	w.count(level + " sessions")
	if err := live.Own(nobody{}); err != nil {
		return
	}
	w.later(long, func(*server) {
		for _, r := range n.sessions() {
			if r.order.Session.ID == live.ID() {
				n.end(r, "", 0)
			}
		}
	})
}

// nobody reads what comes.
type nobody struct{}

func (nobody) Deliver(session.Event) error { return nil }
func (nobody) Abort()                      {}

// decision is what becomes of a request.
type decision struct {
	by                  *person
	after, starts, long time.Duration
	yes, answers        bool
	ends                int // 0: it expires, 1: its owner is done, 2: it is revoked
	early, lasts        time.Duration
}

// asks for write access; somebody decides, and it is used.
func (w *world) asks(s *server, p *person, at []*node, d decision) {
	asked, err := s.access.Elevate(p.in(s), access.Ask{Hosts: []string{at[0].host.Name, at[1].host.Name}, Reason: "it burns", For: d.lasts})
	if err != nil || !w.ack(s, access.ActionRequested, asked.Grant.ID) {
		return
	}
	w.count("requests")
	if !d.answers {
		return
	}
	w.later(d.after, func(s *server) {
		if !d.yes {
			if _, err := s.access.Deny(d.by.in(s), asked.Approval.ID, "not now"); err == nil {
				w.ack(s, access.ActionDenied, asked.Grant.ID)
			}
			return
		}
		if !w.agrees(s, d.by, asked.Approval) {
			return
		}
		w.ack(s, access.ActionActivated, asked.Grant.ID)
		for i, n := range at {
			w.later(d.starts+time.Duration(i)*time.Minute, func(s *server) { w.opens(s, p, n, wire.LevelWrite, 2*d.long) })
		}
		w.later(d.early, func(s *server) {
			switch d.ends {
			case 1:
				over, err := s.access.Done(p.in(s), asked.Grant.ID)
				w.ended(s, over, err)
			case 2:
				over, err := s.access.Revoke(d.by.in(s), asked.Grant.ID, "enough")
				w.ended(s, over, err)
			}
		})
	})
}

// ended remembers the end of a grant. One that acted before the database could
// hear of it is in the ledger later.
func (w *world) ended(s *server, over access.Over, err error) {
	switch {
	case err != nil:
	case over.Pending:
		w.count("ends before the database heard of them")
		w.mu.Lock()
		w.promised[over.Grant.ID] = w.lives
		w.mu.Unlock()
	default:
		w.ack(s, access.ActionEnded, over.Grant.ID)
	}
}

// agrees signs what was asked for.
func (w *world) agrees(s *server, by *person, a approval.Approval) bool {
	sig, err := by.key.Sign(rand.Reader, identity.ApprovalMessage(a.Hash))
	w.must(err)
	_, err = s.access.Approve(by.in(s), a.ID, a.Hash, approval.Evidence{DeviceSignature: ssh.Marshal(sig)})
	return err == nil
}

func (w *world) breaksGlass(s *server, p *person, n *node, boss *person, late, long time.Duration) {
	asked, err := s.access.BreakGlass(p.in(s), access.Ask{Hosts: []string{n.host.Name}, Reason: "site is down"})
	if err != nil || !w.ack(s, access.ActionDeclared, asked.Grant.ID) {
		return
	}
	w.count("broken glass")
	w.opens(s, p, n, wire.LevelWrite, long)
	w.later(late, func(s *server) {
		over, err := s.access.Revoke(boss.in(s), asked.Grant.ID, "it is up")
		w.ended(s, over, err)
		if _, err := s.access.Review(boss.in(s), asked.Grant.ID, "justified", "it was down"); err == nil {
			w.ack(s, access.ActionReviewed, asked.Grant.ID)
		}
	})
}

// leaves locks somebody out who left the company, and somebody else comes.
func (w *world) leaves(s *server, p, boss *person, name string) {
	if len(w.in("developer")) < 6 {
		return
	}
	if _, err := s.roster.Lock(s.over, boss.principal(), p.id, "left the company"); err != nil {
		return
	}
	w.mu.Lock()
	w.counts["people left"]++
	p.gone = !s.dead() || p.gone
	w.mu.Unlock()
	w.comes(s, name, "developer")
}

// look finds sessions that run without a right, and whether they go on for
// longer than a lease allows.
func (w *world) look(s *server) {
	for range 2 {
		bad := w.without(s)
		if len(bad) == 0 || s.dead() {
			return
		}
		for _, r := range bad {
			if r.bad == 0 {
				r.bad = w.now()
			} else if w.now()-r.bad > tolerance {
				w.fail("session %s of %s on %s runs since %s without a right", r.order.Session.ID, r.order.Session.Person, r.node.host.Name, r.bad)
			}
		}
		select {
		case <-time.After(tolerance + time.Second):
		case <-s.over.Done():
			return
		}
		synctest.Wait()
	}
}

// without are the sessions on nodes that have no right to run.
func (w *world) without(s *server) (bad []*running) {
	var all []*running
	for _, n := range w.nodes {
		all = append(all, n.sessions()...)
	}
	if len(all) == 0 || s.dead() {
		return nil
	}
	force := map[string]bool{}
	open := map[string]bool{}
	locked := map[string]bool{}
	ctx, cancel := context.WithTimeout(s.over, time.Minute)
	defer cancel()
	err := s.store.View(ctx, func(v *store.View) error {
		grants, err := access.InForceTx(v, time.Now())
		if err != nil {
			return err
		}
		for _, g := range grants {
			force[g.ID] = true
		}
		ids, err := store.All[string](v, `SELECT id FROM sessions WHERE state <> $1`, session.StateEnded)
		for _, id := range ids {
			open[id] = true
		}
		if err != nil {
			return err
		}
		ids, err = store.All[string](v, `SELECT id FROM people WHERE locked_at <> 0`)
		for _, id := range ids {
			locked[id] = true
		}
		return err
	})
	if s.dead() {
		return nil
	}
	w.must(err)
	for _, r := range all {
		o := r.order.Session
		if open[o.ID] && !locked[o.Person] && (o.Level != wire.LevelWrite || force[o.Grant]) {
			r.bad = 0
			continue
		}
		bad = append(bad, r)
	}
	return bad
}
