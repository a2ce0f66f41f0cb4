package sim_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

// world is the installation, its hosts and its people over the whole time. Each
// life of the server is a bubble of its own, so nothing in here may be a channel
// or a timer.
type world struct {
	seed uint64
	keys string
	root string
	dir  string // what is on disk

	at    time.Duration // true time when this life began
	began time.Time     // what the server's clock said then
	slow  atomic.Int64  // what a commit waits for the disk
	away  atomic.Bool   // nothing is committed

	nodes []*node
	byID  map[string]*node

	mu        sync.Mutex
	plans     []plan
	desks     map[string][]*person // who sits there now, by group
	failures  []string
	acked     []told
	carried   map[string]string // order → node, of all that was carried out
	writes    map[string]string // session → grant
	refusals  map[string]int
	crashes   map[string]int
	counts    map[string]int
	head      tlog.Tree // the newest checkpoint that somebody saw
	read      int64     // entries that are in grants, opened and closed
	grants    []ledger.Recorded
	opened    map[string]int64 // session → entry
	closed    map[string]int
	agreed    map[string]int64 // grant → the entry that made it a right
	versions  map[string]int64
	confirmed int
	lives     int
	promised  map[string]promise // grants, and requests, that were ended before the database heard of it
}

// ack is an entry that the server acknowledged.
type ack struct{ action, object string }

// told is when the server acknowledged it.
type told struct {
	ack
	at   time.Duration
	life int
}

// promise is an end that acted and is to be recorded.
type promise struct {
	at   time.Duration
	life int
}

// person is somebody, as long as they are here.
type person struct {
	id, name string
	groups   []string
	epoch    int64
	key      ssh.Signer
}

// plan is something that will happen.
type plan struct {
	at time.Duration
	do func(s *server)
}

// desks is how many people of each group there are.
var desks = map[string]int{"operator": 3, "developer": 12, "auditor": 1}

// newWorld is an installation before its first day.
func newWorld(t *testing.T, seed uint64) *world {
	w := &world{seed: seed, byID: map[string]*node{}, desks: map[string][]*person{},
		carried: map[string]string{}, writes: map[string]string{}, refusals: map[string]int{}, crashes: map[string]int{}, counts: map[string]int{},
		opened: map[string]int64{}, closed: map[string]int{}, agreed: map[string]int64{}, versions: map[string]int64{}, promised: map[string]promise{}}
	base := t.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "sim"); err == nil { // a disk that is slow only when it shall be
		base = shm
		t.Cleanup(func() { os.RemoveAll(shm) })
	}
	w.keys, w.dir = filepath.Join(base, "keys"), filepath.Join(base, "first")
	w.must(keyring.Init(w.keys, filepath.Join(base, "root"), "sim.example/log"))
	w.must(os.Mkdir(w.dir, 0o700))
	return w
}

func (w *world) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("the simulation cannot go on at %s: %v", w.at, err))
	}
}

// fail notes that something is not true that must be.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failures) < 20 {
		w.failures = append(w.failures, fmt.Sprintf("%s: ", w.now().Round(time.Second))+fmt.Sprintf(format, args...))
	}
}

// now is the true time, which no clock that is set changes.
func (w *world) now() time.Duration {
	if w.began.IsZero() {
		return w.at
	}
	return w.at + time.Since(w.began)
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// refused counts what nodes refuse, by the rule.
func (w *world) refused(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusals[fmt.Sprint(fault.KindOf(err))]++
}

// executes notes that a node carries out an order.
func (w *world) executes(n *node, o wire.OrderPayload) {
	w.mu.Lock()
	_, before := w.carried[o.Order]
	w.carried[o.Order] = n.host.ID
	if o.Session.Level == wire.LevelWrite {
		w.writes[o.Session.ID] = o.Session.Grant
	}
	w.mu.Unlock()
	if before {
		w.fail("order %s was carried out twice", o.Order)
	}
}

// dice are those of one purpose. They follow from the seed alone, so that what
// happened does not change what comes.
func (w *world) dice(purpose string, n int) *mrand.Rand {
	return mrand.New(mrand.NewPCG(w.seed, mix(w.seed, purpose, n)))
}

// mix makes a number of what it is given.
func mix(seed uint64, word string, n int) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, seed, word, n)
	return h.Sum64()
}

