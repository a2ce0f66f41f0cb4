package recording

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Recorder writes the recording of one live session. Its methods may be called
// from several goroutines; the order of the file is the order of the calls.
type Recorder struct {
	r     *Recordings
	res   *Reservation
	codec codec
	head  Header
	start time.Time

	mu       sync.Mutex
	f        File
	size     int64             // of the file, up to the last whole record
	piece    uint64            // number of the open piece, from 0
	block    uint32            // number of the next block in it
	opened   time.Time         // when the open piece got its first block
	begin    int64             // where the open piece begins
	prev     [sha256.Size]byte // of the piece before; of the head for piece 0
	running  hash.Hash         // over the open piece
	unsynced int64
	unsaid   []piece // sealed, not yet synced, so not yet told to the ledger
	bulk     map[Kind]*bulk
	broken   error
	closed   bool
}

// scratch holds the buffers of one Write; shared, since an idle session must
// not hold any.
var scratch = sync.Pool{New: func() any { return new(buffers) }}

type buffers struct{ plain, packed, record []byte }

// Create makes the file of a draft whose entry is in the ledger. From here on
// the recorder owns the reservation.
func (r *Recordings) Create(d *Draft, res *Reservation) (*Recorder, error) {
	path, err := r.path(d.Header.Session)
	if err != nil {
		return nil, err
	}
	c, err := newCodec(d.key, d.Header.Session)
	if err != nil {
		return nil, err
	}
	open := r.deps.OpenFile
	if open == nil {
		open = createFile
	}
	f, err := open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot create the recording of session %s", d.Header.Session)
	}
	rec := &Recorder{r: r, res: res, codec: c, head: d.Header, start: time.Now(), f: f, prev: d.chain, running: sha256.New()}
	if !d.Header.PTY {
		rec.bulk = map[Kind]*bulk{Input: newBulk(), Output: newBulk(), Error: newBulk()}
	}
	if err := rec.append(d.bytes); err != nil {
		f.Close()
		return nil, err
	}
	rec.running.Write(d.bytes)
	r.mu.Lock()
	r.live[d.Header.Session] = rec
	r.mu.Unlock()
	return rec, nil
}

func createFile(path string) (File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &newFile{File: f}, nil
}

// newFile is a file whose name must survive a power cut as its bytes do, and
// need not before them: nobody waits for the disk while a session opens.
type newFile struct {
	*os.File
	named atomic.Bool
}

// Sync makes the bytes durable, and the first time the name.
func (f *newFile) Sync() error {
	if err := f.File.Sync(); err != nil || f.named.Load() {
		return err
	}
	for _, path := range []string{filepath.Dir(f.Name()), filepath.Dir(filepath.Dir(f.Name()))} {
		dir, err := os.Open(path)
		if err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
		if err != nil {
			return err
		}
	}
	f.named.Store(true)
	return nil
}

// Write records one event. When it returns nil the event is in the file, and
// its bytes may be forwarded. Of a long stream without a terminal only head,
// tail, length and hash are kept.
func (c *Recorder) Write(kind Kind, data []byte) error { return c.WriteBy(kind, "", data) }

// WriteBy is Write for what somebody other than the session's owner did.
func (c *Recorder) WriteBy(kind Kind, by string, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	if c.closed {
		return fault.New(fault.Unavailable, "cannot record in session %s: it is closed", c.head.Session)
	}
	if b := c.bulk[kind]; b != nil {
		if data = b.take(data, c.r.bounds); len(data) == 0 {
			return nil
		}
	}
	return c.events(kind, by, data)
}

// events cuts data into events of a bounded size.
func (c *Recorder) events(kind Kind, by string, data []byte) error {
	for {
		part := data[:min(len(data), maxEvent)]
		if err := c.put(Event{Offset: time.Since(c.start), Kind: kind, By: by, Data: part}); err != nil {
			return err
		}
		if data = data[len(part):]; len(data) == 0 {
			return nil
		}
	}
}

