package wire

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/hashicorp/yamux"
)

// counted counts the writes that reach the network.
type counted struct {
	net.Conn
	writes [][]byte
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes = append(c.writes, bytes.Clone(p))
	return c.Conn.Write(p)
}

func TestAHeadWaitsForItsBodyAndNothingElseWaits(t *testing.T) {
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	defer ours.Close()
	c := &counted{Conn: ours}
	w := Whole(c)
	data := func(n byte) []byte { return []byte{0, muxTypeData, 0, 0, 0, 0, 0, 1, 0, 0, 0, n} }
	ping := []byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}
	for _, p := range [][]byte{ping, data(0), data(3), []byte("abc"), ping} {
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(p), err)
		}
	}
	want := [][]byte{ping, data(0), append(data(3), "abc"...), ping}
	if len(c.writes) != len(want) {
		t.Fatalf("%d writes, want %d", len(c.writes), len(want))
	}
	for i := range want {
		if !bytes.Equal(c.writes[i], want[i]) {
			t.Errorf("write %d is %q, want %q", i, c.writes[i], want[i])
		}
	}
}

func TestStreamsArriveAsTheyWereSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return
		}
		y, err := yamux.Client(Whole(c), nil)
		if err != nil {
			return
		}
		s, err := y.OpenStream()
		if err != nil {
			return
		}
		for left, n := sent, 1; len(left) > 0; n = n*3 + 1 { // from one byte to beyond the limit
			n = min(n, len(left))
			if _, err := s.Write(left[:n]); err != nil {
				return
			}
			left = left[n:]
		}
		s.Close()
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	y, err := yamux.Server(Whole(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	s, err := y.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, or others: %v", len(got), len(sent), err)
	}
}
