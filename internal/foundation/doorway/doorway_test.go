package doorway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/test/shelf"
)

// grants is a table of grants that a test fills.
type grants struct {
	mu    sync.Mutex
	force map[string]doorway.GrantInForce
}

func (g *grants) Active(_ store.Queryer, person, host string, _ time.Time) (doorway.GrantInForce, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	got, ok := g.force[person+host]
	return got, ok, nil
}

// house is an installation with a door, a host and some people.
type house struct {
	t      *testing.T
	store  *store.Store
	people *identity.People
	hosts  *target.Hosts
	door   *doorway.Door
	grants *grants
	host   target.Host
}

func build(t *testing.T) *house {
	t.Helper()
	migrations := append(identity.Schema(), target.Schema()...)
	migrations = append(migrations, policy.Schema()...)
	migrations = append(migrations, store.Migration{Name: "test-sessions", SQL: `CREATE TABLE test_sessions (id TEXT PRIMARY KEY, person TEXT NOT NULL, state TEXT NOT NULL)`})
	s := shelf.Open(t, migrations)
	h := &house{t: t, store: s, people: identity.New(identity.Deps{Store: s}), hosts: target.NewHosts(s), grants: &grants{force: map[string]doorway.GrantInForce{}}}
	force := policy.NewForce(s)
	fatal(t, force.Seed(t.Context()))
	h.door = doorway.New(doorway.Deps{Store: s, People: h.people, Hosts: h.hosts, Policy: force, Grants: h.grants})
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := h.hosts.AddTx(tx, target.Host{Name: "web-1", Environment: "production"})
		return []ledger.Entry{e}, err
	})
	var err error
	h.host, err = h.hosts.Get(t.Context(), "web-1")
	fatal(t, err)
	return h
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) record(fn func(tx *store.Tx) ([]ledger.Entry, error)) {
	h.t.Helper()
	_, err := h.store.Record(h.t.Context(), store.NewID('x'), fn)
	fatal(h.t, err)
}

func (h *house) person(name string, groups ...string) identity.Principal {
	h.t.Helper()
	var p identity.Person
	h.record(func(tx *store.Tx) (e []ledger.Entry, err error) {
		p, e, err = h.people.AddTx(tx, identity.Principal{ID: "system"}, name, groups)
		return e, err
	})
	return identity.Principal{ID: p.ID, Name: p.Name, Kind: identity.KindPerson, Groups: p.Groups, Epoch: p.Epoch}
}

// session is the act of opening a session, which writes a row of its own.
func (h *house) session(by identity.Principal, level, id string) doorway.Act {
	return doorway.Act{
		Action: "sessions.open", By: by, Host: &h.host, Context: policy.Context{Level: level},
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			if _, err := tx.Exec(`INSERT INTO test_sessions (id, person, state) VALUES ($1, $2, 'live')`, id, by.ID); err != nil {
				return nil, err
			}
			return []ledger.Entry{{Action: "session.opened", Subjects: []string{by.ID}, Session: id, Target: h.host.Path()}}, nil
		},
	}
}

func (h *house) entries(action ledger.Action) []ledger.Recorded {
	h.t.Helper()
	list, err := h.store.Entries(h.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000})
	fatal(h.t, err)
	return list
}

func TestAnActIsRecordedBeforeItIsDoneAndItsOutcomeAfter(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	var kept doorway.Pass
	receipt, err := h.door.Do(t.Context(), h.session(ada, "read", "s-00000001"), func(_ context.Context, p doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		if len(h.entries("session.opened")) != 1 {
			t.Error("the effect runs before its entry is there")
		}
		if !p.Valid() || p.Decision().Rules[0] != "read-is-standing" || p.Receipt() == nil || p.Act().Host.Name != "web-1" {
			t.Errorf("the pass does not say what was decided: %+v", p.Decision())
		}
		kept = p
		return ledger.OK, []ledger.Entry{{Action: "session.ended", Subjects: []string{ada.ID}, Session: "s-00000001"}}, nil
	})
	fatal(t, err)
	if kept.Valid() {
		t.Error("a pass can be kept after its effect")
	}
	if (doorway.Pass{}).Valid() {
		t.Error("anybody can make a pass")
	}
	if got := receipt.Entries()[0].Parsed.Action; got != "session.opened" {
		t.Errorf("the receipt is of %s", got)
	}
	if ended := h.entries("session.ended"); len(ended) != 1 || ended[0].Parsed.Outcome != ledger.OK {
		t.Errorf("closing entries: %+v", ended)
	}
}

