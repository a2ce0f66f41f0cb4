package keeper

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"os"
	"sync"

	"handrail.dev/handrail/internal/foundation/wire"
)

// spoolHalf bounds the local copy: two files of this size, so that at least
// one of them full of the newest output is there.
const spoolHalf = 1 << 20

// spoolBulk is how much of a stream without a terminal is copied: what is
// longer is a transfer of files, of which head, length and hash are kept.
const spoolBulk = 8 << 20

// spool is the local copy of the session's last output, as frames, for the
// case that the server's recorder is lost. It also counts and hashes all of
// it. It never stops a session: the recorder that must work is the server's.
// Its file is made with the first output, since nobody should wait for it.
type spool struct {
	mu    sync.Mutex
	path  string // "": there is none, or it could not be made
	bulk  bool   // no terminal
	f     *os.File
	size  int
	bytes int64
	hash  hash.Hash
}

func newSpool(path string, bulk bool) *spool {
	return &spool{path: path, bulk: bulk, hash: sha256.New()}
}

// open makes the file, once.
func (s *spool) open() {
	if s.f != nil || s.path == "" {
		return
	}
	var err error
	if s.f, err = os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		s.f, s.path = nil, ""
	}
}

func (s *spool) write(t wire.FrameType, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var head [5]byte
	head[0] = byte(t)
	binary.BigEndian.PutUint32(head[1:], uint32(len(p)))
	s.hash.Write(head[:])
	s.hash.Write(p)
	s.bytes += int64(len(p))
	s.open()
	if s.f == nil || s.bulk && s.bytes > spoolBulk {
		return
	}
	if s.size+len(head)+len(p) > spoolHalf {
		s.turn()
	}
	_, _ = s.f.Write(append(head[:], p...))
	s.size += len(head) + len(p)
}

// turn makes the file the older half and starts a new one.
func (s *spool) turn() {
	if os.Rename(s.path, s.path+".old") != nil {
		return
	}
	if f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
		s.f.Close()
		s.f, s.size = f, 0
	}
}

func (s *spool) sum() (bytes int64, tail string) {
	if s == nil {
		return 0, ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes, hex.EncodeToString(s.hash.Sum(nil))
}

func (s *spool) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
	s.path = "" // nothing is written after the end
}
