package approval

import (
	"bytes"
	"encoding/json"

	"handrail.dev/handrail/internal/foundation/store"
)

// InvolvedTx is every request that a person asked for, is about, decided or is
// named in. The payloads of a request are sealed to its own id, so that they
// can be erased with any person that they speak of.
func InvolvedTx(q store.Queryer, person, name string) (ids []string, err error) {
	rows, err := store.All[row](q, selectRow+`ORDER BY id`)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		a, err := r.approval()
		if err != nil {
			return nil, err
		}
		if a.involves(person, name) {
			ids = append(ids, a.ID)
		}
	}
	return ids, nil
}

func (a Approval) involves(person, name string) bool {
	if a.Requester == person || a.Subject == person || a.Subject == "person/"+name {
		return true
	}
	for _, d := range a.Decisions {
		if d.Person == person {
			return true
		}
	}
	quoted, _ := json.Marshal(name) // a string always marshals
	return bytes.Contains(a.Request, quoted) || bytes.Contains(a.Request, []byte(person))
}

// EraseTx takes requests out of the list. Their leaves say for ever who asked
// whom and who agreed.
func EraseTx(tx *store.Tx, ids []string) error {
	for _, id := range ids {
		if _, err := tx.Exec(`DELETE FROM approvals WHERE id = $1`, id); err != nil {
			return err
		}
	}
	return nil
}
