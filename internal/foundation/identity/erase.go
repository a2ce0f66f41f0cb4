package identity

import (
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
)

// EraseTx leaves of a person a stub without a name: the id, which is in the
// ledger for ever, and that and when they were erased. What they logged in with
// and from goes. Only somebody who is locked can be erased, so nothing of
// theirs runs.
func (p *People) EraseTx(tx *store.Tx, person string) error {
	who, err := p.GetTx(tx, person)
	if err != nil {
		return err
	}
	if !who.Locked() {
		return fault.New(fault.Conflict, "cannot erase %s: they are not locked", who.Name).WithHint("handrail lock %s --reason \"to be erased\"", who.Name)
	}
	for _, table := range []string{"devices", "passkeys", "login_tokens", "logins", "bindings"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE person = $1`, who.ID); err != nil {
			return err
		}
	}
	_, err = tx.Exec(`UPDATE people SET name = $1, member_of = '[]', locked_reason = $2, epoch = epoch + 1, version = version + 1 WHERE id = $3`,
		stubName(tx.Now(), who.ID), "erased "+tx.Now().Format(time.DateOnly), who.ID)
	return err
}

// stubName is a name that nobody has and nobody can take.
func stubName(now time.Time, id string) string {
	return "erased-" + now.Format("20060102") + "-" + strings.TrimPrefix(id, "p-")
}

// IsErased says whether a person is the stub that an erasure left.
func (p Person) IsErased() bool {
	return p.Locked() && strings.HasPrefix(p.LockedReason, "erased ") && strings.HasPrefix(p.Name, "erased-")
}
