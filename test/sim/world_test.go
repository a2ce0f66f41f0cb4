package sim_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"hash/fnv"
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
	rnd  *mrand.Rand // what happens; used by the story alone
	rnd2 *mrand.Rand // what a crash leaves; used by crashes alone
	keys string
	root string
	dir  string // what is on disk

	at    time.Duration // true time when this life began
	began time.Time     // what the server's clock said then
	slow  atomic.Int64  // what a commit waits for the disk

	nodes  []*node
	byID   map[string]*node
	people []*person
	plans  []plan

	mu        sync.Mutex
	failures  []string
	acked     []ack
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
	promised  map[string]int // grants that were ended before the database heard of it, in which life
}

// ack is an entry that the server acknowledged.
type ack struct{ action, object string }

// person is somebody, as long as they are here.
type person struct {
	id, name string
	groups   []string
	epoch    int64
	key      ssh.Signer
	gone     bool
}

// plan is something that will happen.
type plan struct {
	at time.Duration
	do func(s *server)
}

// newWorld is an installation before its first day.
func newWorld(t *testing.T, seed uint64) *world {
	w := &world{seed: seed, rnd: mrand.New(mrand.NewPCG(seed, 1)), rnd2: mrand.New(mrand.NewPCG(seed, 2)), byID: map[string]*node{},
		carried: map[string]string{}, writes: map[string]string{}, refusals: map[string]int{}, crashes: map[string]int{}, counts: map[string]int{},
		opened: map[string]int64{}, closed: map[string]int{}, agreed: map[string]int64{}, versions: map[string]int64{}, promised: map[string]int{}}
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
	for i := range hosts {
		host, err := s.hosts.Get(s.over, fmt.Sprintf("web-%d", i))
		w.must(err)
		n := &node{w: w, host: host, boot: time.Duration(w.rnd.IntN(1e6)) * time.Second, running: map[string]*running{}}
		n.judge, err = warden.NewJudge(warden.Pin{Node: host.ID, RootHash: ledger.RootHash(bundle.RootKey), Bundle: signed},
			func() time.Duration { return n.boot + w.now() })
		w.must(err)
		w.nodes, w.byID[host.ID] = append(w.nodes, n), n
	}
	for i := range 3 {
		w.comes(s, fmt.Sprintf("operator-%d", i), "operator")
	}
	for i := range 12 {
		w.comes(s, fmt.Sprintf("developer-%d", i), "developer")
	}
	w.comes(s, "auditor", "auditor")
}

// comes adds somebody, with a device that is old enough to approve.
func (w *world) comes(s *server, name string, groups ...string) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	w.must(err)
	signer, err := ssh.NewSignerFromKey(private)
	w.must(err)
	var p identity.Person
	_, err = s.store.Record(s.over, store.Once(), func(tx *store.Tx) (entries []ledger.Entry, err error) {
		if p, entries, err = s.people.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups); err != nil {
			return nil, err
		}
		_, err = tx.Exec(`INSERT INTO devices (id, person, name, public_key, fingerprint, created, may_approve_from, revoked, version) VALUES ($1, $2, 'laptop', $3, $4, 1, 1, 0, 1)`,
			store.NewID('d'), p.ID, signer.PublicKey().Marshal(), ssh.FingerprintSHA256(signer.PublicKey()))
		return entries, err
	})
	if s.dead() {
		return // whether they came, nobody knows: somebody else comes another time
	}
	w.must(err)
	w.people = append(w.people, &person{id: p.ID, name: name, groups: groups, epoch: p.Epoch, key: signer})
}

func (p *person) principal() identity.Principal {
	return identity.Principal{ID: p.id, Name: p.name, Kind: identity.KindPerson, Groups: p.groups, Epoch: p.epoch}
}

func (p *person) in(s *server) context.Context { return identity.WithPrincipal(s.over, p.principal()) }

// in returns those of a group who are here.
func (w *world) in(group string) (out []*person) {
	for _, p := range w.people {
		if !p.gone && slices.Contains(p.groups, group) {
			out = append(out, p)
		}
	}
	return out
}

