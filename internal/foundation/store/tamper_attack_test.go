package store

import (
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

func (x *tamperer) checkpoint() (n int64, err error) {
	err = x.tx.QueryRow("SELECT n FROM ledger_checkpoint ORDER BY n LIMIT 1 OFFSET $1 % (SELECT count(*) FROM ledger_checkpoint)", x.rng.Int64N(1000)).Scan(&n)
	return n, err
}

func (x *tamperer) rehash(k int64) error {
	var leaf []byte
	if err := x.tx.QueryRow("SELECT leaf FROM ledger_entry WHERE seq = $1", k).Scan(&leaf); err != nil {
		return err
	}
	h := ledger.HashOf(leaf)
	return x.exec("UPDATE ledger_entry SET hash = $2 WHERE seq = $1", k, h[:])
}

func (x *tamperer) unlessTaken(err error) error {
	if classify2(err) == errDuplicate {
		return errSkip
	}
	return err
}

func (x *tamperer) unlessErased(k int64, q string) error {
	var n int
	if err := x.tx.QueryRow("SELECT length(body) FROM ledger_payload WHERE seq = $1", k).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return errSkip
	}
	return x.exec(q, k)
}

func (x *tamperer) copyEntry(from, to int64) error {
	return x.exec("INSERT INTO ledger_entry (seq, "+entryColumns+") SELECT $2, "+entryColumns+" FROM ledger_entry WHERE seq = $1", from, to)
}

// swap exchanges the rows of two numbers.
func (x *tamperer) swap(table, column string, a, b int64) error {
	for _, step := range [][2]int64{{a, -9}, {b, a}, {-9, b}} {
		if err := x.exec("UPDATE "+table+" SET "+column+" = $2 WHERE "+column+" = $1", step[0], step[1]); err != nil {
			return err
		}
	}
	return nil
}

// shift takes entry k out, or doubles it, and renumbers what follows; payloads
// and the index of subjects go along.
func (x *tamperer) shift(k, by int64) error {
	for _, table := range []string{"ledger_entry", "ledger_payload", "ledger_subject"} {
		if by < 0 {
			if err := x.exec("DELETE FROM "+table+" WHERE seq = $1", k); err != nil {
				return err
			}
			k := k
			if _, err := x.tx.Exec("UPDATE "+table+" SET seq = -seq WHERE seq > $1", k); err != nil {
				return err
			}
			if _, err := x.tx.Exec("UPDATE " + table + " SET seq = -seq - 1 WHERE seq < 0"); err != nil {
				return err
			}
			continue
		}
		if _, err := x.tx.Exec("UPDATE "+table+" SET seq = -seq WHERE seq > $1", k); err != nil {
			return err
		}
		if _, err := x.tx.Exec("UPDATE " + table + " SET seq = -seq + 1 WHERE seq < 0"); err != nil {
			return err
		}
	}
	if by < 0 {
		return nil
	}
	return x.copyEntry(k, k+1)
}

// rollBack makes the database what it was at size n, without a trace.
func (x *tamperer) rollBack(n int64) error {
	for _, q := range []string{"DELETE FROM ledger_entry WHERE seq >= $1", "DELETE FROM ledger_payload WHERE seq >= $1", "DELETE FROM ledger_subject WHERE seq >= $1",
		"DELETE FROM ledger_record WHERE first >= $1", "DELETE FROM ledger_checkpoint WHERE n > $1", "DELETE FROM ledger_tile WHERE (idx + 1) * 256 > $1"} {
		if _, err := x.tx.Exec(q, n); err != nil {
			return err
		}
	}
	return x.rebuild(n, false)
}

// fork changes one entry and makes everything else fit; with the key, the
// stored checkpoints are signed anew as well.
func (x *tamperer) fork(withKey bool) error {
	k := x.seq()
	if err := x.exec(`UPDATE ledger_entry SET outcome = 'lost', leaf = CAST(replace(CAST(leaf AS TEXT), '"outcome":"ok"', '"outcome":"lost"') AS BLOB) WHERE seq = $1`, k); err != nil {
		return err
	}
	if err := x.rehash(k); err != nil {
		return err
	}
	// The attacker has the subject's key too, and seals the payload for the new leaf.
	var leaf, body []byte
	if err := x.tx.QueryRow("SELECT e.leaf, p.body FROM ledger_entry e JOIN ledger_payload p ON p.seq = e.seq WHERE e.seq = $1", k).Scan(&leaf, &body); err != nil {
		return err
	}
	l, err := ledger.ParseLeaf(leaf)
	if err != nil {
		return err
	}
	was := []byte(strings.Replace(string(leaf), `"outcome":"lost"`, `"outcome":"ok"`, 1))
	if plain, err := x.s.cfg.Seals.Open(l.Sealer(), body, was); err == nil {
		if body, err = x.s.cfg.Seals.Seal(l.Sealer(), plain, leaf); err != nil {
			return err
		}
		if err := x.exec("UPDATE ledger_payload SET body = $2 WHERE seq = $1", k, body); err != nil {
			return err
		}
	}
	return x.rebuild(x.size, withKey)
}

// rebuild computes tiles and head from the entries.
func (x *tamperer) rebuild(n int64, withKey bool) error {
	rows, err := x.tx.Query("SELECT leaf FROM ledger_entry ORDER BY seq")
	if err != nil {
		return err
	}
	var hashes []tlog.Hash
	for rows.Next() {
		var leaf []byte
		if err := rows.Scan(&leaf); err != nil {
			return err
		}
		hashes = append(hashes, ledger.HashOf(leaf))
	}
	if err := rows.Close(); err != nil {
		return err
	}
	points, err := x.sizes()
	if err != nil {
		return err
	}
	var f ledger.Frontier
	for _, h := range hashes {
		f.Append(h, func(level int, index int64, tile []byte) {
			if _, terr := x.tx.Exec("UPDATE ledger_tile SET hashes = $3 WHERE level = $1 AND idx = $2", level, index, tile); terr != nil {
				err = terr
			}
		})
		if withKey && points[f.Size()] {
			note, serr := ledger.SignCheckpoint(testOrigin, f.Tree(), x.s.cfg.Signer)
			if serr != nil {
				return serr
			}
			if err := x.exec("UPDATE ledger_checkpoint SET signed = $2 WHERE n = $1", f.Size(), string(note)); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	if withKey {
		if err := x.rechain(); err != nil {
			return err
		}
	}
	return x.exec("UPDATE ledger_head SET n = $1, root = $2", n, f.Tree().Hash.String())
}

func (x *tamperer) sizes() (map[int64]bool, error) {
	rows, err := x.tx.Query("SELECT n FROM ledger_checkpoint")
	if err != nil {
		return nil, err
	}
	out := map[int64]bool{}
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		out[n] = true
	}
	return out, rows.Close()
}

func (x *tamperer) rechain() error {
	rows, err := x.tx.Query("SELECT n, signed FROM ledger_checkpoint ORDER BY n")
	if err != nil {
		return err
	}
	type row struct {
		n      int64
		signed string
	}
	var all []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.n, &r.signed); err != nil {
			return err
		}
		all = append(all, r)
	}
	if err := rows.Close(); err != nil {
		return err
	}
	chain := ""
	for _, r := range all {
		chain = chainOf(chain, r.signed)
		if err := x.exec("UPDATE ledger_checkpoint SET chain = $2 WHERE n = $1", r.n, chain); err != nil {
			return err
		}
	}
	return nil
}
