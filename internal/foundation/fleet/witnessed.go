package fleet

import (
	"context"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// witnessed is the proof against a tree that outside witnesses cosigned, for a
// host that demands it; for others it is the proof as it came.
func (f *Fleet) witnessed(ctx context.Context, host string, proof ledger.Proof) (ledger.Proof, error) {
	f.mu.Lock()
	wants := f.nodeLocked(host).wants
	f.mu.Unlock()
	if !wants {
		return proof, nil
	}
	if f.d.Cosigned == nil {
		return proof, fault.New(fault.Unavailable, "cannot send an order to %s: it demands witnesses, and this server has none", host)
	}
	tree, signed, err := f.d.Cosigned(ctx, proof.Index+1)
	if err != nil {
		e := fault.Wrap(fault.KindOf(err), err, "cannot send an order to %s, which demands witnesses", host)
		e.Hint = fault.From(err).Hint
		return proof, e
	}
	if proof.Inclusion, err = f.d.Store.Inclusion(ctx, proof.Index, tree.N); err != nil {
		return proof, err
	}
	proof.Checkpoint = signed
	return proof, nil
}
