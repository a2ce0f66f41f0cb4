// Package crowd keeps strangers from filling a port. Whoever has connected and
// not yet shown who they are stands in a crowd of bounded size. When it is
// full, the one who has been silent longest goes, never the newcomer: whoever
// has something to say, a brake above all, says it at once and gets through a
// crowd that only stands in the door.
//
// One source has a smaller share, so that it crowds out itself before others.
package crowd

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Crowd is the strangers of one port.
type Crowd struct {
	most, perSource int

	mu   sync.Mutex
	line list.List // of *Stranger, the longest silent first
	from map[netip.Prefix]int
}

// New returns a crowd of at most that many, in all and from one source.
func New(most, perSource int) *Crowd {
	return &Crowd{most: most, perSource: perSource, from: map[netip.Prefix]int{}}
}

// Stranger is a connection in the crowd. It leaves when it is Known or closed.
type Stranger struct {
	net.Conn
	c      *Crowd
	source netip.Prefix
	place  *list.Element // guarded by Crowd.mu
	known  atomic.Bool
}

// Admit lets conn in; somebody may have to go for it.
func (c *Crowd) Admit(conn net.Conn) *Stranger {
	s := &Stranger{Conn: conn, c: c, source: sourceOf(conn.RemoteAddr())}
	c.mu.Lock()
	gone := c.makeRoom(s.source)
	s.place = c.line.PushBack(s)
	c.from[s.source]++
	c.mu.Unlock()
	if gone != nil {
		gone.Conn.Close()
	}
	return s
}

// makeRoom takes out whoever has to go for a newcomer of that source.
func (c *Crowd) makeRoom(source netip.Prefix) *Stranger {
	own := c.from[source] >= c.perSource
	if !own && c.line.Len() < c.most {
		return nil
	}
	for e := c.line.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*Stranger); !own || s.source == source {
			c.remove(s)
			return s
		}
	}
	return nil
}

func (c *Crowd) remove(s *Stranger) {
	if s.known.Swap(true) {
		return
	}
	c.line.Remove(s.place)
	if c.from[s.source]--; c.from[s.source] <= 0 {
		delete(c.from, s.source)
	}
}

// Read notes that the stranger speaks.
func (s *Stranger) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n > 0 && !s.known.Load() {
		s.c.mu.Lock()
		if !s.known.Load() {
			s.c.line.MoveToBack(s.place)
		}
		s.c.mu.Unlock()
	}
	return n, err
}

// Known takes the connection out of the crowd: who it is, is known, or its
// number is bounded in another way. It may be called more than once.
func (s *Stranger) Known() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.remove(s)
}

// Close closes the connection.
func (s *Stranger) Close() error {
	s.Known()
	return s.Conn.Close()
}

// sourceOf is whom we hold to one share: an address, and of IPv6 the network,
// since one machine has as many addresses there as it likes. What has none
// shares one.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
