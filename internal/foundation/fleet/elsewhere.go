package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"net"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A node is connected to one server, and any server may have to reach it. A
// session's stream is dialled to that server, whose certificate must say that
// it is the one; a brake goes there over the bus.

// askBrake is what one server asks another for a brake.
const askBrake = "brake"

// peerTime bounds the wait for other servers at a brake: it acts here at once,
// and there by the ledger and the leases, if not by this.
const peerTime = 3 * time.Second

// answer does what another server asks.
func (f *Fleet) answer(ctx context.Context, ask wire.PeerAsk) ([]byte, error) {
	if ask.What != askBrake {
		if f.d.Answer == nil {
			return nil, fault.New(fault.NotFound, "cannot answer server %s: %q is unknown here", ask.From, ask.What)
		}
		return f.d.Answer(ctx, ask.From, ask.What, ask.Body)
	}
	b, err := wire.ByAny(f.d.Ring.OrderKeys(), func(k ed25519.PublicKey) (wire.Brake, error) { return wire.OpenBrake(ask.Body, k) })
	if err != nil {
		return nil, err
	}
	if f.d.Braked != nil {
		f.d.Braked(b)
	}
	hosts := []string{b.Node}
	if b.Node == wire.EveryNode {
		hosts = f.connected()
	}
	answers, err := f.brakeHere(ctx, b, ask.Body, hosts)
	if err != nil {
		return nil, err
	}
	return json.Marshal(answers)
}

// brakeHere asks nodes that are connected to this server.
func (f *Fleet) brakeHere(ctx context.Context, b wire.Brake, signed []byte, hosts []string) ([]wire.BrakeAnswer, error) {
	raw, err := f.bus.gather(ctx, wire.DownBrake, signed, hosts)
	if err != nil {
		return nil, err
	}
	var out []wire.BrakeAnswer
	for host, answer := range raw {
		out = append(out, wire.ParseBrakeAnswer(answer, host, b.ID))
	}
	return out, nil
}

// brakeElsewhere asks the servers that may have the nodes: the one that was
// seen with it last, else all.
func (f *Fleet) brakeElsewhere(ctx context.Context, b wire.Brake, signed []byte) (out []wire.BrakeAnswer) {
	if f.d.Cluster == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, peerTime)
	defer cancel()
	raw := map[string][]byte{}
	if p, ok := f.serverOf(b.Node); ok {
		if answer, err := f.Ask(ctx, p.ID, askBrake, signed); err == nil {
			raw[p.ID] = answer
		}
	} else {
		raw = f.AskAll(ctx, askBrake, signed)
	}
	for id, text := range raw {
		var answers []wire.BrakeAnswer
		if err := json.Unmarshal(text, &answers); err != nil {
			f.d.Log.Warn("a server's answer to a brake cannot be read", "server", id, "error", err)
			continue
		}
		out = append(out, answers...)
	}
	return out
}

// serverOf is the other server to which a host's node was connected when it
// was last seen.
func (f *Fleet) serverOf(host string) (Peer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.nodes[host]
	if !ok || n.control != nil || n.Server == "" {
		return Peer{}, false
	}
	p, ok := f.peers[n.Server]
	return p, ok && p.Alive
}

// openElsewhere opens a stream to a node that is connected to another server.
func (f *Fleet) openElsewhere(ctx context.Context, host string, bulk bool) (net.Conn, error) {
	p, ok := f.serverOf(host)
	if !ok {
		return nil, fault.New(fault.Unavailable, "cannot reach the node of %s: it is not connected", host).WithHint("handrail host show %s", host)
	}
	return f.DialPeer(ctx, p.ID, wire.PeerHello{V: 1, Use: wire.PeerNode, Host: host, Bulk: bulk})
}

// DialPeer connects to another server at its advertised address, and to
// nobody else who may be there; through a third server where there is no way.
func (f *Fleet) DialPeer(ctx context.Context, server string, hello wire.PeerHello) (net.Conn, error) {
	p, ok := f.peer(server)
	if !ok || f.d.Cluster == nil {
		return nil, fault.New(fault.Unavailable, "cannot reach server %s: it is not in the list", server).WithHint("handrail servers")
	}
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	c, err := f.knock(ctx, p, f.wayTo, hello)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach server %s at %s", server, p.Address).WithHint("handrail servers")
	}
	return c, nil
}

