// Package erasure makes what is kept of a person unreadable for good, on the
// ground that somebody names and that a second person agrees to, while every
// proof of the ledger stays valid.
//
//	asked ──▶ agreed: entries subject.erased, rows scrubbed (one transaction)
//	            └──▶ keys destroyed, payloads emptied, database rewritten
//	                   └──▶ entry erasure.finished
//
// What must stay true:
//   - Who was erased, by whom and why stays in the ledger, by ids.
//   - Nothing is erased that somebody still has to answer for: a review that is
//     owed, a grant or session that has not ended.
//   - If we crash after the first transaction, Run finishes the rest.
package erasure

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

// ActionFinished says that nothing readable is left.
const ActionFinished ledger.Action = "erasure.finished"

// Actions lists what this package writes to the ledger, beside subject.erased.
func Actions() []ledger.Action { return []ledger.Action{ActionFinished} }

// Schema is the erasures that were agreed to.
func Schema() []store.Migration {
	return []store.Migration{{Name: "erasure-1-erasures", SQL: `CREATE TABLE erasures (
	person TEXT PRIMARY KEY,
	asked_by TEXT NOT NULL,
	subjects TEXT NOT NULL,
	at BIGINT NOT NULL,
	finished BIGINT NOT NULL
)`}}
}

// Hold says why a person cannot be erased yet, or nothing. involved are the
// requests that they took part in.
type Hold func(q store.Queryer, person string, involved []string) (why string, err error)

// Scrub takes a person out of the rows of one feature. stub is what they are
// called from now on.
type Scrub func(tx *store.Tx, person identity.Person, stub string) error

// Rows is what the features that keep rows about people say.
type Rows struct {
	Holds  []Hold
	Scrubs []Scrub
}

// Deps is what erasing needs. Approvals must have been made with Kinds.
type Deps struct {
	Store     *store.Store
	Door      *doorway.Door
	Approvals *approval.Approvals
	People    *identity.People
	Policy    *policy.Force
	Rows      Rows
	// Removes takes away what lies outside of the database, once its keys are
	// destroyed. It may be nil, and is asked again until it succeeds.
	Removes func(ctx context.Context, person string) error
	Log     *slog.Logger
}

// Erasures asks for erasures and finishes them.
type Erasures struct {
	d    Deps
	kick chan struct{}
}

// New returns Erasures. Run must run.
func New(d Deps) *Erasures {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Erasures{d: d, kick: make(chan struct{}, 1)}
}

// KindErase is the kind of request.
const KindErase = "person.erase"

// MaxGround bounds the words that stay in the ledger.
const MaxGround = 500

// request is what people sign. It holds no name.
type request struct {
	V      int    `json:"v"`
	Once   string `json:"once"`
	Person string `json:"person"`
	Ground string `json:"ground"`
}

// Ask asks for the agreement of a second person, in bootstrap too: nobody
// erases alone.
func (e *Erasures) Ask(ctx context.Context, by identity.Principal, person, ground string) (approvalID string, err error) {
	if ground = strings.TrimSpace(ground); ground == "" || len(ground) > MaxGround {
		return "", fault.New(fault.Invalid, "cannot erase %s: say the ground, in at most %d letters", person, MaxGround).WithHint("handrail ledger erase %s --ground \"…\"", person)
	}
	_, err = e.d.Door.Do(ctx, doorway.Act{Action: "ledger.erase", By: by, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		who, err := e.d.People.GetTx(tx, person)
		if err != nil {
			return nil, err
		}
		if who.ID == by.ID {
			return nil, fault.New(fault.Denied, "cannot erase yourself").WithRule("never-your-own")
		}
		if strings.Contains(strings.ToLower(ground), strings.ToLower(who.Name)) {
			return nil, fault.New(fault.Invalid, "cannot erase %s: the ground names them, and it stays in the ledger", who.Name)
		}
		if _, err := e.heldTx(tx, who, ""); err != nil {
			return nil, err
		}
		raw, err := json.Marshal(request{V: 1, Once: hex.EncodeToString(tx.Random(16)), Person: who.ID, Ground: ground})
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
		}
		engine, err := e.d.Policy.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		a, entries, err := e.d.Approvals.RequestTx(tx, by, KindErase, raw, approval.RuleOf(engine.Approval(KindErase)))
		approvalID = a.ID
		return entries, err
	}}, nil)
	return approvalID, err
}

