package fleet

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/foundation/wire"
)

// node is one host's node as this server sees it. Guarded by Fleet.mu.
type node struct {
	Node
	became time.Time // when it last said that it is something else
	size   int64     // the tree that it last said it saw
	wants  bool      // only orders that witnesses cosigned
	budget budget    // of entries about it
	conns  int       // of its connections, before the hello too

	used                map[string]*time.Time // of each rate
	dropped             int                   // since flooded
	flooded, trespassed time.Time             // when that was last an entry
	control             *mux.Session
	bulk                *mux.Session
}

// helloTime bounds a node's first line.
const helloTime = 10 * time.Second

// ServeConn serves one connection of a node until it ends. The TLS handshake
// is done; the certificate says which host it is.
func (f *Fleet) ServeConn(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	host, err := hostOf(c)
	if err == nil && !f.enter(host) {
		return
	}
	var hello wire.Hello
	if err == nil {
		defer f.leave(host)
		hello, err = f.greet(ctx, c, host)
	}
	if err != nil {
		f.d.Log.Warn("a node was refused", "address", c.RemoteAddr().String(), "error", err)
		return
	}
	session := mux.Server(c)
	defer session.Close()
	replaced := f.attach(host, hello, session)
	if replaced != nil {
		replaced.Close() // the node came again before we saw the old one end
	}
	if hello.Use == wire.UseControl && replaced == nil {
		f.recordConnected(ctx, host, hello)
	}
	defer f.detach(host, hello.Use, session)
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	for streams := 0; ; streams++ {
		stream, err := session.Accept()
		if err != nil {
			return
		}
		// A node opens one stream, for messages. Each that it opens costs
		// memory until it is closed at both ends, so a second is the last.
		if streams > 0 || hello.Use != wire.UseControl {
			f.alarm(host, "streams", "opened a stream that no honest node opens")
			return
		}
		go f.serveStream(stream, host)
	}
}

// hostOf says whose node connects.
func hostOf(c *tls.Conn) (string, error) {
	state := c.ConnectionState()
	if len(state.VerifiedChains) == 0 {
		return "", fault.New(fault.Unauthenticated, "cannot admit a node: it shows no certificate of this installation")
	}
	return keyring.NodeOf(state.PeerCertificates[0])
}

// greet exchanges the hello lines.
func (f *Fleet) greet(ctx context.Context, c *tls.Conn, host string) (hello wire.Hello, err error) {
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return hello, err
	}
	if err := wire.ReadLine(c, &hello); err != nil {
		return hello, err
	}
	hello = hello.Plain()
	if spoken := c.ConnectionState().NegotiatedProtocol; spoken == wire.PastALPN {
		err := fault.New(fault.Conflict, "cannot admit %s: its node is of an older release and speaks %s, not %s", host, spoken, wire.ALPN)
		const why = "this node's program is older than the server: install the handrail-node of the server's release"
		f.refuse(ctx, host, why)
		_ = wire.WriteLine(c, wire.HelloAnswer{Error: why})
		return hello, err
	}
	if hello.Use != wire.UseControl && hello.Use != wire.UseBulk {
		return hello, fault.New(fault.Invalid, "cannot admit %s: unknown use %.20q", host, hello.Use)
	}
	if f.draining.Load() {
		err := fault.New(fault.Unavailable, "cannot admit %s: this server is about to restart, another one takes it", host)
		_ = wire.WriteLine(c, wire.HelloAnswer{Error: err.Text})
		return hello, err
	}
	if err := f.d.Known(ctx, host); err != nil {
		_ = wire.WriteLine(c, wire.HelloAnswer{Error: "this host was removed; join it again: handrail host invite"})
		return hello, err
	}
	if err := f.became(ctx, host, hello); err != nil {
		_ = wire.WriteLine(c, wire.HelloAnswer{Error: err.Error()})
		return hello, err
	}
	answer := wire.HelloAnswer{V: 1}
	if hello.Use == wire.UseControl {
		answer.NATSUser, answer.NATSPass = host, f.bus.admit(host)
	}
	if err := wire.WriteLine(c, answer); err != nil {
		return hello, err
	}
	return hello, c.SetDeadline(time.Time{})
}

