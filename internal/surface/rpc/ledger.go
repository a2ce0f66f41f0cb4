package rpc

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
)

type ledgers struct{ d *Deps }

const maxEntries = 500

func (s ledgers) List(ctx context.Context, r *handrailv1.ListEntriesRequest) (*handrailv1.ListEntriesResponse, error) {
	limit := int(r.Limit)
	if limit == 0 {
		limit = 100
	}
	q := store.EntryQuery{
		Before: int64(r.Before), Limit: min(limit, maxEntries), Action: r.Action,
		Subject: r.Person, Target: r.Target, Session: r.Session,
	}
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	if id, ok := names.ids[r.Person]; ok {
		q.Subject = id
	}
	if id, ok := names.ids[strings.TrimPrefix(r.Target, "host/")]; ok {
		q.Target = "host/" + id
	}
	entries, err := s.page(ctx, q, names, r.Unfolded || strings.HasPrefix(r.Action, "act"))
	if err != nil {
		return nil, err
	}
	return &handrailv1.ListEntriesResponse{Entries: entries, Size: uint64(s.d.Store.Size())}, nil
}

// maxPages bounds how far a page of entries looks back for its last lines.
const maxPages = 4

// page is one page of entries, the newest first. Unless they are wanted apart,
// the outcome of an act is shown on its opening entry instead of as another one.
func (s ledgers) page(ctx context.Context, q store.EntryQuery, names *names, unfolded bool) ([]*handrailv1.Entry, error) {
	var out []*handrailv1.Entry
	var f fold
	for range maxPages {
		raw, err := s.d.Store.Entries(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, r := range raw {
			e := s.message(ctx, names, r)
			if !unfolded && f.holds(r, e) {
				continue
			}
			f.close(r, e)
			out = append(out, e)
		}
		if len(raw) < q.Limit || len(out) >= q.Limit {
			break
		}
		q.Before = raw[len(raw)-1].Seq
	}
	out = append(out, f.left()...) // their acts began before this page
	slices.SortFunc(out, func(a, b *handrailv1.Entry) int { return cmp.Compare(b.Number, a.Number) })
	return out[:min(len(out), q.Limit)], nil
}

// fold puts the outcomes of acts onto the entries that opened them.
type fold struct{ held map[string]*handrailv1.Entry }

// holds keeps the outcome of an act until its opening comes.
func (f *fold) holds(r store.Recorded, e *handrailv1.Entry) bool {
	if r.Parsed.Action != doorway.ActEnded {
		return false
	}
	var p struct{ Of string }
	if err := json.Unmarshal(r.Payload, &p); err != nil || p.Of == "" {
		return false
	}
	if f.held == nil {
		f.held = map[string]*handrailv1.Entry{}
	}
	f.held[p.Of] = e
	return true
}

func (f *fold) close(r store.Recorded, opening *handrailv1.Entry) {
	if len(f.held) == 0 {
		return
	}
	of := ledger.HashOf(r.Leaf).String()
	ended, ok := f.held[of]
	if !ok {
		return
	}
	delete(f.held, of)
	opening.EndedNumber, opening.EndedOutcome, opening.EndedAt = ended.Number, ended.Outcome, ended.At
	if ended.Outcome != string(ledger.OK) {
		var p struct{ Error string }
		_ = json.Unmarshal([]byte(ended.PayloadJson), &p) // without it the outcome is said all the same
		opening.Summary = clip(opening.Summary + ", " + ended.Outcome + because(p.Error))
	}
}

func (f *fold) left() []*handrailv1.Entry { return slices.Collect(maps.Values(f.held)) }

func (s ledgers) one(ctx context.Context, number uint64) (store.Recorded, error) {
	found, err := s.d.Store.Entries(ctx, store.EntryQuery{After: int64(number) - 1, Limit: 1})
	if number == 0 {
		found, err = s.d.Store.Entries(ctx, store.EntryQuery{After: -1, Limit: 1})
	}
	if err != nil {
		return store.Recorded{}, err
	}
	if len(found) == 0 || found[0].Seq != int64(number) {
		return store.Recorded{}, fault.New(fault.NotFound, "cannot find entry #%d", number).WithHint("handrail ledger list")
	}
	return found[0], nil
}

func (s ledgers) Get(ctx context.Context, r *handrailv1.GetEntryRequest) (*handrailv1.GetEntryResponse, error) {
	found, err := s.one(ctx, r.Number)
	if err != nil {
		return nil, err
	}
	names, err := s.d.names(ctx)
	if err != nil {
		return nil, err
	}
	e := s.message(ctx, names, found)
	e.LeafJson = string(found.Leaf)
	return &handrailv1.GetEntryResponse{Entry: e}, nil
}

func (s ledgers) Watch(ctx context.Context, r *handrailv1.WatchEntriesRequest, out *connect.ServerStream[handrailv1.WatchEntriesResponse]) error {
	names, err := s.d.names(ctx)
	if err != nil {
		return err
	}
	return s.d.Store.Follow(ctx, int64(r.After), func(e store.Recorded) error {
		return out.Send(&handrailv1.WatchEntriesResponse{Entry: s.message(ctx, names, e)})
	})
}

func (s ledgers) Proof(ctx context.Context, r *handrailv1.ProofRequest) (*handrailv1.ProofResponse, error) {
	found, err := s.one(ctx, r.Number)
	if err != nil {
		return nil, err
	}
	tree, signed, err := s.d.Store.Head(ctx)
	if err != nil {
		return nil, err
	}
	hashes, err := s.d.Store.Inclusion(ctx, found.Seq, tree.N)
	if err != nil {
		return nil, err
	}
	resp := &handrailv1.ProofResponse{Leaf: found.Leaf, Checkpoint: string(signed)}
	for _, h := range hashes {
		resp.Inclusion = append(resp.Inclusion, h[:])
	}
	return resp, nil
}

func (s ledgers) Export(ctx context.Context, _ *handrailv1.ExportRequest, out *connect.ServerStream[handrailv1.ExportResponse]) error {
	_, err := s.d.Door.Do(ctx, doorway.Act{
		Action: "ledger.export", By: caller(ctx), Open: s.note(ctx, ledgerExported),
	}, func(ctx context.Context, _ doorway.Pass) (ledger.Outcome, []ledger.Entry, error) {
		if s.d.BeforeExport != nil {
			s.d.BeforeExport(ctx)
		}
		if err := s.d.Store.Export(ctx, sender{out}, s.d.Recordings, s.d.Witnesses); err != nil {
			return ledger.Failed, nil, err
		}
		return ledger.OK, nil, nil
	})
	return err
}

// The ledger actions of looking at the ledger as a whole.
const (
	ledgerVerified ledger.Action = "ledger.verified"
	ledgerExported ledger.Action = "ledger.exported"
)

// Actions lists the ledger actions that this surface records itself.
func Actions() []ledger.Action { return []ledger.Action{ledgerVerified, ledgerExported} }

func (s ledgers) note(ctx context.Context, action ledger.Action) func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
	by := caller(ctx)
	return func(*store.Tx, policy.Decision) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: action, Subjects: []string{by.ID}, Payload: map[string]any{"v": 1}}}, nil
	}
}