// heldTx refuses whom something is still owed about, and returns the requests
// that they took part in, but for the one that erases them.
func (e *Erasures) heldTx(q store.Queryer, who identity.Person, own string) (involved []string, err error) {
	if who.IsErased() {
		return nil, fault.New(fault.Conflict, "cannot erase %s: they are erased already", who.Name)
	}
	if !who.Locked() {
		return nil, fault.New(fault.Conflict, "cannot erase %s: they are not locked", who.Name).WithHint("handrail lock %s --reason \"to be erased\"", who.Name)
	}
	all, err := approval.InvolvedTx(q, who.ID, who.Name)
	if err != nil {
		return nil, err
	}
	for _, id := range all {
		if id != own {
			involved = append(involved, id)
		}
	}
	for _, hold := range e.d.Rows.Holds {
		why, err := hold(q, who.ID, involved)
		if err != nil {
			return nil, err
		}
		if why != "" {
			return nil, fault.New(fault.Conflict, "cannot erase %s yet: %s", who.Name, why)
		}
	}
	return involved, nil
}

// Kinds are the kinds of request that erasing carries out. They need what New
// is given later.
func Kinds(of func() *Erasures) []approval.Kind { return []approval.Kind{kind{of}} }

type kind struct{ of func() *Erasures }

func (kind) Name() string { return KindErase }

func parse(raw []byte) (r request, err error) {
	err = approval.Read(KindErase, raw, &r)
	return r, err
}

// Describe says what cannot be undone.
func (k kind) Describe(q store.Queryer, raw []byte) (approval.Description, error) {
	r, err := parse(raw)
	if err != nil {
		return approval.Description{}, err
	}
	who, err := k.of().d.People.GetTx(q, r.Person)
	if err != nil {
		return approval.Description{}, err
	}
	return approval.Description{
		Subject: who.ID, Summary: "erase " + who.Name + ": " + r.Ground,
		Details: []approval.Detail{{Name: "person", Value: who.Name}, {Name: "ground", Value: r.Ground}},
		Grants: []string{
			"what the ledger says about " + who.Name + " beyond ids and times, their recordings, and requests that they took part in become unreadable for everybody, for good",
			"every proof stays valid, and that they were erased, by whom and why, stays",
		},
		CannotContain: []string{"exports, backups and copies that were made before keep what they hold; so do hosts' own files"},
	}, nil
}

// Approved erases in the transaction that agrees to it.
func (k kind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	r, err := parse(a.Request)
	if err != nil {
		return nil, err
	}
	return k.of().eraseTx(tx, a, r)
}

// Ended does nothing.
func (kind) Ended(*store.Tx, approval.Approval, approval.State) ([]ledger.Entry, error) {
	return nil, nil
}

// erasedPayload is the payload of subject.erased.
type erasedPayload struct {
	V        int    `json:"v"`
	Approval string `json:"approval"`
	Ground   string `json:"ground,omitempty"`
	Of       string `json:"of,omitempty"` // the person for whose sake a request was erased
}

