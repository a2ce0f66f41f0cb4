package keeper

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// JournalSpec says where the recording of a session goes that no server sees,
// and how it begins. The key is of this session alone; the head, which the
// warden signed, vouches for it.
type JournalSpec struct {
	Path string `json:"path"`
	Head []byte `json:"head"` // the first block, with its length
	Key  []byte `json:"key"`  // ed25519 seed
}

const (
	// journalEvery is how long what happened may wait for the disk: so much is
	// lost at most when the keeper is killed.
	journalEvery = 200 * time.Millisecond
	journalFlush = 64 << 10
	journalRoom  = 1 << 20 // kept for the end
)

// journal is the recording of a session that no server sees. A nil one is of a
// session that a server records.
type journal struct {
	failed func(why string) // ends the session

	mu     sync.Mutex
	f      *os.File
	key    ed25519.PrivateKey
	prev   []byte
	n      int64
	size   int64
	began  time.Duration // boot time
	events []wire.JournalEvent
	held   int // bytes in events
	broken bool
	done   chan struct{}
}

// openJournal makes the file, durable with its head and its name, before
// anything of the session runs.
func (k *keeper) openJournal() error {
	s := k.spec.Journal
	if s == nil {
		return nil
	}
	if len(s.Key) != ed25519.SeedSize || len(s.Head) < 4 {
		return fault.New(fault.Internal, "cannot record session %s: no key", k.spec.Session.ID)
	}
	f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot record session %s", k.spec.Session.ID)
	}
	j := &journal{
		f: f, key: ed25519.NewKeyFromSeed(s.Key), prev: wire.HashBlock(s.Head[4:]), size: int64(len(s.Head)),
		began: bootTime(), done: make(chan struct{}), failed: func(why string) { go k.end(why) },
	}
	if _, err = f.Write(s.Head); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncFolder(filepath.Dir(s.Path))
	}
	if err != nil {
		f.Close()
		return fault.Wrap(fault.Unavailable, err, "cannot record session %s", k.spec.Session.ID)
	}
	k.log = j
	go j.tend()
	return nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// tend brings what happened to the disk.
func (j *journal) tend() {
	tick := time.NewTicker(journalEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			j.mu.Lock()
			j.flush(nil)
			j.mu.Unlock()
		case <-j.done:
			return
		}
	}
}

// write records a frame. Whoever reads slowly waits for the disk as well.
func (j *journal) write(t wire.FrameType, p []byte) {
	if j == nil || len(p) == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, wire.JournalEvent{At: (bootTime() - j.began).Microseconds(), Type: t, Data: append([]byte(nil), p...)})
	if j.held += len(p); j.held >= journalFlush {
		j.flush(nil)
	}
}

// end closes the journal with how the session ended.
func (j *journal) end(e wire.Exit) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flush(&wire.JournalEnd{At: (bootTime() - j.began).Microseconds(), Status: e.Status, Signal: e.Signal, Why: e.Why})
	j.broken = true // nothing follows
	close(j.done)
	j.f.Close()
}

// flush writes one piece and syncs it. The caller holds mu. Nothing runs
// unrecorded: when the disk refuses, the session ends.
func (j *journal) flush(end *wire.JournalEnd) {
	if j.broken || len(j.events) == 0 && end == nil {
		return
	}
	piece := wire.JournalPiece{N: j.n + 1, Prev: j.prev, Events: j.events, End: end}
	j.events, j.held = nil, 0
	block, err := wire.SignJournalPiece(piece, j.key)
	if err == nil && end == nil && j.size+int64(len(block)) > wire.MaxJournal-journalRoom {
		j.failed(WhyBudget) // the room left is for the end, which says so
		return
	}
	if err == nil {
		_, err = j.f.Write(block)
	}
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		j.broken = true
		j.failed(WhyRecorder)
		return
	}
	j.n, j.prev, j.size = piece.N, wire.HashBlock(block[4:]), j.size+int64(len(block))
}