// ack remembers what the server acknowledged, if somebody was there to hear it.
func (w *world) ack(s *server, action ledger.Action, object string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.dead() {
		return false
	}
	w.acked = append(w.acked, ack{string(action), object})
	return true
}

// check looks at everything: the ledger and what it folds to.
func (w *world) check(s *server) {
	if s.dead() {
		return
	}
	report, err := s.store.Verify(s.over, nil)
	if s.dead() {
		return
	}
	if err != nil || !report.OK {
		w.fail("the ledger does not verify: %v %v", err, report.Findings)
		return
	}
	tree, _, err := s.store.Head(s.over)
	w.must(err)
	switch hashes, err := s.store.Consistency(s.over, min(w.head.N, tree.N), tree.N); {
	case tree.N < w.head.N:
		w.fail("the ledger has %d entries, and %d were signed", tree.N, w.head.N)
	case err != nil:
		w.fail("no proof from %d to %d: %v", w.head.N, tree.N, err)
	case w.head.N > 0:
		if err := ledger.CheckConsistency(hashes, w.head, tree); err != nil {
			w.fail("the ledger is not what it was: %v", err)
		}
	}
	w.head = tree
	w.readOn(s)
	w.pairs(s)
	w.folds(s)
}

// readOn reads the entries that came since the last look.
func (w *world) readOn(s *server) {
	for {
		page, err := s.store.Entries(s.over, store.EntryQuery{After: w.read - 1, Oldest: true, Limit: 1000})
		w.must(err)
		if len(page) == 0 {
			break
		}
		seen := map[ack]int{}
		for _, e := range page {
			w.read = e.Seq + 1
			w.takes(e)
			seen[ack{string(e.Parsed.Action), e.Parsed.Object}]++
		}
		w.acked = slices.DeleteFunc(w.acked, func(a ack) bool {
			if seen[a] > 0 {
				w.confirmed++
			}
			return seen[a] > 0
		})
	}
	for _, a := range w.acked {
		w.fail("%s of %s was acknowledged and is lost", a.action, a.object)
	}
	w.acked = nil
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
	case "grant.ended":
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
func (w *world) stillOpen(s *server) map[string]bool {
	open := map[string]bool{}
	w.must(s.store.View(s.over, func(v *store.View) error {
		ids, err := store.All[string](v, `SELECT id FROM sessions WHERE state <> $1`, session.StateEnded)
		for _, id := range ids {
			open[id] = true
		}
		return err
	}))
	return open
}

// keptPromises looks whether ends that an earlier life took before its database
// could hear of them are in the ledger by now.
func (w *world) keptPromises(s *server) {
	if s.dead() {
		return
	}
	for grant, life := range w.promised {
		if life < w.lives {
			w.fail("the end of grant %s acted, and the ledger never heard of it", grant)
		}
	}
}

// nothingOpen looks whether a start closed what a crash left open.
func (w *world) nothingOpen(s *server) {
	if s.dead() {
		return
	}
	for id := range w.stillOpen(s) {
		w.fail("session %s is open, and its server crashed", id)
	}
}

// pairs looks whether what was opened is closed once, unless it is still open.
func (w *world) pairs(s *server) {
	open := w.stillOpen(s)
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

// folds compares the grants with what the ledger folds to.
func (w *world) folds(s *server) {
	folded, err := access.Fold(w.grants)
	if err != nil {
		w.fail("the ledger does not fold: %v", err)
		return
	}
	rows, err := s.access.List(w.in("auditor")[0].in(s), false, false)
	w.must(err)
	if len(rows) != len(folded) {
		w.fail("%d grants in the table, %d in the ledger", len(rows), len(folded))
	}
	for _, g := range rows {
		if fmt.Sprint(g) != fmt.Sprint(folded[g.ID]) {
			w.fail("the ledger folds to\n%+v, the table has\n%+v", folded[g.ID], g)
		}
	}
}
