package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Where the network lets two servers not reach each other, a third that reaches
// both carries their connection. What it carries is the very connection that there
// would be without it: TLS from the one to the other, each showing the other its
// certificate, so that the third can end or delay it, and neither read nor change
// it. It connects to addresses of the list of servers alone, for servers alone.

const (
	// directFirst is how long the direct way has before a third server is tried.
	directFirst = time.Second
	// detourFor is how long it is not waited for any more once it failed.
	detourFor = 30 * time.Second
	// relayTime bounds how long a third server tries to reach the one asked for.
	relayTime = 3 * time.Second
	// maxRelays bounds the connections that a server carries for others.
	maxRelays = 256
)

// way is a connection that is there, or why it is not.
type way struct {
	c   net.Conn
	err error
}

// begin connects beside the caller. What comes after ctx has ended is closed.
func begin(ctx context.Context, p Peer, dial func(context.Context, Peer) (net.Conn, error)) <-chan way {
	out := make(chan way)
	go func() {
		c, err := dial(ctx, p)
		select {
		case out <- way{c, err}:
		case <-ctx.Done():
			if err == nil {
				c.Close()
			}
		}
	}()
	return out
}

// wayTo connects to the address of a server, straight or through a third one.
func (f *Fleet) wayTo(ctx context.Context, p Peer) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var around <-chan way
	var direct, indirect error
	straight := begin(ctx, p, dialPeer)
	wait := time.NewTimer(f.patienceWith(p.ID))
	defer wait.Stop()
	for {
		select {
		case w := <-straight:
			if w.err == nil {
				f.straight(p.ID, true)
				return w.c, nil
			}
			direct, straight = w.err, nil
		case w := <-around:
			if w.err == nil {
				f.straight(p.ID, false)
				return w.c, nil
			}
			indirect, around = w.err, nil
		case <-wait.C:
		case <-ctx.Done(): // a network that swallows packets answers nothing: what is known is said
			if indirect != nil {
				return nil, fmt.Errorf("%w; %w", cmp.Or(direct, ctx.Err()), indirect)
			}
			return nil, cmp.Or(direct, ctx.Err())
		}
		switch {
		case around == nil && indirect == nil:
			around = begin(ctx, p, f.dialAround)
		case around == nil && straight == nil:
			f.straight(p.ID, false)
			return nil, fmt.Errorf("%w; %w", direct, indirect)
		}
	}
}

// patienceWith is how long the direct way to a server has.
func (f *Fleet) patienceWith(server string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.detours[server]) {
		return 0
	}
	return directFirst
}

// straight notes whether a server was reached without another's help.
func (f *Fleet) straight(server string, reached bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if reached {
		delete(f.detours, server)
		return
	}
	f.detours[server] = time.Now().Add(detourFor)
}

// dialPeer connects to the address of a server.
func dialPeer(ctx context.Context, p Peer) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2}}
	return dialer.DialContext(ctx, "tcp", p.Address)
}

// dialAround asks the other servers, in any order, to carry a connection.
func (f *Fleet) dialAround(ctx context.Context, p Peer) (net.Conn, error) {
	thirds := f.thirds(p.ID)
	if len(thirds) == 0 {
		return nil, fault.New(fault.Unavailable, "there is no third server to go through")
	}
	var all []error
	for _, third := range thirds {
		ctx, cancel := context.WithTimeout(ctx, relayTime+time.Second)
		c, err := f.knock(ctx, third, dialPeer, wire.PeerHello{V: 1, Use: wire.PeerRelay, To: p.ID})
		cancel()
		if err == nil {
			return c, nil
		}
		all = append(all, fmt.Errorf("%s: %w", third.ID, err))
	}
	return nil, fault.Wrap(fault.Unavailable, errors.Join(all...), "nor through another server")
}

// thirds are the servers through which another may be reached.
func (f *Fleet) thirds(but string) (list []Peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range f.peers {
		if id != but && p.Alive {
			list = append(list, p)
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// relay carries a connection of one server to another. The caller gives the room
// back.
func (f *Fleet) relay(ctx context.Context, from Peer, to string) (inside net.Conn, release func(), err error) {
	p, ok := f.peer(to)
	switch {
	case !ok || to == from.ID:
		return nil, nil, fault.New(fault.NotFound, "cannot carry a connection to server %.40q: it is no other one of the list", to)
	case f.draining.Load():
		return nil, nil, fault.New(fault.Unavailable, "cannot carry a connection: this server is about to restart")
	case f.relays.Add(1) > maxRelays:
		f.relays.Add(-1)
		return nil, nil, fault.New(fault.Exhausted, "cannot carry a connection: %d are carried already", maxRelays)
	}
	release = func() { f.relays.Add(-1) }
	ctx, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	if inside, err = dialPeer(ctx, p); err != nil { // straight: a relay goes through no other
		release()
		return nil, nil, fault.Wrap(fault.Unavailable, err, "cannot reach server %s either", to)
	}
	return inside, release, nil
}

// Relaying is how many connections this server carries for others now.
func (f *Fleet) Relaying() int { return int(f.relays.Load()) }