// becameRest is how often a node may become something else: each time is an
// entry, and a node that lies must not be able to flood the ledger.
const becameRest = 10 * time.Second

// became tells what a node says that it is.
func (f *Fleet) became(ctx context.Context, host string, hello wire.Hello) error {
	if hello.Use != wire.UseControl || f.d.Became == nil {
		return nil
	}
	switch hello.Mode {
	case wire.ModeRoot, wire.ModeUserNamespace, wire.ModeNoShells:
	default:
		return fault.New(fault.Invalid, "cannot admit %s: its mode %.20q is unknown", host, hello.Mode)
	}
	f.mu.Lock()
	n := f.nodeLocked(host)
	soon := (n.Mode != hello.Mode || n.Trial != hello.Trial) && time.Since(n.became) < becameRest
	f.mu.Unlock()
	if soon {
		return fault.New(fault.Exhausted, "cannot admit %s: its node said a moment ago that it is something else", host)
	}
	changed, err := f.d.Became(ctx, host, hello)
	if changed {
		f.mu.Lock()
		n.became = time.Now()
		f.mu.Unlock()
	}
	return err
}

// refuse notes why a host's node is not let in, for whoever asks where it is.
func (f *Fleet) refuse(ctx context.Context, host, why string) {
	if f.d.Known(ctx, host) != nil {
		return // one that was removed is nobody's any more
	}
	f.mu.Lock()
	n := f.nodeLocked(host)
	was := n.Refused
	n.Refused = why
	f.mu.Unlock()
	if was != why {
		f.d.Changed(host)
	}
}

// attach notes the connection and returns the one it replaces, if any.
func (f *Fleet) attach(host string, hello wire.Hello, s *mux.Session) (old *mux.Session) {
	f.mu.Lock()
	n := f.nodeLocked(host)
	if hello.Use == wire.UseBulk {
		old, n.bulk = n.bulk, s
		f.mu.Unlock()
		return old
	}
	old, n.control = n.control, s
	n.Mode, n.Floor, n.Missing, n.Version, n.Trial = hello.Mode, hello.Floor, hello.Missing, hello.Version, hello.Trial
	n.Seen, n.wants = time.Now(), hello.Cosigned
	n.State, n.Server, n.Refused = Online, "", ""
	f.mu.Unlock()
	f.save(host)
	return old
}

func (f *Fleet) detach(host, use string, s *mux.Session) {
	f.mu.Lock()
	n := f.nodeLocked(host)
	gone := false
	switch {
	case use == wire.UseBulk && n.bulk == s:
		n.bulk = nil
	case use == wire.UseControl && n.control == s:
		n.control, gone = nil, true
		n.State = Offline
	}
	f.mu.Unlock()
	if gone {
		f.save(host)
		f.recordLeft(host)
	}
}

func (f *Fleet) nodeLocked(host string) *node {
	n, ok := f.nodes[host]
	if !ok {
		n = &node{Node: Node{Host: host, State: Never}}
		f.nodes[host] = n
	}
	return n
}

// serveStream serves the stream that the node opened; there is one kind.
func (f *Fleet) serveStream(s *mux.Stream, host string) {
	_ = s.SetReadDeadline(time.Now().Add(helloTime))
	kind, err := wire.ReadStreamKind(s)
	if err != nil || kind != wire.StreamNATS {
		s.Close()
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	f.bus.bridge(s, func() { f.trespassed(host) })
}

// pipe copies both ways until either side ends, then closes both. One way is
// this goroutine's, since each costs a server its stack for each node.
func pipe(a, b net.Conn) {
	var once sync.Once
	both := func() { a.Close(); b.Close() }
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(b, a)
		once.Do(both)
	}()
	_, _ = io.Copy(a, b)
	once.Do(both)
	<-done
}

func (f *Fleet) dropAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		for _, s := range []*mux.Session{n.control, n.bulk} {
			if s != nil {
				s.Close()
			}
		}
	}
}

// connected lists the hosts whose node is connected now.
func (f *Fleet) connected() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hosts []string
	for host, n := range f.nodes {
		if n.control != nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
