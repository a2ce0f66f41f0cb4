package witness

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// seen is what the witness remembers of one log: a file with two slots, each
// with a checksum. A tree is written into the slot that is not the newest and
// synced; after it was signed, a copy goes into the other one. So whatever a
// crash tears, the other slot is whole and nothing newer was signed; and a
// newest slot that rots leaves its copy, never an older memory.
type seen struct {
	mu     sync.Mutex
	path   string
	file   *os.File
	loaded bool
	slot   int64 // of the newest
	tree   tlog.Tree
	note   []byte
}

const (
	slotHead = sha256.Size + 4
	slotSize = 20 << 10
)

// pack is the content of a slot.
func pack(signed []byte) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, sha256.Size, slotHead+len(signed)), uint32(len(signed)))
	b = append(b, signed...)
	sum := sha256.Sum256(b[sha256.Size:])
	copy(b, sum[:])
	return b
}

// unpack is the checkpoint in a slot, or nil.
func unpack(slot []byte) []byte {
	if len(slot) < slotHead {
		return nil
	}
	n := binary.BigEndian.Uint32(slot[sha256.Size:])
	if n > ledger.MaxCheckpoint || int(n) > len(slot)-slotHead {
		return nil
	}
	signed := slot[slotHead : slotHead+n]
	if !bytes.Equal(pack(signed)[:sha256.Size], slot[:sha256.Size]) {
		return nil
	}
	return bytes.Clone(signed)
}

// load reads the memory of a log; none is the empty tree. The caller holds mu.
func (s *seen) load(origin string) error {
	if s.loaded {
		return nil
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		s.tree, s.loaded = (&ledger.Frontier{}).Tree(), true
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read what was cosigned for %s", origin)
	}
	buf := make([]byte, 2*slotSize)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return fault.Wrap(fault.Unavailable, err, "cannot read what was cosigned for %s", origin)
	}
	found := false
	for i := int64(0); i < 2; i++ {
		signed := unpack(buf[min(int64(n), i*slotSize):min(int64(n), (i+1)*slotSize)])
		// Its log's key may have changed since; that we wrote it, the checksum says.
		name, tree, _, err := ledger.OpenForeign(signed, func(string) []note.Verifier { return nil })
		if signed == nil || fault.KindOf(err) != fault.NotFound || name != origin {
			continue
		}
		if !found || tree.N > s.tree.N {
			s.slot, s.tree, s.note, found = i, tree, signed, true
		}
	}
	if !found {
		f.Close()
		return damaged(s.path)
	}
	s.file, s.loaded = f, true
	return nil
}

// save makes durable that the tree was seen. The caller holds mu.
func (s *seen) save(tree tlog.Tree, signed []byte) error {
	if s.file == nil {
		if err := s.create(signed); err != nil {
			return err
		}
		s.tree, s.note = tree, signed
		return nil
	}
	if err := s.write(1-s.slot, signed); err != nil {
		return err
	}
	if err := syscall.Fdatasync(int(s.file.Fd())); err != nil {
		// Nobody knows what the disk holds now: read it anew, or refuse.
		s.file.Close()
		s.file, s.loaded = nil, false
		return fault.Wrap(fault.Unavailable, err, "cannot save %s", s.path)
	}
	s.slot, s.tree, s.note = 1-s.slot, tree, signed
	return nil
}

// create makes the file whole at once, so that an empty one is damage.
func (s *seen) create(signed []byte) error {
	b := make([]byte, 2*slotSize)
	copy(b, pack(signed))
	copy(b[slotSize:], pack(signed))
	if err := replace(s.path, b, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot save %s", s.path)
	}
	s.file, s.slot = f, 0
	return nil
}

// copy puts the newest into the other slot too. It need not be durable: the
// next sync makes it so, and until then it guards against rot alone.
func (s *seen) copy() { _ = s.write(1-s.slot, s.note) }

func (s *seen) write(slot int64, signed []byte) error {
	if s.file == nil {
		return nil
	}
	if _, err := s.file.WriteAt(pack(signed), slot*slotSize); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot save %s", s.path)
	}
	return nil
}
