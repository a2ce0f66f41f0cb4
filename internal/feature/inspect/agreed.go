package inspect

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/seal"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What masking keeps back is looked at when a second person agreed, to exactly
// that: of that process, for that person, once.
//
//	asked ── approved ──▶ agreed ── taken by who asked, within the hour ──▶ taking
//	  └─ denied, lapsed ─▶ refused                                           │
//	            a core dump: kept, until its time is over ─▶ gone  ◀── kept ─┤
//	            a value:     shown, once                           ◀─────────┘
//
// A take that brought nothing leaves it agreed.

// The kinds of request, which are also the actions that policy decides.
const (
	KindCore   = "inspect.core"
	KindUnmask = "inspect.unmask"
)

// Where a request stands.
const (
	StateAsked   = "asked"
	StateRefused = "refused"
	StateAgreed  = "agreed"
	StateTaking  = "taking"
	StateKept    = "kept"  // a core dump
	StateShown   = "shown" // a value
	StateGone    = "gone"
)

// Bounds of what is agreed to.
const (
	UsualMost  = 1 << 30
	UsualPause = 30 * time.Second
	UsualKeep  = 24 * time.Hour
	LongestFor = 7 * 24 * time.Hour
	takeWithin = time.Hour
	maxReason  = 500
)

// Wanted is what somebody asks for.
type Wanted struct {
	Kind   string
	Host   string
	Target string
	Why    string
	Most   int64         // core: bytes; 0: UsualMost
	Pause  time.Duration // core: the longest; 0: UsualPause
	Keep   time.Duration // core: 0: UsualKeep
	Name   string        // unmask: of the variable
	Key    []byte        // unmask: to whom it is sealed
}

// terms are what people sign.
type terms struct {
	V    int    `json:"v"`
	Once string `json:"once"`
	ID   string `json:"id"`
	wire.AgreedLook
	Target  string `json:"target"` // as it was asked
	Is      string `json:"is"`     // the process, as it was found
	User    string `json:"user"`
	Command string `json:"command"`
	Runtime string `json:"runtime,omitempty"`
	Bytes   int64  `json:"bytes,omitempty"` // that a dump would have had then
	KeepMS  int64  `json:"keep_ms,omitempty"`
	Masked  string `json:"masked,omitempty"` // why the value is
	Why     string `json:"why"`
}

// Agreed is one request, as its row.
type Agreed struct {
	ID       string `db:"id"` // c-…
	Kind     string `db:"kind"`
	Person   string `db:"person"`
	Host     string `db:"host"`
	Approval string `db:"approval"`
	State    string `db:"state"`
	Asked    int64  `db:"asked"`
	Until    int64  `db:"until"` // agreed: to be taken by then; kept: it is destroyed then
	Taken    int64  `db:"taken"`
	Look     string `db:"look"`    // n-…, of the take: its key and its parts are called so
	Home     string `db:"home"`    // the server whose files hold it; "": the bucket, or the only server
	Bytes    int64  `db:"bytes"`   // of the dump
	Sealed   int64  `db:"sealed"`  // of what is kept
	Parts    string `db:"parts"`   // SHA-256 of each, hex
	Key      string `db:"key"`     // the private half, under a data key of its own; base64
	Removed  int64  `db:"removed"` // somebody wants it destroyed before its time
	Version  int64  `db:"version"`
}

const agreedColumns = `SELECT id, kind, person, host, approval, state, asked, until, taken, look, home, bytes, sealed, parts, key, removed, version FROM inspect_agreed `

