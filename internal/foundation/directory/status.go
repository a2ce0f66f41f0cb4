package directory

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Status is how it stands with the directory.
type Status struct {
	Host         string
	Mode         string
	Version      int64 // of the copy; 0: there is none
	Hash         string
	Statement    string
	Read         time.Time // when the copy was last another one
	Confirmed    time.Time // when it was last written down that it is the directory's
	Seen         time.Time // when the directory last answered this server
	StaleAfter   time.Duration
	Stale        bool
	Failing      string // why it cannot be read; "" when it can
	FailingSince time.Time
	People       int // of the directory, here
	Away         int // were here, and left
	Held         []HeldStatus
	Odd          []Odd // at most maxOdd
	OddCount     int
	Login        bool
	recorded     bool  // that it cannot be read
	Readings     int64 // how often it was read, or failed to be, since the start
}

// HeldStatus is a change that waits.
type HeldStatus struct {
	What, State, Approval string
	People                int
	Since                 time.Time
}

// statusBox keeps what only this server knows.
type statusBox struct {
	mu    sync.Mutex
	now   Status
	moved chan struct{}
}

func (b *statusBox) set(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.now)
	if b.moved != nil {
		close(b.moved)
		b.moved = nil
	}
}

func (b *statusBox) get() (Status, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.moved == nil {
		b.moved = make(chan struct{})
	}
	out := b.now
	out.Odd = slices.Clone(out.Odd)
	return out, b.moved
}

// Status reads how it stands.
func (d *Directory) Status(ctx context.Context) (Status, error) {
	if d == nil {
		return Status{}, fault.New(fault.NotFound, "cannot show the directory: none is configured").WithHint("set [directory] in handrail.toml: handrail config explain")
	}
	s, _ := d.status.get()
	s.StaleAfter, s.Login = d.c.stale, d.c.Login
	err := d.Store.View(ctx, func(v *store.View) error {
		rows, err := store.All[copyRow](v, selectCopy)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			r := rows[0]
			s.Version, s.Hash, s.Statement, s.Read, s.Confirmed = r.Version, r.Hash, r.Statement, fromMicros(r.Read), fromMicros(r.Confirmed)
			s.Stale = time.Since(s.Confirmed) > d.c.stale
		}
		here, err := store.One[int64](v, `SELECT COUNT(*) FROM directory_people WHERE away = 0`)
		if err != nil {
			return err
		}
		away, err := store.One[int64](v, `SELECT COUNT(*) FROM directory_people WHERE away > 0`)
		if err != nil {
			return err
		}
		s.People, s.Away = int(here), int(away)
		held, err := store.All[heldRow](v, selectHeld+`ORDER BY what`)
		for _, h := range held {
			if h.State == stateOver {
				continue
			}
			s.Held = append(s.Held, HeldStatus{h.What, h.State, h.Approval, int(h.People), fromMicros(h.Since)})
		}
		return err
	})
	return s, err
}

// StaleTx says whether the copy is older than it may be: whoever left since
// would still look like somebody who is there. Without a copy there is nobody
// of the directory, and nothing that could be old.
func (d *Directory) StaleTx(q store.Queryer, now time.Time) (bool, error) {
	if d == nil {
		return false, nil
	}
	rows, err := store.All[copyRow](q, selectCopy)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	return now.Sub(fromMicros(rows[0].Confirmed)) > d.c.stale, nil
}

// Sync reads the directory anew and waits for it. A change that somebody denied
// is asked for once more.
func (d *Directory) Sync(ctx context.Context) (Status, error) {
	if d == nil {
		return d.Status(ctx)
	}
	if err := d.askAgain(ctx); err != nil {
		return Status{}, err
	}
	before, moved := d.status.get()
	d.poke(d.anew)
	for now := before; now.Readings == before.Readings; {
		select {
		case <-moved:
		case <-ctx.Done():
			return Status{}, fault.Wrap(fault.Unavailable, ctx.Err(), "cannot wait for the directory").WithHint("handrail directory status")
		}
		now, moved = d.status.get()
	}
	return d.Status(ctx)
}

