package mux

import (
	"io"
	"net"
	"testing"
)

// pair is a connection over loopback.
func pair(b testing.TB) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return c, d
}

// pingpong is the echo of a key, in one process: what a stream costs beside the
// bare connection.
func pingpong(b *testing.B, x, y io.ReadWriter) {
	go func() {
		p := make([]byte, 64)
		for {
			n, err := y.Read(p)
			if err != nil {
				return
			}
			y.Write(p[:n])
		}
	}()
	p := make([]byte, 6)
	b.ResetTimer()
	for b.Loop() {
		x.Write(p)
		if _, err := io.ReadFull(x, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKeyBare(b *testing.B) {
	x, y := pair(b)
	defer x.Close()
	pingpong(b, x, y)
}

func BenchmarkKeyMux(b *testing.B) {
	x, y := pair(b)
	c, s := Client(x), Server(y)
	defer c.Close()
	defer s.Close()
	m, _ := c.Open()
	m.Write([]byte("x"))
	n, _ := s.Accept()
	n.Read(make([]byte, 1))
	pingpong(b, m, n)
}

func bulk(b *testing.B, x, y io.ReadWriter) {
	go func() {
		p := make([]byte, 64<<10)
		for {
			if _, err := y.Read(p); err != nil {
				return
			}
		}
	}()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	b.ResetTimer()
	for b.Loop() {
		if _, err := x.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulkBare(b *testing.B) {
	x, y := pair(b)
	defer x.Close()
	bulk(b, x, y)
}

func BenchmarkBulkMux(b *testing.B) {
	x, y := pair(b)
	c, s := Client(x), Server(y)
	defer c.Close()
	m, _ := c.Open()
	m.Write([]byte("x"))
	n, _ := s.Accept()
	n.Read(make([]byte, 1))
	bulk(b, m, n)
}
