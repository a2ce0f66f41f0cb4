package mux

import (
	"encoding/binary"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// incoming is how far the connection has been read: what came of a head or of
// a short body, and what is missing of a body.
type incoming struct {
	part [headSize]byte // of a head, or of the body of a window
	have int
	at   head    // while rest > 0
	to   *Stream // nil: a stream that we have forgotten
	rest int     // bytes missing of the body
}

const (
	quiet = 1 << 10  // what an idle connection holds to be read into
	busy  = 16 << 10 // a whole TLS record
)

var reading = sync.Pool{New: func() any { return new([busy]byte) }}

// read brings what comes to its streams until the connection ends. It never
// writes and never waits for a stream's reader.
func (s *Session) read() {
	small := make([]byte, quiet)
	b := small
	var big *[busy]byte
	for {
		n, err := s.conn.Read(b)
		if n > 0 {
			s.heard.Store(true)
			if perr := s.take(b[:n]); perr != nil {
				s.fail(perr)
				return
			}
		}
		if err != nil {
			s.fail(err)
			return
		}
		switch {
		case big == nil && n == len(b):
			big = reading.Get().(*[busy]byte)
			b = big[:]
		case big != nil && n < quiet/2:
			reading.Put(big)
			big, b = nil, small
		}
	}
}

// take hands on what one read brought, which may begin and end anywhere.
func (s *Session) take(b []byte) error {
	in := &s.in
	for len(b) > 0 {
		if in.rest > 0 && in.at.kind == frameData {
			n := min(in.rest, len(b))
			if in.to != nil {
				in.to.deliver(b[:n])
			}
			if in.rest -= n; in.rest == 0 {
				in.to = nil
			}
			b = b[n:]
			continue
		}
		need := headSize
		if in.rest > 0 {
			need = in.rest
		}
		n := copy(in.part[in.have:need], b)
		in.have += n
		b = b[n:]
		if in.have < need {
			return nil
		}
		in.have = 0
		if err := s.whole(in); err != nil {
			return err
		}
	}
	return nil
}

// whole takes a head that is complete, or the body of a window.
func (s *Session) whole(in *incoming) error {
	if in.rest > 0 {
		to, more := in.to, binary.BigEndian.Uint32(in.part[:])
		in.rest, in.to = 0, nil
		if to == nil {
			return nil
		}
		return to.granted(more)
	}
	h, err := parseHead(in.part[:])
	if err != nil {
		return err
	}
	switch h.kind {
	case frameOpen:
		return s.opened(h.stream)
	case framePing:
		select {
		case s.pong <- struct{}{}:
		default: // one answer is enough for all
		}
		return nil
	case framePong:
		return nil
	}
	st, err := s.find(h)
	if err != nil {
		return err
	}
	if h.length > 0 {
		in.at, in.rest, in.to = h, h.length, st
	}
	if st == nil {
		return nil
	}
	switch h.kind {
	case frameData:
		return st.announced(h.length)
	case frameWindow:
		return nil
	}
	return st.ending(h.kind)
}

// opened notes a stream of the peer.
func (s *Session) opened(id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return ErrEnded
	case id%2 == s.next%2 || id <= s.last:
		return fault.New(fault.Invalid, "cannot take stream %d: it is not the next one", id)
	case s.theirs >= MaxStreams:
		return fault.New(fault.Exhausted, "cannot take stream %d: %d are open", id, s.theirs)
	}
	st := newStream(s, false)
	st.id, st.told = id, true
	s.last = id
	s.theirs++
	s.streams[id] = st
	s.waiting = append(s.waiting, st)
	s.came.Signal()
	return nil
}

// find is the stream of a frame; nil when it was there and is forgotten.
func (s *Session) find(h head) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, ErrEnded
	}
	if st := s.streams[h.stream]; st != nil {
		return st, nil
	}
	if newest := s.last; h.stream%2 == s.next%2 && h.stream < s.next || h.stream%2 != s.next%2 && h.stream <= newest {
		return nil, nil
	}
	return nil, fault.New(fault.Invalid, "cannot read frame: stream %d was never opened", h.stream)
}