// found makes hosts and people, in the first life.
func (w *world) found(s *server, hosts int) {
	names := make([]target.Host, hosts)
	_, err := s.store.Record(s.over, store.Once(), func(tx *store.Tx) (entries []ledger.Entry, err error) {
		entries = nil
		for i := range names {
			env := []string{"production", "staging", "dev"}[i%3]
			e, err := s.hosts.AddTx(tx, target.Host{Name: fmt.Sprintf("web-%d", i), Environment: env})
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
		}
		return entries, nil
	})
	w.must(err)
	bundle, signed := s.ring.Bundle()
	dice := w.dice("boot", 0)
	for i := range hosts {
		host, err := s.hosts.Get(s.over, fmt.Sprintf("web-%d", i))
		w.must(err)
		n := &node{w: w, host: host, boot: time.Duration(dice.IntN(1e6)) * time.Second, running: map[string]*running{}}
		n.judge, err = warden.NewJudge(warden.Pin{Node: host.ID, RootHash: ledger.RootHash(bundle.RootKey), Bundle: signed},
			func() time.Duration { return n.boot + w.now() })
		w.must(err)
		w.nodes, w.byID[host.ID] = append(w.nodes, n), n
	}
	for _, group := range slices.Sorted(maps.Keys(desks)) {
		for i := range desks[group] {
			p := w.comes(s, fmt.Sprintf("%s-%d", group, i), group)
			w.desks[group] = append(w.desks[group], p)
		}
	}
}

// comes adds somebody, with a device that is old enough to approve. It is nil
// when nobody knows whether they came.
func (w *world) comes(s *server, name, group string) *person {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	w.must(err)
	signer, err := ssh.NewSignerFromKey(private)
	w.must(err)
	var p identity.Person
	_, err = s.store.Record(s.over, store.Once(), func(tx *store.Tx) (entries []ledger.Entry, err error) {
		if p, entries, err = s.people.AddTx(tx, identity.Principal{ID: ledger.System}, name, []string{group}); err != nil {
			return nil, err
		}
		_, err = tx.Exec(`INSERT INTO devices (id, person, name, public_key, fingerprint, created, may_approve_from, revoked, version) VALUES ($1, $2, 'laptop', $3, $4, 1, 1, 0, 1)`,
			store.NewID('d'), p.ID, signer.PublicKey().Marshal(), ssh.FingerprintSHA256(signer.PublicKey()))
		return entries, err
	})
	if s.dead() {
		return nil
	}
	w.must(err)
	return &person{id: p.ID, name: name, groups: []string{group}, epoch: p.Epoch, key: signer}
}

func (p *person) principal() identity.Principal {
	return identity.Principal{ID: p.id, Name: p.name, Kind: identity.KindPerson, Groups: p.groups, Epoch: p.epoch}
}

func (p *person) in(s *server) context.Context { return identity.WithPrincipal(s.over, p.principal()) }

// who is the one who sits at a desk now.
func (w *world) who(group string, desk int) *person {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.desks[group][desk]
}

// sits gives a desk to somebody else.
func (w *world) sits(group string, desk int, p *person) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.desks[group][desk] = p
}

// ack remembers what the server acknowledged, if somebody was there to hear it.
func (w *world) ack(s *server, action ledger.Action, object string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.dead() {
		return false
	}
	w.acked = append(w.acked, told{ack{string(action), object}, w.now(), w.lives})
	return true
}

