package witness

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// Bounds are the times of a circle; zero fields take the defaults.
type Bounds struct {
	Every   time.Duration // a ledger that grew is shown to its witnesses that often; 1 s
	Renew   time.Duration // one that did not, that often; 20 s
	Answer  time.Duration // how long a witness may take; 3 s
	Grace   time.Duration // once enough have answered, how long the others have; 300 ms
	Missing time.Duration // without a cosignature for so long, it is missing; 30 s
	Keep    time.Duration // of the cosigned checkpoints one is kept that often; 10 min
}

func (b Bounds) withDefaults() Bounds {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&b.Every, time.Second)
	set(&b.Renew, 20*time.Second)
	set(&b.Answer, 3*time.Second)
	set(&b.Grace, 300*time.Millisecond)
	set(&b.Missing, 30*time.Second)
	set(&b.Keep, 10*time.Minute)
	return b
}

// Deps is what a Circle needs. Approvals must have been made with Kinds.
type Deps struct {
	Store     *store.Store
	Door      *doorway.Door
	Approvals *approval.Approvals
	People    *identity.People
	Policy    *policy.Force
	Bounds    Bounds
	// Leads says whether this is the server that asks whenever the ledger grew and
	// tells who is missing. The others ask when somebody waits, and now and then.
	// nil: it is.
	Leads func() bool
	Log   *slog.Logger
	HTTP  *http.Client // nil: one of its own
}

// Circle is the witnesses that this ledger is shown to.
type Circle struct {
	d    Deps
	b    Bounds
	http *http.Client
	kick chan struct{} // somebody waits for a cosignature

	mu      sync.Mutex
	version int64 // of the policy in force
	policy  ledger.WitnessPolicy
	members []*member
	newest  cosigned
	kept    time.Time
	changed chan struct{} // closed and renewed with each round
	began   time.Time     // when the policy came into force here
}

// cosigned is the newest checkpoint that enough witnesses cosigned.
type cosigned struct {
	tree   tlog.Tree
	signed []byte
	at     time.Time
	who    []string
}

// member is one witness as this server sees it. It is guarded by Circle.mu.
type member struct {
	ledger.PolicyWitness
	size   int64 // of the tree that it cosigned last, as far as is known
	busy   bool
	good   time.Time // of its last cosignature, or of when we began to ask
	at     int64     // what its last cosignature says
	took   time.Duration
	why    string // it did not answer as it should; empty: it did
	forked bool   // it says that this ledger is not the one it knows
	out    outage
}

// New returns a Circle. Run must run.
func New(d Deps) *Circle {
	c := &Circle{d: d, b: d.Bounds.withDefaults(), http: d.HTTP, kick: make(chan struct{}, 1), changed: make(chan struct{})}
	if c.d.Log == nil {
		c.d.Log = slog.New(slog.DiscardHandler)
	}
	if c.http == nil {
		c.http = newClient()
	}
	return c
}

