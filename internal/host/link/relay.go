package link

import (
	"context"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

const (
	maxStreams   = 1024             // of sessions, on one connection
	orderTimeout = 30 * time.Second // from the stream's first byte to the running session
)

// sessions accepts the streams that the server opens.
func (l *link) sessions(ctx context.Context, m *mux.Session, b *bus) error {
	slots := make(chan struct{}, maxStreams)
	for {
		s, err := m.Accept()
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "the connection ended")
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = s.Reset()
			continue
		}
		go func() {
			defer func() { <-slots }()
			l.session(ctx, s, b)
		}()
	}
}

// session carries one order to the warden and, if it starts something, the
// session's bytes both ways until either side closes.
func (l *link) session(ctx context.Context, s *mux.Stream, b *bus) {
	defer s.Close()
	_ = s.SetReadDeadline(time.Now().Add(orderTimeout))
	kind, err := wire.ReadStreamKind(s)
	if err != nil || kind != wire.StreamSession {
		return
	}
	raw, err := wire.ReadEnvelope(s)
	if err != nil {
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	a, f, err := l.order(ctx, raw, b)
	if err != nil {
		l.log.Warn("an order was refused", "error", err)
		a = wire.Refusal(err)
	}
	if werr := wire.WriteAnswer(s, a); werr != nil || f == nil {
		if f != nil {
			f.Close()
		}
		return
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return
	}
	if u, ok := conn.(*net.UnixConn); ok {
		s.Sink(atOnce(u))
	}
	relay(s, conn)
}

// atOnce writes what the keeper's socket has room for, so that a key wakes the
// keeper and nobody on its way.
func atOnce(keeper *net.UnixConn) func(b []byte) int {
	raw, err := keeper.SyscallConn()
	if err != nil {
		return func([]byte) int { return 0 }
	}
	return func(b []byte) (n int) {
		_ = raw.Write(func(fd uintptr) bool {
			n, _ = unix.Write(int(fd), b) // an error is left to who reads
			return true
		})
		return max(n, 0)
	}
}

func (l *link) order(ctx context.Context, raw []byte, b *bus) (a wire.SessionAnswer, f *os.File, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	e, err := wire.ParseEnvelope(raw)
	if err != nil {
		// The warden says so too, and raises the alarm.
		a, f, err = l.warden.Order(ctx, raw)
		return a, f, err
	}
	a, f, err = l.prove(ctx, raw, e, b)
	if err != nil && fault.From(err).Rule == warden.RuleLease {
		// The warden may have just started, and have no lease yet. The order
		// was not spent.
		if lerr := b.lease(ctx); lerr == nil {
			a, f, err = l.prove(ctx, raw, e, b)
		}
	}
	return a, f, err
}

// prove hands in an order, with the proof that the warden asks for.
func (l *link) prove(ctx context.Context, raw []byte, e wire.Envelope, b *bus) (a wire.SessionAnswer, f *os.File, err error) {
	first := true
	err = b.withProof(ctx, func(from int64, proof []tlog.Hash) error {
		if !first {
			raw = wire.Envelope{Order: e.Order, From: from, Consistency: proof}.Marshal()
		}
		first = false
		var err error
		a, f, err = l.warden.Order(ctx, raw)
		return err
	})
	return a, f, err
}

// relay copies both ways. Either side's end is the session's end: what is only
// an end of input travels as a frame. A keeper that takes nothing more has
// ended, and its last words, the exit, may still wait to be read: only the
// gateway's end cuts it off.
func relay(gateway, keeper io.ReadWriteCloser) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if pour(keeper, gateway) {
			keeper.Close()
		}
	}()
	pour(gateway, keeper)
	keeper.Close()
	gateway.Close() // sends what is queued, then the end
	<-done
}

// pour copies until there is nothing more to read, which it reports, or the
// writer takes nothing more. Its buffer starts small, since most sessions
// idle, and grows while reads fill it.
func pour(to io.Writer, from io.Reader) (ended bool) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return false
			}
		}
		if err != nil {
			return true
		}
		if n == len(buf) && n < 256<<10 {
			buf = make([]byte, 4*n)
		}
	}
}
