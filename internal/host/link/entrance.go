package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
)

const (
	// entranceEvery is how often the warden is asked whether its entrance is
	// open: it alone decides, this only holds the port.
	entranceEvery = time.Second
	spokenWithin  = 10 * time.Second      // a client of SSH says at once that it is one
	usherPause    = 50 * time.Millisecond // until the warden is asked again
)

// entrance holds the port at which people with vouchers come in, and the line of
// those who wait there. Of what they say it knows the first line, which is in the
// clear; the rest is ciphertext: who ends it is a process of the warden.
type entrance struct {
	l       *link
	address string
	line    *line
}

// keepEntrance listens while the warden says that the entrance is open, until
// ctx ends. Whether a server answers this link does not matter.
func (l *link) keepEntrance(ctx context.Context) {
	if l.c.Entrance == "" {
		return
	}
	e := &entrance{l: l, address: l.c.Entrance, line: newLine()}
	tick := time.NewTicker(entranceEvery)
	defer tick.Stop()
	var port net.Listener
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { e.usher(ctx) })
	defer func() {
		if port != nil {
			port.Close()
		}
	}()
	failed := false
	for {
		status, err := l.warden.Entrance(ctx)
		switch open := err == nil && status.Open; {
		case open && port == nil:
			if port, err = net.Listen("tcp", e.address); err != nil {
				if !failed {
					l.log.Error("the entrance for vouchers cannot open", "address", e.address, "error", err)
				}
				port, failed = nil, true
				break
			}
			failed = false
			l.log.Warn("no server answers: the entrance for vouchers is open", "address", port.Addr().String())
			if l.c.EntranceOpen != nil {
				l.c.EntranceOpen(port.Addr().String())
			}
			wg.Go(func() { e.serve(ctx, port) })
		case !open && err == nil && port != nil:
			l.log.Info("the entrance for vouchers is closed")
			port.Close() // who is in stays in
			port = nil
			e.line.clear()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// serve takes in whoever comes, until the port is closed.
func (e *entrance) serve(ctx context.Context, port net.Listener) {
	for {
		c, err := port.Accept()
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) {
				return // closed
			}
			if !paused(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		go e.greet(e.line.join(c))
	}
}

// greet hears how a stranger begins. Who does not begin as a client of SSH costs
// the warden nothing.
func (e *entrance) greet(s *stranger) {
	_ = s.SetReadDeadline(time.Now().Add(spokenWithin))
	said, err := firstLine(s)
	if err != nil {
		e.line.leave(s)
		s.Close()
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	e.line.speaks(s, said)
}

// firstLine reads the line with which a client says who it is, in the clear, and
// what came with it.
func firstLine(r io.Reader) ([]byte, error) {
	const begins, most = "SSH-", 255 // RFC 4253, section 4.2
	buf := make([]byte, 0, 2*most)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if known := min(len(buf), len(begins)); string(buf[:known]) != begins[:known] {
			return nil, errors.New("no client of SSH")
		}
		if bytes.IndexByte(buf[:min(len(buf), most)], '\n') >= 0 {
			return buf, nil
		}
		if err == nil && len(buf) >= most {
			err = errors.New("a line without an end")
		}
		if err != nil {
			return nil, err
		}
	}
}

// usher lets strangers in, one at a time. The warden sets the pace.
func (e *entrance) usher(ctx context.Context) {
	defer e.line.clear()
	failed := false
	for ctx.Err() == nil {
		s := e.line.next()
		if s == nil {
			select {
			case <-ctx.Done():
			case <-e.line.news:
			}
			continue
		}
		if !there(s) {
			s.Close()
			continue
		}
		f, err := e.l.warden.Enter(timed(ctx, askTimeout), s.RemoteAddr().String())
		switch kind := fault.KindOf(err); {
		case err == nil:
			failed = false
			e.line.entered(s)
			go lead(ctx, s, f)
		case kind == fault.Exhausted || kind == fault.Unavailable:
			if kind == fault.Unavailable && !failed {
				failed = true
				e.l.log.Warn("nobody can be let in at the entrance for vouchers", "error", err)
			}
			e.line.back(s)
			paused(ctx, usherPause)
		default: // it was closed meanwhile
			e.l.log.Info("somebody was not let in at the entrance for vouchers", "from", s.RemoteAddr().String(), "error", err)
			s.Close()
		}
	}
}

// there says whether the other end has not gone while it waited.
func there(s *stranger) bool {
	tcp, ok := s.Conn.(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return err == nil && !gone
}

// lead carries the bytes of somebody who was let in, until either end is gone.
func lead(ctx context.Context, s *stranger, f *os.File) {
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	line, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return
	}
	if _, err := line.Write(s.said); err != nil {
		line.Close()
		return
	}
	relay(s.Conn, line)
}

// paused waits, and reports whether ctx goes on.
func paused(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
