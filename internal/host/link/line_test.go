package link

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

// far is a connection from anywhere.
type far struct {
	net.Conn
	from   netip.Addr
	closed bool
}

func (f *far) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.from, 1000))
}

func (f *far) Close() error {
	f.closed = true
	return nil
}

// ready is a client of SSH that has come from there.
func (l *line) ready(from string) *far {
	f := &far{from: netip.MustParseAddr(from)}
	l.speaks(l.join(f), []byte("SSH-2.0-x\r\n"))
	return f
}

// lets lets in the next one, and says from where.
func (l *line) lets(t *testing.T) string {
	t.Helper()
	s := l.next()
	if s == nil {
		return "nobody"
	}
	l.entered(s)
	return s.Conn.(*far).from.String()
}

// turnOf is how many are let in until it is somebody's turn, while the others
// come again at once.
func (l *line) turnOf(t *testing.T, person string) int {
	t.Helper()
	me := l.ready(person)
	for n := 1; n <= 2*maxWaiting; n++ {
		who := l.lets(t)
		if who == person {
			return n
		}
		l.ready(who)
	}
	t.Fatalf("%s is never let in (sent away: %v)", person, me.closed)
	return 0
}

func TestWhoComesRarelyIsLetInBeforeACrowd(t *testing.T) {
	crowds := map[string]struct {
		size int
		from func(n int) string
	}{
		"of one address":                  {8, func(int) string { return "192.0.2.66" }},
		"of a few addresses":              {64, func(n int) string { return fmt.Sprintf("192.0.2.%d", n/4) }},
		"of neighbours":                   {200, func(n int) string { return fmt.Sprintf("198.51.100.%d", n) }},
		"of machines all over the world":  {400, func(n int) string { return fmt.Sprintf("%d.%d.7.7", 1+n/100, n%100) }},
		"of one network of IPv6":          {500, func(n int) string { return fmt.Sprintf("2001:db8:0:%x::1", n) }},
		"of one owner's networks of IPv6": {500, func(n int) string { return fmt.Sprintf("2001:db8:%x::1", n) }},
	}
	for name, c := range crowds {
		for _, person := range []string{"203.0.113.7", "2001:db9::7", "198.51.100.250"} {
			t.Run(name+" for "+person, func(t *testing.T) {
				l := newLine()
				for n := range c.size {
					l.ready(c.from(n))
				}
				for range c.size { // the flood has gone on for a while
					l.ready(l.lets(t))
				}
				for try := range 3 { // the second try comes as soon as the first was in
					n, most := l.turnOf(t, person), 2
					if try > 0 {
						most = 16 // a crowd of few addresses, or of one network
						if many := name == "of machines all over the world"; many || name == "of neighbours" && strings.HasPrefix(person, "198.51.") {
							most = c.size + 1 // each of them once, in between
						}
					}
					if n > most {
						t.Errorf("try %d: %d are let in first", try, n-1)
					}
				}
			})
		}
	}
}

// Addresses that nobody has seen yet are no way past those who were here once,
// if they are one owner's.
func TestNewAddressesOfOneOwnerKeepNobodyOut(t *testing.T) {
	l := newLine()
	fresh := 0
	flood := func() {
		for range maxWaiting {
			fresh++
			l.ready(fmt.Sprintf("2001:db8:%x:%x::1", fresh>>16, fresh&0xffff))
		}
	}
	flood()
	for try := range 5 {
		person := l.ready("203.0.113.7")
		flood()
		if person.closed {
			t.Fatalf("try %d: sent away", try)
		}
		in := false
		for n := 0; n < 3 && !in; n++ {
			in = l.lets(t) == "203.0.113.7"
			flood()
		}
		if !in {
			t.Errorf("try %d: not among the first three", try)
		}
	}
}

func TestAFullLineIsLeftByThoseWhoAreMost(t *testing.T) {
	l := newLine()
	person := l.ready("203.0.113.7")
	for n := range 3 * maxWaiting {
		l.ready(fmt.Sprintf("198.51.%d.%d", n%256, n/256))
	}
	if person.closed {
		t.Error("a crowd of one network sent somebody else away")
	}
	crowd := l.ready("192.0.2.66")
	for range maxOfSource {
		l.ready("192.0.2.66")
	}
	if !crowd.closed || person.closed || len(l.here) != maxWaiting {
		t.Errorf("one address has more than its share; %d are here", len(l.here))
	}
}

func TestALineForgetsWhoIsGone(t *testing.T) {
	l := newLine()
	for n := range 5 * forgetAfter {
		l.ready(netip.AddrFrom4([4]byte{byte(n >> 16), byte(n >> 8), byte(n), 7}).String())
		if s := l.next(); n%2 == 0 {
			l.entered(s)
		}
	}
	if most := 3 * forgetAfter; len(l.sources) > most {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
	a, b := l.join(&far{from: netip.MustParseAddr("192.0.2.7")}), l.join(&far{from: netip.MustParseAddr("192.0.2.8")})
	l.leave(a)
	l.leave(a) // again: nothing
	if l.speaks(a, []byte("x")); l.next() != nil {
		t.Error("somebody who is gone is let in, or somebody who said nothing")
	}
	l.speaks(b, []byte("x"))
	if s := l.next(); s != b {
		t.Error("who is here is not let in")
	}
	l.back(b)
	l.clear()
	if !b.Conn.(*far).closed || len(l.here) != 0 {
		t.Error("a line that is closed goes on")
	}
}

func TestAClientOfSSHSaysThatItIsOne(t *testing.T) {
	for said, ok := range map[string]bool{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n": true,
		"SSH-2.0-eager\n\x00\x00\x01\x02":    true,
		"":                                   false,
		"SSH-2.0-cut off":                    false,
		"GET / HTTP/1.1\r\n\r\n":             false,
		"\x16\x03\x01\x02\x00\x01":           false,
		"\r\nSSH-2.0-late\r\n":               false,
		"SSH-2.0-" + strings.Repeat("x", 250) + "\r\n":       false,
		"SSH-2.0-" + strings.Repeat("x", 10_000):             false,
		"SSH-2.0-" + strings.Repeat("x", 240) + "\r\nmore..": true,
	} {
		for _, r := range []io.Reader{strings.NewReader(said), iotest.OneByteReader(strings.NewReader(said))} {
			got, err := firstLine(r)
			if (err == nil) != ok {
				t.Errorf("%.40q: %q, %v", said, got, err)
			}
			if rest, _ := io.ReadAll(r); err == nil && string(got)+string(rest) != said {
				t.Errorf("%.40q lost a part: %q, %q", said, got, rest)
			}
		}
	}
}

func FuzzFirstLine(f *testing.F) {
	f.Add([]byte("SSH-2.0-OpenSSH_9.2p1\r\n\x00\x00\x04"))
	f.Add([]byte("SSH-"))
	f.Fuzz(func(t *testing.T, said []byte) {
		got, err := firstLine(iotest.HalfReader(strings.NewReader(string(said))))
		if err == nil && (!strings.HasPrefix(string(said), string(got)) || !strings.HasPrefix(string(got), "SSH-") || len(got) > 510) {
			t.Errorf("%q of %q", got, said)
		}
	})
}
