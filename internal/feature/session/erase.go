package session

import "handrail.dev/handrail/internal/foundation/store"

// HeldTx says why a person cannot be erased yet, or nothing.
func HeldTx(q store.Queryer, person string) (string, error) {
	open, err := store.All[string](q, `SELECT id FROM sessions WHERE person = $1 AND ended = 0 ORDER BY id LIMIT 1`, person)
	if err != nil || len(open) == 0 {
		return "", err
	}
	return "their session " + open[0] + " has not ended", nil
}

// EraseTx leaves of a person's sessions where and when they were: not what was
// run in them, from where, or why.
func EraseTx(tx *store.Tx, person, name, stub string) error {
	// A read session's account is called like the person.
	_, err := tx.Exec(`UPDATE sessions SET person_name = $1, account = CASE WHEN account = $2 THEN $1 ELSE account END,
command = '', client = '', source = '', reason = '', version = version + 1 WHERE person = $3`, stub, name, person)
	return err
}