// askAgain forgets what somebody denied.
func (d *Directory) askAgain(ctx context.Context) error {
	rows, err := d.heldRows(ctx)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.State != stateDenied {
			continue
		}
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.holdTx(tx, held{}, r.What, false) }); err != nil {
			return err
		}
	}
	return nil
}

// Ways is how a person came by the groups that they have of the directory: for
// each group here the path of groups there, outermost first.
type Ways map[string][]string

// WaysTx reads the ways of one person, or, for "", of everybody by person. They
// are of the copy, and of the map that was in force when it was applied.
func WaysTx(q store.Queryer, person string) (map[string]Ways, error) {
	rows, err := store.All[struct {
		Hash   string `db:"hash"`
		Body   []byte `db:"body"`
		Mapped string `db:"mapped"`
	}](q, `SELECT hash, body, mapped FROM directory_copy WHERE id = 1`)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	copied, err := unpack(rows[0].Body, rows[0].Hash)
	if err != nil {
		return nil, err
	}
	var mapped map[string][]string
	if err := json.Unmarshal([]byte(rows[0].Mapped), &mapped); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the copy of the directory")
	}
	ties, err := store.All[struct {
		UUID   string `db:"uuid"`
		Person string `db:"person"`
	}](q, `SELECT uuid, person FROM directory_people WHERE away = 0`)
	if err != nil {
		return nil, err
	}
	people := map[string]string{}
	for _, t := range ties {
		people[t.UUID] = t.Person
	}
	st := copied.stand(mapped)
	out := map[string]Ways{}
	for i, h := range copied.People {
		id, here := people[h.ID]
		if !here || person != "" && id != person {
			continue
		}
		ways := Ways{}
		for _, g := range st.groups(i) {
			ways[g] = st.path(i, g)
		}
		out[id] = ways
	}
	return out, nil
}

// ManagerTx is the person here who is somebody's manager there; "" is none.
func ManagerTx(q store.Queryer, person string) (string, error) {
	rows, err := store.All[struct {
		Hash string `db:"hash"`
		Body []byte `db:"body"`
	}](q, `SELECT hash, body FROM directory_copy WHERE id = 1`)
	if err != nil || len(rows) == 0 {
		return "", err
	}
	copied, err := unpack(rows[0].Body, rows[0].Hash)
	if err != nil {
		return "", err
	}
	uuid, err := store.All[string](q, `SELECT uuid FROM directory_people WHERE person = $1`, person)
	if err != nil || len(uuid) == 0 {
		return "", err
	}
	for _, h := range copied.People {
		if h.ID != uuid[0] || h.Manager < 0 || h.Manager >= len(copied.People) {
			continue
		}
		boss, err := store.All[string](q, `SELECT person FROM directory_people WHERE uuid = $1`, copied.People[h.Manager].ID)
		if err != nil || len(boss) == 0 {
			return "", err
		}
		return boss[0], nil
	}
	return "", nil
}

// PersonOf is the person here of an entry there, for a provider that names
// people by the directory's lasting ids (identity.Keeper).
func (d *Directory) PersonOf(q store.Queryer, lasting string) (string, error) {
	uuid, err := uuidOf(lasting)
	if err != nil {
		return "", nil // no id is nobody's
	}
	found, err := store.All[string](q, `SELECT person FROM directory_people WHERE uuid = $1 AND away = 0`, uuid)
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0], nil
}

// KeepsGroups says whether the directory decides the groups of a person
// (identity.Keeper). It does for whoever came by it, also when they left.
func (d *Directory) KeepsGroups(q store.Queryer, person string) (bool, error) {
	n, err := store.One[int64](q, `SELECT COUNT(*) FROM directory_people WHERE person = $1`, person)
	return n > 0, err
}