func TestAnEffectWithoutItsOwnClosingEntryGetsOne(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	var opening ledger.Recorded
	_, err := h.door.Do(t.Context(), h.session(ada, "read", "s-00000001"), func(_ context.Context, p doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		opening = p.Receipt().Entries()[0]
		return "", nil, errors.New("the host went away")
	})
	if err == nil {
		t.Fatal("the error is lost")
	}
	ended := h.entries(doorway.ActEnded)
	if len(ended) != 1 || ended[0].Parsed.Outcome != ledger.Failed || !strings.Contains(string(ended[0].Payload), "went away") {
		t.Fatalf("closing entries: %+v", ended)
	}
	if of := ledger.HashOf(opening.Leaf).String(); !strings.Contains(string(ended[0].Payload), `"of":"`+of+`"`) {
		t.Errorf("the outcome does not say what it is the outcome of: %s", ended[0].Payload)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = h.door.Do(t.Context(), h.session(ada, "read", "s-00000002"), func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
			panic("boom")
		})
	}()
	if ended := h.entries(doorway.ActEnded); len(ended) != 2 {
		t.Errorf("a panic leaves an act without an outcome")
	}
}

func TestTheClosingEntrySurvivesACallerWhoLeaves(t *testing.T) {
	h := build(t)
	ada := h.person("ada")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := h.door.Do(ctx, h.session(ada, "read", "s-00000001"), func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		cancel()
		return ledger.Lost, nil, nil
	})
	fatal(t, err)
	if ended := h.entries(doorway.ActEnded); len(ended) != 1 || ended[0].Parsed.Outcome != ledger.Lost {
		t.Errorf("closing entries: %+v", ended)
	}
}

func TestARefusalSaysTheRuleWhoCouldAgreeAndTheNextCommand(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	done := false
	_, err := h.door.Do(t.Context(), h.session(ada, "write", "s-00000001"), func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		done = true
		return ledger.OK, nil, nil
	})
	f := fault.From(err)
	if done || f == nil || f.Kind != fault.Denied {
		t.Fatalf("not refused: %v", err)
	}
	if f.Rule != "write-with-a-grant" || !strings.Contains(f.Hint, "handrail elevate web-1") ||
		!strings.Contains(f.Text, "operator or admin could agree") || !strings.Contains(f.Text, "cannot open a write session on web-1") || f.Entry == "" {
		t.Errorf("the refusal does not help: %+v", f)
	}
	denied := h.entries(doorway.ActDenied)
	if len(denied) != 1 || denied[0].Parsed.Outcome != ledger.Denied || denied[0].Parsed.Target != h.host.Path() {
		t.Errorf("the refusal is not recorded: %+v", denied)
	}
	rows, err := countSessions(h)
	fatal(t, err)
	if rows != 0 {
		t.Error("a refused act left a row")
	}
}

func countSessions(h *house) (n int64, err error) {
	err = h.store.View(h.t.Context(), func(v *store.View) (err error) {
		n, err = store.One[int64](v, `SELECT COUNT(*) FROM test_sessions`)
		return err
	})
	return n, err
}

func TestAGrantOpensTheDoorOnlyOnItsHost(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	act := h.session(ada, "write", "s-00000001")
	act.Context.GrantActive = true // what the caller says does not count
	if _, err := h.door.Do(t.Context(), act, nil); fault.KindOf(err) != fault.Denied {
		t.Fatalf("a caller made up a grant: %v", err)
	}
	h.grants.force[ada.ID+h.host.ID] = doorway.GrantInForce{ID: "g-00000001", Kind: "elevated", Sudo: true}
	_, err := h.door.Do(t.Context(), act, func(_ context.Context, p doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		g, ok := p.Grant(h.host.ID)
		if !ok || g.ID != "g-00000001" || p.Policy().WriteAccount(h.host) == "" {
			t.Errorf("the pass does not carry the grant: %+v", g)
		}
		return ledger.OK, nil, nil
	})
	fatal(t, err)
}

