package peer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// mate is one of several servers, in this process.
type mate struct {
	h     *home
	peers *peer.Peers
	stuck sync.Mutex // held: it stands still, and says nothing
	began chan struct{}
	ended chan struct{}
	stop  func() // and waits until it has
}

// mate makes and runs a server of the house, whose work says when it begins and ends.
func (h *home) mate(self peer.Self) *mate {
	h.t.Helper()
	m := &mate{h: h, began: make(chan struct{}, 16), ended: make(chan struct{}, 16)}
	d := h.deps
	d.Self, d.Bounds = self, peer.Bounds{Beat: 20 * time.Millisecond, Hold: 300 * time.Millisecond, Away: time.Second, Gone: time.Hour}
	d.Load = func() peer.Presence {
		m.stuck.Lock()
		defer m.stuck.Unlock()
		return peer.Presence{}
	}
	m.peers = peer.New(d)
	house.Must(h.t, m.peers.Start(h.t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = m.peers.Run(ctx) })
	group.Go(func() {
		_ = m.peers.Lead(ctx, func(ctx context.Context) error {
			m.began <- struct{}{}
			<-ctx.Done()
			m.ended <- struct{}{}
			return nil
		})
	})
	m.stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	h.t.Cleanup(m.stop)
	return m
}

// two are two servers, of which the first leads.
func two(t *testing.T) (h *home, a, b *mate, ada identity.Principal) {
	t.Helper()
	h, first, bob, _ := moved(t)
	invited, err := h.peers.Invite(t.Context(), first.Principal, "b")
	house.Must(t, err)
	q, _ := h.question(invited.Secret)
	asked, err := h.peers.Join(t.Context(), q, "192.0.2.9")
	house.Must(t, err)
	house.Must(t, h.approve(bob, asked.Approval))
	a = h.mate(h.deps.Self)
	wait(t, a.began, "the first server leads")
	b = h.mate(peer.Self{ID: asked.Server.ID, Name: "b", Address: q.Address, SSH: q.SSH})
	return h, a, b, first.Principal
}

func wait(t *testing.T, what <-chan struct{}, text string) {
	t.Helper()
	select {
	case <-what:
	case <-time.After(30 * time.Second):
		t.Fatalf("waited 30 s, and never: %s", text)
	}
}

// act records something that only a leader may.
func (m *mate) act() error {
	_, err := m.h.Store.Record(m.h.t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		if leads, err := m.peers.LeadsTx(tx); err != nil || !leads {
			return nil, errors.Join(err, errors.New("it does not lead"))
		}
		return []ledger.Entry{{Action: "test.acted", Payload: map[string]string{}}}, nil
	})
	return err
}

func (h *home) count(action ledger.Action) int {
	h.t.Helper()
	list, err := h.Store.Entries(h.t.Context(), store.EntryQuery{Action: string(action), Limit: 100})
	house.Must(h.t, err)
	return len(list)
}

func TestOneServerLeadsAndWhenItStandsStillAnother(t *testing.T) {
	h, a, b, _ := two(t)
	house.Must(t, a.act())
	if b.act() == nil || b.peers.Leads() {
		t.Fatal("two servers lead")
	}
	a.stuck.Lock()
	wait(t, a.ended, "who cannot say that it lives stops by itself")
	wait(t, b.began, "the other leads")
	if a.act() == nil {
		t.Fatal("who led before acts in the other's term")
	}
	house.Must(t, b.act())
	a.stuck.Unlock()
	b.stop()
	wait(t, b.ended, "who stops ends its work")
	wait(t, a.began, "the first leads again")
	house.Must(t, a.act())
	if n := h.count(peer.Leads); n != 3 {
		t.Errorf("three times another came to lead, and %d entries say so", n)
	}
	h.versionsGrow()
}

// versionsGrow looks whether each object of the ledger has another version each
// time: a term is not the version of the server whose term it is.
func (h *home) versionsGrow() {
	h.t.Helper()
	list, err := h.Store.Entries(h.t.Context(), store.EntryQuery{After: -1, Oldest: true, Limit: 1000})
	house.Must(h.t, err)
	was := map[string]int64{}
	for _, e := range list {
		if o := e.Parsed.Object; o != "" {
			if e.Parsed.Version <= was[o] {
				h.t.Errorf("%s says version %d of %s, of which %d was there", e.Parsed.Action, e.Parsed.Version, o, was[o])
			}
			was[o] = e.Parsed.Version
		}
	}
}

func TestALeaderThatDrainsEndsItsWorkAndHandsOver(t *testing.T) {
	h, a, b, ada := two(t)
	_, err := h.peers.Drain(t.Context(), ada, "a", "restart", 0)
	house.Must(t, err)
	wait(t, a.ended, "who drains ends its work")
	wait(t, b.began, "the other leads")
	if a.act() == nil {
		t.Fatal("who drains acts")
	}
	house.Must(t, b.act())
}

func TestAServerAloneLeadsAlways(t *testing.T) {
	h := build(t)
	alone := peer.New(h.deps) // over SQLite it is never started
	ran := false
	house.Must(t, alone.Lead(t.Context(), func(context.Context) error { ran = true; return nil }))
	if !ran || !alone.Leads() {
		t.Error("a server alone does not do what is done once")
	}
}
