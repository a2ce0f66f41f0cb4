package webhook

import (
	"context"

	"handrail.dev/handrail/internal/foundation/store"
)

// Place is how far a hook has got.
type Place struct {
	Seq       int64 `db:"seq"`      // the last entry that it needs no more
	Attempts  int64 `db:"attempts"` // in vain, at the one after
	Next      int64 `db:"next"`     // µs; when the next attempt is made
	Delivered int64 `db:"delivered"`
	Failed    int64 `db:"failed"` // attempts in vain, in all
}

// told is what the ledger says of a hook's deliveries.
type told struct {
	Seq       int64 `db:"seq"`
	Delivered int64 `db:"delivered"`
	Failed    int64 `db:"failed"`
}

// place reads how far a hook has got. If the observations were lost, it is what
// the ledger was told last: some is sent twice then, none is left out.
func (x *Hooks) place(ctx context.Context, h Hook) (Place, error) {
	var rows []Place
	err := x.d.Store.ViewObserved(ctx, func(v *store.View) (err error) {
		rows, err = store.All[Place](v, `SELECT seq, attempts, next, delivered, failed FROM webhook_places WHERE hook = $1`, h.ID)
		return err
	})
	if err != nil || len(rows) > 0 {
		return first(rows), err
	}
	t, err := x.toldOf(ctx, h)
	return Place{Seq: max(h.After, t.Seq), Delivered: t.Delivered, Failed: t.Failed}, err
}

func first[T any](rows []T) (none T) {
	if len(rows) > 0 {
		return rows[0]
	}
	return none
}

func (x *Hooks) toldOf(ctx context.Context, h Hook) (told, error) {
	var rows []told
	err := x.d.Store.View(ctx, func(v *store.View) (err error) {
		rows, err = store.All[told](v, `SELECT seq, delivered, failed FROM webhook_told WHERE hook = $1`, h.ID)
		return err
	})
	return first(rows), err
}

// keep writes how far a hook has got, and the attempt that brought it there.
// The place only moves forward, whoever writes: a server that hung while another
// took over cannot move it back.
func (x *Hooks) keep(ctx context.Context, h Hook, p Place, a *Attempt) error {
	return x.d.Store.Observe(ctx, func(o *store.Obs) error {
		_, err := o.Exec(`INSERT INTO webhook_places (hook, seq, attempts, next, delivered, failed) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (hook) DO UPDATE SET seq = $2, attempts = $3, next = $4, delivered = $5, failed = $6 WHERE webhook_places.seq <= $2`,
			h.ID, p.Seq, p.Attempts, p.Next, p.Delivered, p.Failed)
		if err != nil || a == nil {
			return err
		}
		_, err = o.Exec(`INSERT INTO webhook_attempts (hook, at, seq, action, attempt, took, status, failure) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (hook, at, seq) DO NOTHING`,
			h.ID, a.At, a.Seq, a.Action, a.Attempt, a.Took, a.Status, a.Failure)
		return err
	})
}

// tidy forgets old attempts, and what belongs to hooks that are gone.
func (x *Hooks) tidy(ctx context.Context, hooks []Hook) error {
	known := map[string]bool{}
	for _, h := range hooks {
		known[h.ID] = true
	}
	return x.d.Store.Observe(ctx, func(o *store.Obs) error {
		all, err := store.All[string](o, `SELECT DISTINCT hook FROM webhook_attempts UNION SELECT hook FROM webhook_places`)
		if err != nil {
			return err
		}
		for _, id := range all {
			if !known[id] {
				if _, err := o.Exec(`DELETE FROM webhook_places WHERE hook = $1`, id); err != nil {
					return err
				}
			}
			keep := int64(keepAttempts)
			if !known[id] {
				keep = 0
			}
			if _, err := o.Exec(`DELETE FROM webhook_attempts WHERE hook = $1 AND at <= COALESCE((SELECT at FROM webhook_attempts WHERE hook = $1 ORDER BY at DESC LIMIT 1 OFFSET $2), 0)`, id, keep); err != nil {
				return err
			}
		}
		return nil
	})
}
