package mux

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// raw is a connection whose far end is a server's session, near end an attacker.
func raw(t testing.TB) (net.Conn, *Session) {
	x, y := pair(t)
	s := newSession(y, 2, time.Hour)
	t.Cleanup(func() { x.Close(); s.Close() })
	return x, s
}

func frames(hs ...head) (b []byte) {
	for _, h := range hs {
		b = appendHead(b, h)
		b = append(b, make([]byte, min(h.length, 1<<20))...)
	}
	return b
}

// What no honest peer sends ends the connection, at once and with nothing held.
func TestAPeerThatLiesIsCutOff(t *testing.T) {
	open := head{kind: frameOpen, stream: 1}
	fill := make([]head, 0, 8)
	for left := firstWindow; left > 0; left -= min(left, maxData) {
		fill = append(fill, head{kind: frameData, stream: 1, length: min(left, maxData)})
	}
	window := func(n uint32) []byte {
		return binary.BigEndian.AppendUint32(appendHead(frames(open), head{kind: frameWindow, length: 4, stream: 1}), n)
	}
	for what, b := range map[string][]byte{
		"an unknown type":              frames(head{kind: 9, stream: 1}),
		"type 0":                       frames(head{stream: 1}),
		"a giant":                      frames(open, head{kind: frameData, stream: 1, length: 1<<24 - 1}),
		"one byte too long":            frames(open, head{kind: frameData, stream: 1, length: maxData + 1}),
		"data of no stream":            frames(head{kind: frameData, stream: 0, length: 1}),
		"data of nothing":              frames(open, head{kind: frameData, stream: 1}),
		"a stream never opened":        frames(head{kind: frameData, stream: 1, length: 1}),
		"a later stream":               frames(open, head{kind: frameClose, stream: 3}),
		"a stream of ours":             frames(head{kind: frameData, stream: 2, length: 1}),
		"opening a stream of ours":     frames(head{kind: frameOpen, stream: 2}),
		"opening stream 0":             frames(head{kind: frameOpen}),
		"opening twice":                frames(open, open),
		"opening backwards":            frames(head{kind: frameOpen, stream: 5}, head{kind: frameOpen, stream: 3}),
		"opening with a body":          frames(head{kind: frameOpen, stream: 1, length: 3}),
		"more than the window":         append(frames(append([]head{open}, fill...)...), frames(head{kind: frameData, stream: 1, length: 1})...),
		"data after the end":           frames(open, head{kind: frameFin, stream: 1}, head{kind: frameData, stream: 1, length: 1}),
		"the end twice":                frames(open, head{kind: frameFin, stream: 1}, head{kind: frameFin, stream: 1}),
		"close twice":                  frames(open, head{kind: frameClose, stream: 1}, head{kind: frameClose, stream: 1}),
		"the end after the close":      frames(open, head{kind: frameClose, stream: 1}, head{kind: frameFin, stream: 1}),
		"a window of nothing":          window(0),
		"a window beyond all":          window(1<<31 - 1),
		"a window that wraps":          window(1<<32 - 1),
		"a window of five bytes":       frames(open, head{kind: frameWindow, stream: 1, length: 5}),
		"a ping of a stream":           frames(head{kind: framePing, stream: 1}),
		"a ping with a body":           frames(head{kind: framePing, length: 8}),
		"a close with a body":          frames(open, head{kind: frameClose, stream: 1, length: 1}),
		"an end in the middle of data": append(frames(open), appendHead(nil, head{kind: frameData, stream: 1, length: 100})...),
	} {
		t.Run(what, func(t *testing.T) {
			x, s := raw(t)
			_, _ = x.Write(b) // it may be cut off before the last byte
			if what == "an end in the middle of data" {
				x.Close()
			}
			within(t, "cutting off", func() { <-s.Done() })
			if _, err := io.Copy(io.Discard, x); err == nil && s.Err() == nil {
				t.Error("the connection goes on")
			}
		})
	}
}

func TestAFloodOfOpensIsCutOffAtTheBound(t *testing.T) {
	x, s := raw(t)
	var b []byte
	for n := range uint32(MaxStreams) {
		b = append(b, frames(head{kind: frameOpen, stream: 2*n + 1})...)
	}
	if _, err := x.Write(b); err != nil {
		t.Fatal(err)
	}
	within(t, "taking as many as are allowed", func() {
		for range MaxStreams {
			if _, err := s.Accept(); err != nil {
				t.Errorf("within the bound: %v", err)
				return
			}
		}
	})
	if _, err := x.Write(frames(head{kind: frameOpen, stream: 2*MaxStreams + 1})); err != nil {
		t.Fatal(err)
	}
	within(t, "cutting off", func() { <-s.Done() })
}

// Streams that come and go are no flood, however many.
func TestStreamsThatEndedDoNotCount(t *testing.T) {
	x, s := raw(t)
	go func() {
		for {
			st, err := s.Accept()
			if err != nil {
				return
			}
			st.Close()
		}
	}()
	within(t, "streams that come and go", func() {
		for n := range uint32(4 * MaxStreams) {
			if _, err := x.Write(frames(head{kind: frameOpen, stream: 2*n + 1}, head{kind: frameClose, stream: 2*n + 1})); err != nil {
				t.Error(err)
				return
			}
			if _, err := io.ReadFull(x, make([]byte, headSize)); err != nil { // its close
				t.Errorf("stream %d: %v, %v", n, err, s.Err())
				return
			}
		}
	})
}

