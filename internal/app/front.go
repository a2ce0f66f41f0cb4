package app

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/crowd"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/surface/rpc"
)

// callersAlive is how soon it is noticed that the network took a caller away: as
// soon as a node's lease ends.
var callersAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// front splits one port by what the first byte and ALPN say: nodes, TLS for
// the command line and for browsers off loopback, and plain HTTP for browsers
// on loopback, where http://localhost is a secure context (W3C Secure
// Contexts, 3.1) and passkeys work without a certificate warning.
type front struct {
	tls   *tls.Config
	plain bool // plain HTTP allowed: the port is on loopback
	node  func(ctx context.Context, c *tls.Conn)
	peer  func(ctx context.Context, c *tls.Conn) // another server; nil: there are none

	http *queue // plain HTTP connections
	web  *queue // HTTP inside TLS

	strangers *crowd.Crowd // bounds unauthenticated work
}

const (
	// greetTime bounds how long a stranger may take to say what it speaks.
	greetTime = 10 * time.Second
	// maxStrangers bounds connections that have not yet said what they are,
	// maxFromOne those of one source.
	maxStrangers = 512
	maxFromOne   = 256
	tlsHandshake = 0x16
)

func newFront(conf *tls.Config, addr net.Addr, node func(context.Context, *tls.Conn)) *front {
	return &front{
		tls: conf, plain: onLoopback(addr), node: node,
		http: newQueue(addr), web: newQueue(addr), strangers: crowd.New(maxStrangers, maxFromOne),
	}
}

func onLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// serve accepts until the listener closes.
func (f *front) serve(ctx context.Context, l net.Listener) error {
	defer f.http.Close()
	defer f.web.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			select { // out of descriptors: wait, do not spin
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetKeepAliveConfig(callersAlive) // without it what a lost server holds here stays for minutes
		}
		go f.greet(ctx, f.strangers.Admit(c))
	}
}

// greet finds out what a connection speaks and hands it on.
func (f *front) greet(ctx context.Context, raw *crowd.Stranger) {
	defer raw.Known()
	_ = raw.SetDeadline(time.Now().Add(greetTime))
	c := &peeked{Conn: raw, r: bufio.NewReaderSize(raw, 512)}
	first, err := c.r.Peek(1)
	if err != nil {
		raw.Close()
		return
	}
	if first[0] != tlsHandshake {
		_ = raw.SetDeadline(time.Time{})
		if !f.plain {
			refusePlain(raw)
			return
		}
		f.http.put(c)
		return
	}
	t := tls.Server(c, f.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return
	}
	_ = raw.SetDeadline(time.Time{})
	if p := t.ConnectionState().NegotiatedProtocol; p == wire.ALPN || p == wire.PastALPN {
		raw.Known()
		f.node(ctx, t)
		return
	}
	if f.peer != nil && t.ConnectionState().NegotiatedProtocol == wire.PeerALPN {
		raw.Known()
		f.peer(ctx, t)
		return
	}
	f.web.put(t)
}

// refusePlain answers a browser that came without TLS from off the machine.
func refusePlain(c net.Conn) {
	const body = "handrail speaks HTTPS here: use https:// and the same address.\n"
	_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + body))
	c.Close()
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) {
	if p.r != nil {
		if p.r.Buffered() > 0 {
			return p.r.Read(b)
		}
		p.r = nil // the buffer is drained: read straight from now on
	}
	return p.Conn.Read(b)
}

// queue is a net.Listener fed by front.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn, 64), done: make(chan struct{})}
}

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

// Accept waits for the next connection of this kind.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr is the address of the port that front splits.
func (q *queue) Addr() net.Addr { return q.addr }

// namesOf is every name by which people may reach this server.
func namesOf(url string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	_, host, _ := strings.Cut(url, "://")
	if name, _, err := net.SplitHostPort(host); err == nil {
		names = append(names, name)
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *Server) newFront() (*front, error) {
	own, err := s.ring.ServerCertificates(append(namesOf(s.url()), rpc.RobotName))
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			// Commands and nodes ask for this one name and trust our authority alone.
			if s.c.Given == nil || hello.ServerName == keyring.ServerName || hello.ServerName == rpc.RobotName {
				return own()
			}
			return s.c.Given, nil
		},
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1", wire.ALPN, wire.PastALPN},
		ClientAuth: tls.VerifyClientCertIfGiven,
	}
	if s.shared() { // before anything is made of it: a caller's own configuration is a copy
		conf.NextProtos = append(conf.NextProtos, wire.PeerALPN)
	}
	front := newFront(forRobots(conf, s.trusting(conf)), s.c.Listener.Addr(), s.fleet.ServeConn)
	if s.shared() {
		front.peer = s.fleet.ServePeer
	}
	return front, nil
}

func (s *Server) serveHTTP(ctx context.Context, l net.Listener) error {
	return s.serveOn(ctx, l, s.handler)
}

func (s *Server) serveOn(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: promptBodies(h, bodyTime), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		TLSConfig: &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, // the front did the handshake; this names what may follow
		ErrorLog:  slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug),
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
