package access

import (
	"slices"

	"handrail.dev/handrail/internal/foundation/store"
)

// HeldTx says why a person cannot be erased yet, or nothing: a review that
// somebody owes about them, a grant of theirs that has not ended, or one of
// somebody else that rests on a request that they took part in.
func HeldTx(q store.Queryer, person string, involved []string) (string, error) {
	owes, err := OwesReview(q, person)
	if err != nil {
		return "", err
	}
	if owes {
		return "a break-glass of theirs waits for its review", nil
	}
	open, err := find(q, `WHERE g.finished = 0 ORDER BY g.id LIMIT $1`, maxListed)
	if err != nil {
		return "", err
	}
	for _, g := range open {
		if g.Person == person {
			return "their grant " + g.ID + " has not ended", nil
		}
		if slices.Contains(involved, g.Approval) {
			return "the grant " + g.ID + ", which they took part in, has not ended", nil
		}
	}
	return "", nil
}

// EraseTx takes their grants out of the list.
func EraseTx(tx *store.Tx, person string) error {
	if _, err := tx.Exec(`DELETE FROM grant_targets WHERE grant_id IN (SELECT id FROM grants WHERE person = $1)`, person); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM grants WHERE person = $1`, person)
	return err
}
