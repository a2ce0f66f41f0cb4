package store

import (
	"context"
	"fmt"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// pruneStep is how many payloads one transaction lets go of.
const pruneStep = 5000

// Prune lets go of the payloads that the rules name and says so in an entry;
// leaves, tiles and proofs stay. It returns how many, and records nothing when
// there is none. If we crash after the entry, Open finishes the rest.
func (s *Store) Prune(ctx context.Context, rules []ledger.PruneRule) (int64, error) {
	p := ledger.Pruned{V: 1, Rules: rules, Through: s.Size()}
	if err := p.Check(); err != nil {
		return 0, err
	}
	where, args := pruned(p)
	err := s.View(ctx, func(v *View) (err error) {
		p.Count, err = One[int64](v, `SELECT count(*) FROM `+where, args...)
		return err
	})
	if err != nil || p.Count == 0 {
		return 0, err
	}
	_, err = s.Record(ctx, Once(), func(*Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: ledger.ActionPruned, Payload: p}}, nil
	})
	if err != nil {
		return 0, err
	}
	return p.Count, s.finishPrune(ctx, p)
}

// Prunable is what Prune would let go of, of one action.
type Prunable struct {
	Action string `db:"action"`
	Count  int64  `db:"n"`
	Bytes  int64  `db:"bytes"`
	Oldest int64  `db:"oldest"` // µs
}

// Prunable counts what Prune would let go of, by action. It changes nothing.
func (s *Store) Prunable(ctx context.Context, rules []ledger.PruneRule) (all []Prunable, err error) {
	p := ledger.Pruned{V: 1, Rules: rules, Through: s.Size()}
	if err := p.Check(); err != nil {
		return nil, err
	}
	where, args := pruned(p)
	err = s.View(ctx, func(v *View) (err error) {
		all, err = All[Prunable](v, `SELECT e.action AS action, count(*) AS n, sum(length(p.body)) AS bytes, min(e.at) AS oldest FROM `+where+` GROUP BY e.action ORDER BY e.action`, args...)
		return err
	})
	return all, err
}

// pruned is what the rules name and is still there.
func pruned(p ledger.Pruned) (from string, args []any) {
	args = []any{p.Through}
	var any []string
	for _, r := range p.Rules {
		args = append(args, strings.TrimSuffix(r.Action, "*"), r.Before)
		cond := "e.action = $%d AND e.at < $%d"
		if strings.HasSuffix(r.Action, ".*") {
			cond = "substr(e.action, 1, length($%[1]d)) = $%[1]d AND e.at < $%[2]d"
		}
		any = append(any, "("+fmt.Sprintf(cond, len(args)-1, len(args))+")")
	}
	return `ledger_entry e JOIN ledger_payload p ON p.seq = e.seq WHERE e.seq < $1 AND length(p.body) > 0 AND (` + strings.Join(any, " OR ") + `)`, args
}

func (s *Store) finishPrune(ctx context.Context, p ledger.Pruned) error {
	where, args := pruned(p)
	args = append(args, []byte{})
	for {
		var n int64
		err := s.eng.maintain(ctx, func(tx *Tx) (err error) {
			n, err = tx.Exec(fmt.Sprintf(`UPDATE ledger_payload SET body = $%d WHERE seq IN (SELECT e.seq FROM %s ORDER BY e.seq LIMIT %d)`, len(args), where, pruneStep), args...)
			return err
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}

// resumePrune finishes what a crash interrupted.
func (s *Store) resumePrune(ctx context.Context) error {
	last, err := s.Entries(ctx, EntryQuery{Action: string(ledger.ActionPruned), Limit: 1})
	if err != nil || len(last) == 0 {
		return err
	}
	p, err := ledger.ParsePruned(last[0].Payload)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "cannot finish pruning")
	}
	return s.finishPrune(ctx, p)
}
