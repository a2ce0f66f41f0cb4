package access

import (
	"encoding/json"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// ended is the end of a grant that has happened and is not recorded yet. It is
// also what the spool keeps, as the payload of a grant.ended.
type ended struct {
	V     int    `json:"v"`
	Grant string `json:"ended"`
	By    string `json:"by"`
	Why   string `json:"why"`
	Note  string `json:"note,omitempty"`
}

// later keeps the end of a grant until it is recorded: in the spool, which
// drains itself and survives a crash, or else in memory, where Run tries again.
func (x *Access) later(e ended) {
	e.V = 1
	err := x.d.Store.Spool().Append(ledger.Entry{Action: ActionEnded, Subjects: []string{e.By}, Payload: e})
	if err == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending[e.Grant] = e
}

// Unspool ends a grant whose end was kept in the spool, when the database is
// back (store.Config.Unspool). ok is false for what is not this package's.
func (x *Access) Unspool(tx *store.Tx, spooled ledger.Entry) (entries []ledger.Entry, ok bool, err error) {
	raw, isRaw := spooled.Payload.(json.RawMessage)
	if spooled.Action != ActionEnded || !isRaw {
		return nil, false, nil
	}
	var e ended
	if err := json.Unmarshal(raw, &e); err != nil || e.Grant == "" {
		return nil, false, err
	}
	entries, err = x.endedTx(tx, e)
	return entries, true, err
}

// endedTx records it. Whoever ended the grant meanwhile was as good.
func (x *Access) endedTx(tx *store.Tx, e ended) ([]ledger.Entry, error) {
	g, err := getTx(tx, e.Grant)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, err
	}
	if err != nil || !g.Live() {
		return nil, nil
	}
	_, entries, err := x.endTx(tx, g, Event{Kind: EventEnd, By: e.By, Why: e.Why, Notes: e.Note})
	return entries, err
}

// held is what not even the spool could keep.
func (x *Access) held() (all []ended) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.pending {
		all = append(all, e)
	}
	return all
}

func (x *Access) recorded(e ended) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pending, e.Grant)
}
