package sim_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
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
	// keeps is how long an end that acted may wait for the database, on the slowest
	// disk.
	keeps = time.Minute
)

// workday is how long people work each day. Nights are skipped: the server is
// stopped, and the next morning starts it.
func workday() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("HANDRAIL_SIM_HOURS")); err == nil {
		return time.Duration(n) * time.Hour
	}
	return 2 * time.Hour
}

// seeds are those of make test, HANDRAIL_SIM_SEED, or HANDRAIL_SIM_SEEDS new ones.
func seeds(t *testing.T) (all []uint64) {
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err != nil {
			t.Fatalf("%s is %q, which is no number", name, os.Getenv(name))
		}
		return n
	}
	switch {
	case os.Getenv("HANDRAIL_SIM_SEED") != "":
		return []uint64{number("HANDRAIL_SIM_SEED")}
	case os.Getenv("HANDRAIL_SIM_SEEDS") != "":
		for range number("HANDRAIL_SIM_SEEDS") {
			all = append(all, uint64(time.Now().UnixNano()))
		}
		return all
	}
	return []uint64{1, 2}
}

func TestAWeekWith200HostsKeepsEveryPromise(t *testing.T) {
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed) })
	}
}

// simulate runs a week.
func simulate(t *testing.T, seed uint64) {
	cryptotest.SetGlobalRandom(t, seed) // of keys and ids; the order of goroutines is not the seed's
	w := newWorld(t, seed)
	w.plans = w.story()
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
			w.at += time.Duration(1+w.dice("down", w.lives).IntN(60)) * time.Second
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
	s := w.wakes()
	defer w.sleeps(s)
	if w.nodes == nil {
		w.found(s, hosts)
	}
	w.check(s)
	w.nothingOpen(s)
	evening := w.at - w.at%(24*time.Hour) + workday()
	w.arm(s)
	for !s.dead() && w.now() < evening && len(w.failures) == 0 {
		w.step(s, evening)
		synctest.Wait()
		w.look(s)
	}
	<-time.After(tolerance)
	synctest.Wait()
	w.check(s)
	w.keptPromises(s)
	w.crashed(s)
}

// wakes starts a server on what the last one left. Its clock is set before: some
// minutes ahead or behind, so that it jumps between two lives. True time and boot
// time do not.
func (w *world) wakes() *server {
	w.lives++
	skew := time.Duration(w.dice("skew", w.lives).IntN(20)-10) * time.Minute
	<-time.After(30*24*time.Hour + w.at + skew)
	w.began = time.Now()
	return w.open(w.dir)
}

// sleeps is the end of a life.
func (w *world) sleeps(s *server) {
	s.bury()
	w.at, w.began, w.dir = w.now(), time.Time{}, s.image
	w.slow.Store(0)
}

// arm sets where the server will crash, most lives.
func (w *world) arm(s *server) {
	points := []struct {
		at   string
		most int
	}{{"sealing", 1500}, {"signing", 700}, {"ordered", 50}, {"started", 50}, {"braking", 25}}
	dice := w.dice("fuse", w.lives)
	p := points[dice.IntN(len(points))]
	f := &fuse{at: p.at}
	f.left.Store(int64(1 + dice.IntN(p.most)))
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

// step lets time pass until the next things happen, and does them at once.
func (w *world) step(s *server, evening time.Duration) {
	at, todo := w.next(evening)
	if d := at - w.now(); d > 0 {
		select {
		case <-time.After(d):
		case <-s.over.Done():
			return // they come when it is back
		}
	}
	var all sync.WaitGroup
	for _, do := range w.take(todo) {
		all.Go(func() { do(s) })
	}
	all.Wait()
}

// next is when something happens, and how many things do.
func (w *world) next(evening time.Duration) (at time.Duration, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.plans, func(a, b plan) int { return cmp.Compare(a.at, b.at) })
	if len(w.plans) == 0 || w.plans[0].at > evening {
		return evening, 0
	}
	at = w.plans[0].at
	for n < len(w.plans) && w.plans[n].at == at {
		n++
	}
	return at, n
}

// take takes the first plans, which are done now.
func (w *world) take(n int) (all []func(*server)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.plans[:n] {
		all = append(all, p.do)
	}
	w.plans = w.plans[n:]
	return all
}

// later plans something.
func (w *world) later(within time.Duration, do func(s *server)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plans = append(w.plans, plan{w.now() + within, do})
}

// story is what happens in the week by itself, up to three things at once. What
// follows from it is planned when it does.
func (w *world) story() (all []plan) {
	dice := die{w.dice("story", 0)}
	for morning := time.Duration(0); morning < week; morning += 24 * time.Hour {
		for at := morning; ; {
			if at += time.Duration(-math.Log(1-dice.Float64()) * float64(pace)); at >= morning+workday() {
				break
			}
			for range 1 + dice.IntN(3) {
				all = append(all, plan{at, w.something(dice)})
			}
		}
	}
	return all
}

// die is thrown for the story.
type die struct{ *mrand.Rand }

func (d die) minutes(most int) time.Duration {
	return time.Duration(1+d.IntN(most*60)) * time.Second
}

