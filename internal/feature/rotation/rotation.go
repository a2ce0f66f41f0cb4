// Package rotation replaces the keys of an installation while it runs: those of
// the log, of orders, and the authorities of certificates.
//
//	asked ──▶ agreed ──▶ signed ──▶ handed over (by each server for itself)
//	  │          │
//	  └──────────┴──▶ dropped
//
// Whoever asks has the keys made; a second person agrees to the text of the
// very trust bundle that names them; the root key, which no server has, signs
// that text; and each server puts it in force. For a while old and new count:
// checkpoints carry both signatures, and what is not the log goes on by the old
// key until everybody who leases has learnt the new one.
//
// What must stay true:
//   - No bundle is put in force that a second person has not agreed to, byte by
//     byte, and that the root key has not signed.
//   - The new private keys lie in the database sealed under the master key, for
//     servers that are away, until a rotation after the end of the old ones.
//   - If a server is killed anywhere in between, it finishes at its next start.
package rotation

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"

	"crypto/sha256"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// What rotations write to the ledger.
const (
	Asked      ledger.Action = "keys.proposed"
	Agreed     ledger.Action = "keys.agreed"
	Dropped    ledger.Action = "keys.dropped"
	Rotated    ledger.Action = "keys.rotated"
	HandedOver ledger.Action = "keys.finished"
	Trusted    ledger.Action = "keys.trusted"
)

// Actions lists them.
func Actions() []ledger.Action {
	return []ledger.Action{Asked, Agreed, Dropped, Rotated, HandedOver, Trusted}
}

// Schema is the rotations. sealed and signed are base64.
func Schema() []store.Migration {
	return []store.Migration{{Name: "rotation-1-rotations", SQL: `CREATE TABLE rotations (
	id TEXT PRIMARY KEY,
	bundle BIGINT NOT NULL,
	kinds TEXT NOT NULL,
	until BIGINT NOT NULL,
	body TEXT NOT NULL,
	sealed TEXT NOT NULL,
	signed TEXT NOT NULL,
	state TEXT NOT NULL,
	approval TEXT NOT NULL,
	asked_by TEXT NOT NULL,
	signed_at BIGINT NOT NULL,
	version BIGINT NOT NULL
)`}}
}

// State is where a rotation stands.
type State string

// The states.
const (
	StateAsked   State = "asked"
	StateAgreed  State = "agreed"
	StateSigned  State = "signed"
	StateDropped State = "dropped"
)

// Rotation is one.
type Rotation struct {
	ID       string `db:"id"`
	Bundle   int64  `db:"bundle"` // the version that names the new keys
	Kinds    string `db:"kinds"`  // space between them
	Until    int64  `db:"until"`  // seconds; the old keys count until then
	Body     string `db:"body"`   // text of the bundle
	Sealed   string `db:"sealed"`
	Signed   string `db:"signed"`
	State    State  `db:"state"`
	Approval string `db:"approval"`
	AskedBy  string `db:"asked_by"`
	SignedAt int64  `db:"signed_at"` // µs
	Version  int64  `db:"version"`
}

const columns = `id, bundle, kinds, until, body, sealed, signed, state, approval, asked_by, signed_at, version`

// Deps is what rotations need. Approvals must have been made with Kinds.
type Deps struct {
	Store     *store.Store
	Ring      *keyring.Ring
	Door      *doorway.Door
	Approvals *approval.Approvals
	Policy    *policy.Force
	Server    string        // this server's id; "" where it is the only one
	Settle    time.Duration // 0: DefaultSettle
	Log       *slog.Logger
}

// DefaultSettle is how long old and new keys act together: longer than a lease
// is fresh, so that whoever may act by then has learnt the new ones.
const DefaultSettle = 12 * time.Second

// Rotations asks for rotations and carries them out.
type Rotations struct {
	d        Deps
	kick     chan struct{}
	learning sync.Mutex
}

// New returns Rotations. Run must run.
func New(d Deps) *Rotations {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Settle == 0 {
		d.Settle = DefaultSettle
	}
	return &Rotations{d: d, kick: make(chan struct{}, 1)}
}

// Bounds.
const (
	MinOverlap = 10 * time.Minute
	MaxOverlap = 400 * 24 * time.Hour
	maxReason  = 500
	// signLeast is what must be left of an overlap when the root key has signed.
	signLeast = 5 * time.Minute
)

