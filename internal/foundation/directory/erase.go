package directory

import "handrail.dev/handrail/internal/foundation/store"

// HeldTx says why a person cannot be erased yet, or nothing: whom the company's
// directory still names would come back with its next read.
func HeldTx(q store.Queryer, person string) (string, error) {
	there, err := store.All[string](q, `SELECT uuid FROM directory_people WHERE person = $1 AND away = 0`, person)
	if err != nil || len(there) == 0 {
		return "", err
	}
	return "the company's directory still names them", nil
}

// EraseTx forgets whom of the directory they were.
func EraseTx(tx *store.Tx, person string) error {
	_, err := tx.Exec(`DELETE FROM directory_people WHERE person = $1`, person)
	return err
}
