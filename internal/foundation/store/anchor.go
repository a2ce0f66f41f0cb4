package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// anchor is a small file beside the database that remembers the last signed
// checkpoint, so that a database that was put back is recognised. It has two
// slots that are written in turn: a torn write spoils one of them only.
type anchor struct {
	mu     sync.Mutex
	file   *os.File
	origin string
	key    note.Verifier
	last   remembered
	found  bool // there was something to remember when it was opened
	dirty  bool // written, but not yet safe from a crash of the machine
	broken bool // the file holds something, but nothing readable
}

type remembered struct {
	Seq    int64  `json:"seq"`
	Epoch  int64  `json:"epoch"`
	ChainN int64  `json:"chain_n"` // newest checkpoint in the database
	Chain  string `json:"chain"`
	Signed string `json:"signed"` // newest checkpoint that was signed
}

const anchorSlot = 8 << 10

func openAnchor(dir, origin string, key note.Verifier) (*anchor, error) {
	f, err := os.OpenFile(filepath.Join(dir, "remembered"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the remembered checkpoint")
	}
	a := &anchor{file: f, origin: origin, key: key}
	buf := make([]byte, 2*anchorSlot)
	n, _ := f.ReadAt(buf, 0) // short at first
	buf = buf[:n]
	for i := 0; i < 2; i++ {
		if r, ok := readSlot(buf, i); ok && (!a.found || r.Seq > a.last.Seq) {
			a.last, a.found = r, true
		}
	}
	a.broken = n > 0 && !a.found
	return a, nil
}

func readSlot(buf []byte, i int) (remembered, bool) {
	var r remembered
	if len(buf) < i*anchorSlot+8 {
		return r, false
	}
	slot := buf[i*anchorSlot:]
	size := binary.BigEndian.Uint32(slot)
	if size > anchorSlot-8 || int(size)+8 > len(slot) {
		return r, false
	}
	body := slot[8 : 8+size]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(slot[4:]) || json.Unmarshal(body, &r) != nil {
		return r, false
	}
	return r, r.Seq > 0
}

// write puts r into the older slot; the caller holds mu.
func (a *anchor) write(r remembered, durable bool) error {
	r.Seq = a.last.Seq + 1
	body, err := json.Marshal(r)
	if err != nil || len(body) > anchorSlot-8 {
		return fault.New(fault.Internal, "cannot remember checkpoint: %d bytes (%v)", len(body), err)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(body))
	if _, err := a.file.WriteAt(append(b, body...), r.Seq%2*anchorSlot); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remember checkpoint")
	}
	if durable {
		if err := a.file.Sync(); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot remember checkpoint")
		}
	}
	a.dirty = !durable
	a.last = r
	return nil
}

// sync makes what was remembered survive a crash of the machine.
func (a *anchor) sync() error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.dirty {
		return nil
	}
	if err := a.file.Sync(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remember checkpoint")
	}
	a.dirty = false
	return nil
}

// remember survives a crash of this process at once, and one of the machine
// after the next sync.
func (a *anchor) remember(signed []byte) error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.last
	r.Signed = string(signed)
	return a.write(r, false)
}

// settle remembers durably which checkpoint the database holds.
func (a *anchor) settle(n int64, chain string) error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.last
	r.ChainN, r.Chain = n, chain
	return a.write(r, true)
}

// tree is the remembered tree; ok is false when nothing is remembered.
func (a *anchor) tree() (tree tlog.Tree, ok bool, err error) {
	if a == nil {
		return tlog.Tree{}, false, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return tlog.Tree{}, false, fault.New(fault.Conflict, "cannot use the ledger: the checkpoint remembered beside it is unreadable").
			WithHint("compare the head with another copy (a node, an export), then remove %s", a.file.Name())
	}
	if a.last.Signed == "" {
		return tlog.Tree{}, false, nil
	}
	tree, err = ledger.OpenCheckpoint([]byte(a.last.Signed), a.origin, a.key)
	if err != nil {
		return tlog.Tree{}, false, fault.Wrap(fault.Conflict, err, "cannot use the ledger: the checkpoint remembered beside it is not of this ledger")
	}
	return tree, true, nil
}

// accept takes a new epoch and forgets what was remembered under the old one.
func (a *anchor) accept(epoch int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = false
	return a.write(remembered{Epoch: epoch}, true)
}

func (a *anchor) epoch() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last.Epoch
}

func (a *anchor) close() error { return a.file.Close() }

// checkAnchor compares the database with the remembered checkpoint: it must
// extend it. A trust bundle of a higher epoch, signed by the root key, is the
// one way to go on from a restored or forked database, and it leaves an entry.
func (s *Store) checkAnchor(ctx context.Context) error {
	if s.anchor == nil {
		return nil
	}
	err := s.extendsAnchor(ctx)
	if err == nil {
		if s.anchor.epoch() < s.cfg.Epoch {
			s.anchor.mu.Lock()
			defer s.anchor.mu.Unlock()
			r := s.anchor.last
			r.Epoch = s.cfg.Epoch
			return s.anchor.write(r, true)
		}
		return nil
	}
	if fault.KindOf(err) != fault.Conflict || s.cfg.Epoch <= s.anchor.epoch() {
		return err
	}
	was, head := s.anchor.last, s.head.Load().tree
	if aerr := s.anchor.accept(s.cfg.Epoch); aerr != nil {
		return aerr
	}
	_, err = s.Record(ctx, NewID('r')+NewID('e'), func(*Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: ledger.ActionRestored, Payload: map[string]any{
			"v": 1, "epoch": s.cfg.Epoch, "size": head.N, "remembered": was.Signed, "reason": err.Error(),
		}}}, nil
	})
	return err
}

func (s *Store) extendsAnchor(ctx context.Context) error {
	tree, ok, err := s.anchor.tree()
	if err != nil || !ok {
		return err
	}
	return s.extends(ctx, tree)
}

// extends says whether the database holds that tree, and maybe more.
func (s *Store) extends(ctx context.Context, tree tlog.Tree) (err error) {
	p := s.head.Load()
	if p.tree.N < tree.N {
		return fault.New(fault.Conflict, "cannot use the ledger: it was rolled back: it holds %d entries, the last signed checkpoint has %d", p.tree.N, tree.N).
			WithHint("put the newest copy back, or sign a new epoch with the root key")
	}
	var root tlog.Hash
	err = s.withReader(ctx, p, func(r tlog.HashReader) (err error) {
		root, err = tlog.TreeHash(tree.N, r)
		return err
	})
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "cannot use the ledger: it does not add up").WithHint("handrail ledger verify")
	}
	if root != tree.Hash {
		return fault.New(fault.Conflict, "cannot use the ledger: it is a fork: its first %d entries are not those that were signed", tree.N).
			WithHint("put the signed copy back, or sign a new epoch with the root key")
	}
	return nil
}
