package inspect

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Request is what somebody wants to look at.
type Request struct {
	Host     string // name or id
	What     string // stacks, top, journal, ports, files, env
	Target   string // pid, unit, name; a path for files and journal; "" the host
	Part     string // of a path: list, stat, head, tail
	Since    string // RFC 3339
	Until    string
	Priority string
	Grep     string
	Lines    int64
	Pause    time.Duration // the longest; 0: the default
}

// Asked is an inspection that was let through.
type Asked struct {
	ID, Host, HostName string
	Floor              string // in force there, as the node says
	Visited            bool   // the host has no node: one came for this look
}

// Look asks and hands over each record as it comes. begun is called once, when
// the node looks. The error of the host (no such process) is returned.
func (s *Inspections) Look(ctx context.Context, by identity.Principal, r Request, begun func(Asked) error, each func(wire.InspectRecord) error) error {
	if !slices.Contains(wire.InspectVerbs, r.What) {
		e := fault.New(fault.Invalid, "cannot inspect %q: known are %s", r.What, strings.Join(wire.InspectVerbs, ", "))
		if near := fault.Nearest(r.What, wire.InspectVerbs); near != "" {
			return e.WithHint("handrail inspect HOST %s", near)
		}
		return e
	}
	return s.look(ctx, by, r, begun, each)
}

// look is Look, also of how large a core dump would be.
func (s *Inspections) look(ctx context.Context, by identity.Principal, r Request, begun func(Asked) error, each func(wire.InspectRecord) error) error {
	host, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := store.NewID('n')
	if err := s.enter(by.ID, id, cancel); err != nil {
		return err
	}
	defer s.leave(by.ID, id)
	spec := s.spec(id, by, host, r)
	act := doorway.Act{Action: "inspect", By: by, Host: &host, Context: policy.Context{Level: "read", Inspect: r.What}, ID: id,
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			return s.opened(tx, by, host, spec, nil)
		},
		Close: func(tx *store.Tx, outcome ledger.Outcome) error { return end(tx, id, outcome) }}
	_, err = s.d.Door.Do(ctx, act, func(ctx context.Context, pass doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		outcome, entries, _, err := s.run(ctx, pass, spec, host, listener{begun: begun, each: each})
		return outcome, entries, err
	})
	return err
}

func (s *Inspections) enter(person, id string, cancel context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.of[person]
	if b == nil {
		b = &budget{}
		s.of[person] = b
	}
	if now := time.Now(); now.Sub(b.since) > time.Minute {
		b.since, b.used = now, 0
	}
	if b.now >= s.b.PerPerson || b.used >= s.b.PerMinute || len(s.live) >= s.b.Live {
		return fault.New(fault.Exhausted, "cannot inspect: %d of yours run, %d in this minute", b.now, b.used).WithHint("try again in a moment")
	}
	b.now++
	b.used++
	s.live[id] = cancel
	return nil
}

func (s *Inspections) leave(person, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, id)
	b := s.of[person]
	if b.now--; b.now == 0 && time.Since(b.since) > time.Minute {
		delete(s.of, person)
	}
}

// timeFor is how long a look may take, in milliseconds. Where a node comes for
// it, its way there is a part of that.
func (s *Inspections) timeFor(host target.Host) int64 {
	if host.Agentless() {
		return wire.MaxInspectTime
	}
	return min(s.b.Time.Milliseconds(), wire.MaxInspectTime)
}

func (s *Inspections) spec(id string, by identity.Principal, host target.Host, r Request) wire.InspectSpec {
	pause := r.Pause
	if pause <= 0 {
		pause = s.b.Pause
	}
	spec := wire.InspectSpec{ID: id, Person: by.ID, PersonName: by.Name, What: r.What, Target: strings.TrimSpace(r.Target),
		PauseMS: max(min(pause.Milliseconds(), wire.MaxInspectPause), 1), TimeMS: s.timeFor(host), Lines: r.Lines,
		Part: r.Part, Since: r.Since, Until: r.Until, Priority: r.Priority, Grep: r.Grep}
	if r.What == wire.InspectCore {
		spec.Core = &wire.CoreSpec{} // the question alone
	}
	return spec
}

