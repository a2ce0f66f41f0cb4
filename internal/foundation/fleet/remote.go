package fleet

import (
	"context"
	"encoding/json"
	"time"

	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// What other servers know of their nodes is read from the observations: every
// few seconds who is connected where, less often what they report.

const (
	lookEvery  = 2 * time.Second
	factsEvery = 30 * time.Second
)

type remoteRow struct {
	Host   string `db:"host"`
	Server string `db:"server"`
	State  string `db:"state"`
	Seen   int64  `db:"seen"`
}

func (f *Fleet) lookSoon() {
	select {
	case f.looks <- struct{}{}:
	default:
	}
}

// LookSoon makes the fleet look at once at what other servers know of a node.
// Who follows the ledger calls it after an entry about a node.
func (f *Fleet) LookSoon() { f.lookSoon() }

// lookElsewhere takes over what other servers know. Nodes that are connected
// here are known better here.
func (f *Fleet) lookElsewhere(ctx context.Context) error {
	if f.d.Cluster == nil {
		return nil
	}
	full := time.Since(f.factsRead) > factsEvery
	var rows []remoteRow
	var details []kept
	err := f.d.Store.ViewObserved(ctx, func(v *store.View) (err error) {
		rows, err = store.All[remoteRow](v, `SELECT host, server, state, seen FROM node_presence WHERE server <> '' AND server <> $1`, f.d.Cluster.ID)
		if err == nil && (full || f.unknown(rows)) {
			full = true
			details, err = store.All[kept](v, `SELECT host, seen, hello, facts FROM node_presence WHERE server <> '' AND server <> $1`, f.d.Cluster.ID)
		}
		return err
	})
	if err != nil {
		return err
	}
	var changed []string
	f.mu.Lock()
	for _, r := range rows {
		if f.takeOverLocked(r) {
			changed = append(changed, r.Host)
		}
	}
	for _, r := range details {
		if n := f.nodeLocked(r.Host); n.control == nil {
			n.detail(r)
		}
	}
	f.mu.Unlock()
	if full {
		f.factsRead = time.Now()
	}
	for _, host := range changed {
		f.d.Changed(host)
	}
	return nil
}

// unknown says that a node came of which nothing is known here.
func (f *Fleet) unknown(rows []remoteRow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range rows {
		n, known := f.nodes[r.Host]
		if !known || n.control == nil && (n.Mode == "" || n.Server != r.Server) {
			return true
		}
	}
	return false
}

func (f *Fleet) takeOverLocked(r remoteRow) (changed bool) {
	n := f.nodeLocked(r.Host)
	if n.control != nil {
		return false
	}
	state := State(r.State)
	if p, ok := f.peers[r.Server]; !ok || !p.Alive {
		state = Offline
	}
	changed = n.State != state || n.Server != r.Server
	n.State, n.Server, n.Seen = state, r.Server, time.UnixMicro(r.Seen)
	return changed
}

func (n *node) detail(r kept) {
	var hello wire.Hello
	if json.Unmarshal([]byte(r.Hello), &hello) == nil {
		n.Mode, n.Floor, n.Missing, n.Version, n.Trial = hello.Mode, hello.Floor, hello.Missing, hello.Version, hello.Trial
	}
	_ = json.Unmarshal([]byte(r.Facts), &n.Facts) // facts come again by themselves
}

// UseServers is what nodes are told of the servers.
func (f *Fleet) UseServers(list wire.Servers) {
	list.V, list.Origin = 1, f.d.Ring.Origin()
	signed, err := wire.SignServers(list, f.d.Ring.Order())
	if err != nil {
		f.d.Log.Error("the list of servers could not be signed", "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list, f.listVersion = signed, list.Version
}

// servers answers a node that asks for a newer list of servers.
func (f *Fleet) servers(_ context.Context, host string, data []byte) []byte {
	var ask wire.ServersAsk
	answer := wire.ServersAnswer{V: 1}
	if err := json.Unmarshal(data, &ask); err != nil {
		f.alarm(host, "servers", "asked for the servers in no known form")
	}
	f.mu.Lock()
	if f.listVersion > ask.Known {
		answer.List = f.list
	}
	f.mu.Unlock()
	out, _ := json.Marshal(answer) // plain bytes always marshal
	return out
}

// Connected is how many nodes are connected to this server.
func (f *Fleet) Connected() int { return len(f.connected()) }