// knock connects to a server that shows its certificate, and says what for.
func (f *Fleet) knock(ctx context.Context, p Peer, way func(context.Context, Peer) (net.Conn, error), hello wire.PeerHello) (net.Conn, error) {
	raw, err := way(ctx, p)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: f.d.Ring.CAPool(), ServerName: keyring.ServerName, NextProtos: []string{wire.PeerALPN},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.d.Cluster.Cert() },
		VerifyConnection: func(s tls.ConnectionState) error {
			at, err := keyring.ServerOf(s.PeerCertificates[0])
			if err == nil && at != p.ID {
				err = fault.New(fault.Denied, "another server is there: %s", at)
			}
			return err
		},
	})
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	var answer wire.HelloAnswer
	if err = c.HandshakeContext(ctx); err == nil {
		if err = wire.WriteLine(c, hello); err == nil {
			err = wire.ReadLine(c, &answer)
		}
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && answer.Error != "" {
		err = fault.New(fault.Unavailable, "%s", answer.Error)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// ServePeer serves one connection of another server. The TLS handshake is
// done; the certificate says which server it is.
func (f *Fleet) ServePeer(ctx context.Context, c *tls.Conn) {
	_ = c.SetDeadline(time.Now().Add(helloTime))
	serve, err := f.greetPeer(ctx, c)
	if err != nil {
		_ = wire.WriteLine(c, wire.HelloAnswer{Error: fault.From(err).Text})
		f.d.Log.Warn("a connection of another server was refused", "address", c.RemoteAddr().String(), "error", err)
		c.Close()
		return
	}
	if err := wire.WriteLine(c, wire.HelloAnswer{V: 1}); err != nil {
		c.Close() // what serves it finds it closed
	}
	_ = c.SetDeadline(time.Time{})
	serve()
}

// greetPeer finds out what another server wants, and how it is served: a stream
// to a node of ours or to a further server, a question, or the API.
func (f *Fleet) greetPeer(ctx context.Context, c *tls.Conn) (serve func(), err error) {
	if f.d.Cluster == nil {
		return nil, fault.New(fault.Unavailable, "cannot speak with another server: this one is alone")
	}
	from, err := f.peerOf(c.ConnectionState())
	if err != nil {
		return nil, err
	}
	var hello wire.PeerHello
	if err := wire.ReadLine(c, &hello); err != nil {
		return nil, err
	}
	through := func(inside net.Conn) func() {
		return func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			pipe(c, inside)
		}
	}
	switch {
	case hello.Use == wire.PeerNode && f.draining.Load():
		return nil, fault.New(fault.Unavailable, "this server is about to restart; the node moves over, try again")
	case hello.Use == wire.PeerNode:
		inside, err := f.openHere(hello.Host, hello.Bulk)
		return through(inside), err
	case hello.Use == wire.PeerRelay:
		inside, release, err := f.relay(ctx, from, hello.To)
		return func() { defer release(); through(inside)() }, err
	case hello.Use == wire.PeerTalk && f.between != nil:
		return func() { f.between.answerOn(ctx, c) }, nil
	case hello.Use == wire.PeerAPI && f.d.PeerAPI != nil:
		// Plain HTTP inside: its TLS is no business of an HTTP server's.
		return func() { f.d.PeerAPI(struct{ net.Conn }{c}) }, nil
	}
	return nil, fault.New(fault.Invalid, "cannot serve another server: unknown use %.20q", hello.Use)
}

// Drain sends nodes to other servers: those through which nothing runs at
// once, the others when that has ended.
func (f *Fleet) Drain(on bool) { f.draining.Store(on) }

// drainIdle closes the connections of nodes through which nothing runs.
func (f *Fleet) drainIdle() {
	if !f.draining.Load() || len(f.alivePeers()) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		// One stream is the node's own, for messages.
		if n.control != nil && n.control.Streams() <= 1 && (n.bulk == nil || n.bulk.Streams() == 0) {
			n.control.Close()
		}
	}
}
