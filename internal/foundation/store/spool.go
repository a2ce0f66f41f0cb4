package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Spool is the preallocated file in which brakes are kept while the database is
// away or the disk is full: a brake acts first and is recorded after. Its
// frames are overwritten in place, so appending needs no new block.
//
//	frame: length u32, CRC-32 of the body u32, JSON body; a length of 0 ends it
type Spool struct {
	mu   sync.Mutex
	file *os.File
	end  int64
	held []spooled
}

// spooled is one brake in the file. ID makes draining it twice harmless.
type spooled struct {
	ID      string          `json:"id"`
	Time    int64           `json:"time"`
	Entry   spooledEntry    `json:"entry"`
	Payload json.RawMessage `json:"payload"`
}

type spooledEntry struct {
	Action   ledger.Action  `json:"action"`
	Outcome  ledger.Outcome `json:"outcome,omitempty"`
	Subjects []string       `json:"subjects,omitempty"`
	Session  string         `json:"session,omitempty"`
	Target   string         `json:"target,omitempty"`
	Object   string         `json:"object,omitempty"`
	Version  int64          `json:"version,omitempty"`
	SealTo   string         `json:"seal_to,omitempty"`
}

func (s spooled) entry() ledger.Entry {
	e := s.Entry
	return ledger.Entry{Action: e.Action, Outcome: e.Outcome, Subjects: e.Subjects, Session: e.Session, Target: e.Target,
		Object: e.Object, Version: e.Version, SealTo: e.SealTo, Payload: s.Payload}
}

// spoolBytes is the size of the file: some 500 brakes.
const spoolBytes = 256 << 10

func openSpool(dir string) (*Spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the brake spool")
	}
	f, err := os.OpenFile(filepath.Join(dir, "brakes"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the brake spool")
	}
	buf := make([]byte, spoolBytes)
	n, _ := f.ReadAt(buf, 0) // short when it is new
	if n < spoolBytes {
		// Written, not only allocated: a full disk must not matter later.
		if _, err := f.WriteAt(buf[n:], int64(n)); err != nil {
			return nil, errors.Join(fault.Wrap(fault.Exhausted, err, "cannot reserve the brake spool"), f.Close())
		}
		if err := f.Sync(); err != nil {
			return nil, errors.Join(fault.Wrap(fault.Unavailable, err, "cannot reserve the brake spool"), f.Close())
		}
	}
	p := &Spool{file: f}
	p.end, p.held = readSpool(buf)
	return p, nil
}

// readSpool reads frames up to the first that is not whole: that one was being
// written when we crashed, and nobody was told that it is kept.
func readSpool(buf []byte) (end int64, held []spooled) {
	for int(end)+8 <= len(buf) {
		size := int64(binary.BigEndian.Uint32(buf[end:]))
		if size == 0 || end+8+size > int64(len(buf)) {
			break
		}
		body := buf[end+8 : end+8+size]
		var s spooled
		if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(buf[end+4:]) || json.Unmarshal(body, &s) != nil {
			break
		}
		held = append(held, s)
		end += 8 + size
	}
	return end, held
}

// Spool returns the store's brake spool; nil when Config.Spool is "".
func (s *Store) Spool() *Spool { return s.spool }

// Append keeps one entry durably, with no database. It becomes a ledger entry
// as soon as the database is back.
func (p *Spool) Append(e ledger.Entry) error {
	if p == nil {
		return fault.New(fault.Unavailable, "cannot keep the brake: there is no spool")
	}
	payload, err := marshalPayload(e)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	s := spooled{ID: "spool-" + NewID('b') + NewID('b'), Time: now.UnixMicro(), Payload: payload, Entry: spooledEntry{
		e.Action, e.Outcome, e.Subjects, e.Session, e.Target, e.Object, e.Version, e.SealTo}}
	body, err := json.Marshal(s)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot keep the brake")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	frame = binary.BigEndian.AppendUint32(frame, crc32.ChecksumIEEE(body))
	frame = append(frame, body...)
	if p.end+int64(len(frame)) > spoolBytes {
		return fault.New(fault.Exhausted, "cannot keep the brake: the spool is full with %d brakes", len(p.held)).WithHint("bring the database back; the spool empties itself")
	}
	if _, err := p.file.WriteAt(frame, p.end); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the brake")
	}
	if err := p.file.Sync(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the brake")
	}
	p.end += int64(len(frame))
	p.held = append(p.held, s)
	return nil
}

// Held is how many brakes wait for the database.
func (p *Spool) Held() int {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.held)
}

// Drain records what the spool holds, oldest first, and empties it. It runs by
// itself every second. If we crash between the two, the ids make the second
// time harmless.
func (s *Store) Drain(ctx context.Context) error {
	p := s.spool
	if p == nil {
		return nil
	}
	for p.Held() > 0 {
		p.mu.Lock()
		held := append([]spooled(nil), p.held...)
		p.mu.Unlock()
		for _, one := range held {
			if err := s.drainOne(ctx, one); err != nil {
				return err
			}
		}
		p.mu.Lock()
		if len(p.held) == len(held) { // else one more came: record it first
			err := p.empty()
			p.mu.Unlock()
			return err
		}
		p.mu.Unlock()
	}
	return nil
}

func (s *Store) drainOne(ctx context.Context, one spooled) error {
	_, err := s.Record(ctx, one.ID, func(tx *Tx) ([]ledger.Entry, error) {
		e := one.entry()
		mark := ledger.Entry{Action: ledger.ActionSpooled, Subjects: e.Subjects, Session: e.Session, Target: e.Target, SealTo: e.SealTo,
			Payload: map[string]any{"v": 1, "action": e.Action, "used": one.Time}}
		if s.cfg.Unspool == nil {
			return []ledger.Entry{e, mark}, nil
		}
		more, err := s.cfg.Unspool(tx, e)
		return append(more, mark), err
	})
	return err
}

// empty overwrites the file: what it held may be personal.
func (p *Spool) empty() error {
	if _, err := p.file.WriteAt(make([]byte, p.end), 0); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot empty the brake spool")
	}
	if err := p.file.Sync(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot empty the brake spool")
	}
	p.end, p.held = 0, nil
	return nil
}

func (p *Spool) close() error { return p.file.Close() }

// Brake records entries that only take power away. When the database does not
// take them, they go into the spool: an error means that neither held them. It
// never stands in the way of the brake itself, which acts first.
func (s *Store) Brake(ctx context.Context, id string, fn func(*Tx) ([]ledger.Entry, error), spool ...ledger.Entry) (Receipt, error) {
	r, err := s.Record(ctx, id, fn)
	if err == nil {
		return r, nil
	}
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Exhausted, fault.Internal, fault.Conflict:
	default:
		return nil, err
	}
	for _, e := range spool {
		if serr := s.spool.Append(e); serr != nil {
			return nil, errors.Join(err, serr)
		}
	}
	if len(spool) == 0 {
		return nil, err
	}
	return &receipt{s: s}, nil
}