// KindRotate is the kind of request.
const KindRotate = "keys.rotate"

// request is what people sign.
type request struct {
	V      int      `json:"v"`
	Once   string   `json:"once"`
	ID     string   `json:"id"`
	Kinds  []string `json:"kinds"`
	Until  int64    `json:"until"`
	Bundle int64    `json:"bundle"`
	Hash   string   `json:"hash"` // SHA-256 of the text
	Reason string   `json:"reason"`
}

// payload is that of every entry about a rotation.
type payload struct {
	V        int      `json:"v"`
	Kinds    []string `json:"kinds,omitempty"`
	Bundle   int64    `json:"bundle,omitempty"`
	Hash     string   `json:"hash,omitempty"`
	Until    int64    `json:"until,omitempty"`
	Approval string   `json:"approval,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Server   string   `json:"server,omitempty"`
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Ask has new keys made, and asks for the agreement of a second person, in
// bootstrap too.
func (r *Rotations) Ask(ctx context.Context, by identity.Principal, kinds []string, overlap time.Duration, reason string) (Rotation, error) {
	if reason = strings.TrimSpace(reason); reason == "" || len(reason) > maxReason {
		return Rotation{}, fault.New(fault.Invalid, "cannot rotate keys: say why, in at most %d letters", maxReason).WithHint("handrail keys rotate %s --reason \"…\"", strings.Join(kinds, " "))
	}
	if overlap < MinOverlap || overlap > MaxOverlap {
		return Rotation{}, fault.New(fault.Invalid, "cannot rotate keys: the old ones would count for %s, and %s to %s are possible", overlap, MinOverlap, MaxOverlap)
	}
	until := time.Now().Add(overlap)
	p, err := r.d.Ring.Propose(kinds, until)
	if err != nil {
		return Rotation{}, err
	}
	b, err := ledger.ReadBundle(p.Text)
	if err != nil {
		return Rotation{}, err
	}
	row := Rotation{
		ID: store.NewID('k'), Bundle: b.Version, Kinds: strings.Join(kinds, " "), Until: until.Unix(), Body: string(p.Text),
		Sealed: base64.StdEncoding.EncodeToString(p.Sealed), State: StateAsked, AskedBy: by.ID, Version: 1,
	}
	_, err = r.d.Door.Do(ctx, doorway.Act{Action: "keys.rotate", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		if open, err := openTx(tx, b.Version); err != nil {
			return nil, err
		} else if open.ID != "" {
			return nil, fault.New(fault.Conflict, "cannot rotate keys: %s is under way (%s)", open.ID, open.State).WithHint("handrail keys, or handrail keys drop")
		}
		return r.askTx(tx, by, &row, kinds, reason)
	}}, nil)
	return row, err
}

func (r *Rotations) askTx(tx *store.Tx, by identity.Principal, row *Rotation, kinds []string, reason string) ([]ledger.Entry, error) {
	raw, err := json.Marshal(request{
		V: 1, Once: hex.EncodeToString(tx.Random(16)), ID: row.ID, Kinds: kinds, Until: row.Until, Bundle: row.Bundle, Hash: hashOf(row.Body), Reason: reason,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
	}
	engine, err := r.d.Policy.EngineTx(tx)
	if err != nil {
		return nil, err
	}
	// The row comes first: what describes the request reads it.
	if err := row.insert(tx); err != nil {
		return nil, err
	}
	a, entries, err := r.d.Approvals.RequestTx(tx, by, KindRotate, raw, approval.RuleOf(engine.Approval(KindRotate)))
	if err != nil {
		return nil, err
	}
	row.Approval = a.ID
	if _, err := tx.Exec(`UPDATE rotations SET approval = $1 WHERE id = $2`, a.ID, row.ID); err != nil {
		return nil, err
	}
	return append(entries, row.entry(Asked, by.ID, payload{Kinds: kinds, Until: row.Until, Hash: hashOf(row.Body), Approval: a.ID, Reason: reason})), nil
}

func (row *Rotation) insert(tx *store.Tx) error {
	_, err := tx.Exec(`INSERT INTO rotations (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		row.ID, row.Bundle, row.Kinds, row.Until, row.Body, row.Sealed, row.Signed, string(row.State), row.Approval, row.AskedBy, row.SignedAt, row.Version)
	return err
}