// put seals one event into one block and appends it.
func (c *Recorder) put(e Event) error {
	s := scratch.Get().(*buffers)
	defer scratch.Put(s)
	s.plain = append(s.plain[:0], flagPlain)
	s.plain = appendEvent(s.plain, e)
	plain := s.plain
	if len(plain) >= 192 {
		s.packed = append(s.packed[:0], flagZstd)
		if s.packed = c.r.enc.EncodeAll(plain[1:], s.packed); len(s.packed) < len(plain) {
			plain = s.packed
		}
	}
	s.record = append(s.record[:0], 0, 0, 0, 0, typeBlock)
	s.record = c.codec.seal(s.record, plain, c.piece, c.block, c.prev[:])
	binary.BigEndian.PutUint32(s.record, uint32(len(s.record)-5))
	if err := c.append(s.record); err != nil {
		return err
	}
	if c.block == 0 {
		c.opened = time.Now()
	}
	c.running.Write(s.record)
	c.block++
	if c.size-c.begin >= int64(c.r.bounds.ChunkBytes) {
		return c.seal(sealFull)
	}
	return nil
}

// append writes one whole record. A disk that is full makes the session wait,
// then ends it; a torn record is cut off, so the file stays well formed.
func (c *Recorder) append(b []byte) error {
	deadline := time.Now().Add(c.r.bounds.Patience)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		n, err := c.f.Write(b)
		if err == nil {
			c.size += int64(len(b))
			c.unsynced += int64(len(b))
			return c.backPressure()
		}
		if n > 0 {
			if terr := c.rewind(); terr != nil {
				return c.fail(terr)
			}
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || time.Now().Add(wait).After(deadline) {
			return c.fail(err)
		}
		time.Sleep(wait)
	}
}

func (c *Recorder) rewind() error {
	if err := c.f.Truncate(c.size); err != nil {
		return err
	}
	_, err := c.f.Seek(c.size, 0)
	return err
}

// backPressure keeps what a power cut could lose within bounds.
func (c *Recorder) backPressure() error {
	if c.unsynced < c.r.bounds.Unsynced {
		return nil
	}
	return c.sync()
}

func (c *Recorder) fail(err error) error {
	kind := fault.Unavailable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = fault.Exhausted
	}
	c.broken = fault.Wrap(kind, err, "cannot record session %s", c.head.Session).WithHint("make room where the recordings lie; nothing runs unrecorded")
	return c.broken
}

// seal ends the open piece. Its hash is told to the ledger after the next sync.
func (c *Recorder) seal(why byte) error {
	rec := sealed{piece: c.piece, why: why, prev: c.prev}.encode()
	if err := c.append(rec); err != nil {
		return err
	}
	c.running.Write(rec)
	c.running.Sum(c.prev[:0])
	c.unsaid = append(c.unsaid, piece{session: c.head.Session, person: c.head.Person, number: int64(c.piece), hash: c.prev, size: c.size - c.begin})
	c.running.Reset()
	c.piece, c.block, c.begin = c.piece+1, 0, c.size
	return nil
}

// sync makes the file durable and hands sealed chunks to the ledger's queue.
func (c *Recorder) sync() error {
	if c.unsynced == 0 {
		return nil
	}
	if err := c.f.Sync(); err != nil {
		// After a failed fsync nobody knows what the disk holds.
		return c.fail(err)
	}
	c.unsynced = 0
	c.r.anchor.add(c.unsaid)
	c.unsaid = nil
	return nil
}

// tend is the recorder's share of Recordings.Tend.
func (c *Recorder) tend(now time.Time) {
	// A recorder that is busy or waits for the disk is tended the next time; it
	// may not hold up the others.
	if !c.mu.TryLock() {
		return
	}
	if c.closed || c.broken != nil {
		c.mu.Unlock()
		return
	}
	if c.block > 0 && now.Sub(c.opened) >= c.r.bounds.ChunkAge {
		_ = c.seal(sealFull) // kept in c.broken
	}
	if len(c.unsaid) == 0 {
		c.mu.Unlock()
		return
	}
	said, pending, f := c.unsaid, c.unsynced, c.f
	c.unsaid = nil
	c.mu.Unlock()
	// The fsync runs without the lock: nobody's keystroke waits for the disk.
	err := f.Sync()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if !c.closed {
			_ = c.fail(err)
		}
		return
	}
	c.unsynced = max(c.unsynced-pending, 0)
	c.r.anchor.add(said)
}

