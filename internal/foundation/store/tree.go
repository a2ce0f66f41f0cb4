package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// headRow is the tree as the database knows it.
type headRow struct {
	N    int64  `db:"n"`
	Root string `db:"root"`
}

// reload rebuilds the tree from the database. It is fault.Conflict when the
// database does not add up or is older than what was published here.
func (s *Store) reload(ctx context.Context) error {
	var head headRow
	var f *ledger.Frontier
	old := s.head.Load() // before the read: only then is a smaller tree a rollback
	var was tlog.Hash    // root at the size that was published before
	err := s.View(ctx, func(v *View) error {
		var err error
		if head, err = One[headRow](v, `SELECT n, root FROM ledger_head WHERE id = 1`); err != nil {
			return fault.Wrap(fault.Conflict, err, "cannot use the ledger: its head is gone").WithHint("handrail ledger verify")
		}
		f, err = ledger.Rebuild(head.N, tileReader(v), func(from int64) ([]tlog.Hash, error) {
			leaves, err := All[[]byte](v, `SELECT leaf FROM ledger_entry WHERE seq >= $1 AND seq < $2 ORDER BY seq`, from, head.N)
			hashes := make([]tlog.Hash, len(leaves))
			for i, leaf := range leaves {
				hashes[i] = ledger.HashOf(leaf)
			}
			return hashes, err
		})
		if err == nil && old != nil && old.tree.N > 0 && old.tree.N <= head.N {
			was, err = tlog.TreeHash(old.tree.N, f.Reader(tileReader(v)))
		}
		return err
	})
	if err != nil {
		if f := fault.From(err); f.Kind == fault.Internal || f.Kind == fault.NotFound {
			// Keep what is readable readable.
			s.head.CompareAndSwap(nil, &published{tree: (&ledger.Frontier{}).Tree()})
			return fault.Wrap(fault.Conflict, err, "cannot use the ledger: it does not add up").WithHint("handrail ledger verify")
		}
		return err
	}
	p := &published{frontier: *f, tree: f.Tree()}
	switch {
	case head.N > 0 && p.tree.Hash.String() != head.Root:
		s.head.CompareAndSwap(nil, p)
		return fault.New(fault.Conflict, "cannot use the ledger: its entries do not add up to its head at %d", head.N).WithHint("handrail ledger verify")
	case old != nil && old.tree.N > p.tree.N:
		return fault.New(fault.Conflict, "cannot use the ledger: it was rolled back from %d to %d entries while it was open", old.tree.N, p.tree.N).WithHint("handrail ledger verify")
	}
	if old != nil && old.tree.N > 0 && was != old.tree.Hash {
		return errFork(old.tree.N)
	}
	s.advance(p)
	return nil
}

func errFork(n int64) error {
	return fault.New(fault.Conflict, "cannot use the ledger: it is a fork: its first %d entries are not those that this server has seen", n).
		WithHint("handrail ledger verify, then put the other copy back, or sign a new epoch with the root key")
}

// Beyond this many new entries the tree is rebuilt from its tiles.
const catchUpMax = 8 << 10

// catchUp follows what another server has appended. What it finds must extend
// what was published here; otherwise the database was rolled back or replaced
// by a fork (a standby that lagged was promoted), and the store is damaged.
func (s *Store) catchUp(ctx context.Context) error {
	s.growing.Lock()
	defer s.growing.Unlock()
	err := s.extend(ctx)
	if err != nil && fault.KindOf(err) == fault.Conflict {
		s.setDamage(err)
	}
	return err
}