// something is one thing that happens, with all its dice thrown: hosts and desks
// by number, since who sits there then, nobody knows yet.
func (w *world) something(d die) func(*server) {
	host, desk, boss, long := d.IntN(hosts), d.IntN(desks["developer"]), d.IntN(desks["operator"]), d.minutes(20)
	switch what := d.IntN(1000); {
	case what < 380:
		return func(s *server) { w.opens(s, w.who("developer", desk), w.nodes[host], wire.LevelRead, long) }
	case what < 640:
		other := d.IntN(hosts)
		c := course{boss: boss, after: d.minutes(8), yes: d.IntN(10) < 8, answers: d.IntN(10) < 9,
			starts: d.minutes(3), long: long, ends: d.IntN(3), early: d.minutes(15), lasts: d.minutes(30) + time.Minute}
		return func(s *server) { w.asks(s, w.who("developer", desk), []*node{w.nodes[host], w.nodes[other]}, c) }
	case what < 690:
		late := d.minutes(40)
		return func(s *server) { w.breaksGlass(s, w.who("developer", desk), w.nodes[host], boss, late, long) }
	case what < 840:
		cut := d.minutes(10)
		if d.IntN(3) == 0 {
			cut = time.Duration(1+d.IntN(30)) * time.Second
		}
		all := make([]int, 1+d.IntN(30))
		for i := range all {
			all[i] = d.IntN(hosts)
		}
		return func(s *server) {
			w.count("partitions")
			for _, host := range all {
				w.nodes[host].isolate(s, cut)
			}
		}
	case what < 890:
		return func(*server) { w.count("wardens killed"); w.nodes[host].killWarden() }
	case what < 915:
		slow := time.Duration(1+d.IntN(7)) * 300 * time.Millisecond
		return func(*server) { w.slow.Store(int64(slow)); w.count("slow disks") }
	case what < 955:
		return func(*server) { w.slow.Store(0) }
	case what < 965:
		name := fmt.Sprintf("new-%d", d.Uint64())
		return func(s *server) { w.leaves(s, desk, w.who("operator", boss), name) }
	case what < 968:
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

// course is what becomes of a request.
type course struct {
	boss                int // the desk of who decides
	after, starts, long time.Duration
	yes, answers        bool
	ends                int // 0: it expires, 1: its owner is done, 2: it is revoked
	early, lasts        time.Duration
}

// asks for write access; somebody decides, and it is used.
func (w *world) asks(s *server, p *person, at []*node, d course) {
	asked, err := s.access.Elevate(p.in(s), access.Ask{Hosts: []string{at[0].host.Name, at[1].host.Name}, Reason: "it burns", For: d.lasts})
	if err != nil || !w.ack(s, access.ActionRequested, asked.Grant.ID) {
		return
	}
	w.count("requests")
	if !d.answers {
		return
	}
	w.later(d.after, func(s *server) {
		boss := w.who("operator", d.boss)
		if !d.yes {
			if _, err := s.access.Deny(boss.in(s), asked.Approval.ID, "not now"); err == nil {
				w.ack(s, access.ActionDenied, asked.Grant.ID)
			}
			return
		}
		if !w.agrees(s, boss, asked.Approval) {
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
				over, err := s.access.Revoke(w.who("operator", d.boss).in(s), asked.Grant.ID, "enough")
				w.ended(s, over, err)
			}
		})
	})
}

// ended remembers the end of a grant. One that acted before the database could
// hear of it is in the ledger later. A request that nobody agreed to, or whose
// approval a crash took back, is denied.
func (w *world) ended(s *server, over access.Over, err error) {
	switch {
	case err != nil:
	case over.Pending:
		w.promises(s, over.Grant.ID)
	case over.Grant.State == access.Denied:
		w.ack(s, access.ActionDenied, over.Grant.ID)
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

func (w *world) breaksGlass(s *server, p *person, n *node, desk int, late, long time.Duration) {
	asked, err := s.access.BreakGlass(p.in(s), access.Ask{Hosts: []string{n.host.Name}, Reason: "site is down"})
	if err != nil || !w.ack(s, access.ActionDeclared, asked.Grant.ID) {
		return
	}
	w.count("broken glass")
	w.opens(s, p, n, wire.LevelWrite, long)
	w.later(late, func(s *server) {
		boss := w.who("operator", desk)
		over, err := s.access.Revoke(boss.in(s), asked.Grant.ID, "it is up")
		w.ended(s, over, err)
		if _, err := s.access.Review(boss.in(s), asked.Grant.ID, "justified", "it was down"); err == nil {
			w.ack(s, access.ActionReviewed, asked.Grant.ID)
		}
	})
}

// leaves locks somebody out who left the company, and somebody else comes.
func (w *world) leaves(s *server, desk int, boss *person, name string) {
	if _, err := s.roster.Lock(s.over, boss.principal(), w.who("developer", desk).id, "left the company"); err != nil {
		return
	}
	w.count("people left")
	if p := w.comes(s, name, "developer"); p != nil {
		w.sits("developer", desk, p)
	}
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
	if len(all) == 0 && len(w.promised) == 0 || s.dead() {
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
		w.broken(grants)
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
