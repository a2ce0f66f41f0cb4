package peer

import (
	"context"
	"encoding/base64"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/store"
)

// lookBack is with how old a size of ours a server's is compared, in looks:
// what it says is as old as its last beat.
const lookBack = 3

// Bounds are the times of the servers' list; zero fields take the defaults.
type Bounds struct {
	Beat time.Duration // each server says that often that it lives; 2 s
	Hold time.Duration // a leader that could not say so for so long leads no more; 6 s
	Away time.Duration // a server that stood still for so long counts as away; 10 s
	Gone time.Duration // after so long another closes what it left open; 40 s
}

func (b Bounds) withDefaults() Bounds {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&b.Beat, 2*time.Second)
	set(&b.Hold, 6*time.Second)
	set(&b.Away, 10*time.Second)
	set(&b.Gone, 40*time.Second)
	return b
}

// beat is when a server's count last moved, by our own clock: those of the
// servers need not agree.
type beat struct {
	n    int64
	at   time.Time
	told bool // that it is gone
}

type presenceRow struct {
	ID       string `db:"id"`
	Beat     int64  `db:"beat"`
	Version  string `db:"version"`
	Size     int64  `db:"size"`
	Route    string `db:"route"`
	Nodes    int64  `db:"nodes"`
	Sessions int64  `db:"sessions"`
	Resting  int64  `db:"resting"`
	Signed   string `db:"signed"` // its newest checkpoint, and of which epoch that is
	Epoch    int64  `db:"epoch"`
}

const selectPresence = `SELECT id, beat, version, size, route, nodes, sessions, resting, signed, epoch FROM server_presence`

// Run says again and again that this server lives, looks at the others, and
// leads where it should. At its end it has another lead.
func (p *Peers) Run(ctx context.Context) error {
	defer p.rest(ctx)
	defer p.away.Stop()
	tick := time.NewTicker(p.b.Beat)
	defer tick.Stop()
	for {
		if err := p.turn(ctx); err != nil && ctx.Err() == nil {
			p.d.Log.Warn("this server and the others do not see each other in the database", "error", err)
		}
		p.buryGone(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.kick:
		}
	}
}

func (p *Peers) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.b.Hold)
	defer cancel()
	began := time.Now()
	if err := p.say(ctx, p.rests()); err != nil {
		return err
	}
	p.hold(began)
	if err := p.look(ctx); err != nil {
		return err
	}
	return p.elect(ctx)
}

// Look makes Run look at once. Who follows the ledger calls it after an entry
// about servers.
func (p *Peers) Look() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *Peers) say(ctx context.Context, resting bool) error {
	now, rests := p.d.Load(), 0
	if resting {
		rests = 1
	}
	signed, epoch := p.d.Store.Signed()
	return p.d.Store.Observe(ctx, func(o *store.Obs) error {
		_, err := o.Exec(`INSERT INTO server_presence (id, beat, version, size, route, nodes, sessions, resting, signed, epoch) VALUES ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9)
			ON CONFLICT (id) DO UPDATE SET beat = server_presence.beat + 1, version = $2, size = $3, route = $4, nodes = $5, sessions = $6, resting = $7,
			signed = $8, epoch = $9`,
			p.d.Self.ID, p.d.Self.Version, now.Size, now.Route, now.Nodes, now.Sessions, rests, string(signed), epoch)
		return err
	})
}

