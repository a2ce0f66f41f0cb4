package recording

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Reader plays a recording back. It verifies what it reads: an event is only
// returned if its seal opens and everything before it chains up.
type Reader struct {
	f     io.ReadCloser
	in    *bufio.Reader
	head  Header
	codec codec
	dec   *zstd.Decoder

	buf     []byte
	plain   []byte
	running [sha256.Size]byte // hash of the piece before the one being read
	sum     hasher
	piece   uint64
	block   uint32
	held    *Event // read by SeekTo, not yet returned
	done    bool
	ending  byte // why of the last seal; 0 while the session is live or after a crash
}

// Open opens the recording of a session for replay. The caller has been let
// through the doorway, and the replay is an entry.
func (r *Recordings) Open(ctx context.Context, session string) (*Reader, error) {
	f, err := r.source(ctx, session)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "cannot replay session %s: it has no recording", session)
	}
	if err != nil {
		return nil, err
	}
	rd := &Reader{f: f, in: bufio.NewReaderSize(f, 64<<10)}
	if err := rd.begin(r, session); err != nil {
		rd.Close()
		return nil, err
	}
	return rd, nil
}

func (rd *Reader) begin(r *Recordings, session string) error {
	head, raw, err := readHeader(rd.in)
	if away := broken(rd.f); away != nil {
		return away
	}
	if err != nil || head.Session != session {
		return touched(session, 0)
	}
	key, err := r.dataKey(head)
	if err != nil {
		return err
	}
	if string(commitKey(key)) != string(head.KeyCommit) {
		return touched(session, 0)
	}
	if rd.codec, err = newCodec(key, session); err != nil {
		return err
	}
	if rd.dec, err = newDecoder(); err != nil {
		return err
	}
	rd.head = head
	rd.sum = newHasher()
	rd.sum.Write(raw)
	rd.running = sha256.Sum256(raw)
	return nil
}

// dataKey opens the key of a recording.
func (r *Recordings) dataKey(head Header) ([]byte, error) {
	inner, err := r.deps.Replay.OpenReplay(head.KeyForReplay)
	if err != nil && head.V >= 3 {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot replay session %s without the replay key", head.Session).WithHint("put replay.key back among the server's keys")
	}
	key := inner
	if err == nil && head.V >= 2 {
		key, err = r.deps.Subjects.Open(head.Person, inner, replayContext(head.Session))
	}
	if err != nil && head.V < 3 {
		key, err = r.deps.Subjects.Open(head.Person, head.KeyForSubject, keyContext(head.Session))
	}
	if err != nil {
		kind := fault.Unavailable
		if fault.KindOf(err) == fault.NotFound {
			kind = fault.NotFound // whose session it was, was erased
		}
		return nil, fault.Wrap(kind, err, "cannot replay session %s", head.Session)
	}
	return key, nil
}

func touched(session string, piece uint64) error {
	return fault.New(fault.Internal, "cannot replay session %s: piece %d of its recording was touched", session, piece).
		WithHint("handrail ledger verify")
}

// Header says what is recorded.
func (rd *Reader) Header() Header { return rd.head }

// Next returns the next event; io.EOF at the end. Its Data is valid until the
// next call.
func (rd *Reader) Next() (Event, error) {
	if rd.held != nil {
		e := *rd.held
		rd.held = nil
		return e, nil
	}
	for {
		if rd.done {
			return Event{}, io.EOF
		}
		rec, grown, err := readRecord(rd.in, rd.buf)
		rd.buf = grown
		if away := broken(rd.f); away != nil {
			return Event{}, away
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errTorn):
			// A live session, or a crash that nobody has recovered yet.
			rd.done = true
			return Event{}, io.EOF
		case err != nil:
			return Event{}, touched(rd.head.Session, rd.piece)
		case rec.typ == typeSeal:
			if err := rd.seal(rec); err != nil {
				return Event{}, err
			}
		default:
			return rd.open(rec)
		}
	}
}

// seal checks that the piece that just ended follows the one before it.
func (rd *Reader) seal(rec record) error {
	s := parseSeal(rec.body)
	if s.piece != rd.piece || s.prev != rd.running {
		return touched(rd.head.Session, rd.piece)
	}
	rd.sum.Write(rec.raw)
	rd.running = rd.sum.next()
	rd.piece, rd.block = rd.piece+1, 0
	if s.why != sealFull {
		rd.ending, rd.done = s.why, true
	}
	return nil
}

func (rd *Reader) open(rec record) (Event, error) {
	rd.sum.Write(rec.raw) // before open, which decrypts in place
	plain, err := rd.codec.open(rec.body, rd.piece, rd.block, rd.running[:])
	if err != nil || len(plain) == 0 {
		return Event{}, touched(rd.head.Session, rd.piece)
	}
	rd.block++
	body := plain[1:]
	if plain[0] == flagZstd {
		if rd.plain, err = rd.dec.DecodeAll(body, rd.plain[:0]); err != nil {
			return Event{}, touched(rd.head.Session, rd.piece)
		}
		body = rd.plain
	}
	e, err := parseEvent(body)
	if err != nil {
		return Event{}, touched(rd.head.Session, rd.piece)
	}
	return e, nil
}

// SeekTo skips forward until the first event at or after offset, and reports
// the last size of the terminal that it passed.
func (rd *Reader) SeekTo(offset time.Duration) (cols, rows uint16, err error) {
	cols, rows = rd.head.Cols, rd.head.Rows
	for {
		e, err := rd.Next()
		if errors.Is(err, io.EOF) {
			return cols, rows, nil
		}
		if err != nil {
			return cols, rows, err
		}
		if e.Kind == Resize {
			cols, rows = ParseResize(e.Data)
		}
		if e.Offset >= offset {
			held := e
			held.Data = append([]byte(nil), e.Data...)
			rd.held = &held
			return cols, rows, nil
		}
	}
}

// Ended says whether the end of the recording was read, and whether it is
// whole: false means that the session is live, or that its tail is lost.
func (rd *Reader) Ended() (ended, whole bool) { return rd.done, rd.ending == sealClosed }

// Close closes the file.
func (rd *Reader) Close() error {
	if rd.dec != nil {
		rd.dec.Close()
	}
	return rd.f.Close()
}
