package identity

import "handrail.dev/handrail/internal/foundation/store"

// maxEpochs bounds how many people a lease names: those locked last.
const maxEpochs = 500

// LockEpochTx is the installation's lock epoch: it grows with every lock and
// unlock of anybody, and an order below it is void.
func (p *People) LockEpochTx(q store.Queryer) (int64, error) {
	return store.One[int64](q, `SELECT CAST(COALESCE(SUM(epoch), 0) AS BIGINT) FROM people`)
}

// EpochsTx is the epochs of the people who were ever locked, the last first.
func (p *People) EpochsTx(q store.Queryer) (map[string]int64, error) {
	rows, err := store.All[struct {
		ID    string `db:"id"`
		Epoch int64  `db:"epoch"`
	}](q, `SELECT id, epoch FROM people WHERE epoch > 0 ORDER BY locked_at DESC, epoch DESC LIMIT $1`, maxEpochs)
	out := map[string]int64{}
	for _, r := range rows {
		out[r.ID] = r.Epoch
	}
	return out, err
}
