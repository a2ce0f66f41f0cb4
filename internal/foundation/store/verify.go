package store

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// BlobVerifier checks what entries commit to outside of the database, such as
// recordings. entries runs over the whole ledger, in order.
type BlobVerifier interface {
	VerifyBlobs(ctx context.Context, entries func(fn func(Recorded) error) error) (checked int64, findings []ledger.Finding, err error)
}

// BlobExporter hands out those same pieces for an export, each named by the
// lower-case hex SHA-256 of its bytes as ledger.Chunks lists it.
type BlobExporter interface {
	ExportBlobs(ctx context.Context, entries func(fn func(Recorded) error) error, put func(hash string, body io.Reader) error) error
}

// maxFindings bounds a report; what is beyond is counted.
const maxFindings = 100

// verifyStep is how many entries are read at once.
const verifyStep = 1024

// Verify recomputes everything from what lies on disk: leaves, tiles, roots,
// signatures, index columns, payloads, and the remembered checkpoint. blobs
// verify what lies beside the database. Findings name what was touched; an
// error is only what kept it from looking.
func (s *Store) Verify(ctx context.Context, progress func(done, total int64), blobs ...BlobVerifier) (ledger.Report, error) {
	// Connections of its own: others hold pages in memory that a change of the
	// file below them would not show.
	db, err := s.db.pool(ctx, "state", "read")
	if err != nil {
		return ledger.Report{}, err
	}
	defer func() { _ = db.Close() }()
	v := s.newVerification(ctx, progress) // before the snapshot, which may only be newer
	err = s.view(ctx, db, func(view *View) error {
		if s.db.name == "sqlite" {
			said, err := integrity(view)
			if err != nil {
				return err
			}
			for _, line := range said {
				v.find("database", "%s", line)
			}
		}
		return v.run(view)
	})
	if err != nil {
		return ledger.Report{}, err
	}
	for _, b := range blobs {
		n, found, err := b.VerifyBlobs(ctx, func(fn func(Recorded) error) error { return s.each(ctx, fn) })
		if err != nil {
			return ledger.Report{}, err
		}
		v.report.Recordings += n
		for _, f := range found {
			v.find(f.Where, "%s", f.What)
		}
	}
	v.report.OK = len(v.report.Findings) == 0
	return v.report, nil
}

func (s *Store) newVerification(ctx context.Context, progress func(done, total int64)) *verification {
	v := &verification{s: s, ctx: ctx, erased: map[string]bool{}, seed: maphash.MakeSeed(), progress: progress}
	v.report.Trust = "the log key of this installation"
	v.anchored, v.haveAnchor, v.anchorErr = s.anchor.tree()
	if s.anchor != nil {
		s.anchor.mu.Lock()
		defer s.anchor.mu.Unlock()
		v.chainN, v.chain = s.anchor.last.ChainN, s.anchor.last.Chain
	}
	return v
}

// run verifies one snapshot. What the database itself cannot read is a finding.
func (v *verification) run(view *View) error {
	v.q = view
	err := v.all()
	if err == nil {
		return nil
	}
	if v.ctx.Err() != nil || fault.KindOf(err) == fault.Unavailable {
		return err
	}
	v.find("database", "it cannot be read: %v", err)
	return nil
}

