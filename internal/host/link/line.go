package link

import (
	"net"
	"net/netip"
	"sync"
)

const (
	maxWaiting  = 512 // strangers in the line
	maxOfSource = 8   // of them from one address: it crowds out itself first
	forgetAfter = 8192
)

// line is those who wait to be let in at the entrance. Waiting costs a
// connection and nothing more; to be let in costs the warden a process, so it
// is done at a pace, and what matters is whose turn it is: theirs who were let
// in longest ago, or never. An address is judged by itself and, every other
// turn, by the network around it, so that neither many addresses of one owner
// nor many owners keep out the one who comes rarely. Among equals the newest
// goes first: it is the likeliest to be still there.
type line struct {
	mu      sync.Mutex
	here    []*stranger // in no order
	sources map[netip.Prefix]*source
	turn    int64         // how many were let in
	came    int64         // how many joined
	news    chan struct{} // somebody can be let in
}

// source is an address or a network, while somebody of it waits or it is known
// when somebody was let in.
type source struct {
	here int   // in the line
	let  int64 // the turn in which somebody was let in; 0: never, or long ago
}

// stranger is a connection that waits.
type stranger struct {
	net.Conn
	of     [2]netip.Prefix // its address, and the network around that
	from   [2]*source      // the same, while it is in the line
	at     int             // its place among those who are here; -1: none
	number int64
	said   []byte // its first line; until then it is not let in
}

func newLine() *line {
	return &line{sources: map[netip.Prefix]*source{}, news: make(chan struct{}, 1)}
}

// join takes a newcomer in. Whoever has to go for it is closed: one of its own
// address if that has its share, else one of those who are the most.
func (l *line) join(c net.Conn) *stranger {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.came++
	s := &stranger{Conn: c, of: sourcesOf(c.RemoteAddr()), number: l.came}
	switch own := l.sources[s.of[0]]; {
	case own != nil && own.here >= maxOfSource:
		l.sendAwayLocked(func(a, b *stranger) bool {
			if mine := a.from[0] == own; mine != (b.from[0] == own) {
				return mine
			}
			return a.number < b.number
		})
	case len(l.here) >= maxWaiting:
		l.sendAwayLocked(crowdsMore)
	}
	l.addLocked(s)
	return s
}

// crowdsMore says whether a makes room before b does.
func crowdsMore(a, b *stranger) bool {
	switch {
	case a.from[1].here != b.from[1].here:
		return a.from[1].here > b.from[1].here
	case a.from[0].here != b.from[0].here:
		return a.from[0].here > b.from[0].here
	}
	return a.number < b.number
}

func (l *line) sendAwayLocked(before func(a, b *stranger) bool) {
	goes := l.here[0]
	for _, g := range l.here[1:] {
		if before(g, goes) {
			goes = g
		}
	}
	l.leaveLocked(goes)
	goes.Close()
}

// speaks notes what a stranger has said first.
func (l *line) speaks(s *stranger, said []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.at >= 0 {
		s.said = said
		l.tellLocked()
	}
}

// leave takes a stranger out who has gone.
func (l *line) leave(s *stranger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveLocked(s)
}

// next takes out the one whose turn it is; nil is nobody.
func (l *line) next() *stranger {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := int(l.turn % 2)
	var next *stranger
	for _, s := range l.here {
		if s.said != nil && (next == nil || s.before(next, first)) {
			next = s
		}
	}
	if next != nil {
		l.leaveLocked(next)
	}
	return next
}

// before says whose turn it is by their addresses (0) or networks (1) first.
func (s *stranger) before(other *stranger, first int) bool {
	for _, i := range [2]int{first, 1 - first} {
		if a, b := s.from[i].let, other.from[i].let; a != b {
			return a < b
		}
	}
	return s.number > other.number
}

// entered notes that a stranger whom next gave out was let in.
func (l *line) entered(s *stranger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	for _, p := range s.of {
		l.sourceLocked(p).let = l.turn
	}
	if l.turn%(forgetAfter/8) != 0 {
		return
	}
	for p, from := range l.sources {
		if from.let <= l.turn-forgetAfter {
			from.let = 0
			l.dropLocked(p)
		}
	}
}

// back puts a stranger whom next gave out where it was: it was not let in.
func (l *line) back(s *stranger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(s)
}

// clear sends everybody away.
func (l *line) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.here) > 0 {
		g := l.here[0]
		l.leaveLocked(g)
		g.Close()
	}
}

func (l *line) addLocked(s *stranger) {
	s.at = len(l.here)
	l.here = append(l.here, s)
	for i, p := range s.of {
		s.from[i] = l.sourceLocked(p)
		s.from[i].here++
	}
	if s.said != nil {
		l.tellLocked()
	}
}

func (l *line) tellLocked() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

func (l *line) leaveLocked(s *stranger) {
	if s.at < 0 {
		return
	}
	last := len(l.here) - 1
	l.here[s.at], l.here[last].at = l.here[last], s.at
	l.here[last] = nil
	l.here, s.at = l.here[:last], -1
	for i, p := range s.of {
		s.from[i].here--
		l.dropLocked(p)
	}
}

func (l *line) sourceLocked(p netip.Prefix) *source {
	from := l.sources[p]
	if from == nil {
		from = &source{}
		l.sources[p] = from
	}
	return from
}

// dropLocked forgets a source of which there is nothing to remember.
func (l *line) dropLocked(p netip.Prefix) {
	if s := l.sources[p]; s.here == 0 && s.let == 0 {
		delete(l.sources, p)
	}
}

// sourcesOf are what somebody holds of addresses, and the network around it: one
// machine has a /64 of IPv6, and its owner up to a /32. What has none shares one.
func sourcesOf(a net.Addr) (p [2]netip.Prefix) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return p
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := [2]int{64, 32}
	if ip.Is4() {
		bits = [2]int{32, 16}
	}
	for i := range p {
		p[i], _ = ip.Prefix(bits[i]) // of such an address there is one
	}
	return p
}
