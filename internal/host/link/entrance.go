package link

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// entranceEvery is how often the warden is asked whether its entrance is
	// open: it alone decides, this only holds the port.
	entranceEvery = time.Second
	maxGuests     = 64
	maxOfSource   = 8 // connections: one address crowds out itself first
)

// entrance holds the port at which people with vouchers come in. It carries
// ciphertext: who ends it is a process of the warden.
type entrance struct {
	l       *link
	address string

	mu     sync.Mutex
	guests map[string]int // by address
	all    int
}

// keepEntrance listens while the warden says that the entrance is open, until
// ctx ends. Whether a server answers this link does not matter.
func (l *link) keepEntrance(ctx context.Context) {
	if l.c.Entrance == "" {
		return
	}
	e := &entrance{l: l, address: l.c.Entrance, guests: map[string]int{}}
	tick := time.NewTicker(entranceEvery)
	defer tick.Stop()
	var port net.Listener
	var wg sync.WaitGroup
	defer wg.Wait()
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
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *entrance) serve(ctx context.Context, port net.Listener) {
	for {
		c, err := port.Accept()
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) {
				return // closed
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
				continue
			}
		}
		source, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		if !e.take(source) {
			c.Close()
			continue
		}
		go func() {
			defer e.give(source)
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			e.lead(ctx, c)
		}()
	}
}

// lead brings somebody to the warden's end of the line.
func (e *entrance) lead(ctx context.Context, c net.Conn) {
	f, err := e.l.warden.Enter(timed(ctx, askTimeout), c.RemoteAddr().String())
	if err != nil {
		e.l.log.Warn("somebody was not let to the entrance", "from", c.RemoteAddr().String(), "error", err)
		return
	}
	line, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return
	}
	relay(c, line)
}

func (e *entrance) take(source string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.all >= maxGuests || e.guests[source] >= maxOfSource {
		return false
	}
	e.all++
	e.guests[source]++
	return true
}

func (e *entrance) give(source string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all--
	if e.guests[source]--; e.guests[source] == 0 {
		delete(e.guests, source)
	}
}