// Meet says where this server's bus will be, then reads where the others' are.
func Meet(ctx context.Context, s *store.Store, id, route string) (others []string, err error) {
	err = s.Observe(ctx, func(o *store.Obs) error {
		_, err := o.Exec(`INSERT INTO server_presence (id, beat, version, size, route, nodes, sessions) VALUES ($1, 1, '', 0, $2, 0, 0)
			ON CONFLICT (id) DO UPDATE SET beat = server_presence.beat + 1, route = $2`, id, route)
		return err
	})
	if err != nil {
		return nil, err
	}
	var serve []string
	err = s.View(ctx, func(v *store.View) (err error) {
		serve, err = store.All[string](v, `SELECT id FROM servers WHERE (state = $1 OR state = $2) AND id <> $3`, StateActive, StateDraining, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.ViewObserved(ctx, func(v *store.View) error {
		rows, err := store.All[presenceRow](v, selectPresence)
		for _, r := range rows {
			if slices.Contains(serve, r.ID) && CheckAddress(r.Route) == nil {
				others = append(others, r.Route)
			}
		}
		return err
	})
	return others, err
}

// look reads the list and who moved since.
func (p *Peers) look(ctx context.Context) error {
	var rows []Server
	var led leading
	err := p.d.Store.View(ctx, func(v *store.View) (err error) {
		if led, err = leadingTx(v); err != nil {
			return err
		}
		rows, err = store.All[Server](v, selectServer+`WHERE state <> $1 ORDER BY name, id`, StateRemoved)
		return err
	})
	if err != nil {
		return err
	}
	var said []presenceRow
	err = p.d.Store.ViewObserved(ctx, func(v *store.View) (err error) {
		said, err = store.All[presenceRow](v, selectPresence)
		return err
	})
	if err != nil {
		return err
	}
	p.face(ctx, rows, said)
	now := time.Now()
	p.mu.Lock()
	if p.sizes = append(p.sizes, p.d.Store.Size()); len(p.sizes) > lookBack {
		p.sizes = p.sizes[1:]
	}
	before := p.list
	for i := range rows {
		p.markLocked(&rows[i], said, now)
	}
	p.list, p.led = rows, led
	p.mu.Unlock()
	if !slices.EqualFunc(before, rows, sameNews) && p.d.Changed != nil {
		p.d.Changed(append([]Server(nil), rows...))
	}
	return nil
}

// face compares the database with what the other servers have signed: of a
// database that was replaced by an older one, whoever was here before knows.
func (p *Peers) face(ctx context.Context, rows []Server, said []presenceRow) {
	for _, r := range said {
		if r.ID == p.d.Self.ID || p.faced[r.ID] == r.Signed || !slices.ContainsFunc(rows, func(s Server) bool { return s.ID == r.ID }) {
			continue
		}
		if err := p.d.Store.Face(ctx, []byte(r.Signed), r.Epoch); err != nil {
			p.d.Log.Error("another server has signed what this database does not hold", "server", r.ID, "error", err)
			continue // asked again at the next look
		}
		p.faced[r.ID] = r.Signed
	}
}

func (p *Peers) markLocked(s *Server, said []presenceRow, now time.Time) {
	s.Self = s.ID == p.d.Self.ID
	i := slices.IndexFunc(said, func(r presenceRow) bool { return r.ID == s.ID })
	if i < 0 {
		return
	}
	r := said[i]
	s.Presence = Presence{Program: r.Version, Size: r.Size, Route: r.Route, Nodes: r.Nodes, Sessions: r.Sessions, Resting: r.Resting != 0}
	b, known := p.beats[s.ID]
	if !known || b.n != r.Beat {
		b = beat{n: r.Beat, at: now}
		p.beats[s.ID] = b
	}
	s.Seen, s.Alive = b.at, s.Self || now.Sub(b.at) < p.b.Away
	s.Behind = max(p.sizes[0]-r.Size, 0)
}

// sameNews says that nobody need hear of the difference.
func sameNews(a, b Server) bool {
	return a.ID == b.ID && a.Version == b.Version && a.Alive == b.Alive
}

// buryGone tells once of each server that has stood still for long.
func (p *Peers) buryGone(ctx context.Context) {
	if p.d.Gone == nil {
		return
	}
	var gone []Server
	p.mu.Lock()
	for _, s := range p.list {
		b, known := p.beats[s.ID]
		if !s.Self && known && !b.told && time.Since(b.at) > p.b.Gone {
			b.told = true
			p.beats[s.ID] = b
			gone = append(gone, s)
		}
	}
	p.mu.Unlock()
	for _, s := range gone {
		p.d.Gone(ctx, s)
	}
}

// Shelf is where the servers agree on data keys (keyring.Shelf).
func Shelf(s *store.Store) keyring.Shelf { return shelf{s} }

type shelf struct{ s *store.Store }

// gone marks a subject that was erased.
const gone = "erased"

func unshelve(texts []string) (wrapped []byte, erased bool, err error) {
	if len(texts) == 0 {
		return nil, false, nil
	}
	if texts[0] == gone {
		return nil, true, nil
	}
	wrapped, err = base64.StdEncoding.DecodeString(texts[0])
	return wrapped, false, err
}

// durable makes the commit wait for the disk, which observations need not.
func durable(o *store.Obs) error {
	_, err := o.Exec(`SET LOCAL synchronous_commit TO on`)
	return err
}

func (h shelf) Put(subject string, wrapped []byte) (kept []byte, erased bool, err error) {
	err = h.s.Observe(context.Background(), func(o *store.Obs) error {
		if err := durable(o); err != nil {
			return err
		}
		if _, err := o.Exec(`INSERT INTO data_keys (subject, wrapped) VALUES ($1, $2) ON CONFLICT (subject) DO NOTHING`,
			subject, base64.StdEncoding.EncodeToString(wrapped)); err != nil {
			return err
		}
		texts, err := store.All[string](o, `SELECT wrapped FROM data_keys WHERE subject = $1`, subject)
		if err == nil {
			kept, erased, err = unshelve(texts)
		}
		return err
	})
	return kept, erased, err
}

func (h shelf) Get(subject string) (wrapped []byte, erased bool, err error) {
	err = h.s.ViewObserved(context.Background(), func(v *store.View) error {
		texts, err := store.All[string](v, `SELECT wrapped FROM data_keys WHERE subject = $1`, subject)
		if err == nil {
			wrapped, erased, err = unshelve(texts)
		}
		return err
	})
	return wrapped, erased, err
}

func (h shelf) Destroy(subject string) error {
	return h.s.Observe(context.Background(), func(o *store.Obs) error {
		if err := durable(o); err != nil {
			return err
		}
		_, err := o.Exec(`INSERT INTO data_keys (subject, wrapped) VALUES ($1, $2) ON CONFLICT (subject) DO UPDATE SET wrapped = $2`, subject, gone)
		return err
	})
}

func (h shelf) List() (map[string]bool, error) {
	all := map[string]bool{}
	err := h.s.ViewObserved(context.Background(), func(v *store.View) error {
		type row struct {
			Subject string `db:"subject"`
			Gone    bool   `db:"gone"`
		}
		rows, err := store.All[row](v, `SELECT subject, wrapped = 'erased' AS gone FROM data_keys`)
		for _, r := range rows {
			all[r.Subject] = r.Gone
		}
		return err
	})
	return all, err
}