// promises remembers an end that acted and is to be recorded, if somebody was
// there to hear it.
func (w *world) promises(s *server, grant string) {
	w.count("ends before the database heard of them")
	w.mu.Lock()
	defer w.mu.Unlock()
	if !s.dead() {
		w.promised[grant] = promise{w.now(), w.lives}
	}
}

// saw is what a server shows at one moment.
type saw struct {
	report  ledger.Report
	tree    tlog.Tree
	proof   []tlog.Hash
	entries []ledger.Recorded // since the last look
	open    map[string]bool   // sessions that are not over, by their rows
	grants  []access.Grant
}

// check looks at everything: the ledger and what it folds to. What a server
// shows that crashes meanwhile is not looked at: its disk was copied before.
func (w *world) check(s *server) {
	shown, err := w.see(s)
	if s.dead() {
		return
	}
	if err != nil {
		w.fail("the server does not show what it has: %v", err)
		return
	}
	if !shown.report.OK {
		w.fail("the ledger does not verify: %v", shown.report.Findings)
		return
	}
	switch {
	case shown.tree.N < w.head.N:
		w.fail("the ledger has %d entries, and %d were signed", shown.tree.N, w.head.N)
	case w.head.N > 0:
		if err := ledger.CheckConsistency(shown.proof, w.head, shown.tree); err != nil {
			w.fail("the ledger is not what it was: %v", err)
		}
	}
	w.head = shown.tree
	w.readOn(s, shown.entries)
	w.pairs(shown.open)
	w.folds(shown.grants)
}

func (w *world) see(s *server) (saw, error) {
	var x saw
	var err error
	if x.report, err = s.store.Verify(s.over, nil); err != nil {
		return x, err
	}
	if x.tree, _, err = s.store.Head(s.over); err != nil {
		return x, err
	}
	if x.proof, err = s.store.Consistency(s.over, min(w.head.N, x.tree.N), x.tree.N); err != nil {
		return x, err
	}
	if x.entries, err = since(s, w.read); err != nil {
		return x, err
	}
	if x.open, err = stillOpen(s); err != nil {
		return x, err
	}
	x.grants, err = s.access.List(w.who("auditor", 0).in(s), access.Filter{})
	return x, err
}

// since is the ledger from an entry on.
func since(s *server, seq int64) (all []ledger.Recorded, err error) {
	for {
		page, err := s.store.Entries(s.over, store.EntryQuery{After: seq - 1, Oldest: true, Limit: 1000})
		if err != nil || len(page) == 0 {
			return all, err
		}
		all, seq = append(all, page...), page[len(page)-1].Seq+1
	}
}

// readOn takes the entries that came since the last look, and finds in them what
// was acknowledged since.
func (w *world) readOn(s *server, came []ledger.Recorded) {
	w.mu.Lock()
	acked := w.acked
	w.acked = nil
	w.mu.Unlock()
	seen := map[ack]bool{}
	for _, e := range came {
		w.read = e.Seq + 1
		w.takes(e)
		seen[ack{string(e.Parsed.Action), e.Parsed.Object}] = true
	}
	for _, a := range acked {
		if seen[a.ack] {
			w.confirmed++
		} else {
			w.fail("%s of %s was acknowledged at %s in life %d and is lost; %s", a.action, a.object, a.at, a.life, w.history(s, a.object))
		}
	}
}

// history is what the ledger has of an object, for whoever has to understand a
// failure.
func (w *world) history(s *server, object string) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "this is life %d, entries were read up to #%d; of %s the ledger has", w.lives, w.read, object)
	all, err := since(s, 0)
	if err != nil {
		fmt.Fprintf(b, "\n  %v", err)
	}
	for _, e := range all {
		if e.Parsed.Object == object || strings.Contains(string(e.Payload), object) {
			fmt.Fprintf(b, "\n  #%d %s version %d of %s: %s", e.Seq, e.Parsed.Action, e.Parsed.Version, e.Parsed.Object, e.Payload)
		}
	}
	if p, ok := w.promised[object]; ok {
		fmt.Fprintf(b, "\n  and its end was promised at %s in life %d", p.at, p.life)
	}
	return b.String()
}