// Run asks the witnesses until ctx ends.
func (c *Circle) Run(ctx context.Context) error {
	tick := time.NewTicker(c.b.Every)
	defer tick.Stop()
	waits := true
	for {
		if err := c.tend(ctx, waits); err != nil && ctx.Err() == nil {
			c.d.Log.Warn("the witnesses could not be asked", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			waits = c.leads()
		case <-c.kick:
			waits = true
		}
	}
}

func (c *Circle) leads() bool { return c.d.Leads == nil || c.d.Leads() }

// tend is one turn: take the policy in force, ask if it is time, tell who is
// missing. waits says that what the ledger grew by is not left for later.
func (c *Circle) tend(ctx context.Context, waits bool) error {
	if c.d.Store.Damage() != nil {
		return nil // nothing is signed any more
	}
	if err := c.reload(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	nobody := len(c.members) == 0
	c.mu.Unlock()
	if nobody {
		return nil
	}
	tree, signed, err := c.d.Store.Head(ctx)
	if err != nil {
		return err
	}
	if c.due(tree, waits) {
		c.round(ctx, tree, signed)
	}
	if !c.leads() {
		return nil
	}
	return c.tell(ctx)
}

// due says whether the witnesses are to be asked now.
func (c *Circle) due(tree tlog.Tree, waits bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return waits && tree.N > c.newest.tree.N || time.Since(c.newest.at) >= c.b.Renew
}

// reload takes the policy in force, when another one came.
func (c *Circle) reload(ctx context.Context) error {
	var row policyRow
	var outs []outage
	err := c.d.Store.View(ctx, func(v *store.View) (err error) {
		if row, err = policyTx(v); err != nil {
			return err
		}
		outs, err = store.All[outage](v, `SELECT witness, since, why FROM witness_outage`)
		return err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if row.Version == c.version && !c.began.IsZero() {
		for _, m := range c.members { // whoever led before has told
			m.told(outs)
		}
		return nil
	}
	p, err := ledger.ParseWitnessPolicy([]byte(row.Text))
	if err != nil {
		return err
	}
	now := time.Now()
	var members []*member
	for _, w := range p.Witnesses {
		if w.URL == "" {
			continue // named for who verifies, not asked by us
		}
		m := &member{PolicyWitness: w, good: now}
		for _, old := range c.members {
			if old.Key.Same(w.Key) && old.URL == w.URL {
				m = old
				m.PolicyWitness = w
			}
		}
		m.told(outs)
		members = append(members, m)
	}
	c.version, c.policy, c.members, c.began = row.Version, p, members, now
	c.newest.at = time.Time{} // what counted before may not be enough now
	if _, met := p.Check(c.newest.signed, 0); !met {
		c.newest = cosigned{}
	}
	return nil
}

// told takes what the ledger says of a witness.
func (m *member) told(outs []outage) {
	m.out = outage{}
	for _, o := range outs {
		if o.Witness == idOf(m.Key) {
			m.out = o
		}
	}
}

// round shows the head to all witnesses and waits until enough have answered,
// and a little for the others.
func (c *Circle) round(ctx context.Context, tree tlog.Tree, signed []byte) {
	ctx, cancel := context.WithTimeout(ctx, c.b.Answer)
	answers := make(chan *ledger.Cosignature)
	waiting := 0
	c.mu.Lock()
	for _, m := range c.members {
		if !m.busy {
			m.busy = true
			waiting++
			go c.ask(ctx, m, tree, signed, answers)
		}
	}
	p := c.policy
	c.mu.Unlock()
	var got []ledger.Cosignature
	var grace <-chan time.Time
	for waiting > 0 {
		select {
		case a := <-answers:
			waiting--
			if a != nil {
				got = append(got, *a)
			}
		case <-grace:
			// The others end by themselves; what they say counts in the next round.
			go func(left int) {
				defer cancel()
				for range left {
					<-answers
				}
			}(waiting)
			c.publish(tree, signed, got)
			return
		}
		if _, met := p.Check(ledger.AddCosignatures(signed, got...), 0); met && grace == nil {
			t := time.NewTimer(c.b.Grace)
			defer t.Stop()
			grace = t.C
		}
	}
	cancel()
	c.publish(tree, signed, got)
}

// publish makes a cosigned checkpoint known, if enough cosigned it.
func (c *Circle) publish(tree tlog.Tree, signed []byte, got []ledger.Cosignature) {
	note := ledger.AddCosignatures(signed, got...)
	c.mu.Lock()
	defer c.mu.Unlock()
	who, met := c.policy.Check(note, 0)
	if met && c.policy.Wants() && tree.N >= c.newest.tree.N {
		c.newest = cosigned{tree: tree, signed: note, at: time.Now(), who: who}
		if time.Since(c.kept) >= c.b.Keep {
			c.kept = time.Now()
			go c.keep(tree.N, note)
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// keep stores a cosigned checkpoint, for exports. It is evidence that others
// hold too, so that it may be lost.
func (c *Circle) keep(n int64, note []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := c.d.Store.Observe(ctx, func(o *store.Obs) error {
		_, err := o.Exec(`INSERT INTO witness_cosigned (n, signed) VALUES ($1, $2) ON CONFLICT (n) DO UPDATE SET signed = $2`, n, string(note))
		return err
	})
	if err != nil {
		c.d.Log.Warn("a cosigned checkpoint could not be kept", "error", err)
	}
}

// Newest is the newest checkpoint that enough witnesses cosigned.
func (c *Circle) Newest() (tree tlog.Tree, signed []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest.tree, c.newest.signed, c.newest.signed != nil
}

// Cosigned waits for a cosigned checkpoint of at least that size.
func (c *Circle) Cosigned(ctx context.Context, size int64) (tlog.Tree, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.b.Answer)
	defer cancel()
	if err := c.reload(ctx); err != nil { // a policy of a moment ago counts
		return tlog.Tree{}, nil, err
	}
	for {
		c.mu.Lock()
		newest, changed, wants := c.newest, c.changed, c.policy.Wants()
		c.mu.Unlock()
		switch {
		case newest.tree.N >= size && newest.signed != nil:
			return newest.tree, newest.signed, nil
		case !wants:
			return tlog.Tree{}, nil, fault.New(fault.Unavailable, "cannot have the ledger cosigned: this installation has no witnesses").
				WithHint("handrail ledger witness add NAME KEY URL")
		}
		select {
		case c.kick <- struct{}{}:
		default: // it is awake
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return tlog.Tree{}, nil, fault.New(fault.Unavailable, "cannot have entry #%d cosigned: %s", size-1, c.Tail().Why).
				WithHint("handrail ledger witness list")
		}
	}
}

// ExportBlobs hands out nothing: a circle keeps no recordings.
func (c *Circle) ExportBlobs(context.Context, func(func(store.Recorded) error) error, func(string, io.Reader) error) error {
	return nil
}

// ExportCosigned hands out cosigned checkpoints of the first size entries.
func (c *Circle) ExportCosigned(ctx context.Context, size int64, put func(n int64, signed []byte) error) error {
	type row struct {
		N      int64  `db:"n"`
		Signed string `db:"signed"`
	}
	var rows []row
	err := c.d.Store.ViewObserved(ctx, func(v *store.View) (err error) {
		rows, err = store.All[row](v, `SELECT n, signed FROM witness_cosigned WHERE n <= $1 ORDER BY n`, size)
		return err
	})
	if err != nil {
		return err
	}
	tree, signed, ok := c.Newest()
	for _, r := range rows {
		if ok && r.N == tree.N {
			continue
		}
		if err := put(r.N, []byte(r.Signed)); err != nil {
			return err
		}
	}
	if ok && tree.N <= size {
		return put(tree.N, signed)
	}
	return nil
}
