package peer

import (
	"context"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Of several servers one leads: it alone does what is to be done once for the
// installation, such as asking the company's directory. Who leads stands in the
// database with a term that grows by one at each change, and each change is an
// entry. A leader holds its term while it can say that it lives:
//
//	beat ──────────── b.Hold ──┤ it stops by itself
//	     seen by another ──────── b.Away ──┤ that one may take the next term
//
// b.Hold is the shorter, each by a clock of its own that only runs forward, and
// what a leader began has the time between to end. What must never be done
// twice, even by a machine that stood still in between, asks LeadsTx in the
// transaction that records it.

// leading is the row of who leads.
type leading struct {
	Server string `db:"server"`
	Term   int64  `db:"term"`
}

const selectLeading = `SELECT server, term FROM server_leading WHERE id = 1`

// term is one time of leading, from taking it until it is given up or lost.
type term struct {
	n      int64
	ctx    context.Context // ends when it is given up or lost
	cancel context.CancelFunc
	works  int           // what runs by it; under Peers.mu, like over
	over   bool          // nothing does any more, nor will
	idle   chan struct{} // closed when it is over
}

func (t *term) stands() bool { return t != nil && t.ctx.Err() == nil }

// settle notes that it is over, if it is.
func (t *term) settle() {
	if !t.over && !t.stands() && t.works == 0 {
		t.over = true
		close(t.idle)
	}
}

// Lead runs f while this server leads, and again each time that it comes to,
// until ctx ends or f errs while it leads. f's context ends when another server
// may lead, and f has to end with it. A server alone leads always.
func (p *Peers) Lead(ctx context.Context, f func(context.Context) error) error {
	if !p.started.Load() {
		return f(ctx)
	}
	for ctx.Err() == nil {
		t := p.join(ctx)
		if t == nil {
			break
		}
		run, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(t.ctx, cancel)
		err := f(run)
		lost := run.Err() != nil
		stop()
		cancel()
		p.leave(t)
		if err != nil && !lost {
			return err
		}
		select { // f may have nothing left to do in this term
		case <-t.ctx.Done():
		case <-ctx.Done():
		}
	}
	return nil
}

// join waits until this server leads, and counts as work of that term. It is
// nil when ctx ended first.
func (p *Peers) join(ctx context.Context) *term {
	for {
		p.mu.Lock()
		t, changed := p.term, p.elected
		if t.stands() {
			t.works++
			p.mu.Unlock()
			return t
		}
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Peers) leave(t *term) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.works--
	t.settle()
}

// Leads says whether this server leads, as far as it knows.
func (p *Peers) Leads() bool {
	if !p.started.Load() {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.term.stands()
}

// OtherLeader is the server that leads and lives, if it is another one.
func (p *Peers) OtherLeader() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.led.Server == p.d.Self.ID || !holds(p.list, p.led.Server) {
		return ""
	}
	return p.led.Server
}

// LeadsTx says whether this server still leads, in the deciding transaction:
// what that records is recorded by no other leader.
func (p *Peers) LeadsTx(q store.Queryer) (bool, error) {
	if !p.started.Load() {
		return true, nil
	}
	p.mu.Lock()
	t := p.term
	p.mu.Unlock()
	if t == nil {
		return false, nil
	}
	row, err := leadingTx(q)
	return err == nil && row == leading{p.d.Self.ID, t.n}, err
}

func leadingTx(q store.Queryer) (leading, error) {
	rows, err := store.All[leading](q, selectLeading)
	if err != nil || len(rows) == 0 {
		return leading{}, err
	}
	return rows[0], nil
}

// hold lets the present term go on: this server said at that moment that it lives.
func (p *Peers) hold(said time.Time) {
	p.mu.Lock()
	p.lapse.Reset(time.Until(said.Add(p.b.Hold)))
	p.away.Reset(time.Until(said.Add(p.b.Away)))
	p.cut = time.Since(said) >= p.b.Away
	p.mu.Unlock()
	p.tellCut()
}

// isCut notes that the others must take this server for away by now.
func (p *Peers) isCut() {
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	p.tellCut()
}

// tellCut tells what changed, in the order in which it did.
func (p *Peers) tellCut() {
	p.telling.Lock()
	defer p.telling.Unlock()
	p.mu.Lock()
	cut := p.cut
	p.mu.Unlock()
	if cut != p.told && p.d.Cut != nil {
		p.told = cut
		p.d.Cut(cut)
	}
}

// yield ends the present term here. The row stays: others see that this server
// rests, or that it is away.
func (p *Peers) yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != nil {
		p.term.cancel()
		p.term.settle()
	}
}

