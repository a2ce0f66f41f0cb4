package roster

import (
	"encoding/json"
	"strings"

	"handrail.dev/handrail/internal/foundation/store"
)

// EraseTx takes away the rights that a person left, or that are about them.
func EraseTx(tx *store.Tx, person, name string) error {
	rights, err := store.All[right](tx, selectRight+`ORDER BY approval`)
	if err != nil {
		return err
	}
	quoted, _ := json.Marshal(name) // a string always marshals
	for _, r := range rights {
		if r.Requester == person || r.Subject == person || strings.Contains(r.Request, string(quoted)) || strings.Contains(r.Request, person) {
			if _, err := tx.Exec(`DELETE FROM roster_rights WHERE approval = $1`, r.Approval); err != nil {
				return err
			}
		}
	}
	return nil
}
