package roster_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// waits is a change of the directory that waits, and the request for it.
func (h *home) waits(what, digest string, lines ...string) string {
	h.t.Helper()
	request, err := json.Marshal(directory.Held{V: 1, What: what, Count: len(lines), Of: 100, Digest: digest, Lines: lines})
	house.Must(h.t, err)
	var id string
	house.Must(h.t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		rule := approval.Rule{Needed: 1, Groups: []string{"admin"}, Lapse: time.Hour}
		asked, entries, err := roster.AskDirectory(tx, h.approvals, rule, request)
		if err != nil {
			return nil, err
		}
		id = asked
		_, err = tx.Exec(`INSERT INTO directory_held (what, digest, state, approval, people, since, version) VALUES ($1, $2, 'asked', $3, 1, 1, 1)`, what, digest, id)
		return entries, err
	}))
	return id
}

func (h *home) heldState(what string) (state string) {
	h.t.Helper()
	house.Must(h.t, h.Store.View(h.t.Context(), func(v *store.View) (err error) {
		state, err = store.One[string](v, `SELECT state FROM directory_held WHERE what = $1`, what)
		return err
	}))
	return state
}

// What the installation itself asks for is decided by one other: anybody who
// may.
func TestAChangeOfTheDirectoryWaitsForAPerson(t *testing.T) {
	h, ada, bob := moved(t)
	id := h.waits(directory.HeldLosses, strings.Repeat("a", 64), "leave "+bob.ID)
	var shown approval.Shown
	house.Must(t, h.Store.View(t.Context(), func(v *store.View) error {
		a, err := h.approvals.GetTx(v, id)
		if err != nil {
			return err
		}
		shown, err = h.approvals.ShowTx(v, ada.Principal, a, time.Now())
		return err
	}))
	if text := fmt.Sprint(shown.Description); shown.MayNot != nil || !strings.Contains(text, "bob") || !strings.Contains(text, "1 of 100") {
		t.Errorf("ada sees %v, %v", text, shown.MayNot)
	}
	house.Must(t, h.approve(ada, id))
	if got := h.heldState(directory.HeldLosses); got != "agreed" {
		t.Errorf("it is %s", got)
	}
	// What waits has become something else meanwhile: nobody agreed to that.
	id = h.waits(directory.HeldGains, strings.Repeat("b", 64), "gain "+bob.ID+" admin")
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`UPDATE directory_held SET digest = $1 WHERE what = $2`, strings.Repeat("c", 64), directory.HeldGains)
		return []ledger.Entry{{Action: directory.Waits}}, err
	}))
	if err := h.approve(ada, id); err == nil {
		t.Error("another change was agreed to")
	}
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, err := tx.Exec(`UPDATE directory_held SET digest = $1 WHERE what = $2`, strings.Repeat("b", 64), directory.HeldGains)
		return []ledger.Entry{{Action: directory.Waits}}, err
	}))
	house.Must(t, h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.DenyTx(tx, ada.Principal, id, "who are these?")
		return entries, err
	}))
	if got := h.heldState(directory.HeldGains); got != "denied" {
		t.Errorf("it is %s", got)
	}
}
