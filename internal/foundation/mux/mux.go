// Package mux carries many streams over one connection, each with a window of
// its own, so that who reads slowly delays nobody else.
//
// What it is for is the time of a key: a frame is written by the goroutine of
// its caller and not by another that must be woken first, and what arrives goes
// straight into the buffer of who waits for it.
//
// What must stay true, whatever the peer does:
//
//   - a stream holds no more than the window that we granted, all of them
//     together no more than their first windows and extraWindow;
//   - who reads the connection never writes to it and never waits for a
//     stream's reader, so that two ends cannot wait for each other;
//   - what no honest peer sends ends the connection;
//   - a peer that says nothing, or takes nothing, for some seconds is gone.
package mux

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	// MaxStreams is how many streams of one end may be open at once.
	MaxStreams = 1024
	// firstWindow is what may be sent of a stream before its reader has read.
	firstWindow = 64 << 10
	// lastWindow lets one stream fill a path of 4 MiB bandwidth-delay, for
	// example 320 MiB/s at 12 ms.
	lastWindow = 4 << 20
	// extraWindow is what all streams of a connection may be granted beyond
	// their first windows.
	extraWindow = 128 << 20
	// beat is how often an end that hears nothing asks.
	beat = 5 * time.Second
	// patience is after how many beats a peer that says nothing, or takes
	// nothing, is gone.
	patience = 3
)

// Faults of a connection and its streams.
var (
	// ErrEnded is what a stream says when its connection ended under it.
	ErrEnded = fault.New(fault.Unavailable, "the connection ended")
	// ErrReset is what a stream says that the other end threw away.
	ErrReset = fault.New(fault.Unavailable, "the other end reset the stream")
)

// Session is a connection with streams.
type Session struct {
	conn io.ReadWriteCloser
	beat time.Duration

	writes  sync.Mutex // one frame at a time
	out     []byte     // of small frames
	next    uint32     // id of the next stream of ours
	writing atomic.Int64

	in    incoming
	heard atomic.Bool
	pong  chan struct{} // capacity 1: the peer asked

	mu      sync.Mutex
	streams map[uint32]*Stream
	waiting []*Stream // opened by the peer, not yet accepted
	came    *sync.Cond
	ours    int    // streams of ours, open
	theirs  int    // of the peer, open
	last    uint32 // id of the peer's newest stream
	extra   int    // granted beyond first windows
	err     error
	done    chan struct{}
}

// Client is the end that connected, Server the other: they number their
// streams differently. The connection is the session's from now on.
func Client(c io.ReadWriteCloser) *Session { return newSession(c, 1, beat) }

// Server is the end that was connected to.
func Server(c io.ReadWriteCloser) *Session { return newSession(c, 2, beat) }

func newSession(c io.ReadWriteCloser, first uint32, beat time.Duration) *Session {
	s := &Session{conn: c, beat: beat, next: first, pong: make(chan struct{}, 1), streams: map[uint32]*Stream{}, done: make(chan struct{})}
	s.came = sync.NewCond(&s.mu)
	go s.read()
	go s.keep()
	return s
}

// Open makes a stream. The other end learns of it with its first byte, or when
// this one is read from.
func (s *Session) Open() (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, ErrEnded
	}
	if s.ours >= MaxStreams {
		return nil, fault.New(fault.Exhausted, "cannot open a stream: %d are open", s.ours)
	}
	s.ours++
	return newStream(s, true), nil
}

// Accept waits for a stream of the other end.
func (s *Session) Accept() (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.waiting) == 0 {
		if s.err != nil {
			return nil, ErrEnded
		}
		s.came.Wait()
	}
	st := s.waiting[0]
	s.waiting[0] = nil
	if s.waiting = s.waiting[1:]; len(s.waiting) == 0 {
		s.waiting = nil
	}
	return st, nil
}

// Streams is how many are open, of both ends.
func (s *Session) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ours + s.theirs
}

