package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// A node keeps the list of servers that the order key signed, the newest it
// has seen, and goes to any of them. What a join knew of addresses counts only
// until there is a list.

const (
	// serversEvery is how often a newer list is asked for.
	serversEvery = 30 * time.Second
	// moveWithin is over how long the nodes of a server that went spread
	// themselves before they knock at another; their leases outlast it.
	moveWithin = time.Second
)

// learnServers keeps a newer list of this installation.
func (id *identity) learnServers(signed []byte) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	list, err := wire.ByAny(id.open.OrderKeys(time.Now()), func(k ed25519.PublicKey) (wire.Servers, error) {
		return wire.OpenServers(signed, k, id.open.Origin)
	})
	if err != nil || id.Servers != nil && list.Version <= id.Servers.Version {
		return err
	}
	before := id.Servers
	id.Servers = &list
	if err := id.save(); err != nil {
		id.Servers = before
		return err
	}
	return nil
}

// listVersion is the version of the list that is kept; 0 is none.
func (id *identity) listVersion() int64 {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.Servers == nil {
		return 0
	}
	return id.Servers.Version
}

// known are the servers to go to, and the version of what is known. One without
// an id comes from the join and is known by its certificate's authority alone.
func (id *identity) known() (version int64, at []wire.ServerAt) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.Servers != nil {
		return id.Servers.Version, slices.Clone(id.Servers.Servers)
	}
	for _, a := range id.Addresses {
		at = append(at, wire.ServerAt{Address: a})
	}
	return 0, at
}

// listed says whether a server still is in the list.
func (id *identity) listed(server string) bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return server == "" || id.Servers == nil || slices.ContainsFunc(id.Servers.Servers, func(s wire.ServerAt) bool { return s.ID == server })
}

// checkServer refuses a server that is not the one of the list at this address.
func checkServer(id string) func(tls.ConnectionState) error {
	if id == "" {
		return nil
	}
	return func(s tls.ConnectionState) error {
		if c := s.PeerCertificates[0]; len(c.URIs) != 1 || c.URIs[0].String() != "handrail://server/"+id {
			return fault.New(fault.Denied, "cannot use this server: its certificate is not that of server %s", id)
		}
		return nil
	}
}

// tour is the order in which the servers are tried: those that stay before
// those that are about to restart, each kind in an order of this node's own, so
// that a server's nodes spread over all others.
type tour struct {
	version int64
	at      []wire.ServerAt
	i       int
}

// next is where to go now; lap says that all have been tried in vain.
func (t *tour) next(version int64, at []wire.ServerAt) (to wire.ServerAt, lap bool) {
	if version != t.version || len(t.at) != len(at) {
		last := t.last()
		t.version, t.at, t.i = version, at, 0
		if version > 0 { // the addresses of a join have an order
			rand.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
		}
		slices.SortStableFunc(at, func(a, b wire.ServerAt) int { return rank(a, last) - rank(b, last) })
	}
	lap = t.i > 0 && t.i%len(t.at) == 0
	to = t.at[t.i%len(t.at)]
	t.i++
	return to, lap
}

func (t *tour) last() wire.ServerAt {
	if t.i == 0 {
		return wire.ServerAt{}
	}
	return t.at[(t.i-1)%len(t.at)]
}

// rank puts those that are about to restart last, and before them the one that
// was just left.
func rank(s, last wire.ServerAt) int {
	switch {
	case s.Draining:
		return 2
	case last.Address != "" && s.Address == last.Address:
		return 1
	}
	return 0
}

// settle begins a new lap after a connection that lived.
func (t *tour) settle() {
	if len(t.at) > 0 && t.i > 0 {
		t.at = append(slices.Clone(t.at[t.i%len(t.at):]), t.at[:t.i%len(t.at)]...) // the one that was left comes last
		t.i = 0
	}
}

// servers keeps the list of servers, and leaves one that is no longer in it.
func (b *bus) servers(ctx context.Context, server string) error {
	for {
		if err := b.askServers(ctx); err != nil && ctx.Err() == nil {
			b.l.log.Warn("the list of servers was not renewed", "error", err)
		}
		if !b.l.id.listed(server) {
			return fault.New(fault.Denied, "cannot stay with server %s: it is no longer in the list", server)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(serversEvery/2 + rand.N(serversEvery)):
		}
	}
}

func (b *bus) askServers(ctx context.Context) error {
	ask, err := json.Marshal(wire.ServersAsk{V: 1, Known: b.l.id.listVersion()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, wire.UpSubject(b.l.id.Host, wire.UpServers), ask)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot get the list of servers")
	}
	var a wire.ServersAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil || len(a.List) == 0 {
		return err
	}
	return b.l.id.learnServers(a.List)
}
