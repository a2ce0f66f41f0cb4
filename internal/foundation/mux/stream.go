package mux

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Stream is one stream; it is a net.Conn. Its methods may be called from
// several goroutines.
type Stream struct {
	s    *Session
	mine bool

	// Guarded by Session.writes until told, then fixed.
	id   uint32
	told bool
	sent frameType // of fin, close and reset the last that was sent

	whole sync.Mutex // one Write at a time

	mu       sync.Mutex
	readable *sync.Cond
	writable *sync.Cond
	in       backlog // came, not read yet
	into     []byte  // of a reader who waits
	sink     func(b []byte) (taken int)
	got      int  // what went there; -1 while nobody waits
	room     int  // what the peer may still send
	window   int  // what it may send at most, read or not
	freed    int  // was read, and is not granted again yet
	send     int  // what we may still send
	eof      bool // the peer sends nothing more
	deaf     bool // the peer takes nothing more
	closed   bool // Close was called
	finished bool // CloseWrite was called
	gone     bool // forgotten
	err      error
	readBy   deadline
	writeBy  deadline
}

func newStream(s *Session, mine bool) *Stream {
	st := &Stream{s: s, mine: mine, got: -1, room: firstWindow, window: firstWindow, send: firstWindow}
	st.readable, st.writable = sync.NewCond(&st.mu), sync.NewCond(&st.mu)
	return st
}

// Read returns what came. After the peer's last byte it returns io.EOF.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if st.mine {
		if err := st.introduce(); err != nil {
			return 0, err
		}
	}
	for {
		st.mu.Lock()
		n, err := st.await(p)
		grant := st.due(n)
		st.mu.Unlock()
		if grant > 0 {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], uint32(grant))
			_ = st.s.send(st, frameWindow, b[:]) // what was read was read
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Sink gives what comes to f, as long as somebody waits in Read, who then need
// not be woken. f takes what it can without waiting for anybody, since all
// streams of the connection wait for it; the rest goes to who reads. It is not
// called while nobody does.
func (st *Stream) Sink(f func(b []byte) (taken int)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.sink = f
}

// await waits until there is something for p, or something to grant. The
// caller holds mu.
func (st *Stream) await(p []byte) (int, error) {
	for {
		switch {
		case st.closed:
			return 0, net.ErrClosed
		case !st.in.empty():
			return st.in.take(p), nil
		case st.err != nil:
			return 0, st.err
		case st.eof:
			return 0, io.EOF
		case st.readBy.passed:
			return 0, os.ErrDeadlineExceeded
		}
		if st.into != nil {
			st.readable.Wait() // another reader comes first
			continue
		}
		st.into, st.got = p, 0
		st.readable.Wait()
		n := st.got
		st.into, st.got = nil, -1
		st.readable.Signal() // the next reader
		if n > 0 || st.freed >= st.window/2 {
			return n, nil
		}
	}
}

// due says what to grant the peer now that n more bytes were read: nothing
// until half of the window is used, then all, and the window grows. The caller
// holds mu.
func (st *Stream) due(n int) int {
	st.freed += n
	if st.freed < st.window/2 || st.eof || st.closed || st.err != nil {
		return 0
	}
	if st.window < lastWindow {
		more := st.s.widen(min(st.window, lastWindow-st.window))
		st.window += more
		st.freed += more
	}
	grant := st.freed
	st.room += grant
	st.freed = 0
	return grant
}

// announced checks that n bytes more were allowed.
func (st *Stream) announced(n int) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.eof || n > st.room {
		return fault.New(fault.Invalid, "cannot take %d bytes of stream %d: %d are allowed", n, st.id, st.room)
	}
	st.room -= n
	return nil
}

// deliver hands over bytes that were announced.
func (st *Stream) deliver(b []byte) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed || st.err != nil {
		return
	}
	if st.got == 0 && st.in.empty() {
		if st.sink != nil {
			n := min(st.sink(b), len(b))
			st.freed += n
			if b = b[n:]; len(b) == 0 && st.freed < st.window/2 {
				return
			}
		}
		n := copy(st.into, b)
		st.got, b = n, b[n:]
	}
	st.in.add(b)
	st.readable.Broadcast()
}

// granted takes more window for what we send.
func (st *Stream) granted(more uint32) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if more == 0 || int64(st.send)+int64(more) > 1<<31-1 {
		return fault.New(fault.Invalid, "cannot take a window of %d and %d bytes", st.send, more)
	}
	st.send += int(more)
	st.writable.Broadcast()
	return nil
}

// ending takes the peer's fin, close or reset.
func (st *Stream) ending(kind frameType) error {
	st.mu.Lock()
	if st.eof && (kind == frameFin || st.deaf) {
		st.mu.Unlock()
		return fault.New(fault.Invalid, "cannot end stream %d: it has ended", st.id)
	}
	st.eof = true
	if kind != frameFin {
		st.deaf = true
	}
	if kind == frameReset {
		st.err = ErrReset
		st.in.clear()
	}
	st.readable.Broadcast()
	st.writable.Broadcast()
	gone := st.over()
	st.mu.Unlock()
	st.bury(gone)
	return nil
}

// over says, once, that both ends have said their last. The caller holds mu.
func (st *Stream) over() bool {
	if !st.closed || !st.deaf || st.gone {
		return false
	}
	st.gone = true
	return true
}

