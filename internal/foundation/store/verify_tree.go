package store

import (
	"bytes"
	"fmt"
	"hash/maphash"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

type tileRow struct {
	Level  int64  `db:"level"`
	Idx    int64  `db:"idx"`
	Hashes []byte `db:"hashes"`
}

// tiles loads the tiles that become full in a step, of all levels.
func (v *verification) tiles(from, to int64) (map[[2]int64][]byte, error) {
	out := map[[2]int64][]byte{}
	for level := int64(0); to>>uint(ledger.TileHeight*(level+1)) > 0; level++ {
		shift := uint(ledger.TileHeight * (level + 1))
		rows, err := All[tileRow](v.q, `SELECT level, idx, hashes FROM ledger_tile WHERE level = $1 AND idx >= $2 AND idx < $3`, level, from>>shift, to>>shift)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out[[2]int64{r.Level, r.Idx}] = r.Hashes
		}
	}
	return out, nil
}

// tile compares a tile with what the entries below it make.
func (v *verification) tile(level int, index int64, want []byte, tiles map[[2]int64][]byte) {
	got, ok := tiles[[2]int64{int64(level), index}]
	where := fmt.Sprintf("tile %d/%d", level, index)
	switch {
	case !ok:
		v.find(where, "it is missing")
	case len(got) != len(want):
		v.find(where, "it has %d bytes instead of %d", len(got), len(want))
	case !bytes.Equal(got, want):
		v.find(where, "hash %d is not that of what lies below", firstDifference(got, want))
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i / tlog.HashSize
		}
	}
	return 0
}

// point is a signed root to compare with at its size.
type point struct {
	where string
	tree  tlog.Tree
}

// checkpoints opens the stored checkpoints of a step, and puts the remembered
// one beside them.
func (v *verification) checkpoints(from, to int64) (map[int64][]point, error) {
	out := map[int64][]point{}
	rows, err := All[checkpointRow](v.q, `SELECT n, signed, chain FROM ledger_checkpoint WHERE n > $1 AND n <= $2 ORDER BY n`, from, to)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		where := fmt.Sprintf("checkpoint at %d", r.N)
		v.report.Checkpoints++
		tree, err := ledger.OpenCheckpoint([]byte(r.Signed), v.s.cfg.Origin, v.s.cfg.Verifier)
		switch {
		case err != nil:
			v.find(where, "%v", err)
		case tree.N != r.N:
			v.find(where, "it is the one of size %d", tree.N)
		default:
			out[tree.N] = append(out[tree.N], point{where, tree})
		}
		if want := chainOf(v.before, r.Signed); r.Chain != want {
			v.find(where, "it does not follow from the one before: one was taken out, put in or changed")
		}
		if v.before = r.Chain; r.N == v.chainN {
			v.chainSeen = r.Chain == v.chain
		}
	}
	if v.haveAnchor && v.anchored.N > from && v.anchored.N <= to {
		out[v.anchored.N] = append(out[v.anchored.N], point{"remembered checkpoint", v.anchored})
	}
	return out, nil
}

// root compares a signed root with the tree at that size.
func (v *verification) root(p point) {
	if v.tree.Tree().Hash != p.tree.Hash {
		if v.broken { // for the same reason
			v.report.More++
			return
		}
		v.broken = true
		v.find(p.where, "the entries #%d to #%d are not those that were signed", v.good, p.tree.N-1)
		return
	}
	v.good = p.tree.N
	v.report.Checkpoint = fmt.Sprintf("%d %s", p.tree.N, p.tree.Hash)
}

// anchor compares the end of the ledger with what is remembered beside it.
func (v *verification) anchor() error {
	switch {
	case v.anchorErr != nil:
		v.find("remembered checkpoint", "%v", v.anchorErr)
	case v.haveAnchor && v.anchored.N > v.head.N:
		v.find("ledger", "it was rolled back: it holds %d entries, but %d were signed", v.head.N, v.anchored.N)
	}
	if v.chainN > 0 && !v.chainSeen {
		v.find(fmt.Sprintf("checkpoint at %d", v.chainN), "it, or one before it, is not the one that is remembered")
	}
	return nil
}

func (v *verification) subjectSum(subject string, seq int64) uint64 {
	var h maphash.Hash
	h.SetSeed(v.seed)
	_, _ = h.WriteString(subject) // never fails
	for i := 0; i < 64; i += 8 {
		_ = h.WriteByte(byte(seq >> i)) // never fails
	}
	return h.Sum64()
}

type subjectRow struct {
	Subject string `db:"subject"`
	Seq     int64  `db:"seq"`
}

