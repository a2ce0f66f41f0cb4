package fleet

import (
	"context"
	"encoding/json"
	"sort"
	"time"

	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// State is a host's node as seen from here.
type State string

// The states of a node. Stale means connected, but without a fresh lease:
// nothing new starts there.
const (
	Never   State = "never"
	Online  State = "online"
	Stale   State = "stale"
	Offline State = "offline"
)

// Node is what is known of a host's node. All of it is observed.
type Node struct {
	Host    string
	State   State
	Seen    time.Time
	Mode    string
	Floor   string
	Missing []string
	Version string
	Trial   bool
	Facts   []Fact        // by name
	Server  string        // another one, to which it is connected
	Apart   time.Duration // how far its clock was ahead of ours when it last reported facts
	Refused string        // why its node is not let in, since it last was; of this server alone
}

// Fact is one thing that a host said of itself, and when.
type Fact struct {
	wire.Fact
	At time.Time
}

// Observations is the schema of what nodes report.
func Observations() []store.ObservationMigration {
	return []store.ObservationMigration{{Name: "fleet-1", SQL: `
CREATE TABLE node_presence (
	host TEXT PRIMARY KEY,
	seen BIGINT NOT NULL,
	hello TEXT NOT NULL,
	facts TEXT NOT NULL
)`},
		{Name: "fleet-2-server", SQL: `ALTER TABLE node_presence ADD COLUMN server TEXT NOT NULL DEFAULT ''`},
		{Name: "fleet-3-state", SQL: `ALTER TABLE node_presence ADD COLUMN state TEXT NOT NULL DEFAULT 'offline'`}}
}

// Node returns what is known of a host.
func (f *Fleet) Node(host string) Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.nodes[host]
	if !ok {
		return Node{Host: host, State: Never}
	}
	out := n.Node
	out.Facts = append([]Fact(nil), n.Facts...)
	return out
}

// seen notes a lease.
func (f *Fleet) seen(host string, size int64) {
	f.mu.Lock()
	n := f.nodeLocked(host)
	n.size, n.Seen = size, time.Now()
	was := n.State
	if n.control != nil {
		n.State = Online
	}
	changed := n.State != was
	f.mu.Unlock()
	if changed {
		f.save(host)
	}
}

// markStale shows hosts whose node is connected but asks for no lease.
func (f *Fleet) markStale() {
	var changed []string
	f.mu.Lock()
	for host, n := range f.nodes {
		if n.control != nil && n.State == Online && time.Since(n.Seen) > staleAfter {
			n.State = Stale
			changed = append(changed, host)
		}
	}
	f.mu.Unlock()
	for _, host := range changed {
		f.save(host)
	}
}

// facts takes what a node reports, all of it or what changed.
func (f *Fleet) facts(_ context.Context, host string, data []byte) []byte {
	in, left, err := wire.ParseFacts(data)
	if err != nil || left > 0 {
		f.alarm(host, "facts", "sent facts that cannot be read")
	}
	if err != nil {
		return nil
	}
	now := time.Now()
	f.mu.Lock()
	n := f.nodeLocked(host)
	if in.At != 0 {
		n.Apart = time.UnixMicro(in.At).Sub(now)
	}
	byName := map[string]Fact{}
	if !in.Full {
		for _, old := range n.Facts {
			byName[old.Name] = old
		}
	}
	for _, fact := range in.Facts {
		if len(byName) < wire.MaxFacts || byName[fact.Name].Name != "" {
			byName[fact.Name] = Fact{fact, now}
		}
	}
	n.Facts = n.Facts[:0:0]
	for _, fact := range byName {
		n.Facts = append(n.Facts, fact)
	}
	sort.Slice(n.Facts, func(i, j int) bool { return n.Facts[i].Name < n.Facts[j].Name })
	f.mu.Unlock()
	f.save(host)
	return nil
}

// isHere says whether the node is connected to this server.
func (f *Fleet) isHere(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.nodes[host]
	return ok && n.control != nil
}

// kept is a node's presence as it is kept over a restart.
type kept struct {
	Host  string `db:"host"`
	Seen  int64  `db:"seen"`
	Hello string `db:"hello"`
	Facts string `db:"facts"`
}

// save keeps a host's presence. It is an observation: losing it loses no
// truth, so an error is only logged. What another server has written since it
// took the node over stays.
func (f *Fleet) save(host string) {
	n, me, here := f.Node(host), "", f.isHere(host)
	if f.d.Cluster != nil {
		me = f.d.Cluster.ID
	}
	hello, _ := json.Marshal(wire.Hello{V: 1, Mode: n.Mode, Floor: n.Floor, Missing: n.Missing, Version: n.Version, Trial: n.Trial})
	facts, _ := json.Marshal(n.Facts) // plain structs always marshal
	ctx, cancel := context.WithTimeout(context.Background(), recordTime)
	defer cancel()
	err := f.d.Store.Observe(ctx, func(o *store.Obs) error {
		_, err := o.Exec(`INSERT INTO node_presence (host, seen, hello, facts, server, state) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (host) DO UPDATE SET seen = $2, hello = $3, facts = $4, server = $5, state = $6
			WHERE $7 OR node_presence.server = $5 OR node_presence.server = ''`,
			host, n.Seen.UnixMicro(), string(hello), string(facts), me, string(n.State), here)
		return err
	})
	if err != nil {
		f.d.Log.Warn("a host's presence could not be kept", "host", host, "error", err)
	}
	f.d.Changed(host)
}

// load reads what was known before the restart; everybody is offline until
// they come.
func (f *Fleet) load(ctx context.Context) error {
	return f.d.Store.ViewObserved(ctx, func(v *store.View) error {
		rows, err := store.All[kept](v, `SELECT host, seen, hello, facts FROM node_presence`)
		if err != nil {
			return err
		}
		for _, r := range rows {
			n := &node{Node: Node{Host: r.Host, State: Offline, Seen: time.UnixMicro(r.Seen)}}
			n.detail(r)
			f.nodes[r.Host] = n
		}
		return nil
	})
}