// takes one entry into the account.
func (w *world) takes(e ledger.Recorded) {
	l := e.Parsed
	if l.Object != "" {
		if v := w.versions[l.Object]; l.Version <= v {
			w.fail("%s of %s has version %d, and there was %d before", l.Action, l.Object, l.Version, v)
		}
		w.versions[l.Object] = l.Version
	}
	switch l.Action {
	case "grant.activated", "grant.declared":
		w.agreed[l.Object] = e.Seq
	case "grant.ended", "grant.denied":
		delete(w.promised, l.Object)
	case "session.opened":
		if _, twice := w.opened[l.Session]; twice {
			w.fail("session %s was opened twice", l.Session)
		}
		w.opened[l.Session] = e.Seq
		grant, writes := w.writes[l.Session]
		if at, agreed := w.agreed[grant]; writes && (!agreed || at > e.Seq) {
			w.fail("session %s writes, and nobody had agreed to %q", l.Session, grant)
		}
	case "session.closed":
		w.closed[l.Session]++
	}
	if strings.HasPrefix(string(l.Action), "grant.") {
		w.grants = append(w.grants, e)
	}
}

// stillOpen are the sessions that are not over, by their rows.
func stillOpen(s *server) (map[string]bool, error) {
	open := map[string]bool{}
	err := s.store.View(s.over, func(v *store.View) error {
		ids, err := store.All[string](v, `SELECT id FROM sessions WHERE state <> $1`, session.StateEnded)
		for _, id := range ids {
			open[id] = true
		}
		return err
	})
	return open, err
}

// keptPromises looks whether ends that an earlier life took before its database
// could hear of them are in the ledger by now.
func (w *world) keptPromises(s *server) {
	if s.dead() {
		return
	}
	for grant, p := range w.promised {
		if p.life < w.lives {
			w.fail("the end of grant %s acted, and the ledger never heard of it", grant)
		}
	}
}

// broken looks for a grant in force whose end was promised long ago, by a server
// that has been there for long enough to keep it.
func (w *world) broken(force []access.Grant) {
	for _, g := range force {
		if p, ok := w.promised[g.ID]; ok && w.now()-max(p.at, w.at) > keeps {
			w.fail("grant %s is in force, and its end was promised at %s in life %d", g.ID, p.at, p.life)
		}
	}
}

// nothingOpen looks whether a start closed what a crash left open.
func (w *world) nothingOpen(s *server) {
	open, err := stillOpen(s)
	if s.dead() {
		return
	}
	w.must(err)
	for id := range open {
		w.fail("session %s is open, and its server crashed", id)
	}
}

// pairs looks whether what was opened is closed once, unless it is still open.
func (w *world) pairs(open map[string]bool) {
	for id := range w.opened {
		if n := w.closed[id]; n != 1 && !(n == 0 && open[id]) {
			w.fail("session %s was opened, and closed %d times", id, n)
		}
		if w.closed[id] == 1 {
			delete(w.opened, id)
			w.closed[id] = 2 // a second end would be a third
		}
	}
	for id, n := range w.closed {
		if n > 2 {
			w.fail("session %s was closed again", id)
		}
	}
}

// listed is how many grants a list has at most.
const listed = 500

// folds compares the grants with what the ledger folds to.
func (w *world) folds(rows []access.Grant) {
	folded, err := access.Fold(w.grants)
	if err != nil {
		w.fail("the ledger does not fold: %v", err)
		return
	}
	if len(rows) != min(len(folded), listed) {
		w.fail("%d grants in the table, %d in the ledger", len(rows), len(folded))
	}
	for _, g := range rows {
		if fmt.Sprint(g) != fmt.Sprint(folded[g.ID]) {
			w.fail("the ledger folds to\n%+v, the table has\n%+v", folded[g.ID], g)
		}
	}
}