// sender turns a stream of messages into an io.Writer.
type sender struct {
	out *connect.ServerStream[handrailv1.ExportResponse]
}

const exportChunk = 64 << 10

func (s sender) Write(p []byte) (int, error) {
	for off := 0; off < len(p); off += exportChunk {
		if err := s.out.Send(&handrailv1.ExportResponse{Data: p[off:min(off+exportChunk, len(p))]}); err != nil {
			return off, err
		}
	}
	return len(p), nil
}

// names turns the random ids of the ledger into what people call them.
type names struct {
	of  map[string]string // id → name
	ids map[string]string // name → id
}

func (d *Deps) names(ctx context.Context) (*names, error) {
	n := &names{of: map[string]string{"system": "handrail"}, ids: map[string]string{}}
	people, err := d.People.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range people {
		n.of[p.ID], n.ids[p.Name] = p.Name, p.ID
	}
	for _, p := range people {
		if p.Kind == identity.KindRobot {
			n.of[p.ID] = p.Name + " (robot of " + n.name(p.Owner) + ")"
		}
	}
	hosts, err := d.Hosts.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		n.of[h.ID], n.ids[h.Name] = h.Name, h.ID
	}
	return n, nil
}

func (n *names) name(id string) string {
	if name, ok := n.of[id]; ok {
		return name
	}
	return id
}

// message is an entry with what people are called, and what happened in words.
func (s ledgers) message(ctx context.Context, names *names, r store.Recorded) *handrailv1.Entry {
	l := r.Parsed
	e := &handrailv1.Entry{
		Number: uint64(r.Seq), At: stamp(l.Time), Action: string(l.Action), Outcome: string(l.Outcome),
		Subjects: l.Subjects, Session: l.Session, Target: l.Target, Object: l.Object, ObjectVersion: uint64(l.Version),
		Bootstrap: l.Bootstrap, PayloadJson: string(r.Payload), Erased: r.Payload == nil,
	}
	if len(l.Subjects) > 0 {
		e.ActorName = names.name(l.Subjects[0])
	}
	if host, ok := strings.CutPrefix(l.Target, "host/"); ok {
		e.TargetName = names.name(host)
	}
	told := said{Entry: e, names: names, payload: r.Payload, describe: func(a approval.Approval) string { return s.describe(ctx, a) }}
	e.Summary = told.sentence()
	return e
}

// describe says what a request asks for, in the words its approvers read.
func (s ledgers) describe(ctx context.Context, a approval.Approval) string {
	text := a.Kind
	err := s.d.Store.View(ctx, func(v *store.View) error {
		d, err := s.d.Approvals.DescribeTx(v, a)
		if err == nil {
			text = d.Summary
		}
		return err
	})
	if err != nil {
		return a.Kind // what it was about is gone; its kind is not
	}
	return text
}