// rests says that nothing runs here by a term, and that nothing will: this
// server drains.
func (p *Peers) rests() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !mayLead(p.list, p.d.Self.ID) && (p.term == nil || p.term.over)
}

// elect takes the next term when nobody else may have the present one, and
// gives up one that another has. It follows a beat and a look.
func (p *Peers) elect(ctx context.Context) error {
	me := p.d.Self.ID
	p.mu.Lock()
	now, t, list := p.led, p.term, p.list
	mine, over := t.stands(), t == nil || t.over
	p.mu.Unlock()
	switch {
	case mine && (now != leading{me, t.n} || !mayLead(list, me)):
		p.yield() // what runs by it has to end before this server may lead again
		return nil
	case mine || !over || !mayLead(list, me):
		return nil
	case now.Server != me && holds(list, now.Server):
		return nil
	}
	return p.take(ctx, now)
}

// mayLead says whether a server may take a term: it takes sessions.
func mayLead(list []Server, id string) bool {
	i := slices.IndexFunc(list, func(s Server) bool { return s.ID == id })
	return i >= 0 && list[i].State == StateActive
}

// holds says whether a server may still be doing what a leader does.
func holds(list []Server, id string) bool {
	i := slices.IndexFunc(list, func(s Server) bool { return s.ID == id })
	return i >= 0 && list[i].Serves() && list[i].Alive && !list[i].Resting
}

// take takes the term after that one, if nobody did.
func (p *Peers) take(ctx context.Context, after leading) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.b.Beat)
	defer cancel()
	took := false
	_, err := p.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		now, err := leadingTx(tx)
		if took = err == nil && now == after; !took {
			return nil, err
		}
		if _, err := tx.Exec(`INSERT INTO server_leading (id, server, term) VALUES (1, $1, $2)
			ON CONFLICT (id) DO UPDATE SET server = $1, term = $2`, p.d.Self.ID, after.Term+1); err != nil {
			return nil, err
		}
		return []ledger.Entry{{Action: Leads, Object: leadership, Version: after.Term + 1, Target: "server/" + p.d.Self.ID, SealTo: ledger.System,
			Payload: leads{V: 1, Server: p.d.Self.ID, Term: after.Term + 1, Before: after.Server}}}, nil
	})
	if err != nil || !took {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(began) > p.b.Hold {
		return nil // so slow that others may think it away: the next turn tries again
	}
	t := &term{n: after.Term + 1, idle: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	p.term, p.led = t, leading{p.d.Self.ID, t.n}
	close(p.elected)
	p.elected = make(chan struct{})
	return nil
}

// leadership is what a term is a version of: not of the server, which has
// versions of its own.
const leadership = "leadership"

// leads is what the entry of a change of leader says.
type leads struct {
	V      int    `json:"v"`
	Server string `json:"server"`
	Term   int64  `json:"term"`
	Before string `json:"before,omitempty"`
}

// rest ends leading, and says so once all that runs by it has ended, so that
// another takes over at once.
func (p *Peers) rest(ctx context.Context) {
	p.yield()
	p.mu.Lock()
	t := p.term
	p.mu.Unlock()
	if t != nil {
		select {
		case <-t.idle:
		case <-time.After(p.b.Hold): // it hangs: the others take it for away after a while
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.b.Beat)
	defer cancel()
	_ = p.say(ctx, true) // unsaid, it is found out
}
