package recording

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// piece is one durable piece of a recording that the ledger is to know.
type piece struct {
	session, person string
	number          int64
	hash            [sha256.Size]byte
	size            int64
}

// anchor tells the ledger the hashes of pieces, all sessions in one
// transaction. If we crash before, the closing entry that Recover writes
// covers the same bytes.
type anchor struct {
	store Ledger
	log   *slog.Logger

	mu      sync.Mutex
	waiting []piece
	busy    sync.Mutex // one flush at a time, so that pieces keep their order
}

func newAnchor(s Ledger, log *slog.Logger) *anchor { return &anchor{store: s, log: log} }

func (a *anchor) add(p []piece) {
	if len(p) == 0 {
		return
	}
	a.mu.Lock()
	a.waiting = append(a.waiting, p...)
	a.mu.Unlock()
}

// flush writes what waits. While the database is away it keeps waiting: the
// queue grows by at most one small struct per 64 KiB on disk.
func (a *anchor) flush(ctx context.Context) {
	a.busy.Lock()
	defer a.busy.Unlock()
	a.mu.Lock()
	batch := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	entries := chunkEntries(batch)
	_, err := a.store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) { return entries, nil })
	if err != nil {
		a.log.Warn("cannot tell the ledger about recordings; trying again", "pieces", len(batch), "error", err)
		a.mu.Lock()
		a.waiting = append(batch, a.waiting...)
		a.mu.Unlock()
	}
}

// take removes and returns what waits for one session, to be told with its
// closing entry.
func (a *anchor) take(session string) []piece {
	a.busy.Lock()
	defer a.busy.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	var mine, rest []piece
	for _, p := range a.waiting {
		if p.session == session {
			mine = append(mine, p)
		} else {
			rest = append(rest, p)
		}
	}
	a.waiting = rest
	return mine
}

// chunkEntries folds pieces into one entry a session.
func chunkEntries(pieces []piece) (entries []ledger.Entry) {
	by := map[string]*ledger.Chunks{}
	var order []*ledger.Chunks
	for _, p := range pieces {
		c := by[p.session]
		if c == nil {
			c = &ledger.Chunks{V: 1, Session: p.session, First: p.number}
			by[p.session] = c
			order = append(order, c)
		}
		c.Hashes = append(c.Hashes, hex.EncodeToString(p.hash[:]))
		c.Sizes = append(c.Sizes, p.size)
	}
	for _, c := range order {
		entries = append(entries, ledger.Entry{Action: ActionChunks, Subjects: []string{ledger.System}, Session: c.Session, Payload: *c})
	}
	return entries
}
