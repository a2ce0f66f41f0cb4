package recording

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Recover closes the recording of a session whose recorder is gone: after a
// crash, or after the disk refused. What is whole is kept and sealed, a torn
// end is cut off, and the digest says that the tail is lost. It needs no key.
// Doing it twice gives the same file.
func (r *Recordings) Recover(session, why string) (Closed, error) {
	path, err := r.path(session)
	if err != nil {
		return Closed{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return closed(Digest{V: 1, Session: session, Lost: "no recording: " + why}, "", "", nil), nil
	}
	if err != nil {
		return Closed{}, fault.Wrap(fault.Unavailable, err, "cannot recover the recording of session %s", session)
	}
	defer f.Close()
	s, err := scan(bufio.NewReaderSize(f, 64<<10), session)
	if errors.Is(err, errTorn) {
		// A power cut before the first sync: the name is there, not even the
		// head is, and without it nobody can read what may follow.
		if err := os.Remove(path); err != nil {
			return Closed{}, fault.Wrap(fault.Unavailable, err, "cannot recover the recording of session %s", session)
		}
		return closed(Digest{V: 1, Session: session, Lost: "no recording: " + why}, "", "", nil), nil
	}
	if err != nil {
		return Closed{}, fault.Wrap(fault.Internal, err, "cannot recover the recording of session %s", session)
	}
	if s.ending == 0 {
		if why, err = s.mend(f, why); err != nil {
			return Closed{}, fault.Wrap(fault.Unavailable, err, "cannot recover the recording of session %s", session)
		}
	} else if s.ending == sealClosed {
		why = "" // it was whole; only its closing entry was missing
	}
	last := s.sum
	if n := len(s.pieces); n > 0 {
		last = s.pieces[n-1].hash
	}
	d := Digest{V: 1, Session: session, Pieces: int64(len(s.pieces)), Bytes: s.end, Hash: fmt.Sprintf("%x", last), Lost: why}
	return closed(d, s.head.Person, s.head.Host, s.pieces), nil
}

// scanned is what a file holds, read without any key.
type scanned struct {
	head   Header
	pieces []piece
	end    int64 // of the last whole record
	begin  int64 // of the open piece
	open   hasher
	sum    [32]byte // of the piece before the open one
	ending byte     // why of a final seal, or 0
	broken string   // why reading stopped, if not at the end of the file
}

// scan reads records as long as they are whole and chain up.
func scan(in io.Reader, session string) (*scanned, error) {
	head, raw, err := readHeader(in)
	if err != nil {
		return nil, err
	}
	if head.Session != session {
		return nil, fmt.Errorf("it is the recording of session %q", head.Session)
	}
	s := &scanned{head: head, end: int64(len(raw)), open: newHasher()}
	s.open.Write(raw)
	first := newHasher()
	first.Write(raw)
	s.sum = first.next()
	var buf []byte
	for s.ending == 0 {
		rec, grown, err := readRecord(in, buf)
		buf = grown
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			s.broken = err.Error()
			return s, nil
		}
		if !s.take(rec) {
			s.broken = fmt.Sprintf("piece %d does not follow the one before it", len(s.pieces))
			return s, nil
		}
	}
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		s.broken = "bytes after the end"
	}
	return s, nil
}

func (s *scanned) take(rec record) bool {
	if rec.typ == typeSeal {
		seal := parseSeal(rec.body)
		if seal.piece != uint64(len(s.pieces)) || seal.prev != s.sum {
			return false
		}
		s.open.Write(rec.raw)
		s.end += int64(len(rec.raw))
		s.sum = s.open.next()
		s.pieces = append(s.pieces, piece{session: s.head.Session, person: s.head.Person,
			number: int64(len(s.pieces)), hash: s.sum, size: s.end - s.begin})
		s.begin = s.end
		if seal.why != sealFull {
			s.ending = seal.why
		}
		return true
	}
	s.open.Write(rec.raw)
	s.end += int64(len(rec.raw))
	return true
}

// mend cuts off a torn end and seals the rest.
func (s *scanned) mend(f *os.File, why string) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if cut := st.Size() - s.end; cut > 0 {
		why = fmt.Sprintf("%s; the last %d bytes were torn", why, cut)
		if err := f.Truncate(s.end); err != nil {
			return "", err
		}
	}
	seal := sealed{piece: uint64(len(s.pieces)), why: sealRecovered, prev: s.sum}.encode()
	if _, err := f.WriteAt(seal, s.end); err != nil {
		// Without room even for the seal, the last whole piece is the end.
		if terr := f.Truncate(s.begin); terr != nil || len(s.pieces) == 0 {
			return "", err
		}
		s.end = s.begin
		return why + "; the open piece was cut off for want of room", f.Sync()
	}
	rec, _, err := readRecord(bytesReader(seal), nil)
	if err != nil || !s.take(rec) {
		return "", errors.New("cannot seal")
	}
	return why, f.Sync()
}
