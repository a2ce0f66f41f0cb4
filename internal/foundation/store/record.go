package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Bounds of one Record.
const (
	maxEntries = 1024
	maxPayload = 1 << 20
	maxID      = 200
)

// Receipt is what Record returns.
type Receipt interface {
	// Entries are the entries as they stand in the ledger.
	Entries() []Recorded
	// Proof proves entry i against a checkpoint that is signed now, or was
	// signed since; it is durable.
	Proof(ctx context.Context, i int) (ledger.Proof, error)
}

type receipt struct {
	s   *Store
	rec []Recorded
}

func (r *receipt) Entries() []Recorded { return r.rec }

func (r *receipt) Proof(ctx context.Context, i int) (ledger.Proof, error) {
	if i < 0 || i >= len(r.rec) {
		return ledger.Proof{}, fault.New(fault.Internal, "cannot prove entry %d of %d", i, len(r.rec))
	}
	return r.s.prove(ctx, r.rec[i])
}

// Record runs fn in a transaction and writes the entries that it returns
// together with its changes, or neither. id is chosen by the caller beforehand:
// the same id returns the first receipt without running fn, so that whoever
// does not know whether a Record succeeded asks again.
//
// fn may run more than once, holds the writer, and must not call Record.
func (s *Store) Record(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error)) (Receipt, error) {
	if id == "" || len(id) > maxID {
		return nil, fault.New(fault.Internal, "cannot record: an id of 1 to %d bytes is needed", maxID)
	}
	if err := s.Damage(); err != nil {
		return nil, err
	}
	if err := s.reachable("record"); err != nil {
		return nil, err
	}
	start := time.Now()
	rec, err := s.eng.record(ctx, id, fn)
	if err != nil {
		return nil, err
	}
	s.commits.note(time.Since(start))
	return &receipt{s, rec}, nil
}

// draft is an entry that has no number yet.
type draft struct {
	leaf    []byte
	parsed  ledger.Leaf
	salt    []byte
	payload []byte
	body    []byte // salt and payload, sealed
	hash    tlog.Hash
}

// call runs fn and drafts what it returns.
func (s *Store) call(tx *Tx, fn func(*Tx) ([]ledger.Entry, error)) ([]draft, error) {
	entries, err := fn(tx)
	tx.done = true
	if tx.fatal != nil {
		return nil, asFault(tx.fatal, "record")
	}
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 && tx.wrote {
		return nil, fault.New(fault.Internal, "cannot record a change without a ledger entry")
	}
	if len(entries) > maxEntries {
		return nil, fault.New(fault.Internal, "cannot record %d entries at once: at most %d", len(entries), maxEntries)
	}
	drafts := make([]draft, len(entries))
	for i, e := range entries {
		if drafts[i], err = s.draft(e, tx.now); err != nil {
			return nil, err
		}
	}
	return drafts, nil
}

// draft makes the leaf and seals the payload. The seal is bound to the leaf, so
// a payload cannot be moved to another entry.
func (s *Store) draft(e ledger.Entry, now time.Time) (draft, error) {
	payload, err := marshalPayload(e)
	if err != nil {
		return draft{}, err
	}
	d := draft{salt: make([]byte, 32), payload: payload}
	_, _ = rand.Read(d.salt) // never fails
	l := ledger.Leaf{
		V: ledger.LeafVersion, Time: now.UnixMicro(), Action: e.Action, Subjects: e.Subjects, Session: e.Session, Target: e.Target,
		Object: e.Object, Version: e.Version, Outcome: e.Outcome, Bootstrap: s.cfg.Bootstrap(), SealTo: e.SealTo, Commit: ledger.Commit(d.salt, payload),
	}
	if l.Outcome == "" {
		l.Outcome = ledger.OK
	}
	if len(l.Subjects) == 0 {
		l.Subjects = []string{ledger.System}
	}
	if l.SealTo == l.Subjects[0] {
		l.SealTo = ""
	}
	if err := l.Check(); err != nil {
		return draft{}, fault.Wrap(fault.Internal, err, "cannot record %s", e.Action)
	}
	d.parsed, d.leaf = l, l.Marshal()
	if len(d.leaf) > ledger.MaxLeaf {
		return draft{}, fault.New(fault.Internal, "cannot record %s: its leaf has %d bytes, at most %d", e.Action, len(d.leaf), ledger.MaxLeaf)
	}
	d.hash = ledger.HashOf(d.leaf)
	if d.body, err = s.cfg.Seals.Seal(l.Sealer(), append(d.salt[:32:32], payload...), d.leaf); err != nil {
		return draft{}, fault.Wrap(fault.KindOf(err), err, "cannot seal the payload of %s", e.Action)
	}
	return d, nil
}