func agreedSchema() []store.Migration {
	return []store.Migration{
		{Name: "inspect-3-agreed", SQL: `CREATE TABLE inspect_agreed (
	id TEXT PRIMARY KEY,
	kind TEXT NOT NULL,
	person TEXT NOT NULL,
	host TEXT NOT NULL,
	approval TEXT NOT NULL,
	state TEXT NOT NULL,
	asked BIGINT NOT NULL,
	until BIGINT NOT NULL,
	taken BIGINT NOT NULL,
	look TEXT NOT NULL,
	home TEXT NOT NULL,
	bytes BIGINT NOT NULL,
	sealed BIGINT NOT NULL,
	parts TEXT NOT NULL,
	key TEXT NOT NULL,
	removed BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "inspect-4-agreed-by-state", SQL: `CREATE INDEX inspect_agreed_by_state ON inspect_agreed (state, until)`},
	}
}

func agreedTx(q store.Queryer, id string) (Agreed, error) {
	if len(id) < 5 || len(id) > 40 || strings.ContainsAny(id, "%_") {
		id = "c-none"
	}
	rows, err := store.All[Agreed](q, agreedColumns+`WHERE id LIKE $1 OR approval = $2 LIMIT 2`, id+"%", id)
	switch {
	case err != nil:
		return Agreed{}, err
	case len(rows) != 1:
		return Agreed{}, fault.New(fault.NotFound, "cannot find %.80q: no core dump and no request is called so, or more than one", id).WithHint("handrail inspect core list")
	}
	return rows[0], nil
}

// to moves a row on, from the state it was read in.
func (a Agreed) to(tx *store.Tx, state string) (Agreed, error) {
	n, err := tx.Exec(`UPDATE inspect_agreed SET state = $1, until = $2, taken = $3, home = $4, bytes = $5, sealed = $6, parts = $7, key = $8, removed = $9, version = $10, look = $13
WHERE id = $11 AND version = $12`, state, a.Until, a.Taken, a.Home, a.Bytes, a.Sealed, a.Parts, a.Key, a.Removed, a.Version+1, a.ID, a.Version, a.Look)
	if err == nil && n != 1 {
		err = fault.New(fault.Conflict, "cannot go on with %s: somebody changed it meanwhile", a.ID).WithHint("handrail inspect core list")
	}
	a.State, a.Version = state, a.Version+1
	return a, err
}

// check brings what is wanted into its one form.
func (w *Wanted) check(host string) error {
	w.Why, w.Target = strings.TrimSpace(w.Why), strings.TrimSpace(w.Target)
	bad := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Invalid, "cannot ask for it: "+format, args...)
	}
	switch {
	case w.Kind != KindCore && w.Kind != KindUnmask:
		return bad("%q is not known", w.Kind)
	case w.Target == "":
		return bad("of which process? Name its number, its unit or its name").WithHint("handrail inspect %s top", host)
	case w.Why == "" || len(w.Why) > maxReason:
		return bad("say why, in at most %d letters", maxReason).WithHint("--why \"…\"")
	}
	if w.Kind == KindUnmask {
		if !wire.VariableName(w.Name) {
			return bad("%.80q is no name of a variable", w.Name).WithHint("handrail inspect %s env %s", host, w.Target)
		}
		return seal.CheckKey(w.Key)
	}
	for p, usual := range map[*time.Duration]time.Duration{&w.Pause: UsualPause, &w.Keep: UsualKeep} {
		if *p == 0 {
			*p = usual
		}
	}
	if w.Most == 0 {
		w.Most = UsualMost
	}
	switch {
	case w.Most < 1<<20 || w.Most > wire.MaxCoreBytes:
		return bad("a dump of at most %d bytes; from 1 MiB to %d GiB", w.Most, int64(wire.MaxCoreBytes)>>30)
	case w.Pause < time.Millisecond || w.Pause > wire.MaxCorePause*time.Millisecond:
		return bad("a pause of %s; up to %s", w.Pause, wire.MaxCorePause*time.Millisecond)
	case w.Keep < time.Minute || w.Keep > LongestFor:
		return bad("to keep it for %s; up to 7 days", w.Keep)
	}
	return nil
}

// find looks which process is meant and what it would be, as an inspection of
// its own: who agrees is to see what they agree to.
func (s *Inspections) find(ctx context.Context, by identity.Principal, w Wanted, t *terms) error {
	r := Request{Host: w.Host, What: wire.InspectEnv, Target: w.Target}
	if w.Kind == KindCore {
		r.What = wire.InspectCore
	}
	masked, there := "", false
	err := s.look(ctx, by, r, func(Asked) error { return nil }, func(record wire.InspectRecord) error {
		if p := record.Target; p != nil {
			t.Process = wire.ProcessID{PID: p.PID, Started: p.Ticks}
			t.Is, t.User, t.Command, t.Runtime = fmt.Sprintf("%s (%d)", p.Name, p.PID), p.User, p.Command, p.Runtime
		}
		if c := record.Core; c != nil {
			t.Bytes = c.Bytes
		}
		if v := record.Variable; v != nil && v.Name == w.Name {
			masked, there = v.Masked, true
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case t.Process.PID == 0 || t.Process.Started == 0:
		return fault.New(fault.Unavailable, "cannot ask for it: the node does not say which process that is").WithHint("handrail node upgrade")
	case w.Kind == KindCore && t.Bytes > w.Most:
		return fault.New(fault.Exhausted, "cannot ask for it: the dump would have %d bytes, and you ask for at most %d", t.Bytes, w.Most).WithHint("--most %dGiB", t.Bytes>>30+1)
	case w.Kind == KindUnmask && !there:
		return fault.New(fault.NotFound, "cannot ask for it: the process was started without %s", w.Name).WithHint("handrail inspect HOST env %s", w.Target)
	case w.Kind == KindUnmask && masked == "":
		return fault.New(fault.Invalid, "cannot ask for it: %s is not masked", w.Name).WithHint("handrail inspect HOST env %s", w.Target)
	}
	t.Masked = masked
	return nil
}

// Ask asks a second person, also in bootstrap: nobody does this alone.
func (s *Inspections) Ask(ctx context.Context, by identity.Principal, w Wanted) (a Agreed, said approval.Description, err error) {
	host, err := s.d.Hosts.Get(ctx, w.Host)
	if err != nil {
		return a, said, err
	}
	if err := w.check(host.Name); err != nil {
		return a, said, err
	}
	if w.Kind == KindCore { // before a process is looked for; it is decided again when it is taken
		if err := s.d.Store.View(ctx, func(v *store.View) error { return s.mayDump(v, by, host, time.Now()) }); err != nil {
			return a, said, err
		}
	}
	t := terms{V: 1, ID: store.NewID('c'), Target: w.Target, Why: w.Why, AgreedLook: wire.AgreedLook{Person: by.ID, Host: host.ID, Name: w.Name, Key: w.Key}}
	if w.Kind == KindCore {
		t.Name, t.Key, t.Most, t.PauseMS, t.KeepMS = "", nil, w.Most, w.Pause.Milliseconds(), w.Keep.Milliseconds()
	}
	if err := s.find(ctx, by, w, &t); err != nil {
		return a, said, err
	}
	_, err = s.d.Door.Do(ctx, doorway.Act{Action: w.Kind, By: by, Host: &host, Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
		t.Once = hex.EncodeToString(tx.Random(16))
		raw, err := json.Marshal(t)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot ask for approval")
		}
		engine, err := s.d.Rules.EngineTx(tx)
		if err != nil {
			return nil, err
		}
		request, entries, err := s.d.Approvals.RequestTx(tx, by, w.Kind, raw, approval.RuleOf(engine.Approval(w.Kind)))
		if err != nil {
			return nil, err
		}
		if said, err = (kind{s.self, w.Kind}).Describe(tx, raw); err != nil {
			return nil, err
		}
		a = Agreed{ID: t.ID, Kind: w.Kind, Person: by.ID, Host: host.ID, Approval: request.ID, State: StateAsked, Asked: tx.Now().UnixMicro(), Version: 1}
		_, err = tx.Exec(`INSERT INTO inspect_agreed (id, kind, person, host, approval, state, asked, until, taken, look, home, bytes, sealed, parts, key, removed, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, '', '', 0, 0, '', $8, 0, 1)`, a.ID, a.Kind, a.Person, a.Host, a.Approval, a.State, a.Asked, "")
		return entries, err
	}}, nil)
	return a, said, err
}

// Kinds are the kinds of request that inspections carry out. They need what New
// is given later.
func Kinds(of func() *Inspections) []approval.Kind {
	return []approval.Kind{kind{of, KindCore}, kind{of, KindUnmask}}
}

func (s *Inspections) self() *Inspections { return s }

type kind struct {
	of   func() *Inspections
	name string
}

func (k kind) Name() string { return k.name }

// Describe says what leaves the host, and who can read it.
func (k kind) Describe(q store.Queryer, raw []byte) (approval.Description, error) {
	var t terms
	if err := approval.Read(k.name, raw, &t); err != nil {
		return approval.Description{}, err
	}
	host, err := k.of().d.Hosts.GetTx(q, t.Host)
	if err != nil {
		return approval.Description{}, err
	}
	d := approval.Description{Subject: t.ID, Details: []approval.Detail{
		{Name: "host", Value: fmt.Sprintf("%s (%s, data: %s)", host.Name, host.Environment, host.Scope)},
		{Name: "process", Value: t.Is + " of " + t.User + ", this one and no later one"},
		{Name: "command", Value: t.Command},
	}}
	if k.name == KindUnmask {
		d.Summary = fmt.Sprintf("show %s of %s on %s: %s", t.Name, t.Is, host.Name, t.Why)
		d.Details = append(d.Details, approval.Detail{Name: "variable", Value: t.Name + ", masked as " + t.Masked}, approval.Detail{Name: "why", Value: t.Why})
		d.Grants = []string{"the value of that variable is shown to who asks, once, within an hour; it is sealed on the host to a key that they alone have", "the ledger keeps that it was shown, not what"}
		d.CannotContain = []string{"what was read is known: a secret that was shown is best replaced"}
		return d, nil
	}
	keep := time.Duration(t.KeepMS) * time.Millisecond
	d.Summary = fmt.Sprintf("dump the memory of %s on %s: %s", t.Is, host.Name, t.Why)
	d.Details = append(d.Details,
		approval.Detail{Name: "size", Value: fmt.Sprintf("%s when it was asked, at most %s", sizeText(t.Bytes), sizeText(t.Most))},
		approval.Detail{Name: "pause", Value: fmt.Sprintf("the process stands still meanwhile, for at most %s", time.Duration(t.PauseMS)*time.Millisecond)},
		approval.Detail{Name: "kept for", Value: keep.String() + ", then its key is destroyed"},
		approval.Detail{Name: "why", Value: t.Why})
	d.Grants = []string{
		"all of the process's memory leaves the host, unmasked: keys, passwords and customers' data that it holds",
		"who asks takes it within an hour, once, while the host is drained; they and whoever agrees can download it until it is destroyed",
	}
	d.CannotContain = []string{"what was downloaded stays where it went"}
	return d, nil
}

func sizeText(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// Approved lets who asked take it, for a while.
func (k kind) Approved(tx *store.Tx, a approval.Approval) ([]ledger.Entry, error) {
	var t terms
	if err := approval.Read(k.name, a.Request, &t); err != nil {
		return nil, err
	}
	row, err := agreedTx(tx, t.ID)
	if err != nil {
		return nil, err
	}
	if row.State != StateAsked || row.Approval != a.ID || row.Kind != a.Kind {
		return nil, fault.New(fault.Conflict, "cannot agree to %s: it is not what was asked for", row.ID)
	}
	row.Until = tx.Now().Add(takeWithin).UnixMicro()
	_, err = row.to(tx, StateAgreed)
	return nil, err
}

// Ended closes what nobody agreed to.
func (k kind) Ended(tx *store.Tx, a approval.Approval, _ approval.State) ([]ledger.Entry, error) {
	rows, err := store.All[Agreed](tx, agreedColumns+`WHERE approval = $1 AND state = $2`, a.ID, StateAsked)
	for _, r := range rows {
		if _, err := r.to(tx, StateRefused); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// mayDump refuses a dump of a host that others use at this moment.
func (s *Inspections) mayDump(q store.Queryer, by identity.Principal, host target.Host, now time.Time) error {
	if s.d.Drained == nil {
		return fault.New(fault.Internal, "cannot dump memory on %s: nothing says whether it is drained", host.Name)
	}
	return s.d.Drained(q, by, host, now)
}

// approvers are who agreed, and still stand.
func (s *Inspections) approvers(q store.Queryer, a approval.Approval) (ids []string, err error) {
	for _, d := range a.Agreed() {
		p, err := s.d.People.GetTx(q, d.Person)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return nil, err
		}
		if err == nil && !p.Locked() {
			ids = append(ids, d.Person)
		}
	}
	return ids, nil
}

// Readers are who may download a dump: who asked, and who agreed.
func (s *Inspections) readers(q store.Queryer, a Agreed) ([]string, error) {
	request, err := approval.Lookup(q, a.Approval)
	if err != nil {
		return nil, err
	}
	ids, err := s.approvers(q, request)
	return append([]string{a.Person}, ids...), err
}

// Shown is a request as people see it.
type Shown struct {
	Agreed
	Terms    ShownTerms
	Mine     bool // by may take or download it
	HostName string
}

// ShownTerms are those that lists show.
type ShownTerms struct {
	Is, User, Name, Why string
	Most                int64
}

// List is every request of a kind, or all, the newest first.
func (s *Inspections) List(ctx context.Context, by identity.Principal, of string) (out []Shown, err error) {
	err = s.d.Store.View(ctx, func(v *store.View) error {
		out = nil
		rows, err := store.All[Agreed](v, agreedColumns+`ORDER BY asked DESC, id LIMIT 500`)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if of != "" && r.Kind != of {
				continue
			}
			shown, err := s.shownTx(v, by, r)
			if err != nil {
				return err
			}
			out = append(out, shown)
		}
		return nil
	})
	return out, err
}

func (s *Inspections) shownTx(q store.Queryer, by identity.Principal, r Agreed) (Shown, error) {
	out := Shown{Agreed: r, HostName: r.Host}
	if h, err := s.d.Hosts.GetTx(q, r.Host); err == nil {
		out.HostName = h.Name
	}
	request, err := approval.Lookup(q, r.Approval)
	if err != nil {
		return out, nil // erased with its person
	}
	var t terms
	if approval.Read(r.Kind, request.Request, &t) == nil {
		out.Terms = ShownTerms{t.Is, t.User, t.Name, t.Why, t.Most}
	}
	readers, err := s.readers(q, r)
	out.Mine = r.Person == by.ID && r.State == StateAgreed || r.State == StateKept && slices.Contains(readers, by.ID)
	return out, err
}

// EraseTx has the dumps of somebody destroyed.
func EraseTx(tx *store.Tx, person string) error {
	_, err := tx.Exec(`UPDATE inspect_agreed SET until = $1, version = version + 1 WHERE person = $2 AND state = $3`, tx.Now().UnixMicro(), person, StateKept)
	return err
}
