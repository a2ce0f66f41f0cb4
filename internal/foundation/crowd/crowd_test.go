package crowd

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// door is a port whose connections are all strangers.
type door struct {
	t *testing.T
	c *Crowd
	l net.Listener
}

func open(t *testing.T, c *Crowd) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &door{t, c, l}
}

// knock connects from an address of this machine and is admitted.
func (d *door) knock(from string) (client net.Conn, s *Stranger) {
	d.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	client, err := dialer.Dial("tcp", d.l.Addr().String())
	if err != nil {
		d.t.Fatal(err)
	}
	conn, err := d.l.Accept()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { client.Close(); conn.Close() })
	return client, d.c.Admit(conn)
}

// stays says whether nobody closed the connection of this client.
func stays(t *testing.T, client net.Conn, s *Stranger) bool {
	t.Helper()
	if _, err := s.Conn.Write([]byte("x")); err == nil {
		_, err := io.ReadFull(client, make([]byte, 1))
		return err == nil
	} else if !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := client.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("sent away, and not told")
	}
	return false
}

func speak(t *testing.T, client net.Conn, s *Stranger) {
	t.Helper()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

func TestTheLongestSilentGoesForANewcomer(t *testing.T) {
	d := open(t, New(3, 3))
	speaker, s := d.knock("127.0.0.1")
	silent, q := d.knock("127.0.0.1")
	friend, f := d.knock("127.0.0.1")
	speak(t, speaker, s)
	f.Known()
	_, _ = d.knock("127.0.0.1")
	if !stays(t, silent, q) {
		t.Error("somebody had to go while there was room")
	}
	late, l := d.knock("127.0.0.1")
	if stays(t, silent, q) {
		t.Error("the longest silent one stayed")
	}
	if !stays(t, speaker, s) || !stays(t, friend, f) || !stays(t, late, l) {
		t.Error("somebody went who had spoken, was known or had just come")
	}
}

func TestOneSourceCrowdsOutItselfFirst(t *testing.T) {
	d := open(t, New(8, 2))
	early, e := d.knock("127.0.0.1")
	for range 50 {
		_, _ = d.knock("127.0.0.2")
	}
	if !stays(t, early, e) {
		t.Error("one source sent another's away")
	}
	if n := d.c.line.Len(); n != 3 {
		t.Errorf("%d stand in the door", n)
	}
}

func TestWhoLeavesMakesRoom(t *testing.T) {
	d := open(t, New(4, 2))
	for range 100 {
		_, s := d.knock("127.0.0.3")
		s.Close()
		s.Known()
	}
	if d.c.line.Len() != 0 || len(d.c.from) != 0 {
		t.Errorf("%d stand in the door, from %v", d.c.line.Len(), d.c.from)
	}
}

func TestANetworkOfIPv6IsOneSource(t *testing.T) {
	at := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip)} }
	if sourceOf(at("2001:db8::1")) != sourceOf(at("2001:db8::ffff:2")) || sourceOf(at("2001:db8::1")) == sourceOf(at("2001:db8:1::1")) {
		t.Error("sources of IPv6 are not its networks")
	}
	if sourceOf(at("192.0.2.1")) == sourceOf(at("192.0.2.2")) || sourceOf(at("::ffff:192.0.2.1")) != sourceOf(at("192.0.2.1")) {
		t.Error("sources of IPv4 are not its addresses")
	}
}
