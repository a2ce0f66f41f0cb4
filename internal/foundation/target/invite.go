package target

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Invite says what the host that redeems it will be. People decide that here;
// the host itself only says its name, and only when the invite leaves it open.
type Invite struct {
	Name        string // "": the host's own name
	Environment string
	Scope       string
	Services    []string
	Labels      []string
	Server      bool          // it is the machine that the server runs on
	For         time.Duration // how long it can be redeemed; 0: an hour, at most 24 h
}

const (
	inviteDefault = time.Hour
	inviteLongest = 24 * time.Hour
)

type inviteRow struct {
	Hash        string `db:"hash"`
	Name        string `db:"name"`
	Environment string `db:"environment"`
	Scope       string `db:"scope"`
	Services    Words  `db:"services"`
	Labels      Words  `db:"labels"`
	InvitedBy   string `db:"invited_by"`
	Created     int64  `db:"created"`
	Expires     int64  `db:"expires"`
	Used        int64  `db:"used"`
	Host        string `db:"host"`
	Server      bool   `db:"server"`
	Adopts      string `db:"adopts"` // the host that is there already; see adopt.go
}

// invitePayload is the ledger's form of an invitation; never the secret.
type invitePayload struct {
	V           int    `json:"v"`
	Name        string `json:"name,omitempty"`
	Environment string `json:"environment"`
	Scope       string `json:"scope"`
	Services    Words  `json:"services,omitempty"`
	Labels      Words  `json:"labels,omitempty"`
	Hash        string `json:"hash"`
	Expires     int64  `json:"expires"`
	Server      bool   `json:"server,omitempty"`
}

// hashSecret is what is kept of a secret. The secret is 192 random bits, so a
// plain hash is as good as a slow one.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte("handrail-invite-v1\n" + secret))
	return hex.EncodeToString(sum[:])
}

// InviteTx makes a single-use secret with which one host can join. Only its
// hash is kept.
func (h *Hosts) InviteTx(tx *store.Tx, by string, spec Invite) (string, ledger.Entry, error) {
	if spec.For <= 0 {
		spec.For = inviteDefault
	}
	if spec.For > inviteLongest {
		return "", ledger.Entry{}, fault.New(fault.Invalid, "cannot invite a host for %v: an invite lasts at most %v", spec.For, inviteLongest)
	}
	shape := Host{Name: spec.Name, Environment: spec.Environment, Scope: spec.Scope, Services: spec.Services, Labels: spec.Labels}.normal()
	open := shape.Name == ""
	if open {
		shape.Name = "any" // the name is checked when the host says it
	}
	if err := shape.Validate(); err != nil {
		return "", ledger.Entry{}, err
	}
	if open {
		shape.Name = ""
	} else if same, err := store.All[Host](tx, selectHost+`WHERE name = $1`, shape.Name); err != nil {
		return "", ledger.Entry{}, err
	} else if len(same) > 0 {
		return "", ledger.Entry{}, fault.New(fault.Conflict, "cannot invite host %q: there is one of that name, %s", shape.Name, same[0].ID).
			WithHint("handrail host invite OTHER")
	}
	secret := base64.RawURLEncoding.EncodeToString(tx.Random(24))
	now := tx.Now()
	row := inviteRow{Hash: hashSecret(secret), Expires: micros(now.Add(spec.For))}
	_, err := tx.Exec(`INSERT INTO host_invites (hash, name, environment, scope, services, labels, invited_by, created, expires, used, host, server)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', $10)`,
		row.Hash, shape.Name, shape.Environment, shape.Scope, shape.Services.Text(), shape.Labels.Text(), by, micros(now), row.Expires, spec.Server)
	if err != nil {
		return "", ledger.Entry{}, err
	}
	return secret, ledger.Entry{
		Action: HostInvited, Subjects: []string{by},
		Payload: invitePayload{V: 1, Name: shape.Name, Environment: shape.Environment, Scope: shape.Scope,
			Services: shape.Services, Labels: shape.Labels, Hash: row.Hash, Expires: row.Expires, Server: spec.Server},
	}, nil
}

// KnowsInvite says whether a token is of an open invitation, without the
// writer: strangers who guess do not keep others from writing.
func (h *Hosts) KnowsInvite(ctx context.Context, secret string, now time.Time) error {
	return h.store.View(ctx, func(v *store.View) error {
		_, err := openInvite(v, secret, now)
		return err
	})
}

func inviteRefused() error {
	return fault.New(fault.Unauthenticated, "cannot join: the token is wrong, used, or expired").
		WithHint("ask for a new one: handrail host invite")
}

func openInvite(q store.Queryer, secret string, now time.Time) (inviteRow, error) {
	if len(secret) > 256 {
		return inviteRow{}, inviteRefused()
	}
	row, err := store.One[inviteRow](q, `SELECT hash, name, environment, scope, services, labels, invited_by, created, expires, used, host, server, adopts
FROM host_invites WHERE hash = $1`, hashSecret(secret))
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return inviteRow{}, inviteRefused()
	}
	if err == nil && (row.Used != 0 || micros(now) >= row.Expires) {
		return inviteRow{}, inviteRefused()
	}
	return row, err
}

// RedeemInviteTx adds the host that knows the secret. A wrong, used or expired
// secret gives one and the same refusal, so that guessing learns nothing. here
// says that it came from the machine that the server runs on.
func (h *Hosts) RedeemInviteTx(tx *store.Tx, secret, hostname string, here bool) (Host, ledger.Entry, error) {
	row, err := openInvite(tx, secret, tx.Now())
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	if row.Adopts != "" {
		return h.answerTx(tx, row)
	}
	name := row.Name
	if name == "" {
		name = hostname
		if err := ValidName(Host{Name: name}.normal().Name); err != nil {
			return Host{}, ledger.Entry{}, fault.New(fault.Invalid, "cannot join: the machine calls itself %.80q, which cannot be the name of a host", name).
				WithHint("handrail join --name NAME   # letters, digits and . _ -")
		}
	}
	entry, host, err := h.addTx(tx, Host{Name: name, Environment: row.Environment, Scope: row.Scope,
		Services: row.Services, Labels: row.Labels, Server: row.Server || here}, row.InvitedBy)
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	used, err := tx.Exec(`UPDATE host_invites SET used = $1, host = $2 WHERE hash = $3 AND used = 0`, micros(tx.Now()), host.ID, row.Hash)
	if err != nil {
		return Host{}, ledger.Entry{}, err
	}
	if used != 1 {
		return Host{}, ledger.Entry{}, inviteRefused()
	}
	return host, entry, nil
}
