package warden

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/entrance"
	"handrail.dev/handrail/internal/host/keeper"
)

// Journal is what the link is told of one: how long its file is, and whether
// its session still runs.
type Journal struct {
	Session string `json:"session"`
	Number  int64  `json:"number"`
	Size    int64  `json:"size"`
	Live    bool   `json:"live"`
}

const (
	maxJournals = 256 // that wait for a server; then no further session by voucher
)

func (d *entrances) journalDir() string { return filepath.Join(d.dir, "journal") }

// beginJournal makes the head of a session's journal. Its number is spent on
// disk first, so that a journal that is missing later is seen to be missing.
// The caller holds mu.
func (d *entrances) beginJournal(a admitted, acc accepted, ask entrance.Ask, source string) (*keeper.JournalSpec, error) {
	entries, err := os.ReadDir(d.journalDir())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot record a session")
	}
	if len(entries) >= maxJournals {
		return nil, fault.New(fault.Exhausted, "cannot record a session: %d recordings wait for a server", len(entries))
	}
	key := ed25519.NewKeyFromSeed(seed())
	o := acc.Session
	head := wire.JournalHead{
		V: 1, Session: o.ID, Node: d.w.status.Node, Number: d.m.Number + 1, Before: d.m.Before,
		Certificate: ask.Certificate, SessionID: ask.SessionID, Source: source,
		Kind: o.Kind, Command: o.Command, PTY: o.PTY, Term: o.Term, Cols: o.Cols, Rows: o.Rows, Account: o.Account,
		BootID: d.w.status.BootID, Wall: time.Now().UnixMicro(), LastLease: a.lastLease, LostMS: a.lost.Milliseconds(),
		Drill: a.drill, Offline: a.Offline, Key: key.Public().(ed25519.PublicKey),
	}
	block, err := wire.SignJournalHead(head, d.journal)
	if err != nil {
		return nil, err
	}
	next := d.w.judge.recollect(d.m)
	next.Number, next.Before = head.Number, wire.HashBlock(block[4:])
	if err := d.saveLocked(next); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot record a session")
	}
	return &keeper.JournalSpec{Path: filepath.Join(d.w.c.Dir, "journal", o.ID), Head: block, Key: key.Seed()}, nil
}

// failJournal writes the journal of a session whose keeper could not even do
// that, so that no number is missing.
func (d *entrances) failJournal(s *keeper.JournalSpec) {
	f, err := os.OpenFile(filepath.Join(d.journalDir(), filepath.Base(s.Path)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return // the keeper began it
	}
	defer f.Close()
	piece, err := wire.SignJournalPiece(wire.JournalPiece{N: 1, Prev: wire.HashBlock(s.Head[4:]),
		End: &wire.JournalEnd{Status: 255, Why: keeper.WhyFailed}}, ed25519.NewKeyFromSeed(s.Key))
	if err != nil {
		return
	}
	if _, err = f.Write(append(s.Head, piece...)); err == nil {
		_ = f.Sync()
	}
}

// journals answers the link's questions about what waits for a server.
func (w *warden) journals(m message) reply {
	switch m.Op {
	case opJournals:
		list, err := w.door.list()
		return w.failed(err, reply{Journals: list})
	case opJournal:
		b, err := w.door.read(m.Ack, m.From)
		return w.failed(err, reply{Data: b})
	}
	return w.failed(w.door.forget(m.Data), reply{})
}

func (d *entrances) list() ([]Journal, error) {
	entries, err := os.ReadDir(d.journalDir())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot list what was recorded here")
	}
	var out []Journal
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !wire.ValidID('s', e.Name()) {
			continue
		}
		live := len(d.w.run.where(func(l *live) bool { return l.id == e.Name() })) > 0
		out = append(out, Journal{Session: e.Name(), Number: d.numberOf(e.Name()), Size: min(info.Size(), wire.MaxJournal), Live: live})
	}
	// In the order in which they began: a number that is left out is missed.
	sort.Slice(out, func(i, j int) bool { return out[i].Number < out[j].Number })
	return out, nil
}

// numberOf is what the head of a journal says; 0 while there is none.
func (d *entrances) numberOf(session string) int64 {
	f, err := os.Open(filepath.Join(d.journalDir(), session))
	if err != nil {
		return 0
	}
	defer f.Close()
	r, err := wire.OpenJournal(f, d.journal.Public().(ed25519.PublicKey))
	if err != nil {
		return 0
	}
	return r.Head.Number
}

func (d *entrances) read(session string, from int64) ([]byte, error) {
	if !wire.ValidID('s', session) || from < 0 {
		return nil, fault.New(fault.Invalid, "cannot read the recording of %.32q", session)
	}
	f, err := os.Open(filepath.Join(d.journalDir(), session))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "cannot read the recording of %s", session)
	}
	defer f.Close()
	b := make([]byte, wire.MaxJournalPart)
	n, err := f.ReadAt(b, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the recording of %s", session)
	}
	return b[:n], nil
}

// forget removes a journal for which the server has signed that it is in the
// ledger, whole.
func (d *entrances) forget(receipt []byte) error {
	d.w.judge.mu.Lock()
	keys := d.w.judge.orderKeys()
	d.w.judge.mu.Unlock()
	r, err := wire.ByAny(keys, func(k ed25519.PublicKey) (wire.Receipt, error) { return wire.OpenReceipt(receipt, k) })
	if err != nil {
		return refuse(RuleSignature, "%v", err)
	}
	if r.Node != d.w.status.Node || !wire.ValidID('s', r.Session) {
		return refuse(RuleNode, "cannot forget %s: the receipt is for %s", r.Session, r.Node)
	}
	path := filepath.Join(d.journalDir(), r.Session)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Wrap(fault.Unavailable, err, "cannot forget %s", r.Session)
	case info.Size() != r.Size || len(d.w.run.where(func(l *live) bool { return l.id == r.Session })) > 0:
		return fault.New(fault.Conflict, "cannot forget %s: there is more of it than the receipt says", r.Session)
	}
	return os.Remove(path)
}

// Entrance asks whether it is open, and what it is known by.
func (c *Client) Entrance(ctx context.Context) (Entrance, error) {
	r, _, err := c.do(ctx, message{Op: opEntrance})
	if err != nil || r.Entrance == nil {
		return Entrance{}, err
	}
	return *r.Entrance, nil
}

// Enter hands in somebody who has come, and returns their line to the entrance.
func (c *Client) Enter(ctx context.Context, source string) (*os.File, error) {
	_, f, err := c.do(ctx, message{Op: opEnter, Data: []byte(source)})
	if err == nil && f == nil {
		err = fault.New(fault.Internal, "cannot open the entrance: the warden gave no line")
	}
	return f, err
}

// Journals lists what waits for a server.
func (c *Client) Journals(ctx context.Context) ([]Journal, error) {
	r, _, err := c.do(ctx, message{Op: opJournals})
	return r.Journals, err
}

// Journal reads a stretch of one.
func (c *Client) Journal(ctx context.Context, session string, from int64) ([]byte, error) {
	r, _, err := c.do(ctx, message{Op: opJournal, Ack: session, From: from})
	return r.Data, err
}

// Forget hands in a receipt.
func (c *Client) Forget(ctx context.Context, receipt []byte) error {
	_, _, err := c.do(ctx, message{Op: opForget, Data: receipt})
	return err
}
