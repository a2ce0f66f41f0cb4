package wire

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// FrameType says what a session frame is.
type FrameType uint8

// The frames of a session stream: 1 byte type, u32 length, payload.
const (
	FrameStdin    FrameType = 1  // server → node
	FrameStdout   FrameType = 2  // node → server
	FrameStderr   FrameType = 3  // node → server
	FrameEOF      FrameType = 4  // server → node: no more stdin
	FrameResize   FrameType = 5  // server → node: u16 cols, u16 rows
	FrameSignal   FrameType = 6  // server → node: name without SIG
	FrameExit     FrameType = 7  // node → server, the last frame: i32 status, JSON Exit tail
	FrameNotice   FrameType = 8  // node → server: text for the person
	FramePaused   FrameType = 9  // node → server
	FrameResumed  FrameType = 10 // node → server
	FrameRefusal  FrameType = 11 // node → server: text of the first refusal
	FramePing     FrameType = 12
	FramePong     FrameType = 13
	FrameChapter  FrameType = 14 // node → server: a command line seen; a label only
	FrameDeadline FrameType = 15 // server → node: i64 ms remaining; can only shorten
	FrameSealed   FrameType = 16 // node → server: a part of what was sealed there
)

// MaxFrame is the longest payload of a frame.
const MaxFrame = 64 << 10

const frameHead = 5

// Exit is how a session ended.
type Exit struct {
	Status int32  `json:"-"`
	Signal string `json:"signal,omitempty"` // name without SIG
	Why    string `json:"why,omitempty"`    // deadline, stopped, lease, gateway, budget, lost; empty: by itself
}

// EncodeExit returns the payload of an exit frame.
func EncodeExit(e Exit) []byte {
	tail, err := json.Marshal(e)
	if err != nil {
		tail = []byte("{}")
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(e.Status)), tail...)
}

// DecodeExit reads the payload of an exit frame.
func DecodeExit(b []byte) (Exit, error) {
	var e Exit
	if len(b) < 4 {
		return e, fault.New(fault.Invalid, "cannot read exit frame: %d bytes", len(b))
	}
	if len(b) > 4 {
		if err := json.Unmarshal(b[4:], &e); err != nil {
			return e, fault.Wrap(fault.Invalid, err, "cannot read exit frame")
		}
	}
	e.Status = int32(binary.BigEndian.Uint32(b))
	return e, nil
}

// EncodeResize returns the payload of a resize frame.
func EncodeResize(cols, rows uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, cols), rows)
}

// DecodeResize reads the payload of a resize frame.
func DecodeResize(b []byte) (cols, rows uint16, err error) {
	if len(b) != 4 {
		return 0, 0, fault.New(fault.Invalid, "cannot read resize frame: %d bytes", len(b))
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), nil
}

// EncodeDeadline returns the payload of a deadline frame.
func EncodeDeadline(remainingMS int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(remainingMS))
}

// DecodeDeadline reads the payload of a deadline frame.
func DecodeDeadline(b []byte) (remainingMS int64, err error) {
	if len(b) != 8 {
		return 0, fault.New(fault.Invalid, "cannot read deadline frame: %d bytes", len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// Reader reads frames with one buffer for all of them.
type Reader struct {
	r          io.Reader
	buf        []byte
	start, end int
}

// NewReader returns a Reader over r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame. Its payload is valid until the next call. At a
// frame's border a closed stream is io.EOF, within a frame io.ErrUnexpectedEOF.
func (r *Reader) Next() (FrameType, []byte, error) {
	if err := r.fill(frameHead); err != nil {
		return 0, nil, err
	}
	t := FrameType(r.buf[r.start])
	n := int(binary.BigEndian.Uint32(r.buf[r.start+1:]))
	if n < 0 || n > MaxFrame {
		return 0, nil, fault.New(fault.Invalid, "cannot read frame: %d bytes are more than %d", n, MaxFrame)
	}
	if err := r.fill(frameHead + n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	p := r.buf[r.start+frameHead : r.start+frameHead+n]
	r.start += frameHead + n
	return t, p, nil
}

// fill makes at least need bytes available from start. An idle stream holds
// only a small buffer; a busy one grows to four frames, so that one read
// system call brings several.
func (r *Reader) fill(need int) error {
	if r.end-r.start >= need {
		return nil
	}
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	if len(r.buf)-r.start < need {
		size := len(r.buf)
		if size < 4<<10 {
			size = 4 << 10
		}
		for size < need {
			size *= 4
		}
		if size > len(r.buf) {
			bigger := make([]byte, size)
			r.end = copy(bigger, r.buf[r.start:r.end])
			r.buf = bigger
		} else {
			r.end = copy(r.buf, r.buf[r.start:r.end])
		}
		r.start = 0
	}
	for r.end-r.start < need {
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		if r.end-r.start >= need {
			return nil
		}
		if err != nil {
			if err == io.EOF && r.end > r.start {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Writer writes frames, each with one Write. It may be used by several
// goroutines; a frame is never torn by another.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer over w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes p as one or, where p is longer than MaxFrame, as several frames
// of that type. It blocks while the other side is slow: nothing is dropped.
func (w *Writer) Write(t FrameType, p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		n := min(len(p), MaxFrame)
		w.buf = append(w.buf[:0], byte(t), 0, 0, 0, 0)
		binary.BigEndian.PutUint32(w.buf[1:], uint32(n))
		w.buf = append(w.buf, p[:n]...)
		if _, err := w.w.Write(w.buf); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// Block is a buffer with room for a frame's head before its payload: a source
// is read straight into Payload and sent without a copy.
type Block struct{ b [frameHead + MaxFrame]byte }

// Payload is where the payload goes.
func (b *Block) Payload() []byte { return b.b[frameHead:] }

// WriteBlock sends the first n bytes of b's payload as one frame.
func (w *Writer) WriteBlock(t FrameType, b *Block, n int) error {
	b.b[0] = byte(t)
	binary.BigEndian.PutUint32(b.b[1:], uint32(n))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.w.Write(b.b[:frameHead+n])
	return err
}
