package rotation

import (
	"context"
	"encoding/base64"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// A bundle that differs from the one in force in whose vouchers count needs no new
// keys and no hand-over: the root key alone says it, on a server's own machine. It
// reaches the other servers as a rotation does.

const (
	// kindVoucher marks the row of such a bundle.
	kindVoucher = "voucher"
	// handOn is how long a new authority for vouchers waits for servers that are away.
	handOn = 90 * 24 * time.Hour
)

// Trust puts a bundle in force, here and on the other servers, in which the root
// key has signed whose vouchers count.
func (r *Rotations) Trust(ctx context.Context, signed []byte) error {
	b, err := r.d.Ring.MayAdopt(signed)
	if err != nil {
		return err
	}
	text, err := b.Text()
	if err != nil {
		return err
	}
	sealed, err := r.d.Ring.SealVoucherAuthority(signed)
	if err != nil {
		return err
	}
	_, err = r.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		newer, err := store.All[int64](tx, `SELECT bundle FROM rotations WHERE state = 'signed' AND bundle >= $1`, b.Version)
		if err != nil {
			return nil, err
		}
		if len(newer) > 0 {
			return nil, fault.New(fault.Conflict, "cannot put trust bundle %d in force: another is on its way here", b.Version).WithHint("handrail voucher trust, again")
		}
		row := Rotation{ID: store.NewID('k'), Bundle: b.Version, Kinds: kindVoucher, Until: tx.Now().Add(handOn).Unix(), Body: string(text),
			Sealed: base64.StdEncoding.EncodeToString(sealed), Signed: string(signed), State: StateSigned, SignedAt: tx.Now().UnixMicro(), Version: 1}
		return []ledger.Entry{row.entry(Trusted, ledger.System, payload{Kinds: []string{kindVoucher}, Hash: hashOf(row.Body), Server: r.d.Server})}, row.insert(tx)
	})
	if err != nil {
		return err
	}
	r.wake()
	return r.Learn(ctx)
}