func (row *Rotation) entry(action ledger.Action, by string, p payload) ledger.Entry {
	p.V, p.Bundle = 1, row.Bundle
	return ledger.Entry{Action: action, Subjects: []string{by}, Object: row.ID, Version: row.Version, Payload: p}
}

// openTx is the rotation that is asked for or agreed to. One for an older bundle
// than the next can never be signed any more.
func openTx(q store.Queryer, next int64) (Rotation, error) {
	list, err := store.All[Rotation](q, `SELECT `+columns+` FROM rotations WHERE state IN ('asked', 'agreed') AND bundle >= $1 ORDER BY bundle DESC LIMIT 1`, next)
	if err != nil || len(list) == 0 {
		return Rotation{}, err
	}
	return list[0], nil
}

func getTx(q store.Queryer, id string) (Rotation, error) {
	list, err := store.All[Rotation](q, `SELECT `+columns+` FROM rotations WHERE id = $1`, id)
	if err == nil && len(list) == 0 {
		err = fault.New(fault.NotFound, "cannot find rotation %s", id).WithHint("handrail keys")
	}
	if err != nil {
		return Rotation{}, err
	}
	return list[0], nil
}

// Open is the rotation that waits for an agreement or for the root key; its ID
// is empty when there is none.
func (r *Rotations) Open(ctx context.Context) (row Rotation, err error) {
	b, _ := r.d.Ring.Bundle()
	err = r.d.Store.View(ctx, func(v *store.View) (err error) {
		row, err = openTx(v, b.Version+1)
		return err
	})
	return row, err
}

// Bring takes the bundle that the root key has signed, and puts it in force.
func (r *Rotations) Bring(ctx context.Context, by identity.Principal, signed []byte) (Rotation, error) {
	b, err := ledger.OpenBundle(signed, r.d.Ring.RootHash())
	if err != nil {
		return Rotation{}, err
	}
	text, err := b.Text()
	if err != nil {
		return Rotation{}, err
	}
	var row Rotation
	_, err = r.d.Door.Do(ctx, doorway.Act{Action: "keys.rotate", By: by, Open: func(tx *store.Tx, _ policy.Decision) (_ []ledger.Entry, err error) {
		if row, err = openTx(tx, b.Version); err != nil {
			return nil, err
		}
		switch {
		case row.ID == "" || row.Body != string(text):
			return nil, fault.New(fault.Denied, "cannot put trust bundle %d in force: it is not the one that was agreed to", b.Version).WithHint("handrail keys")
		case row.State != StateAgreed:
			return nil, fault.New(fault.NeedsApproval, "cannot put trust bundle %d in force: nobody has agreed to %s", b.Version, row.Approval).WithHint("handrail approve %s", row.Approval)
		case tx.Now().Add(signLeast).Unix() > row.Until:
			return nil, fault.New(fault.Conflict, "cannot put trust bundle %d in force: the old keys would end at once", b.Version).WithHint("handrail keys drop, then handrail keys rotate")
		}
		row.State, row.Signed, row.SignedAt, row.Version = StateSigned, string(signed), tx.Now().UnixMicro(), row.Version+1
		if err := row.update(tx); err != nil {
			return nil, err
		}
		if _, err := tx.Exec(`UPDATE rotations SET sealed = '' WHERE state = 'signed' AND until < $1`, tx.Now().Unix()); err != nil {
			return nil, err
		}
		return []ledger.Entry{row.entry(Rotated, by.ID, payload{Kinds: strings.Fields(row.Kinds), Until: row.Until, Hash: hashOf(row.Body), Approval: row.Approval})}, nil
	}}, nil)
	if err == nil {
		err = r.Learn(ctx)
		r.wake()
	}
	return row, err
}

// update keeps what may change.
func (row *Rotation) update(tx *store.Tx) error {
	_, err := tx.Exec(`UPDATE rotations SET state = $1, signed = $2, signed_at = $3, sealed = $4, version = $5 WHERE id = $6`,
		string(row.State), row.Signed, row.SignedAt, row.Sealed, row.Version, row.ID)
	return err
}