func (s *Store) extend(ctx context.Context) error {
	p := s.head.Load()
	var head headRow
	var hashes [][]byte
	err := s.View(ctx, func(v *View) (err error) {
		if head, err = One[headRow](v, `SELECT n, root FROM ledger_head WHERE id = 1`); err != nil || head.N <= p.tree.N || head.N-p.tree.N > catchUpMax {
			return err
		}
		hashes, err = All[[]byte](v, `SELECT hash FROM ledger_entry WHERE seq >= $1 AND seq < $2 ORDER BY seq`, p.tree.N, head.N)
		return err
	})
	switch {
	case err != nil:
		return err
	case head.N < p.tree.N:
		return fault.New(fault.Conflict, "cannot use the ledger: it was rolled back from %d to %d entries while it was open", p.tree.N, head.N).
			WithHint("handrail ledger verify, then put the newest copy back, or sign a new epoch with the root key")
	case head.N == p.tree.N:
		if head.N > 0 && head.Root != p.tree.Hash.String() {
			return errFork(head.N)
		}
		return nil
	case head.N-p.tree.N > catchUpMax:
		return s.reload(ctx)
	}
	f := p.frontier.Snapshot()
	for _, h := range hashes {
		if len(h) != tlog.HashSize {
			return fault.New(fault.Conflict, "cannot use the ledger: its entries do not add up to its head at %d", head.N).WithHint("handrail ledger verify")
		}
		f.Append(tlog.Hash(h), nil)
	}
	if f.Size() != head.N || f.Tree().Hash.String() != head.Root {
		return errFork(p.tree.N) // or a touched row, which Verify tells apart
	}
	s.publish(&f)
	return nil
}

// advance publishes a tree, never a smaller one than is published.
func (s *Store) advance(p *published) {
	for {
		now := s.head.Load()
		if now != nil && now.tree.N >= p.tree.N {
			return
		}
		if s.head.CompareAndSwap(now, p) {
			s.grown.wake()
			return
		}
	}
}

// publish makes a tree visible. Its transaction is durable.
func (s *Store) publish(f *ledger.Frontier) {
	if f.Size() > s.head.Load().tree.N {
		s.advance(&published{frontier: *f, tree: f.Tree()})
	}
}

func tileReader(q Queryer) func(level int, index int64) ([]byte, error) {
	return func(level int, index int64) ([]byte, error) {
		b, err := One[[]byte](q, `SELECT hashes FROM ledger_tile WHERE level = $1 AND idx = $2`, level, index)
		if err != nil {
			return nil, fault.Wrap(fault.KindOf(err), err, "cannot read tile %d/%d", level, index)
		}
		return b, nil
	}
}

// tileCache keeps full tiles, which never change.
type tileCache struct {
	mu   sync.Mutex
	kept map[[2]int64][]byte
}

const keptTiles = 256 // 2 MiB

func (c *tileCache) get(level int, index int64, load func(int, int64) ([]byte, error)) ([]byte, error) {
	key := [2]int64{int64(level), index}
	c.mu.Lock()
	b, ok := c.kept[key]
	c.mu.Unlock()
	if ok {
		return b, nil
	}
	b, err := load(level, index)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil || len(c.kept) >= keptTiles {
		c.kept = map[[2]int64][]byte{}
	}
	c.kept[key] = b
	return b, nil
}

// withReader runs fn with a reader of the published tree's hashes.
func (s *Store) withReader(ctx context.Context, p *published, fn func(tlog.HashReader) error) error {
	return s.View(ctx, func(v *View) error {
		load := tileReader(v)
		return fn(p.frontier.Reader(func(level int, index int64) ([]byte, error) { return s.tiles.get(level, index, load) }))
	})
}

// Head is the newest durable tree with its signed checkpoint. At most one
// checkpoint is signed for each tree by the same keys, and none for one that is not durable.
func (s *Store) Head(ctx context.Context) (tlog.Tree, []byte, error) {
	if err := s.Damage(); err != nil {
		return tlog.Tree{}, nil, err
	}
	s.signMu.Lock()
	defer s.signMu.Unlock()
	p := s.head.Load()
	by := signersOf(s.cfg.Signer)
	if s.signed.note != nil && s.signed.tree == p.tree && s.signed.by == by {
		return s.signed.tree, s.signed.note, nil
	}
	b, err := ledger.SignCheckpoint(s.cfg.Origin, p.tree, s.cfg.Signer)
	if err != nil {
		return tlog.Tree{}, nil, err
	}
	// Remembered before anybody sees it: a rollback behind it is found.
	if err := s.anchor.remember(b); err != nil {
		return tlog.Tree{}, nil, err
	}
	s.signed = signedHead{p.tree, by, b}
	return p.tree, b, nil
}

// signersOf names the keys behind a signer: when they change, the newest tree
// is signed again.
func signersOf(s note.Signer) string {
	var names strings.Builder
	for _, s := range ledger.SignersOf(s) {
		fmt.Fprintf(&names, "%08x ", s.KeyHash())
	}
	return names.String()
}

// Settle stores the newest checkpoint now.
func (s *Store) Settle(ctx context.Context) error { return s.settle(ctx) }

