package directory

import (
	"context"
	"encoding/json"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// How much one transaction takes on: it holds the writer.
const (
	takenAtOnce = 20
	givenAtOnce = 400
	rounds      = 4 // a change may make room for another, as a name that is freed
)

// apply makes the people here those of the directory. What takes power away
// acts first, even while the database is away, and is recorded after; what
// gives power is recorded, and that is all that gives it.
func (d *Directory) apply(ctx context.Context, w *world, mode string) error {
	copied := w.copy()
	st := copied.stand(d.c.Map)
	if len(st.absent) > 0 {
		return absentGroup(st.absent[0])
	}
	done := syncedPayload{V: 1, Mode: mode, People: len(copied.People), Groups: len(copied.Groups), Read: micros(w.read)}
	var p plan
	for round := 0; ; round++ {
		now, err := d.here(ctx)
		if err != nil {
			// The database is away. What it last said is enough to take away.
			if last := d.last.Load(); last != nil {
				d.brake(ctx, makePlan(d.c, copied, st, *last))
			}
			return err
		}
		if !d.leads() { // another server does the rest
			d.status.set(func(s *Status) { s.Mode, s.Seen = mode, w.read })
			return nil
		}
		p = makePlan(d.c, copied, st, now)
		if p.nothing() || round == rounds {
			break
		}
		d.brake(ctx, p)
		if err := d.carryOut(ctx, p, &done); err != nil {
			return err
		}
		d.brake(ctx, plan{leaves: p.leaves, losses: p.losses}) // and what began in between
		for _, l := range p.leaves {
			d.People.Release(l.person) // the row says it now
		}
	}
	if err := d.hold(ctx, p.held); err != nil {
		return err
	}
	done.Odd = len(p.odd)
	for _, h := range p.held {
		if done.Held == nil {
			done.Held = map[string]int{}
		}
		done.Held[h.what] = len(h.people)
	}
	d.status.set(func(s *Status) { s.Odd, s.OddCount = p.odd[:min(len(p.odd), maxOdd)], len(p.odd) })
	return d.keep(ctx, copied, done)
}

func absentGroup(name string) error {
	return unreadable("it has no group %.100q, or more than one, and [directory.map] counts on it", name)
}

// maxOdd bounds who is listed; the rest is counted.
const maxOdd = 100

// here reads who is here, and remembers it for when the database is away.
func (d *Directory) here(ctx context.Context) (here, error) {
	now, err := readHere(ctx, d.Store)
	if err == nil {
		d.last.Store(&now)
	}
	return now, err
}

func readHere(ctx context.Context, st *store.Store) (here, error) {
	now := here{members: map[string]member{}, names: map[string]string{}, uuids: map[string]string{}, agreed: map[string]string{}}
	err := st.View(ctx, func(v *store.View) error {
		members, err := store.All[member](v, `SELECT d.uuid, d.person, d.away, p.name, p.member_of, p.locked_at
FROM directory_people d JOIN people p ON p.id = d.person`)
		if err != nil {
			return err
		}
		for _, m := range members {
			now.members[m.UUID], now.uuids[m.Person] = m, m.UUID
		}
		people, err := store.All[struct {
			ID   string `db:"id"`
			Name string `db:"name"`
		}](v, `SELECT id, name FROM people`)
		if err != nil {
			return err
		}
		for _, p := range people {
			now.names[p.Name] = p.ID
		}
		held, err := store.All[heldRow](v, selectHeld)
		for _, h := range held {
			if h.State == stateAgreed {
				now.agreed[h.What] = h.Digest
			}
		}
		return err
	})
	return now, err
}

// brake ends at once what the plan takes away. It asks nothing and records
// nothing.
func (d *Directory) brake(ctx context.Context, p plan) {
	for _, l := range p.leaves {
		d.People.Brake(l.person)
		if d.Gone != nil {
			d.Gone(ctx, l.person, l.why)
		}
	}
	for _, l := range p.losses {
		if d.Fallen != nil {
			d.Fallen(ctx, l.person, lostText(l.lost))
		}
	}
}

func lostText(groups []string) string {
	text := "the directory took them out of "
	for i, g := range groups {
		if i > 0 {
			text += ", "
		}
		text += g
	}
	return text
}

// carryOut records the plan, what takes away first. If we crash in between, the
// next reading finds what is left to do in the rows.
func (d *Directory) carryOut(ctx context.Context, p plan, done *syncedPayload) error {
	for part := range chunks(p.leaves, takenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.leaveTx(tx, part) }); err != nil {
			return err
		}
		done.Left += len(part)
	}
	for part := range chunks(p.losses, takenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.loseTx(tx, part) }); err != nil {
			return err
		}
		done.Regrouped += len(part)
	}
	for part := range chunks(p.names, takenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.renameTx(tx, part) }); err != nil {
			return err
		}
		done.Renamed += len(part)
	}
	for part := range chunks(p.joins, givenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.joinTx(tx, part) }); err != nil {
			return err
		}
		done.Joined += len(part)
	}
	for part := range chunks(p.gains, givenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.gainTx(tx, part) }); err != nil {
			return err
		}
		done.Regrouped += len(part)
	}
	for part := range chunks(p.back, givenAtOnce) {
		if err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.backTx(tx, part) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *Directory) record(ctx context.Context, fn func(*store.Tx) ([]ledger.Entry, error)) error {
	_, err := d.Store.Record(ctx, store.Once(), fn)
	return err
}

