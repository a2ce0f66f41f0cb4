package target

import (
	"encoding/base64"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// An invitation may be of a host that is there already, without a node: for
// the length of a session, or to stay.

// visitPrefix marks an invitation for the length of a session.
const visitPrefix = "visit:"

// callFor is how long the node that was sent may take to answer.
const callFor = 5 * time.Minute

// CallTx makes a single-use secret with which a node that the server itself
// carries to a host without one joins as that host: to stay, or for the length
// of a session.
func (h *Hosts) CallTx(tx *store.Tx, by string, id string, stay bool) (string, ledger.Entry, error) {
	host, err := h.GetTx(tx, id)
	if err != nil {
		return "", ledger.Entry{}, err
	}
	if !host.Agentless() {
		return "", ledger.Entry{}, fault.New(fault.Conflict, "cannot send a node to %s: it has one", host.Name).WithHint("handrail host show %s", host.Name)
	}
	adopts := host.ID
	if !stay {
		adopts = visitPrefix + host.ID
	}
	secret := base64.RawURLEncoding.EncodeToString(tx.Random(24))
	now := tx.Now()
	row := inviteRow{Hash: hashSecret(secret), Expires: micros(now.Add(callFor))}
	_, err = tx.Exec(`INSERT INTO host_invites (hash, name, environment, scope, services, labels, invited_by, created, expires, used, host, server, adopts)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', $10, $11)`,
		row.Hash, host.Name, host.Environment, host.Scope, host.Services.Text(), host.Labels.Text(), by, micros(now), row.Expires, host.Server, adopts)
	if err != nil {
		return "", ledger.Entry{}, err
	}
	return secret, ledger.Entry{
		Action: HostCalled, Subjects: []string{by, host.ID}, Target: host.Path(),
		Payload: callPayload{V: 1, Host: host.ID, Stay: stay, Hash: row.Hash, Expires: row.Expires},
	}, nil
}

type callPayload struct {
	V       int    `json:"v"`
	Host    string `json:"host"`
	Stay    bool   `json:"stay"`
	Hash    string `json:"hash"`
	Expires int64  `json:"expires"`
}

// answerTx makes a node that was called the node of its host. One that stays
// leaves the host's mode to what it says when it connects.
func (h *Hosts) answerTx(tx *store.Tx, row inviteRow) (Host, ledger.Entry, error) {
	id, visit := strings.CutPrefix(row.Adopts, visitPrefix)
	host, err := h.GetTx(tx, id)
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	if !host.Agentless() {
		return Host{}, ledger.Entry{}, fault.New(fault.Conflict, "cannot join as %s: it has a node", host.Name)
	}
	used, err := tx.Exec(`UPDATE host_invites SET used = $1, host = $2 WHERE hash = $3 AND used = 0`, micros(tx.Now()), host.ID, row.Hash)
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	if used != 1 {
		return Host{}, ledger.Entry{}, fault.New(fault.Unauthenticated, "cannot join: the token is used")
	}
	if visit {
		return host, ledger.Entry{Action: HostVisited, Subjects: []string{row.InvitedBy, host.ID}, Target: host.Path(),
			Payload: callPayload{V: 1, Host: host.ID, Hash: row.Hash}}, nil
	}
	host.Mode = ""
	entry, err := h.SetByTx(tx, row.InvitedBy, host)
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	host, err = h.GetTx(tx, host.ID)
	return host, entry, err
}