// Size is how many entries the ledger holds, also when it accepts none any more.
func (s *Store) Size() int64 { return s.head.Load().tree.N }

// Consistency proves that the tree of size new extends the one of size old.
func (s *Store) Consistency(ctx context.Context, old, new int64) ([]tlog.Hash, error) {
	p := s.head.Load()
	if old < 0 || old > new || new > p.tree.N {
		return nil, fault.New(fault.Invalid, "cannot prove that %d entries extend %d: the ledger holds %d", new, old, p.tree.N)
	}
	if old == 0 || old == new {
		return nil, nil
	}
	var proof []tlog.Hash
	err := s.withReader(ctx, p, func(r tlog.HashReader) (err error) {
		proof, err = tlog.ProveTree(new, old, r)
		return err
	})
	return proof, asFault(err, "prove consistency")
}

// Inclusion proves that entry seq is in the tree of that size.
func (s *Store) Inclusion(ctx context.Context, seq, size int64) ([]tlog.Hash, error) {
	p := s.head.Load()
	if seq < 0 || seq >= size || size > p.tree.N {
		return nil, fault.New(fault.Invalid, "cannot prove entry #%d in a tree of %d: the ledger holds %d", seq, size, p.tree.N)
	}
	var proof []tlog.Hash
	err := s.withReader(ctx, p, func(r tlog.HashReader) (err error) {
		proof, err = tlog.ProveRecord(size, seq, r)
		return err
	})
	return proof, asFault(err, "prove inclusion")
}

// Proof proves one entry against the newest checkpoint.
func (s *Store) Proof(ctx context.Context, seq int64) (ledger.Proof, error) {
	rec, err := s.Entries(ctx, EntryQuery{Oldest: true, After: seq - 1, Before: seq + 1, Limit: 1})
	if err != nil {
		return ledger.Proof{}, err
	}
	if len(rec) != 1 || rec[0].Seq != seq {
		return ledger.Proof{}, fault.New(fault.NotFound, "cannot prove entry #%d: there is no such entry", seq)
	}
	return s.prove(ctx, rec[0])
}

func (s *Store) prove(ctx context.Context, r Recorded) (ledger.Proof, error) {
	tree, signed, err := s.Head(ctx)
	if err != nil {
		return ledger.Proof{}, err
	}
	inc, err := s.Inclusion(ctx, r.Seq, tree.N)
	if err != nil {
		return ledger.Proof{}, err
	}
	return ledger.Proof{Index: r.Seq, Leaf: r.Leaf, Salt: r.Salt, Payload: r.Payload, Inclusion: inc, Checkpoint: signed}, nil
}

type checkpointRow struct {
	N      int64  `db:"n"`
	Signed string `db:"signed"`
	Chain  string `db:"chain"`
}

// chainOf links each stored checkpoint to all before it, so that none can be
// taken out of the table unnoticed.
func chainOf(before, signed string) string {
	h := sha256.Sum256([]byte(before + "\n" + signed))
	return hex.EncodeToString(h[:])
}

// settle signs the newest tree, stores the checkpoint, and remembers it
// durably. If we crash in between, the database is ahead of what is remembered,
// which is no rollback.
func (s *Store) settle(ctx context.Context) error {
	if s.Damage() != nil || s.head.Load().tree.N == s.settled.Load() {
		return nil
	}
	tree, signed, err := s.Head(ctx)
	if err != nil {
		return err
	}
	var row checkpointRow
	err = s.eng.maintain(ctx, func(tx *Tx) error {
		last, err := All[checkpointRow](tx, `SELECT n, signed, chain FROM ledger_checkpoint ORDER BY n DESC LIMIT 1`)
		if err != nil {
			return err
		}
		var before string
		if len(last) > 0 {
			if row = last[0]; row.N >= tree.N {
				return nil
			}
			before = row.Chain
		}
		row = checkpointRow{tree.N, string(signed), chainOf(before, string(signed))}
		_, err = tx.Exec(`INSERT INTO ledger_checkpoint (n, signed, chain, at) VALUES ($1, $2, $3, $4)`, row.N, row.Signed, row.Chain, time.Now().UnixMicro())
		return err
	})
	if err != nil {
		return err
	}
	if err := s.anchor.settle(row.N, row.Chain); err != nil {
		return err
	}
	s.settled.Store(row.N)
	return nil
}