// leaveTx locks whoever the directory has no more, ends their grants and takes
// their groups: should somebody let them in again, they come with nothing.
func (d *Directory) leaveTx(tx *store.Tx, part []leave) (all []ledger.Entry, err error) {
	for _, l := range part {
		n, err := tx.Exec(`UPDATE directory_people SET away = $1 WHERE uuid = $2 AND person = $3 AND away = 0`, micros(tx.Now()), l.uuid, l.person)
		if err != nil {
			return nil, err
		}
		if n != 1 {
			return nil, moved()
		}
		_, entries, err := d.People.LockTx(tx, ledger.System, l.person, l.why)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
		if _, entries, err = d.People.SetGroupsTx(tx, identity.Principal{ID: ledger.System}, l.person, nil); err != nil {
			return nil, err
		}
		all = append(all, entries...)
		if entries, err = d.endTx(tx, l.person, l.why); err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

func (d *Directory) endTx(tx *store.Tx, person, why string) ([]ledger.Entry, error) {
	if d.EndGrants == nil {
		return nil, nil
	}
	return d.EndGrants(tx, person, why)
}

// loseTx takes groups away. A grant was agreed to for who somebody was: with a
// group goes every grant, and they may ask anew.
func (d *Directory) loseTx(tx *store.Tx, part []change) (all []ledger.Entry, err error) {
	changes := make([]identity.Regroup, len(part))
	for i, l := range part {
		fresh, err := d.People.GetTx(tx, l.person)
		if err != nil {
			return nil, err
		}
		changes[i] = identity.Regroup{Person: l.person, Groups: without(fresh.Groups, l.lost)}
		entries, err := d.endTx(tx, l.person, lostText(l.lost))
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	entries, err := d.People.RegroupTx(tx, changes)
	return append(all, entries...), err
}

func (d *Directory) gainTx(tx *store.Tx, part []change) ([]ledger.Entry, error) {
	changes := make([]identity.Regroup, len(part))
	at := map[string]int{}
	n := 0
	for _, g := range part {
		fresh, err := d.People.GetTx(tx, g.person)
		if err != nil {
			return nil, err
		}
		if i, twice := at[g.person]; twice {
			changes[i].Groups = append(changes[i].Groups, g.groups...)
			continue
		}
		at[g.person] = n
		changes[n] = identity.Regroup{Person: g.person, Groups: append(without(fresh.Groups, nil), g.groups...)}
		n++
	}
	return d.People.RegroupTx(tx, changes[:n])
}

func without(groups, lost []string) []string {
	out := []string{}
	for _, g := range groups {
		if !contains(lost, g) {
			out = append(out, g)
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (d *Directory) renameTx(tx *store.Tx, part []rename) (all []ledger.Entry, err error) {
	for _, r := range part {
		if r.aside != "" {
			entries, err := d.People.AsideTx(tx, r.aside)
			if err != nil {
				return nil, err
			}
			all = append(all, entries...)
		}
		entries, err := d.People.RenameTx(tx, r.person, r.name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// joinTx makes people of newcomers and ties each to their entry's id.
func (d *Directory) joinTx(tx *store.Tx, part []join) (all []ledger.Entry, err error) {
	news := make([]identity.Newcomer, len(part))
	for i, j := range part {
		known, err := store.One[int64](tx, `SELECT COUNT(*) FROM directory_people WHERE uuid = $1`, j.uuid)
		if err != nil {
			return nil, err
		}
		if known != 0 {
			return nil, moved()
		}
		if j.aside != "" {
			entries, err := d.People.AsideTx(tx, j.aside)
			if err != nil {
				return nil, err
			}
			all = append(all, entries...)
		}
		news[i] = identity.Newcomer{Name: j.name, Groups: j.groups}
	}
	people, entries, err := d.People.JoinTx(tx, news)
	if err != nil {
		return nil, err
	}
	for i, p := range people {
		if _, err := tx.Exec(`INSERT INTO directory_people (uuid, person, away) VALUES ($1, $2, 0)`, part[i].uuid, p.ID); err != nil {
			return nil, err
		}
	}
	return append(all, entries...), nil
}

// backTx notes that the directory has somebody again. It unlocks nobody: power
// that was taken comes back by two people.
func (d *Directory) backTx(tx *store.Tx, part []string) ([]ledger.Entry, error) {
	back := identity.FoldedPayload{V: 1}
	for _, uuid := range part {
		person, err := store.One[string](tx, `SELECT person FROM directory_people WHERE uuid = $1`, uuid)
		if err != nil {
			return nil, err
		}
		if _, err := tx.Exec(`UPDATE directory_people SET away = 0 WHERE uuid = $1`, uuid); err != nil {
			return nil, err
		}
		back.People = append(back.People, identity.FoldedPerson{Person: person})
	}
	return []ledger.Entry{{Action: identity.PeopleReturned, Payload: back}}, nil
}

func moved() error {
	return fault.New(fault.Conflict, "cannot follow the directory: another server was faster")
}

// keep writes the copy down, when it or what it means here changed, or when it
// was last confirmed a while ago.
func (d *Directory) keep(ctx context.Context, copied *Copy, done syncedPayload) error {
	body, hash, err := copied.pack()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot keep the copy of the directory")
	}
	mapped, err := json.Marshal(d.c.Map)
	if err != nil {
		return err
	}
	changed := done.Joined+done.Left+done.Regrouped+done.Renamed > 0
	row, found, err := d.row(ctx)
	if err != nil {
		return err
	}
	d.status.set(func(s *Status) { s.Mode, s.Seen = done.Mode, fromMicros(done.Read) })
	if found && !changed && row.Hash == hash && row.Mapped == string(mapped) && done.Read-row.Confirmed < d.c.confirmEvery().Microseconds() {
		return nil
	}
	err = d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) {
		return d.keepTx(tx, body, hash, string(mapped), done)
	})
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return nil // another server keeps the same copy
	}
	return err
}

// confirmEvery is how often it is written down that the copy is the
// directory's: so that a decision never takes it for much older than it is,
// and the ledger does not grow by the minute.
func (c config) confirmEvery() time.Duration { return c.stale / 4 }

func (d *Directory) keepTx(tx *store.Tx, body []byte, hash, mapped string, done syncedPayload) ([]ledger.Entry, error) {
	rows, err := store.All[copyRow](tx, selectCopy)
	if err != nil {
		return nil, err
	}
	done.Version, done.Hash = 1, hash
	if len(rows) > 0 {
		done.Version = rows[0].Version + 1
	}
	done.Statement, err = Statement{Version: done.Version, Read: fromMicros(done.Read), Hash: hash}.sign(d.Log)
	if err != nil {
		return nil, err
	}
	var n int64
	switch {
	case len(rows) == 0:
		n, err = tx.Exec(`INSERT INTO directory_copy (id, version, hash, body, statement, read_at, confirmed, mapped) VALUES (1, $1, $2, $3, $4, $5, $6, $7)`,
			done.Version, hash, body, done.Statement, done.Read, done.Read, mapped)
	case rows[0].Hash == hash:
		n, err = tx.Exec(`UPDATE directory_copy SET version = $1, statement = $2, confirmed = $3, mapped = $4 WHERE id = 1 AND version = $5`,
			done.Version, done.Statement, done.Read, mapped, rows[0].Version)
	default:
		n, err = tx.Exec(`UPDATE directory_copy SET version = $1, hash = $2, body = $3, statement = $4, read_at = $5, confirmed = $6, mapped = $7 WHERE id = 1 AND version = $8`,
			done.Version, hash, body, done.Statement, done.Read, done.Read, mapped, rows[0].Version)
	}
	if err != nil {
		return nil, err
	}
	if n != 1 {
		return nil, moved()
	}
	return []ledger.Entry{{Action: Synced, Object: "directory", Version: done.Version, Payload: done}}, nil
}

func (d *Directory) row(ctx context.Context) (row copyRow, found bool, err error) {
	err = d.Store.View(ctx, func(v *store.View) error {
		rows, err := store.All[copyRow](v, selectCopy)
		if err == nil && len(rows) > 0 {
			row, found = rows[0], true
		}
		return err
	})
	return row, found, err
}

// chunks splits a list.
func chunks[T any](all []T, size int) func(func([]T) bool) {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n := min(size, len(all))
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