// Drop gives up the rotation that is open.
func (r *Rotations) Drop(ctx context.Context, by identity.Principal) (Rotation, error) {
	b, _ := r.d.Ring.Bundle()
	var row Rotation
	_, err := r.d.Door.Do(ctx, doorway.Act{Action: "keys.rotate", By: by, Open: func(tx *store.Tx, _ policy.Decision) (_ []ledger.Entry, err error) {
		if row, err = openTx(tx, b.Version+1); err != nil {
			return nil, err
		}
		if row.ID == "" {
			return nil, fault.New(fault.NotFound, "cannot drop a rotation: none is open").WithHint("handrail keys")
		}
		return dropTx(tx, &row, by.ID, "")
	}}, nil)
	return row, err
}

func dropTx(tx *store.Tx, row *Rotation, by, reason string) ([]ledger.Entry, error) {
	row.State, row.Sealed, row.Version = StateDropped, "", row.Version+1
	return []ledger.Entry{row.entry(Dropped, by, payload{Approval: row.Approval, Reason: reason})}, row.update(tx)
}

// Kinds is the kind of request that rotations bring.
func Kinds() []approval.Kind { return []approval.Kind{kind{}} }

type kind struct{}

func (kind) Name() string { return KindRotate }

func parse(raw []byte) (q request, err error) {
	if err = approval.Read(KindRotate, raw, &q); err == nil && q.V != 1 {
		err = fault.New(fault.Invalid, "cannot read the request of kind %s: version %d", KindRotate, q.V)
	}
	return q, err
}

// Describe shows which keys would count.
func (kind) Describe(q store.Queryer, raw []byte) (approval.Description, error) {
	want, err := parse(raw)
	if err != nil {
		return approval.Description{}, err
	}
	row, err := getTx(q, want.ID)
	if err != nil {
		return approval.Description{}, err
	}
	b, err := ledger.ReadBundle([]byte(row.Body))
	if err != nil || hashOf(row.Body) != want.Hash {
		return approval.Description{}, fault.New(fault.Conflict, "cannot show rotation %s: its keys are not those that were asked for", row.ID)
	}
	out := approval.Description{
		Subject: row.ID, Summary: "replace keys of this installation (" + strings.Join(want.Kinds, ", ") + "): " + want.Reason,
		Details: []approval.Detail{{Name: "trust bundle", Value: want.Hash}},
		Grants: []string{
			"the new keys count once the root key has signed the trust bundle that names them",
			"the old ones count until " + time.Unix(want.Until, 0).UTC().Format(time.RFC3339) + ", and no longer",
		},
		CannotContain: []string{"hosts that are away until the old authority ends join again", "whoever holds old keys can use them until then"},
	}
	for _, k := range want.Kinds {
		for _, key := range b.Keys(k) {
			out.Details = append(out.Details, approval.Detail{Name: k, Value: Fingerprint(key)})
		}
	}
	return out, nil
}

// Approved implements approval.Kind.
func (kind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	q, err := parse(a.Request)
	if err != nil {
		return nil, err
	}
	row, err := getTx(tx, q.ID)
	if err != nil {
		return nil, err
	}
	if row.State != StateAsked || row.Approval != a.ID || hashOf(row.Body) != q.Hash || row.Until != q.Until || row.Kinds != strings.Join(q.Kinds, " ") {
		return nil, fault.New(fault.Conflict, "cannot agree to rotation %s: it is not as it was when it was asked for", row.ID).WithHint("handrail keys")
	}
	row.State, row.Version = StateAgreed, row.Version+1
	return []ledger.Entry{row.entry(Agreed, a.Requester, payload{Kinds: q.Kinds, Until: q.Until, Hash: q.Hash, Approval: a.ID})}, row.update(tx)
}

// Ended implements approval.Kind.
func (kind) Ended(tx *store.Tx, a approval.Approval, state approval.State) ([]ledger.Entry, error) {
	q, err := parse(a.Request)
	if err != nil {
		return nil, err
	}
	row, err := getTx(tx, q.ID)
	if err != nil || row.State != StateAsked || row.Approval != a.ID {
		return nil, err
	}
	return dropTx(tx, &row, a.Requester, string(state))
}

// Fingerprint is how people compare a key.
func Fingerprint(key string) string {
	sum := sha256.Sum256([]byte(key))
	text := hex.EncodeToString(sum[:12])
	return text[:8] + "-" + text[8:16] + "-" + text[16:]
}