func TestEveryHostOfAnActIsDecided(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := h.hosts.AddTx(tx, target.Host{Name: "db-1", Environment: "production", Scope: "pci"})
		return []ledger.Entry{e}, err
	})
	db, err := h.hosts.Get(t.Context(), "db-1")
	fatal(t, err)
	act := h.session(ada, "read", "s-00000001")
	act.Host, act.Hosts = nil, []target.Host{h.host, db}
	_, err = h.door.Do(t.Context(), act, nil)
	if f := fault.From(err); f == nil || f.Rule != "regulated-reads-need-a-grant" || !strings.Contains(f.Text, "db-1") {
		t.Errorf("the second host was not decided: %v", err)
	}
	stale := h.host
	stale.ID = "h-00000000"
	act.Hosts = []target.Host{stale}
	if _, err := h.door.Do(t.Context(), act, nil); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a host that is gone: %v", err)
	}
}

// A lock that races the start of a session wins: whatever order the two commit
// in, no session is left that nobody ends.
func TestALockThatRacesASessionStartWins(t *testing.T) {
	h := build(t)
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	var lost, ended atomic.Int64
	for i := range rounds {
		ada := h.person(fmt.Sprintf("ada%d", i), "developer")
		var wait sync.WaitGroup
		start := make(chan struct{})
		for j := range 4 {
			wait.Go(func() {
				<-start
				act := h.session(ada, "read", fmt.Sprintf("s-%06d%d", i, j))
				if _, err := h.door.Do(h.t.Context(), act, nil); err != nil {
					if fault.KindOf(err) != fault.Denied {
						t.Errorf("a session that lost the race: %v", err)
					}
					lost.Add(1)
				}
			})
		}
		wait.Go(func() {
			<-start
			// The lock, and in its transaction the end of what is live.
			h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
				_, entries, err := h.people.LockTx(tx, "system", ada.ID, "gone rogue")
				if err != nil {
					return nil, err
				}
				n, err := tx.Exec(`UPDATE test_sessions SET state = 'ended' WHERE person = $1`, ada.ID)
				ended.Add(n)
				return entries, err
			})
		})
		close(start)
		wait.Wait()
		err := h.store.View(t.Context(), func(v *store.View) error {
			n, err := store.One[int64](v, `SELECT COUNT(*) FROM test_sessions WHERE person = $1 AND state = 'live'`, ada.ID)
			if n != 0 {
				t.Errorf("round %d: %d sessions of a locked person are live", i, n)
			}
			return err
		})
		fatal(t, err)
	}
	t.Logf("of %d sessions %d lost to the lock, %d were ended by it", rounds*4, lost.Load(), ended.Load())
}

func TestWhoIsLockedGoneOrChangedIsStopped(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	gone := ada
	gone.ID = "p-00000000"
	if err := h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: gone}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("somebody who is gone: %v", err)
	}
	old := ada
	old.Epoch--
	if err := h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: old}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("a login from before the last lock: %v", err)
	}
	made := ada
	made.Groups = []string{"admin"} // the row counts, not what the login says
	err := h.door.Read(t.Context(), doorway.Act{Action: "policies.apply", By: made})
	if fault.KindOf(err) != fault.Denied {
		t.Errorf("groups that the row does not have: %v", err)
	}
	if err := h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: identity.Principal{Kind: identity.KindAnonymous}}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	code := ada
	code.ReadOnly = true
	if err := h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: code}); fault.From(err).Rule != "code-reads-only" {
		t.Errorf("a code that lists: %v", err)
	}
	if _, err := h.door.Do(t.Context(), h.session(code, "read", "s-00000001"), nil); err != nil {
		t.Errorf("a code that reads: %v", err)
	}
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, e, err := h.people.LockTx(tx, "system", ada.ID, "test")
		return e, err
	})
	if err := h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: ada}); fault.From(err).Rule != "locked" {
		t.Errorf("a locked person: %v", err)
	}
}