// index compares ledger_subject with the leaves: first by a sum that does not
// mind the order, then, if that differs, entry by entry.
func (v *verification) index() error {
	var sum uint64
	last := subjectRow{}
	for {
		rows, err := All[subjectRow](v.q, `SELECT subject, seq FROM ledger_subject WHERE subject > $1 OR (subject = $1 AND seq > $2) ORDER BY subject, seq LIMIT 4096`, last.Subject, last.Seq)
		if err != nil {
			return err
		}
		for _, r := range rows {
			sum += v.subjectSum(r.Subject, r.Seq)
		}
		if len(rows) == 0 {
			break
		}
		last = rows[len(rows)-1]
	}
	if sum == v.subjects {
		return nil
	}
	before := len(v.report.Findings)
	if err := v.subjectsOneByOne(); err != nil {
		return err
	}
	if len(v.report.Findings) == before && before == 0 {
		v.find("index of subjects", "it does not say what the leaves say")
	}
	return nil
}

func (v *verification) subjectsOneByOne() error {
	for from := int64(0); from < v.head.N; from += verifyStep {
		rows, err := All[subjectRow](v.q, `SELECT subject, seq FROM ledger_subject WHERE seq >= $1 AND seq < $2 ORDER BY seq, subject`, from, from+verifyStep)
		if err != nil {
			return err
		}
		got := map[int64][]string{}
		for _, r := range rows {
			got[r.Seq] = append(got[r.Seq], r.Subject)
		}
		leaves, err := All[entryRow](v.q, `SELECT seq, leaf FROM ledger_entry WHERE seq >= $1 AND seq < $2`, from, from+verifyStep)
		if err != nil {
			return err
		}
		for _, e := range leaves {
			l, err := ledger.ParseLeaf(e.Leaf)
			if err == nil && !sameSet(l.Subjects, got[e.Seq]) {
				v.find(fmt.Sprintf("entry #%d", e.Seq), "index of subjects does not say what the leaf says")
			}
			delete(got, e.Seq)
		}
		for seq := range got {
			v.find(fmt.Sprintf("entry #%d", seq), "index of subjects has it, but it is not there")
		}
	}
	return nil
}

func sameSet(leaf, index []string) bool {
	distinct := 0
	for i, s := range leaf {
		if contains(leaf[:i], s) {
			continue
		}
		if distinct++; !contains(index, s) {
			return false
		}
	}
	return distinct == len(index)
}

// leftovers finds rows that belong to no entry.
func (v *verification) leftovers() error {
	for _, c := range []struct{ query, where, what string }{
		{`SELECT seq FROM ledger_entry WHERE seq >= $1 OR seq < 0 ORDER BY seq LIMIT 20`, "entry #%d", "it lies beyond the head"},
		{`SELECT seq FROM ledger_payload WHERE seq >= $1 OR seq < 0 ORDER BY seq LIMIT 20`, "payload of #%d", "there is no such entry"},
		{`SELECT DISTINCT seq FROM ledger_subject WHERE seq >= $1 OR seq < 0 ORDER BY seq LIMIT 20`, "entry #%d", "index of subjects has it, but it lies beyond the head"},
		{`SELECT n FROM ledger_checkpoint WHERE n > $1 OR n <= 0 ORDER BY n LIMIT 20`, "checkpoint at %d", "it lies beyond the head"},
		{`SELECT first FROM ledger_record WHERE first >= $1 OR first < -1 ORDER BY first LIMIT 20`, "record of #%d", "it lies beyond the head"},
		{`SELECT first FROM ledger_record WHERE first >= 0 AND first < $1 GROUP BY first HAVING count(*) > 1 ORDER BY first LIMIT 20`, "record of #%d", "it stands twice"},
	} {
		seqs, err := All[int64](v.q, c.query, v.head.N)
		if err != nil {
			return err
		}
		for _, seq := range seqs {
			v.find(fmt.Sprintf(c.where, seq), "%s", c.what)
		}
	}
	tiles, err := All[tileRow](v.q, `SELECT level, idx, hashes FROM ledger_tile WHERE level < 0 OR level > 7 OR idx < 0 OR idx >= $1 / 256 OR (level = 1 AND idx >= $1 / 65536) OR (level = 2 AND idx >= $1 / 16777216) OR (level > 2 AND idx >= $1 / 16777216 / 256) LIMIT 20`, v.head.N)
	if err != nil {
		return err
	}
	for _, t := range tiles {
		v.find(fmt.Sprintf("tile %d/%d", t.Level, t.Idx), "the tree has no such tile")
	}
	return nil
}