func (st *Stream) bury(gone bool) {
	if !gone {
		return
	}
	st.s.forget(st)
	st.mu.Lock()
	extra := st.window - firstWindow
	st.mu.Unlock()
	st.s.narrow(extra)
}

// fail is the end of the connection.
func (st *Stream) fail(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.err = err
	}
	st.readBy.set(time.Time{}, nil)
	st.writeBy.set(time.Time{}, nil)
	st.readable.Broadcast()
	st.writable.Broadcast()
}

// introduce tells the peer of a stream that only waits to be read.
func (st *Stream) introduce() error {
	st.s.writes.Lock()
	told := st.told
	st.s.writes.Unlock()
	if told {
		return nil
	}
	return st.s.send(st, frameOpen, nil)
}

// Write sends p. It waits while the peer does not read, and for nobody else's
// reader.
func (st *Stream) Write(p []byte) (sent int, err error) {
	st.whole.Lock()
	defer st.whole.Unlock()
	for len(p) > 0 {
		n, err := st.reserve(len(p))
		if err != nil {
			return sent, err
		}
		if err := st.s.send(st, frameData, p[:n]); err != nil {
			return sent, err
		}
		sent, p = sent+n, p[n:]
	}
	return sent, nil
}

// reserve waits for window.
func (st *Stream) reserve(want int) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		switch {
		case st.closed || st.finished:
			return 0, net.ErrClosed
		case st.err != nil:
			return 0, st.err
		case st.deaf:
			return 0, io.ErrClosedPipe
		case st.writeBy.passed:
			return 0, os.ErrDeadlineExceeded
		case st.send > 0:
			n := min(want, st.send, maxData)
			st.send -= n
			return n, nil
		}
		st.writable.Wait()
	}
}

// maySend keeps the order of what a stream may say: after its end only a
// further end. The caller holds Session.writes.
func (st *Stream) maySend(kind frameType) error {
	switch kind {
	case frameFin, frameClose, frameReset:
		if st.sent >= kind || st.sent == frameClose {
			return net.ErrClosed
		}
		st.sent = kind
	case frameData:
		if st.sent != 0 {
			return net.ErrClosed
		}
	default:
		if st.sent > frameFin {
			return net.ErrClosed
		}
	}
	return nil
}

// CloseWrite says that nothing more is sent. Reading goes on.
func (st *Stream) CloseWrite() error {
	st.mu.Lock()
	if st.finished || st.closed {
		st.mu.Unlock()
		return nil
	}
	st.finished = true
	st.writable.Broadcast()
	st.mu.Unlock()
	return st.s.send(st, frameFin, nil)
}

// Close ends both ways. The peer still gets what was written; what it sent and
// nobody read is thrown away.
func (st *Stream) Close() error { return st.close(frameClose) }

// Reset ends both ways and tells the peer that what it got counts for nothing.
func (st *Stream) Reset() error { return st.close(frameReset) }

func (st *Stream) close(kind frameType) error {
	st.mu.Lock()
	if st.closed {
		st.mu.Unlock()
		return nil
	}
	st.closed = true
	st.in.clear()
	st.readBy.set(time.Time{}, nil)
	st.writeBy.set(time.Time{}, nil)
	st.readable.Broadcast()
	st.writable.Broadcast()
	st.mu.Unlock()
	_ = st.s.send(st, kind, nil) // a connection that ended has said so
	st.mu.Lock()
	gone := st.over()
	st.mu.Unlock()
	st.bury(gone)
	return nil
}

// deadline is one of two of a stream.
type deadline struct {
	passed bool
	turn   int // of the timer that counts
	timer  *time.Timer
}

// set replaces the deadline; passed is called with the turn it was set in. The
// caller holds the stream's mu.
func (d *deadline) set(at time.Time, passed func(turn int)) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.turn++
	d.passed = false
	switch left := time.Until(at); {
	case at.IsZero():
	case left <= 0:
		d.passed = true
	default:
		turn := d.turn
		d.timer = time.AfterFunc(left, func() { passed(turn) })
	}
}

func (st *Stream) setDeadline(d *deadline, wake *sync.Cond, at time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed || st.err != nil {
		return
	}
	d.set(at, func(turn int) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if d.turn == turn {
			d.passed = true
			wake.Broadcast()
		}
	})
	wake.Broadcast()
}

// SetReadDeadline bounds Read; the zero time is no bound.
func (st *Stream) SetReadDeadline(at time.Time) error {
	st.setDeadline(&st.readBy, st.readable, at)
	return nil
}

// SetWriteDeadline bounds a Write that waits for the peer's reader.
func (st *Stream) SetWriteDeadline(at time.Time) error {
	st.setDeadline(&st.writeBy, st.writable, at)
	return nil
}

// SetDeadline is both.
func (st *Stream) SetDeadline(at time.Time) error {
	_ = st.SetReadDeadline(at)
	return st.SetWriteDeadline(at)
}

// LocalAddr is that of the connection.
func (st *Stream) LocalAddr() net.Addr {
	if c, ok := st.s.conn.(net.Conn); ok {
		return c.LocalAddr()
	}
	return nowhere{}
}

// RemoteAddr is that of the connection.
func (st *Stream) RemoteAddr() net.Addr {
	if c, ok := st.s.conn.(net.Conn); ok {
		return c.RemoteAddr()
	}
	return nowhere{}
}

// nowhere is the address of a connection that has none, such as a pipe.
type nowhere struct{}

func (nowhere) Network() string { return "mux" }
func (nowhere) String() string  { return "mux" }