// Done is closed when the connection has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why it ended, nil while it has not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the connection and all its streams.
func (s *Session) Close() error {
	s.fail(net.ErrClosed)
	return nil
}

// fail ends the connection for a reason; the first stands.
func (s *Session) fail(why error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = why
	var all []*Stream
	for _, st := range s.streams {
		all = append(all, st)
	}
	s.streams, s.waiting = nil, nil
	s.came.Broadcast()
	close(s.done)
	s.mu.Unlock()
	_ = s.conn.Close()
	for _, st := range all {
		st.fail(ErrEnded)
	}
}

// keep answers the peer's question whether somebody is here, asks it when it
// is silent, and ends a connection whose peer has gone or takes nothing.
func (s *Session) keep() {
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	silent := 0
	for {
		select {
		case <-s.done:
			return
		case <-s.pong:
			go s.mention(framePong) // the peer may take nothing
			continue
		case <-tick.C:
		}
		if began := s.writing.Load(); began != 0 && time.Since(epoch)-time.Duration(began) > (patience-1)*s.beat {
			s.fail(fault.New(fault.Unavailable, "the other end takes nothing"))
			return
		}
		if silent++; s.heard.Swap(false) {
			silent = 0
		}
		if silent >= patience {
			s.fail(fault.New(fault.Unavailable, "the other end says nothing"))
			return
		}
		if silent > 0 {
			go s.mention(framePing)
		}
	}
}

// mention sends a frame about the connection, unless somebody else is sending:
// then the peer hears of us anyway.
func (s *Session) mention(kind frameType) {
	if !s.writes.TryLock() {
		return
	}
	defer s.writes.Unlock()
	s.out = appendHead(s.out[:0], head{kind: kind})
	_ = s.write(s.out)
}

var epoch = time.Now()

// write sends b. The caller holds writes.
func (s *Session) write(b []byte) error {
	s.writing.Store(int64(time.Since(epoch)) | 1)
	_, err := s.conn.Write(b)
	s.writing.Store(0)
	if err != nil {
		s.fail(err)
		return ErrEnded
	}
	return nil
}

// large are buffers for frames that a key does not fill.
var large = sync.Pool{New: func() any { return new([headSize + headSize + maxData]byte) }}

const smallFrame = 2 << 10

// send writes one frame of a stream, and before its first that it is there.
func (s *Session) send(st *Stream, kind frameType, body []byte) error {
	s.writes.Lock()
	defer s.writes.Unlock()
	b := s.out[:0]
	if len(body) > smallFrame {
		l := large.Get().(*[headSize + headSize + maxData]byte)
		defer large.Put(l)
		b = l[:0]
	}
	if !st.told {
		if err := s.name(st); err != nil {
			return err
		}
		b = appendHead(b, head{kind: frameOpen, stream: st.id})
	}
	if err := st.maySend(kind); err != nil {
		return err
	}
	if kind != frameOpen {
		b = append(appendHead(b, head{kind: kind, length: len(body), stream: st.id}), body...)
	}
	if len(body) <= smallFrame {
		s.out = b
	}
	return s.write(b)
}

// name gives a stream of ours its number, under which frames may come from now
// on. The caller holds writes, so that numbers reach the peer in order.
func (s *Session) name(st *Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return ErrEnded
	}
	if s.next > 1<<31 {
		return fault.New(fault.Exhausted, "cannot open a stream: this connection has had all that it can number")
	}
	st.id, st.told = s.next, true
	s.next += 2
	s.streams[st.id] = st
	return nil
}

// forget is called once, when nothing more will be said of a stream.
func (s *Session) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st.id)
	if st.mine {
		s.ours--
	} else {
		s.theirs--
	}
}

// widen grants a stream up to more bytes beyond its first window.
func (s *Session) widen(more int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	more = max(min(more, extraWindow-s.extra), 0)
	s.extra += more
	return more
}

func (s *Session) narrow(extra int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extra -= extra
}