func (e *Erasures) eraseTx(tx *store.Tx, a approval.Approval, r request) ([]ledger.Entry, error) {
	who, err := e.d.People.GetTx(tx, r.Person)
	if err != nil {
		return nil, err
	}
	involved, err := e.heldTx(tx, who, a.ID)
	if err != nil {
		return nil, err
	}
	if err := e.d.People.EraseTx(tx, who.ID); err != nil {
		return nil, err
	}
	stub, err := e.d.People.GetTx(tx, who.ID)
	if err != nil {
		return nil, err
	}
	if err := approval.EraseTx(tx, involved); err != nil {
		return nil, err
	}
	for _, scrub := range e.d.Rows.Scrubs {
		if err := scrub(tx, who, stub.Name); err != nil {
			return nil, err
		}
	}
	subjects := append([]string{who.ID}, involved...)
	list, err := json.Marshal(subjects)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot erase %s", who.ID)
	}
	if _, err := tx.Exec(`INSERT INTO erasures (person, asked_by, subjects, at, finished) VALUES ($1, $2, $3, $4, 0)`,
		who.ID, a.Requester, string(list), tx.Now().UnixMicro()); err != nil {
		return nil, err
	}
	entries := make([]ledger.Entry, 0, len(subjects))
	for _, s := range subjects {
		p := erasedPayload{V: 1, Approval: a.ID, Of: who.ID}
		if s == who.ID {
			p = erasedPayload{V: 1, Approval: a.ID, Ground: r.Ground}
		}
		entries = append(entries, store.Erasure(s, ledger.Entry{Subjects: []string{a.Requester}, Payload: p, SealTo: ledger.System}))
	}
	return entries, nil
}

// again is how long Run waits after an error.
const again = 10 * time.Second

// Run finishes erasures that were agreed to, those of an earlier run too.
func (e *Erasures) Run(ctx context.Context) error {
	go e.follow(ctx)
	for {
		wait := time.Duration(0)
		if err := e.Finish(ctx); err != nil && ctx.Err() == nil {
			e.d.Log.Error("an erasure could not be finished yet", "error", err)
			wait = again
		}
		var retry <-chan time.Time
		if wait > 0 {
			retry = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.kick:
		case <-retry:
		}
	}
}

// follow wakes Run when an erasure was agreed to, on whatever server.
func (e *Erasures) follow(ctx context.Context) {
	for ctx.Err() == nil {
		_ = e.d.Store.Follow(ctx, e.d.Store.Size()-1, func(r store.Recorded) error {
			if r.Parsed.Action == ledger.ActionErased {
				select {
				case e.kick <- struct{}{}:
				default: // it is awake
				}
			}
			return nil
		})
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

type row struct {
	Person   string `db:"person"`
	AskedBy  string `db:"asked_by"`
	Subjects string `db:"subjects"`
	At       int64  `db:"at"`
}

// finishedPayload is the payload of erasure.finished.
type finishedPayload struct {
	V      int    `json:"v"`
	Person string `json:"person"`
	Keys   int    `json:"keys"` // that were destroyed
	TookMS int64  `json:"took_ms"`
}

// Finish makes unreadable what was agreed to be erased.
func (e *Erasures) Finish(ctx context.Context) error {
	var left []row
	err := e.d.Store.View(ctx, func(v *store.View) (err error) {
		left, err = store.All[row](v, `SELECT person, asked_by, subjects, at FROM erasures WHERE finished = 0 ORDER BY at`)
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range left {
		if err := e.finish(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (e *Erasures) finish(ctx context.Context, r row) error {
	start := time.Now()
	var subjects []string
	if err := json.Unmarshal([]byte(r.Subjects), &subjects); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot erase %s", r.Person)
	}
	if err := e.d.Store.FinishErasure(ctx, subjects...); err != nil {
		return err
	}
	if err := e.d.Store.Compact(ctx); err != nil {
		return err
	}
	if e.d.Removes != nil {
		if err := e.d.Removes(ctx, r.Person); err != nil {
			return err
		}
	}
	_, err := e.d.Store.Record(ctx, "erasure/"+r.Person, func(tx *store.Tx) ([]ledger.Entry, error) {
		if _, err := tx.Exec(`UPDATE erasures SET finished = $1 WHERE person = $2`, tx.Now().UnixMicro(), r.Person); err != nil {
			return nil, err
		}
		return []ledger.Entry{{
			Action: ActionFinished, Subjects: []string{ledger.System}, Object: r.Person, Version: 2,
			Payload: finishedPayload{V: 1, Person: r.Person, Keys: len(subjects), TookMS: time.Since(start).Milliseconds()},
		}}, nil
	})
	return err
}