func TestAnActWithAnIdIsDoneOnce(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	done := 0
	for range 3 {
		act := h.session(ada, "read", "s-00000001")
		act.ID = "open/" + ada.ID + "/1"
		_, err := h.door.Do(t.Context(), act, func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
			done++
			return ledger.OK, nil, nil
		})
		fatal(t, err)
	}
	if done != 1 || len(h.entries("session.opened")) != 1 {
		t.Errorf("done %d times, %d entries", done, len(h.entries("session.opened")))
	}
	// A refusal does not use the id up: with a grant the same call succeeds.
	act := h.session(ada, "write", "s-00000002")
	act.ID = "open/" + ada.ID + "/2"
	if _, err := h.door.Do(t.Context(), act, nil); fault.KindOf(err) != fault.Denied {
		t.Fatalf("not refused: %v", err)
	}
	h.grants.force[ada.ID+h.host.ID] = doorway.GrantInForce{ID: "g-00000001"}
	if _, err := h.door.Do(t.Context(), act, nil); err != nil {
		t.Errorf("refused after the grant: %v", err)
	}
}

func TestNothingIsDoneThatLeavesNoEntry(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	act := h.session(ada, "read", "s-00000001")
	act.Open = func(*store.Tx, policy.Decision) ([]ledger.Entry, error) { return nil, nil }
	done := false
	do := func(context.Context, doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		done = true
		return ledger.OK, nil, nil
	}
	if _, err := h.door.Do(t.Context(), act, do); err == nil || done {
		t.Error("an act without an entry was done")
	}
	act.Open = nil
	if _, err := h.door.Do(t.Context(), act, do); err == nil || done {
		t.Error("an act without an opening was done")
	}
}

func TestReadsAndRefusalsAreCountedNotMultiplied(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	for range 50 {
		fatal(t, h.door.Read(t.Context(), doorway.Act{Action: "hosts.list", By: ada}))
		if err := h.door.Read(t.Context(), doorway.Act{Action: "ledger.export", By: ada}); fault.KindOf(err) != fault.Denied {
			t.Fatal(err)
		}
	}
	if n := len(h.entries(doorway.ActDenied)); n != 10 {
		t.Errorf("%d refusals in a minute made %d entries", 50, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Run writes what it counted when it ends
	fatal(t, h.door.Run(ctx))
	var counted struct{ Counts map[string]int64 }
	reads := h.entries(doorway.ReadsCounted)
	if len(reads) != 1 {
		t.Fatalf("%d entries count the reads", len(reads))
	}
	fatal(t, json.Unmarshal(reads[0].Payload, &counted))
	if counted.Counts["hosts.list"] != 50 {
		t.Errorf("reads counted: %v", counted.Counts)
	}
	if denied := h.entries(doorway.DenialCounted); len(denied) != 1 || !strings.Contains(string(denied[0].Payload), `"ledger.export":50`) {
		t.Errorf("refusals counted: %v", denied)
	}
	fatal(t, h.door.Run(ctx))
	if len(h.entries(doorway.ReadsCounted)) != 1 {
		t.Error("nothing was read and yet there is an entry")
	}
}

func TestFactsAreReadInsideTheDecidingTransaction(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	act := doorway.Act{Action: "sessions.replay", By: ada, Facts: func(q store.Queryer, c *policy.Context) error {
		if _, ok := q.(*store.Tx); !ok {
			t.Errorf("the facts are read from %T", q)
		}
		c.Self = true
		return nil
	}, Open: func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: "session.replayed", Subjects: []string{ada.ID}}}, nil
	}}
	if _, err := h.door.Do(t.Context(), act, nil); err != nil {
		t.Errorf("their own session: %v", err)
	}
	act.Facts = nil
	if _, err := h.door.Do(t.Context(), act, nil); fault.KindOf(err) != fault.Denied {
		t.Errorf("somebody else's session: %v", err)
	}
}

func TestExplainSaysWhatWouldBeDecided(t *testing.T) {
	h := build(t)
	ada := h.person("ada", "developer")
	d, err := h.door.Explain(t.Context(), doorway.Act{Action: "sessions.open", By: ada, Host: &h.host, Context: policy.Context{Level: "write"}})
	fatal(t, err)
	if d.Allowed || d.Rules[0] != "write-with-a-grant" || len(d.WhoCould) != 2 {
		t.Errorf("%+v", d)
	}
	if n := len(h.entries(doorway.ActDenied)); n != 0 {
		t.Errorf("an explanation left %d entries", n)
	}
}
