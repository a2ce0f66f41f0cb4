package directory

import (
	"context"
	"encoding/json"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Held is a change that waits for a person, as the bytes that they agree to:
// exactly this change, by its digest.
type Held struct {
	V      int      `json:"v"`
	What   string   `json:"what"`
	Count  int      `json:"count"`
	Of     int      `json:"of"`
	Digest string   `json:"digest"`
	Lines  []string `json:"lines"` // the first of them, by id
}

// heldShown is how many lines an approver is shown; the digest is of all.
const heldShown = 200

// Parse says what one line means: whom it is about, and what happens to them.
func (h Held) Parse(line string) (person, what string) {
	verb, rest, _ := strings.Cut(line, " ")
	person, groups, _ := strings.Cut(rest, " ")
	switch verb {
	case "leave":
		return person, "is not in the directory any more: locked, sessions and grants end"
	case "lose":
		return person, "loses " + groups
	}
	return person, "enters " + groups
}

// hold asks for what waits, once for each change, and withdraws what waits no
// more.
func (d *Directory) hold(ctx context.Context, waits []held) error {
	rows, err := d.heldRows(ctx)
	if err != nil {
		return err
	}
	byKind := map[string]held{}
	for _, h := range waits {
		byKind[h.what] = h
	}
	for _, what := range []string{HeldLosses, HeldGains} {
		h, waiting := byKind[what]
		row := rows[what]
		waited := row.State != "" && row.State != stateOver
		if !waiting && !waited || waiting && waited && row.Digest == h.digest() {
			continue
		}
		err := d.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) { return d.holdTx(tx, h, what, waiting) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Directory) heldRows(ctx context.Context) (map[string]heldRow, error) {
	out := map[string]heldRow{}
	err := d.Store.View(ctx, func(v *store.View) error {
		rows, err := store.All[heldRow](v, selectHeld)
		for _, r := range rows {
			out[r.What] = r
		}
		return err
	})
	return out, err
}

// holdTx replaces what waited by what waits now, which may be nothing.
func (d *Directory) holdTx(tx *store.Tx, h held, what string, waiting bool) (all []ledger.Entry, err error) {
	rows, err := store.All[heldRow](tx, selectHeld+`WHERE what = $1`, what)
	if err != nil {
		return nil, err
	}
	row := heldRow{What: what, State: stateOver, Since: micros(tx.Now()), Version: 1}
	if len(rows) > 0 {
		row.Version = rows[0].Version + 1
		if rows[0].State == stateAsked && d.Unask != nil {
			if all, err = d.Unask(tx, rows[0].Approval, "the directory says something else now"); err != nil {
				return nil, err
			}
		}
		if _, err := tx.Exec(`DELETE FROM directory_held WHERE what = $1`, what); err != nil {
			return nil, err
		}
	}
	if waiting {
		row.State, row.Digest, row.People = stateAsked, h.digest(), int64(len(h.people))
		asked, err := d.askTx(tx, h, &row)
		if err != nil {
			return nil, err
		}
		all = append(all, asked...)
	}
	if _, err := tx.Exec(`INSERT INTO directory_held (what, digest, state, approval, people, since, version) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		row.What, row.Digest, row.State, row.Approval, row.People, row.Since, row.Version); err != nil {
		return nil, err
	}
	return append(all, ledger.Entry{Action: Waits, Object: "directory/" + what, Version: row.Version,
		Payload: heldPayload{V: 1, What: what, Waiting: waiting, Digest: row.Digest, People: len(h.people)}}), nil
}

func (d *Directory) askTx(tx *store.Tx, h held, row *heldRow) (entries []ledger.Entry, err error) {
	if d.Ask == nil {
		return nil, nil
	}
	total, err := store.One[int64](tx, `SELECT COUNT(*) FROM directory_people WHERE away = 0`)
	if err != nil {
		return nil, err
	}
	request, err := json.Marshal(Held{V: 1, What: h.what, Count: len(h.people), Of: int(total), Digest: row.Digest, Lines: h.lines[:min(len(h.lines), heldShown)]})
	if err != nil {
		return nil, err
	}
	row.Approval, entries, err = d.Ask(tx, request)
	return entries, err
}

// SettleTx notes what people said to a change that waits. A change that is
// another by now is not agreed to.
func SettleTx(tx *store.Tx, h Held, approval string, agreed bool) error {
	state := stateDenied
	if agreed {
		state = stateAgreed
	}
	n, err := tx.Exec(`UPDATE directory_held SET state = $1 WHERE what = $2 AND digest = $3 AND approval = $4`, state, h.What, h.Digest, approval)
	if err == nil && n != 1 && agreed {
		return fault.New(fault.Conflict, "cannot let this through: the directory says something else by now").WithHint("handrail directory status")
	}
	return err
}

// ForgetTx forgets a request whose time was up, so that it is asked anew.
func ForgetTx(tx *store.Tx, h Held, approval string) error {
	_, err := tx.Exec(`UPDATE directory_held SET state = $1 WHERE what = $2 AND digest = $3 AND approval = $4`, stateOver, h.What, h.Digest, approval)
	return err
}
