package store

import (
	"context"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Erase makes everything that was sealed to a subject unreadable for good. The
// entry says who erased and on what ground; its proofs, and those of all other
// entries, stay valid. If we crash after the entry, Open finishes the rest.
func (s *Store) Erase(ctx context.Context, id, subject string, e ledger.Entry) (Receipt, error) {
	if subject == "" || subject == ledger.System {
		return nil, fault.New(fault.Invalid, "cannot erase %q: it is no person's", subject)
	}
	e.Action, e.Object, e.Version = ledger.ActionErased, subject, 1
	if e.SealTo == subject || e.SealTo == "" && len(e.Subjects) > 0 && e.Subjects[0] == subject {
		e.SealTo = ledger.System // or the ground would be erased with the rest
	}
	r, err := s.Record(ctx, id, func(*Tx) ([]ledger.Entry, error) { return []ledger.Entry{e}, nil })
	if err != nil {
		return nil, err
	}
	return r, s.finishErasure(ctx, subject)
}

func (s *Store) finishErasure(ctx context.Context, subject string) error {
	if err := s.cfg.Seals.Destroy(subject); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "cannot erase %s", subject)
	}
	return s.eng.maintain(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE ledger_payload SET body = $1 WHERE sealer = $2 AND sealer <> 'system'`, []byte{}, subject)
		return err
	})
}

// resumeErasures finishes what a crash interrupted.
func (s *Store) resumeErasures(ctx context.Context) error {
	var left []string
	err := s.View(ctx, func(v *View) (err error) {
		left, err = All[string](v, `SELECT DISTINCT e.object FROM ledger_entry e WHERE e.action = $1
AND EXISTS (SELECT 1 FROM ledger_payload p WHERE p.sealer = e.object AND p.sealer <> 'system' AND length(p.body) > 0)`, string(ledger.ActionErased))
		return err
	})
	if err != nil {
		return err
	}
	for _, subject := range left {
		if err := s.finishErasure(ctx, subject); err != nil {
			return err
		}
	}
	return nil
}
