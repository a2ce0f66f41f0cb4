package spine_test

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// crowded is a way to bother a port.
type crowded struct {
	name, at string
	hello    func(c net.Conn) net.Conn // what is said first; nil: nothing
	line     string                    // what a slow one says, again and again
}

// ports are those of an installation, as a stranger finds them.
func (i *installation) ports() []crowded {
	node := func(c net.Conn) net.Conn {
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN}})
	}
	return []crowded{
		{name: "page", at: i.page, line: "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "},
		{name: "ssh", at: i.ssh, line: "SSH-2.0-slow"},
		{name: "node", at: i.page, hello: node, line: "\x16\x03\x01\x02\x00\x01"},
	}
}

// entersMeanwhile has a person log in anew and open a session, again and again,
// until stop is closed, and at least three times.
func (p person) entersMeanwhile(host string, stop <-chan struct{}) (times int) {
	p.i.t.Helper()
	for {
		p.ok("login") // anew, with the key of this device
		if out := p.ok("ssh", host, "--", "echo in"); out != "in\n" {
			p.i.t.Errorf("a session says %q", out)
		}
		times++
		select {
		case <-stop:
			if times >= 3 {
				return times
			}
		default:
		}
	}
}

// needFaults skips what takes long.
func needFaults(t *testing.T) {
	t.Helper()
	if number(t, "HANDRAIL_TEST_RUNS", 0) == 0 {
		t.Skip("this takes long: make test-faults")
	}
}

// TestTenThousandStrangersKeepNobodyOut throws that many connections with garbage
// at each port, some hundred open at a time. They come from other addresses than
// the person: who shares theirs with a flood shares its part of the port.
func TestTenThousandStrangersKeepNobodyOut(t *testing.T) {
	needFaults(t)
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	for _, port := range i.ports() {
		t.Run(port.name, func(t *testing.T) {
			i.t = t
			refused, over := port.crowd(8)
			times := ada.entersMeanwhile(host, over)
			t.Logf("%d strangers at the %s port, %d were not even let in; meanwhile somebody logged in and opened a session %d times", loudOnes, port.name, refused.Load(), times)
		})
	}
	i.t = t
	ada.ok("ledger", "verify")
}

const loudOnes = 10_000

// crowd throws that many connections with garbage at the port, some hundred open
// at a time, from that many addresses, until over is closed.
func (s crowded) crowd(sources int) (refused *atomic.Int64, over <-chan struct{}) {
	const atOnce, held = 50, 10
	var came atomic.Int64
	refused = &atomic.Int64{}
	var crowd sync.WaitGroup
	for n := range atOnce {
		rnd := rand.New(rand.NewPCG(7, uint64(n)))
		crowd.Go(func() {
			var open []net.Conn
			for came.Add(1) <= loudOnes {
				from := &net.TCPAddr{IP: net.IPv4(127, 9, 9, byte(1+rnd.IntN(sources)))}
				c, err := (&net.Dialer{LocalAddr: from, Timeout: time.Minute}).Dial("tcp", s.at)
				if err != nil {
					refused.Add(1)
					continue
				}
				if open = append(open, c); len(open) > held {
					open[0].Close()
					open = open[1:]
				}
				s.garbage(c, rnd)
			}
			for _, c := range open {
				c.Close()
			}
		})
	}
	all := make(chan struct{})
	go func() { crowd.Wait(); close(all) }()
	return refused, all
}

// garbage says what makes no sense, at once.
func (s crowded) garbage(c net.Conn, rnd *rand.Rand) {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 1+rnd.IntN(900))
	for n := range b {
		b[n] = byte(rnd.Uint32())
	}
	if s.hello != nil && rnd.IntN(10) == 0 { // a handshake costs both: one in ten
		t := s.hello(c).(*tls.Conn)
		if t.Handshake() == nil { // the deadline of the connection bounds it
			_, _ = t.Write(b)
			return
		}
	}
	if rnd.IntN(2) == 0 {
		b = append([]byte(s.line), b...)
	}
	_, _ = c.Write(b)
}

// TestSlowStrangersKeepNobodyOut is what is called slowloris: many connections
// that go on to say a byte now and then.
func TestSlowStrangersKeepNobodyOut(t *testing.T) {
	needFaults(t)
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	for _, port := range i.ports() {
		t.Run(port.name, func(t *testing.T) {
			i.t = t
			ended, over := port.loris("127.0.0.1")
			times := ada.entersMeanwhile(host, over)
			t.Logf("%d slow strangers at the %s port, %d were sent away before their time; meanwhile somebody logged in and opened a session %d times", slowOnes, port.name, ended.Load(), times)
		})
	}
	i.t = t
	ada.ok("ledger", "verify")
}

const slowOnes = 1500

// loris opens that many connections that say a byte each second, from these
// addresses in turn, until over is closed.
func (s crowded) loris(from ...string) (ended *atomic.Int64, over <-chan struct{}) {
	const bytes = 12
	ended = &atomic.Int64{}
	var crowd sync.WaitGroup
	for n := range slowOnes {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from[n%len(from)])}, Timeout: time.Minute}).Dial("tcp", s.at)
		if err != nil {
			ended.Add(1)
			continue
		}
		crowd.Go(func() {
			defer c.Close()
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for n := range bytes {
				_ = c.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := c.Write([]byte{s.line[n%len(s.line)]}); err != nil {
					ended.Add(1)
					return
				}
				<-tick.C
			}
		})
	}
	all := make(chan struct{})
	go func() { crowd.Wait(); close(all) }()
	return ended, all
}