// A peer that asks without end and takes no answer holds up nobody.
func TestAFloodOfPingsIsAnsweredOnceInAWhile(t *testing.T) {
	x, s := raw(t)
	if _, err := x.Write(frames(head{kind: frameOpen, stream: 1})); err != nil {
		t.Fatal(err)
	}
	st, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	pings := bytes.Repeat(frames(head{kind: framePing}), 4<<10)
	within(t, "reading a flood that takes no answers", func() {
		for range 200 {
			if _, err := x.Write(pings); err != nil {
				t.Error(err)
				return
			}
		}
		if _, err := x.Write(frames(head{kind: frameData, stream: 1, length: 3})); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(st, make([]byte, 3)); err != nil {
			t.Error(err)
		}
	})
}

// silent takes everything and says nothing; deafened takes nothing.
type end struct {
	net.Conn
	deaf bool
	shut chan struct{}
}

func (e *end) Write(p []byte) (int, error) {
	if !e.deaf {
		return len(p), nil
	}
	<-e.shut
	return 0, net.ErrClosed
}

func (e *end) Close() error {
	close(e.shut)
	return e.Conn.Close()
}

func TestAPeerThatIsGoneIsNoticed(t *testing.T) {
	for what, deaf := range map[string]bool{"says nothing": false, "takes nothing": true} {
		t.Run(what, func(t *testing.T) {
			x, y := pair(t)
			defer x.Close()
			s := newSession(&end{y, deaf, make(chan struct{})}, 2, 20*time.Millisecond)
			st, err := s.Open()
			if err != nil {
				t.Fatal(err)
			}
			go st.Write([]byte("hello"))
			if deaf { // it says something all the time
				go func() {
					for {
						if _, err := x.Write(frames(head{kind: framePong})); err != nil {
							return
						}
						runtime.Gosched()
					}
				}()
			}
			within(t, "noticing", func() { <-s.Done() })
			if got := s.Err().Error(); got != "the other end "+what {
				t.Error(got)
			}
		})
	}
}

func TestAPeerThatIsIdleIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		client, server := Client(x), Server(y)
		defer client.Close()
		defer server.Close()
		<-time.After(20 * patience * beat)
		st, err := client.Open()
		if err != nil {
			t.Fatalf("an idle connection ended: %v", client.Err())
		}
		if _, err := st.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Accept(); err != nil {
			t.Errorf("an idle connection ended: %v", server.Err())
		}
	})
}

// Windows are granted to who reads, and no more than a connection may hold.
func TestWindowsTogetherAreBounded(t *testing.T) {
	_, s := raw(t)
	var got int
	for range 2 * extraWindow / lastWindow {
		got += s.widen(lastWindow)
	}
	if got != extraWindow {
		t.Errorf("granted %d of %d", got, extraWindow)
	}
	s.narrow(got)
	if s.widen(1) != 1 {
		t.Error("what was given back is lost")
	}
}

// Whatever comes, nothing panics, and no stream holds more than its window.
func FuzzFrames(f *testing.F) {
	f.Add(frames(head{kind: frameOpen, stream: 1}, head{kind: frameData, stream: 1, length: 10}, head{kind: frameClose, stream: 1}), uint8(3))
	f.Add(frames(head{kind: frameOpen, stream: 1}, head{kind: frameReset, stream: 1}, head{kind: framePing}), uint8(200))
	f.Add(binary.BigEndian.AppendUint32(appendHead(frames(head{kind: frameOpen, stream: 1}), head{kind: frameWindow, length: 4, stream: 1}), 7), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		s := &Session{conn: nothing{}, next: 2, pong: make(chan struct{}, 1), streams: map[uint32]*Stream{}, done: make(chan struct{})}
		s.came = newCond(s)
		// However it is cut, the same bytes mean the same.
		whole := &Session{conn: nothing{}, next: 2, pong: make(chan struct{}, 1), streams: map[uint32]*Stream{}, done: make(chan struct{})}
		whole.came = newCond(whole)
		werr := whole.take(bytes.Clone(b))
		var err error
		for left := b; len(left) > 0 && err == nil; {
			n := min(len(left), 1+int(step))
			err = s.take(left[:n])
			left = left[n:]
		}
		if (err == nil) != (werr == nil) || len(s.streams) != len(whole.streams) {
			t.Fatalf("in pieces %v with %d streams, whole %v with %d", err, len(s.streams), werr, len(whole.streams))
		}
		for id, st := range s.streams {
			held := 0
			for _, p := range st.in.pieces {
				held += len(p)
			}
			if held+st.room > firstWindow || st.room < 0 {
				t.Fatalf("stream %d holds %d and may get %d", id, held, st.room)
			}
		}
	})
}

func newCond(s *Session) *sync.Cond { return sync.NewCond(&s.mu) }

// nothing is a connection of which only the reading side is looked at.
type nothing struct{}

func (nothing) Read([]byte) (int, error)    { return 0, io.EOF }
func (nothing) Write(p []byte) (int, error) { return len(p), nil }
func (nothing) Close() error                { return nil }
