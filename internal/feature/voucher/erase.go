package voucher

import "handrail.dev/handrail/internal/foundation/store"

// EraseTx leaves of a person's drills when and where they were, and of their
// vouchers nothing.
func EraseTx(tx *store.Tx, person, stub string) error {
	if _, err := tx.Exec(`DELETE FROM vouchers WHERE person = $1`, person); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE drills SET person_name = $1, failure = '', version = version + 1 WHERE person = $2`, stub, person)
	return err
}