// each runs over the ledger as it is now, for what lies outside of the database.
// A leaf that cannot be read is passed over: Verify has named it, and the rest
// is still to be checked.
func (s *Store) each(ctx context.Context, fn func(Recorded) error) error {
	for after, size := int64(-1), s.head.Load().tree.N; after+1 < size; {
		rows, err := s.rowsAfter(ctx, after, size, verifyStep)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			after = r.Seq
			rec, err := s.openRow(r)
			if err != nil {
				continue
			}
			if err := fn(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// verification is one run of Verify over one snapshot.
type verification struct {
	s        *Store
	ctx      context.Context
	q        *View
	report   ledger.Report
	progress func(done, total int64)

	head     headRow
	tree     ledger.Frontier
	good     int64 // size of the newest checkpoint that was right
	erased   map[string]bool
	pruned   []ledger.Pruned
	suspects []int64 // entries that neither a tile nor a payload confirms
	broken   bool    // a signed root was not met; those after it cannot be
	absent   []absence
	seed     maphash.Seed
	subjects uint64 // sum over what ledger_subject must hold

	anchored      tlog.Tree
	haveAnchor    bool
	anchorErr     error
	chainN        int64
	chain, before string // what is remembered; what the rows add up to
	chainSeen     bool
}

// absence is a payload that is not there, which is right only if it was erased.
type absence struct {
	seq    int64
	action ledger.Action
	at     int64
	sealer string
	why    string
}

func (v *verification) find(where, what string, args ...any) {
	if len(v.report.Findings) >= maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, ledger.Finding{Where: where, What: fmt.Sprintf(what, args...)})
}

func (v *verification) all() error {
	for _, step := range []func() error{v.guards, v.readHead, v.entries, v.absences, v.index, v.leftovers, v.anchor} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// integrity asks SQLite about its own pages and indexes.
func integrity(q Queryer) ([]string, error) {
	said, err := All[string](q, `PRAGMA integrity_check(10)`)
	if len(said) == 1 && said[0] == "ok" {
		said = nil
	}
	return said, err
}

// guards looks for the triggers that refuse UPDATE and DELETE.
func (v *verification) guards() error {
	count, want := `SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgenabled <> 'D'`, int64(1)
	if v.s.db.name == "sqlite" {
		count, want = `SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = $1 AND sql LIKE '%RAISE(ABORT%'`, 2
	}
	for _, table := range []string{"ledger_entry", "ledger_subject", "ledger_tile", "ledger_checkpoint"} {
		n, err := One[int64](v.q, count, table)
		if err != nil {
			return err
		}
		if n < want {
			v.find("table "+table, "its guard against changes is gone")
		}
	}
	return nil
}

func (v *verification) readHead() error {
	var err error
	v.head, err = One[headRow](v.q, `SELECT n, root FROM ledger_head WHERE id = 1`)
	if fault.KindOf(err) == fault.NotFound {
		v.find("head", "it is gone")
		v.head.N, err = One[int64](v.q, `SELECT COALESCE(MAX(seq) + 1, 0) FROM ledger_entry`)
	}
	return err
}

type fullRow struct {
	Seq     int64   `db:"seq"`
	At      int64   `db:"at"`
	Action  string  `db:"action"`
	Session string  `db:"session"`
	Target  string  `db:"target"`
	Object  string  `db:"object"`
	Version int64   `db:"version"`
	Outcome string  `db:"outcome"`
	Leaf    []byte  `db:"leaf"`
	Hash    []byte  `db:"hash"`
	Sealer  *string `db:"sealer"`
	Body    []byte  `db:"body"`
}

const selectFull = `SELECT e.seq, e.at, e.action, e.session, e.target, e.object, e.version, e.outcome, e.leaf, e.hash, p.sealer, p.body
FROM ledger_entry e LEFT JOIN ledger_payload p ON p.seq = e.seq WHERE e.seq >= $1 AND e.seq < $2 ORDER BY e.seq`

// entries walks the ledger in steps of whole tiles.
func (v *verification) entries() error {
	for from := int64(0); from < v.head.N; from += verifyStep {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		to := min(from+verifyStep, v.head.N)
		rows, err := All[fullRow](v.q, selectFull, from, to)
		if err != nil {
			return err
		}
		tiles, err := v.tiles(from, to)
		if err != nil {
			return err
		}
		points, err := v.checkpoints(from, to)
		if err != nil {
			return err
		}
		v.step(from, to, rows, tiles, points)
		if v.progress != nil {
			v.progress(to, v.head.N)
		}
	}
	if root := v.tree.Tree(); v.head.N > 0 && v.head.Root != root.Hash.String() {
		v.find("head", "it is not the root of the %d entries", v.head.N)
	}
	for _, seq := range v.suspects {
		if v.broken {
			v.find(fmt.Sprintf("entry #%d", seq), "leaf: it may be why a signed root is not met; nothing confirms it")
		}
	}
	return nil
}

func (v *verification) step(from, to int64, rows []fullRow, tiles map[[2]int64][]byte, points map[int64][]point) {
	next := 0
	for seq := from; seq < to; seq++ {
		var r *fullRow
		if next < len(rows) && rows[next].Seq == seq {
			r = &rows[next]
			next++
		}
		v.tree.Append(v.entry(seq, r, hashIn(tiles, seq)), func(level int, index int64, want []byte) {
			v.tile(level, index, want, tiles)
		})
		for _, p := range points[seq+1] {
			v.root(p)
		}
	}
}

// hashIn is the leaf's hash as its tile has it; nil when that tile is not full.
func hashIn(tiles map[[2]int64][]byte, seq int64) []byte {
	b := tiles[[2]int64{0, seq / ledger.TileWidth}]
	at := int(seq%ledger.TileWidth) * tlog.HashSize
	if len(b) < at+tlog.HashSize {
		return nil
	}
	return b[at : at+tlog.HashSize]
}

// entry checks one entry and returns the hash that it most likely was signed
// with. Leaf, hash column and tile say the same three times; the seal of the
// payload is bound to the leaf and says it a fourth time.
func (v *verification) entry(seq int64, r *fullRow, inTile []byte) tlog.Hash {
	where := fmt.Sprintf("entry #%d", seq)
	if r == nil {
		v.find(where, "it is missing")
		return hashOf(inTile)
	}
	v.report.Entries++
	own := ledger.HashOf(r.Leaf)
	l, err := ledger.ParseLeaf(r.Leaf)
	column, tile := bytes.Equal(own[:], r.Hash), inTile == nil || bytes.Equal(own[:], inTile)
	var opened payloadState
	if err == nil {
		opened = v.payload(seq, r, l)
	}
	if column && opened != payloadGood && (inTile == nil || !tile) {
		v.suspects = append(v.suspects, seq)
	}
	switch {
	case err != nil:
		v.find(where, "leaf: %v", err)
	case column && tile:
		v.columns(where, r, l)
		return own
	case column && (inTile == nil || opened != payloadBad): // the tile is found by itself
		v.columns(where, r, l)
		return own
	case opened == payloadGood || tile && inTile != nil:
		v.find(where, "hash column")
		return own
	default:
		v.find(where, "leaf")
	}
	if inTile != nil {
		return hashOf(inTile)
	}
	return hashOf(r.Hash)
}

func hashOf(b []byte) (h tlog.Hash) {
	copy(h[:], b)
	return h
}

// columns compares the index with the leaf that it is derived from.
func (v *verification) columns(where string, r *fullRow, l ledger.Leaf) {
	for _, c := range []struct {
		name string
		same bool
	}{
		{"at", r.At == l.Time}, {"action", r.Action == string(l.Action)}, {"session", r.Session == l.Session}, {"target", r.Target == l.Target},
		{"object", r.Object == l.Object}, {"version", r.Version == l.Version}, {"outcome", r.Outcome == string(l.Outcome)},
	} {
		if !c.same {
			v.find(where, "index column %s does not say what the leaf says", c.name)
		}
	}
	if l.Action == ledger.ActionErased {
		v.erased[l.Object] = true
	}
	for i, s := range l.Subjects {
		if !contains(l.Subjects[:i], s) {
			v.subjects += v.subjectSum(s, r.Seq)
		}
	}
}

type payloadState int

const (
	payloadAbsent payloadState = iota
	payloadGood
	payloadBad
)

// payload opens the payload and compares it with the commitment.
func (v *verification) payload(seq int64, r *fullRow, l ledger.Leaf) payloadState {
	where := fmt.Sprintf("payload of #%d", seq)
	sealer := l.Sealer()
	if r.Sealer == nil {
		v.absent = append(v.absent, absence{seq, l.Action, l.Time, sealer, "it is missing"})
		return payloadAbsent
	}
	if *r.Sealer != sealer {
		v.find(where, "index column sealer does not say what the leaf says")
	}
	if len(r.Body) == 0 {
		v.absent = append(v.absent, absence{seq, l.Action, l.Time, sealer, "it is empty"})
		return payloadAbsent
	}
	plain, err := v.s.cfg.Seals.Open(sealer, r.Body, r.Leaf)
	switch {
	case fault.KindOf(err) == fault.NotFound && err != nil:
		v.absent = append(v.absent, absence{seq, l.Action, l.Time, sealer, "its key is gone"})
		return payloadAbsent
	case err != nil:
		v.find(where, "it does not open, or not for this leaf")
		return payloadBad
	case len(plain) < 32 || !bytes.Equal(ledger.Commit(plain[:32], plain[32:]), l.Commit):
		v.find(where, "it is not the one that the leaf commits to")
		return payloadBad
	}
	if l.Action == ledger.ActionPruned {
		if p, err := ledger.ParsePruned(plain[32:]); err != nil || p.Through > seq {
			v.find(where, "it does not say what was pruned")
		} else {
			v.pruned = append(v.pruned, p)
		}
	}
	v.report.Payloads++
	return payloadGood
}

// absences judges the payloads that are not there, now that all that was erased
// or pruned is known.
func (v *verification) absences() error {
	for _, a := range v.absent {
		switch covered := func(p ledger.Pruned) bool { return p.Covers(a.seq, a.action, a.at) }; {
		case v.erased[a.sealer]:
			v.report.Erased++
		case slices.ContainsFunc(v.pruned, covered):
			v.report.Pruned++
		default:
			v.find(fmt.Sprintf("payload of #%d", a.seq), "%s, and no entry says that %s was erased", a.why, a.sealer)
		}
	}
	return nil
}
