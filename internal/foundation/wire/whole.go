package wire

import (
	"encoding/binary"
	"net"
)

const (
	muxHead     = 12 // version, type, flags, stream, length
	muxTypeData = 0
	// wholeUpTo is the longest body that is copied behind its head. Beyond it
	// the second write no longer matters.
	wholeUpTo = 4 << 10
)

// Whole wraps the connection below yamux, which writes the head of a data
// frame and its body apart: over TLS two records, two system calls, and two
// wake-ups at the far end for every key that is typed. Whole holds the head
// until its body comes. Only one goroutine may write, as yamux's does; a head
// that is never followed is of a connection that ended.
func Whole(c net.Conn) net.Conn { return &whole{Conn: c} }

type whole struct {
	net.Conn
	buf  []byte
	held bool
}

func (w *whole) Write(p []byte) (int, error) {
	if !w.held {
		if len(p) != muxHead || p[1] != muxTypeData || binary.BigEndian.Uint32(p[8:]) == 0 {
			return w.Conn.Write(p)
		}
		w.buf, w.held = append(w.buf[:0], p...), true
		return len(p), nil
	}
	w.held = false
	if len(p) > wholeUpTo {
		if _, err := w.Conn.Write(w.buf); err != nil {
			return 0, err
		}
		return w.Conn.Write(p)
	}
	w.buf = append(w.buf, p...)
	n, err := w.Conn.Write(w.buf)
	return max(n-muxHead, 0), err
}