// opened writes the row and the entry whose payload is the order. It runs
// inside the deciding transaction, perhaps more than once. agreed is who stands
// behind it beside who asks, where somebody must.
func (s *Inspections) opened(tx *store.Tx, by identity.Principal, host target.Host, spec wire.InspectSpec, agreed *wire.Authority) ([]ledger.Entry, error) {
	engine, err := s.d.Rules.EngineTx(tx)
	if err != nil {
		return nil, err
	}
	fresh, err := s.d.Hosts.GetTx(tx, host.ID)
	if err != nil {
		return nil, err
	}
	spec.Secrets, spec.Groups = engine.Secrets(fresh), engine.GroupsFor(by, fresh)
	lock, err := s.d.LockEpoch(tx)
	if err != nil {
		return nil, err
	}
	person, err := s.d.People.GetTx(tx, by.ID)
	if err != nil {
		return nil, err
	}
	order := wire.OrderPayload{V: 1, Order: "o-" + spec.ID[2:], Kind: wire.KindInspect, Node: host.ID, Issued: tx.Now().UnixMicro(),
		ValidMS: min(spec.TimeMS, wire.MaxOrderAge), Need: []string{"inspect"}, Inspect: &spec, Authority: agreed,
		Epochs: wire.Epochs{Lock: lock, Policy: engine.Version(), Person: map[string]int64{person.ID: person.Epoch}}}
	if agreed != nil {
		order.Need = append(order.Need, "inspect.agreed")
		for _, sig := range agreed.Signatures {
			if person, err = s.d.People.GetTx(tx, sig.Person); err != nil {
				return nil, err
			}
			order.Epochs.Person[person.ID] = person.Epoch
		}
	}
	payload, err := order.Marshal()
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(`INSERT INTO inspections (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		spec.ID, by.ID, host.ID, spec.What, "", tx.Now().UnixMicro(), int64(0), int64(1))
	if err != nil {
		return nil, err
	}
	return []ledger.Entry{{Action: Opened, Subjects: []string{by.ID}, Target: host.Path(), Object: spec.ID, Version: 1, Payload: payload}}, nil
}

// closedPayload is what inspection.closed says. The answer is kept as the
// person saw it: masked, packed, up to a bound; its hash is of all of it.
type closedPayload struct {
	V          int    `json:"v"`
	Inspection string `json:"inspection"`
	What       string `json:"what"`
	Target     string `json:"target,omitempty"`  // as it was asked
	Process    string `json:"process,omitempty"` // as it was found
	Floor      string `json:"floor,omitempty"`   // in force, as the node said
	Visited    bool   `json:"visited,omitempty"` // by a node that came for it
	Method     string `json:"method,omitempty"`
	PauseNS    int64  `json:"pause_ns"`
	PauseBound bool   `json:"pause_bound,omitempty"` // the pause was at most that
	Masked     int64  `json:"masked"`
	Records    int64  `json:"records"`
	Bytes      int64  `json:"bytes"`
	Cut        bool   `json:"cut,omitempty"`
	Error      string `json:"error,omitempty"`
	Hash       string `json:"hash,omitempty"`   // SHA-256 of the answer, hex
	Answer     []byte `json:"answer,omitempty"` // its records, a line each, deflated
	AnswerCut  bool   `json:"answer_cut,omitempty"`
}

// keep is the answer as the ledger keeps it.
type keep struct {
	hash hash.Hash
	out  bytes.Buffer
	pack *flate.Writer
	most int
	cut  bool
}

func newKeep(most int) *keep {
	k := &keep{hash: sha256.New(), most: most}
	k.pack, _ = flate.NewWriter(&k.out, flate.DefaultCompression) // the level is a valid one
	return k
}

func (k *keep) add(b []byte) {
	k.hash.Write(b)
	k.hash.Write([]byte{'\n'})
	if k.cut {
		return
	}
	if k.out.Len()+len(b)/2 > k.most { // before it is too late: what is packed cannot be taken back
		k.cut = true
		return
	}
	_, _ = k.pack.Write(b)
	_, _ = k.pack.Write([]byte{'\n'})
	_ = k.pack.Flush()
}

func (k *keep) into(p *closedPayload) {
	_ = k.pack.Close()
	p.Hash, p.Answer, p.AnswerCut = hex.EncodeToString(k.hash.Sum(nil)), k.out.Bytes(), k.cut
}

// lateBy is how long beyond its own deadline a node's answer is waited for.
const lateBy = 5 * time.Second

// listener is who hears an answer.
type listener struct {
	begun func(Asked) error
	each  func(wire.InspectRecord) error
	box   func([]byte) error // a part of what was sealed; nil: nothing is
}

// run is the effect, with the entry that closes it.
func (s *Inspections) run(ctx context.Context, pass doorway.Pass, spec wire.InspectSpec, host target.Host, l listener) (ledger.Outcome, []ledger.Entry, closedPayload, error) {
	r := row{ID: spec.ID, Person: spec.Person, Host: host.ID, What: spec.What}
	p := closedPayload{V: 1, Inspection: spec.ID, What: spec.What, Target: spec.Target}
	outcome, err := s.hear(ctx, pass, spec, host, &p, l)
	if err != nil {
		p.Error = fault.From(err).Text
	}
	return outcome, closing(r, outcome, p), p, err
}

// hear takes the answer until its last record.
func (s *Inspections) hear(ctx context.Context, pass doorway.Pass, spec wire.InspectSpec, host target.Host, p *closedPayload, l listener) (ledger.Outcome, error) {
	stream, answer, err := s.d.Nodes.Start(ctx, pass, host.ID)
	if err != nil {
		if answer.Kind != "" {
			return ledger.Failed, err // the node said no
		}
		return ledger.Unknown, err // it may have heard the order
	}
	defer stream.Close()
	late := time.AfterFunc(time.Duration(spec.TimeMS)*time.Millisecond+lateBy, func() { stream.Close() })
	defer late.Stop()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	kept := newKeep(s.b.Kept)
	defer func() { kept.into(p) }()
	p.Floor, p.Visited = answer.Floor, pass.Act().Host.Agentless()
	if err := l.begun(Asked{ID: spec.ID, Host: host.ID, HostName: host.Name, Floor: p.Floor, Visited: p.Visited}); err != nil {
		return ledger.Failed, err
	}
	for {
		kind, b, err := stream.Next()
		if err != nil {
			return ledger.Lost, broken(ctx, host)
		}
		if kind == wire.FrameSealed && l.box != nil {
			if err := l.box(b); err != nil {
				return ledger.Failed, err
			}
			continue
		}
		if kind != wire.FrameStdout {
			continue
		}
		if p.Bytes += int64(len(b)); p.Bytes > 2*wire.MaxInspectBytes || p.Records > 4*wire.MaxInspectLines {
			return ledger.Failed, fault.New(fault.Exhausted, "cannot inspect %s: its node says more than an honest one does", host.Name)
		}
		record, err := wire.ParseInspectRecord(b)
		if err != nil {
			return ledger.Failed, err
		}
		if record.Sealed == nil { // what was shown to one person stays with them
			kept.add(b)
		}
		p.Records++
		if t := record.Target; t != nil {
			p.Process = t.Name + " " + t.Command
		}
		if record.End != nil {
			return ended(record, host.Name, p, l.each)
		}
		if err := l.each(record); err != nil {
			return ledger.Failed, err
		}
	}
}

func broken(ctx context.Context, host target.Host) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.Unavailable, context.Cause(ctx), "cannot inspect %s: it was ended", host.Name)
	}
	return fault.New(fault.Unavailable, "cannot inspect %s: its node broke off in the middle", host.Name).WithHint("handrail host show %s", host.Name)
}

// ended takes the last record.
func ended(record wire.InspectRecord, host string, p *closedPayload, each func(wire.InspectRecord) error) (ledger.Outcome, error) {
	e := record.End
	p.Method, p.PauseNS, p.PauseBound, p.Masked, p.Cut = e.Method, e.PauseNS, e.Bound, e.Masked, e.Cut
	p.Records, p.Bytes = e.Records, e.Bytes
	if err := each(record); err != nil {
		return ledger.Failed, err
	}
	if e.Error != "" {
		f := fault.New(fault.ParseKind(e.Kind), "%s", e.Error)
		f.Hint = strings.ReplaceAll(e.Hint, "HOST", host) // the node does not know what people call it
		return ledger.Failed, f
	}
	return ledger.OK, nil
}

// end marks the row; the closing entry commits with it.
func end(tx *store.Tx, id string, outcome ledger.Outcome) error {
	n, err := tx.Exec(`UPDATE inspections SET outcome = $1, ended = $2, version = 2 WHERE id = $3 AND ended = 0`, string(outcome), tx.Now().UnixMicro(), id)
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "cannot close inspection %s: it is closed", id)
	}
	return err
}

func closing(r row, outcome ledger.Outcome, p closedPayload) []ledger.Entry {
	return []ledger.Entry{{Action: Closed, Outcome: outcome, Subjects: []string{r.Person}, Target: "host/" + r.Host, Object: r.ID, Version: 2, Payload: p}}
}
