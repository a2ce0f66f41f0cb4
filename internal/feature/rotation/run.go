package rotation

import (
	"context"
	"encoding/base64"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	lookEvery = 2 * time.Second // for what another server has put in force
	again     = 5 * time.Second
)

// LearnAtStart is given to the store: it brings the ring up to date before the
// store compares anything with a signature.
func LearnAtStart(ring *keyring.Ring) func(*store.View) error {
	return func(v *store.View) error { return learn(v, ring) }
}

// Learn puts in force what was signed since this server last looked. One looks at a
// time: a ring takes no bundle twice.
func (r *Rotations) Learn(ctx context.Context) error {
	r.learning.Lock()
	defer r.learning.Unlock()
	return r.d.Store.View(ctx, func(v *store.View) error { return learn(v, r.d.Ring) })
}

func learn(q store.Queryer, ring *keyring.Ring) error {
	b, _ := ring.Bundle()
	rows, err := store.All[Rotation](q, `SELECT `+columns+` FROM rotations WHERE state = 'signed' AND bundle > $1 ORDER BY bundle`, b.Version)
	if err != nil {
		return err
	}
	for _, row := range rows {
		sealed, err := base64.StdEncoding.DecodeString(row.Sealed)
		if err == nil && row.Kinds == kindVoucher {
			if _, err := ring.Adopt(sealed, []byte(row.Signed)); err != nil {
				return err
			}
			continue
		}
		if err == nil && len(sealed) == 0 {
			return fault.New(fault.Conflict, "cannot take the keys of trust bundle %d: this server was away for too long", row.Bundle).
				WithHint("remove this server and join it again: handrail server invite")
		}
		if err != nil {
			return fault.Wrap(fault.Conflict, err, "cannot take the keys of trust bundle %d", row.Bundle)
		}
		if err := ring.Install(sealed, []byte(row.Signed)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rotations) wake() {
	select {
	case r.kick <- struct{}{}:
	default: // it is awake
	}
}

// Run puts in force what any server brought, and hands over.
func (r *Rotations) Run(ctx context.Context) error {
	for {
		wait := lookEvery
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.d.Log.Error("a rotation of keys could not go on", "error", err)
			wait = again
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
		case <-time.After(wait):
		}
	}
}

func (r *Rotations) step(ctx context.Context) error {
	if err := r.Learn(ctx); err != nil {
		return err
	}
	if err := r.d.Ring.Tidy(time.Now()); err != nil {
		return err
	}
	if !r.d.Ring.Rotating() {
		return nil
	}
	b, _ := r.d.Ring.Bundle()
	var row Rotation
	err := r.d.Store.View(ctx, func(v *store.View) error {
		list, err := store.All[Rotation](v, `SELECT `+columns+` FROM rotations WHERE state = 'signed' AND bundle = $1`, b.Version)
		if err == nil && len(list) == 1 {
			row = list[0]
		}
		return err
	})
	if err != nil {
		return err
	}
	if row.ID != "" && time.Since(time.UnixMicro(row.SignedAt)) < r.d.Settle {
		return nil
	}
	return r.handOver(ctx, row, b)
}

// handOver stores a checkpoint that the old and the new log key signed, and then
// destroys the old keys. If we crash in between, it is done again, with another
// such checkpoint.
func (r *Rotations) handOver(ctx context.Context, row Rotation, b ledger.Bundle) error {
	if row.ID == "" { // restored from a backup in the middle of a rotation
		row.Bundle = b.Version
	}
	_, err := r.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		entry := row.entry(HandedOver, ledger.System, payload{Server: r.d.Server})
		entry.Object, entry.Version = "", 0 // it changes no row: each server says it for itself
		return []ledger.Entry{entry}, nil
	})
	if err != nil {
		return err
	}
	if err := r.d.Store.Settle(ctx); err != nil {
		return err
	}
	if err := r.d.Ring.Finish(); err != nil {
		return err
	}
	r.d.Log.Info("new keys act from now on", "bundle", b.Version)
	return nil
}