func marshalPayload(e ledger.Entry) ([]byte, error) {
	var b []byte
	switch p := e.Payload.(type) {
	case nil:
		return []byte("{}"), nil
	case json.RawMessage:
		b = p
		if !json.Valid(b) || !utf8.Valid(b) {
			return nil, fault.New(fault.Internal, "cannot record %s: its payload is not JSON", e.Action)
		}
	default:
		var err error
		if b, err = json.Marshal(p); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "cannot record %s", e.Action)
		}
	}
	if len(b) > maxPayload {
		return nil, fault.New(fault.Invalid, "cannot record %s: its payload has %d bytes, at most %d", e.Action, len(b), maxPayload)
	}
	return b, nil
}

func (d draft) recorded(seq int64) Recorded {
	return Recorded{Seq: seq, Leaf: d.leaf, Parsed: d.parsed, Salt: d.salt, Payload: d.payload}
}

// batch is what is appended to the tree by one transaction.
type batch struct {
	tree   ledger.Frontier // grows here; published only after COMMIT
	base   int64
	drafts []draft
	tiles  []tile
}

type tile struct {
	level  int
	index  int64
	hashes []byte
}

func newBatch(p *published) *batch {
	return &batch{tree: p.frontier.Snapshot(), base: p.tree.N}
}

// add gives the drafts their numbers and returns the first.
func (b *batch) add(drafts []draft) int64 {
	first := b.base + int64(len(b.drafts))
	b.drafts = append(b.drafts, drafts...)
	return first
}

// errMoved says that somebody else appended since the tree was loaded.
var errMoved = fault.New(fault.Unavailable, "cannot record: another server appended to the ledger at the same time")

// grow appends the drafts to the tree. What is not committed is thrown away
// with the batch.
func (b *batch) grow() {
	for i := range b.drafts {
		b.tree.Append(b.drafts[i].hash, func(level int, index int64, hashes []byte) {
			b.tiles = append(b.tiles, tile{level, index, hashes})
		})
	}
}

// write appends the batch within the open transaction. If we crash before its
// COMMIT nothing has happened; after it, reload finds the same tree.
func (b *batch) write(ctx context.Context, run runner) (tlog.Tree, error) {
	b.grow()
	for _, t := range b.tables() {
		if err := t.insert(ctx, run); err != nil {
			return tlog.Tree{}, err
		}
	}
	tree := b.tree.Tree()
	// Compare-and-set: two writers can never both extend the same tree.
	n, err := run.exec(ctx, `UPDATE ledger_head SET n = $1, root = $2 WHERE id = 1 AND n = $3`, tree.N, tree.Hash.String(), b.base)
	if err == nil && n != 1 {
		err = errMoved
	}
	return tree, err
}

// tables are the rows that the batch adds; none is empty.
func (b *batch) tables() []rowsOf {
	entries := rowsOf{table: "ledger_entry", columns: []string{"seq", "at", "action", "session", "target", "object", "version", "outcome", "leaf", "hash"}}
	subjects := rowsOf{table: "ledger_subject", columns: []string{"subject", "seq"}}
	payloads := rowsOf{table: "ledger_payload", columns: []string{"seq", "sealer", "body"}}
	tiles := rowsOf{table: "ledger_tile", columns: []string{"level", "idx", "hashes"}}
	for i := range b.drafts {
		d, seq := &b.drafts[i], b.base+int64(i)
		l := &d.parsed
		entries.add(seq, l.Time, string(l.Action), l.Session, l.Target, l.Object, l.Version, string(l.Outcome), d.leaf, d.hash[:])
		payloads.add(seq, l.Sealer(), d.body)
		for j, s := range l.Subjects {
			if !contains(l.Subjects[:j], s) {
				subjects.add(s, seq)
			}
		}
	}
	for _, t := range b.tiles {
		tiles.add(int64(t.level), t.index, t.hashes)
	}
	all := []rowsOf{entries, subjects, payloads, tiles}
	return slices.DeleteFunc(all, func(t rowsOf) bool { return len(t.args) == 0 })
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