// Err is why the recorder can no longer write, or nil.
func (c *Recorder) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// Size is how long the file is now.
func (c *Recorder) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// Digest is the whole of a recording in one line of the ledger.
type Digest struct {
	V       int    `json:"v"`
	Session string `json:"session"`
	Pieces  int64  `json:"pieces"`
	Bytes   int64  `json:"bytes"`
	Hash    string `json:"hash"`           // of the last piece, which chains all others
	Lost    string `json:"lost,omitempty"` // what is known to be missing
}

// Closed is a recording that ended: its digest, and the entries that go into
// the transaction that closes its session.
type Closed struct {
	Digest  Digest
	Entries []ledger.Entry
}

func closed(d Digest, person, host string, last []piece) Closed {
	e := ledger.Entry{Action: ActionClosed, Subjects: []string{ledger.System}, Session: d.Session, Target: "host/" + host, Payload: d}
	if d.Lost != "" {
		e.Outcome = ledger.Lost
	}
	if person != "" {
		e.Subjects, e.SealTo = []string{person}, ledger.System
	}
	return Closed{Digest: d, Entries: append(chunkEntries(last), e)}
}

// Close ends the recording: bulk tails, the last seal, fsync. It returns what
// the ledger is to hold even when the recorder is broken: then of what the
// disk has, with what is lost.
func (c *Recorder) Close() (Closed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Closed{}, fault.New(fault.Conflict, "cannot close the recording of session %s: it is closed", c.head.Session)
	}
	c.closed = true
	defer c.retire()
	if c.broken == nil && c.finish() == nil {
		return closed(c.digest(""), c.head.Person, c.head.Host, c.r.anchor.take(c.head.Session)), nil
	}
	err := c.broken
	c.f.Close()
	c.r.anchor.take(c.head.Session) // Recover tells all pieces again
	out, rerr := c.r.Recover(c.head.Session, fault.From(err).Text)
	if rerr != nil {
		out = closed(c.digest(fault.From(err).Text), c.head.Person, c.head.Host, nil)
	}
	return out, err
}

func (c *Recorder) finish() error {
	for _, k := range []Kind{Input, Output, Error} {
		if b := c.bulk[k]; b != nil && b.overflowed() {
			if err := c.put(Event{Offset: time.Since(c.start), Kind: Gap, Data: b.summary(k)}); err != nil {
				return err
			}
			if err := c.events(k, "", b.lastBytes()); err != nil {
				return err
			}
		}
	}
	if err := c.seal(sealClosed); err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		return err
	}
	if err := c.f.Close(); err != nil {
		return c.fail(err)
	}
	return nil
}

func (c *Recorder) digest(lost string) Digest {
	return Digest{V: 1, Session: c.head.Session, Pieces: int64(c.piece), Bytes: c.size, Hash: hex.EncodeToString(c.prev[:]), Lost: lost}
}

// retire takes the recorder off the live list and gives its room back.
func (c *Recorder) retire() {
	c.r.mu.Lock()
	delete(c.r.live, c.head.Session)
	c.r.mu.Unlock()
	if c.res != nil {
		c.res.Release()
	}
	c.bulk = nil
}

// WriteAt records an event of a session that is over, at the time that its host
// noted. Its order is that of the calls.
func (c *Recorder) WriteAt(at time.Duration, kind Kind, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	if b := c.bulk[kind]; b != nil {
		if data = b.take(data, c.r.bounds); len(data) == 0 {
			return nil
		}
	}
	for len(data) > 0 {
		part := data[:min(len(data), maxEvent)]
		if err := c.put(Event{Offset: max(at, 0), Kind: kind, Data: part}); err != nil {
			return err
		}
		data = data[len(part):]
	}
	return nil
}
