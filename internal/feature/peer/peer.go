// Package peer is the list of servers of one installation: several handrail
// servers over one PostgreSQL act as one. Here they are invited, join, say that
// they live, drain and are removed.
//
//	invited → asked → active ⇄ draining → removed
//
// What must stay true:
//   - a server gets the installation's keys once somebody invited it, it made a
//     key of its own on its machine, and somebody else agreed to that very key.
//     Each step is an entry; the keys are sealed to that key.
//   - a server that is not active in the list is nobody: other servers do not
//     speak with it, nodes do not connect to it.
//   - that a server lives is an observation: it decides who is called first and
//     who is shown as away, never what somebody may.
package peer

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of servers.
const (
	Invited ledger.Action = "server.invited"
	Asked   ledger.Action = "server.asked"   // it asked for the keys, with a key of its own
	Added   ledger.Action = "server.added"   // it is in the list from now on
	Refused ledger.Action = "server.refused" // nobody agreed
	Sealed  ledger.Action = "server.sealed"  // the keys were handed over, sealed
	Set     ledger.Action = "server.set"     // it is reached elsewhere
	Drained ledger.Action = "server.drained" // it takes no new session
	Began   ledger.Action = "server.began"   // it takes sessions again
	Removed ledger.Action = "server.removed"
	Leads   ledger.Action = "server.leads" // from now on it does what is done once
)

// Actions lists the ledger actions of servers.
func Actions() []ledger.Action {
	return []ledger.Action{Invited, Asked, Added, Refused, Sealed, Set, Drained, Began, Removed, Leads}
}

// The states of a server in the list.
const (
	StateInvited  = "invited"
	StateAsked    = "asked"
	StateActive   = "active"
	StateDraining = "draining"
	StateRemoved  = "removed"
)

// Schema is the list of servers. A row is never deleted: the list's version is
// the sum of theirs, and must not go back.
func Schema() []store.Migration {
	return []store.Migration{{Name: "peer-1-servers", SQL: `CREATE TABLE servers (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	address TEXT NOT NULL,
	ssh_address TEXT NOT NULL,
	state TEXT NOT NULL,
	secret TEXT NOT NULL,
	chest TEXT NOT NULL,
	inviter TEXT NOT NULL,
	approval TEXT NOT NULL,
	expires BIGINT NOT NULL,
	added BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "peer-2-leading", SQL: `CREATE TABLE server_leading (
	id INTEGER PRIMARY KEY,
	server TEXT NOT NULL,
	term BIGINT NOT NULL
)`},
		{Name: "peer-3-drain", SQL: `ALTER TABLE servers ADD COLUMN reason TEXT NOT NULL DEFAULT ''`},
		{Name: "peer-4-within", SQL: `ALTER TABLE servers ADD COLUMN within_s BIGINT NOT NULL DEFAULT 0`},
	}
}

// Observations is what servers say of themselves every two seconds, and the
// shelf of wrapped data keys, which any of them can fill again from its files.
func Observations() []store.ObservationMigration {
	return []store.ObservationMigration{
		{Name: "peer-1-presence", SQL: `CREATE TABLE server_presence (
	id TEXT PRIMARY KEY,
	beat BIGINT NOT NULL,
	version TEXT NOT NULL,
	size BIGINT NOT NULL,
	route TEXT NOT NULL,
	nodes BIGINT NOT NULL,
	sessions BIGINT NOT NULL
)`},
		{Name: "peer-2-data-keys", SQL: `CREATE TABLE data_keys (
	subject TEXT PRIMARY KEY,
	wrapped TEXT NOT NULL
)`},
		{Name: "peer-3-resting", SQL: `ALTER TABLE server_presence ADD COLUMN resting BIGINT NOT NULL DEFAULT 0`},
		{Name: "peer-4-signed", SQL: `ALTER TABLE server_presence ADD COLUMN signed TEXT NOT NULL DEFAULT ''`},
		{Name: "peer-5-epoch", SQL: `ALTER TABLE server_presence ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0`}}
}

// Server is one line of the list, and what it says of itself.
type Server struct {
	ID       string `db:"id"`
	Name     string `db:"name"`
	Address  string `db:"address"` // host:port of page, API and nodes
	SSH      string `db:"ssh_address"`
	State    string `db:"state"`
	Secret   string `db:"secret"` // hash of the invitation; empty once used up
	Chest    string `db:"chest"`  // the key that the ring is sealed to, base64
	Inviter  string `db:"inviter"`
	Approval string `db:"approval"`
	Expires  int64  `db:"expires"`
	Added    int64  `db:"added"`
	Version  int64  `db:"version"`
	Reason   string `db:"reason"`   // why it drains
	Within   int64  `db:"within_s"` // seconds that its sessions may go on

	Presence
	Self   bool
	Alive  bool
	Behind int64     // entries that it had not seen when it last spoke
	Seen   time.Time // when it last moved, by our clock
}

// Serves says whether it is one of us.
func (s Server) Serves() bool { return s.State == StateActive || s.State == StateDraining }

// Presence is what a server says of itself. Observed.
type Presence struct {
	Program  string // its version
	Size     int64  // of the ledger as it knows it
	Route    string // where its message bus is reached
	Nodes    int64
	Sessions int64
	Resting  bool // it does nothing of what a leader does, nor will it
}

const selectServer = `SELECT id, name, address, ssh_address, state, secret, chest, inviter, approval, expires, added, version, reason, within_s FROM servers `

// Self is this server.
type Self struct{ ID, Name, Address, SSH, Version string }

// Deps is what Peers needs.
type Deps struct {
	Store     *store.Store
	Ring      *keyring.Ring
	Door      *doorway.Door
	People    *identity.People
	Policy    *policy.Force
	Approvals *approval.Approvals
	Self      Self
	// Load is what this server says of itself at each beat.
	Load func() Presence
	// Changed hears, without locks, of another list or another liveness.
	Changed func([]Server)
	// Gone hears of a server that has not moved for a long time.
	Gone func(ctx context.Context, server Server)
	// Cut hears that this server has not reached the database for Bounds.Away, and
	// that it does again. nil: nobody minds.
	Cut    func(off bool)
	Bounds Bounds
	Log    *slog.Logger
}

// Peers keeps the list.
type Peers struct {
	d       Deps
	b       Bounds
	kick    chan struct{}
	started atomic.Bool // there may be others
	lapse   *time.Timer // ends the term of who cannot say that it lives
	away    *time.Timer // runs out when it cannot for longer

	telling sync.Mutex
	told    bool // that we are cut off

	faced map[string]string // by server: the checkpoint that was compared last; look alone touches it

	mu      sync.Mutex
	list    []Server
	beats   map[string]beat
	sizes   []int64       // of the ledger as known here, at the last looks
	led     leading       // who leads, as last read
	term    *term         // our newest
	cut     bool          // away ran out
	elected chan struct{} // closed and renewed when we come to lead
}

// New returns the list. Start must follow.
func New(d Deps) *Peers {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p := &Peers{d: d, b: d.Bounds.withDefaults(), beats: map[string]beat{}, faced: map[string]string{}, kick: make(chan struct{}, 1), elected: make(chan struct{})}
	p.lapse = time.AfterFunc(p.b.Hold, p.yield)
	p.away = time.AfterFunc(time.Hour, p.isCut)
	p.away.Stop() // until it has spoken once
	return p
}

// payload is what entries about servers say.
type payload struct {
	V        int    `json:"v"`
	Server   string `json:"server"`
	Name     string `json:"name,omitempty"`
	Address  string `json:"address,omitempty"`
	SSH      string `json:"ssh,omitempty"`
	Key      string `json:"key,omitempty"` // fingerprint of the key that the ring is sealed to
	Approval string `json:"approval,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Within   int64  `json:"within,omitempty"` // seconds
}

func (s Server) entry(action ledger.Action, by string, p payload) ledger.Entry {
	p.V, p.Server, p.Name = 1, s.ID, s.Name
	return ledger.Entry{Action: action, Subjects: []string{by}, Object: s.ID, Version: s.Version, Target: "server/" + s.ID, Payload: p, SealTo: ledger.System}
}

// save moves a row on, if nobody did meanwhile.
func (s Server) save(tx *store.Tx) (Server, error) {
	n, err := tx.Exec(`UPDATE servers SET name = $1, address = $2, ssh_address = $3, state = $4, secret = $5, chest = $6, approval = $7,
		expires = $8, added = $9, version = $10, reason = $13, within_s = $14 WHERE id = $11 AND version = $12`,
		s.Name, s.Address, s.SSH, s.State, s.Secret, s.Chest, s.Approval, s.Expires, s.Added, s.Version+1, s.ID, s.Version, s.Reason, s.Within)
	if err == nil && n != 1 {
		err = fault.New(fault.Conflict, "cannot change server %s: it changed meanwhile", s.Name).WithHint("handrail servers")
	}
	s.Version++
	return s, err
}

func (s Server) insert(tx *store.Tx) error {
	_, err := tx.Exec(`INSERT INTO servers (id, name, address, ssh_address, state, secret, chest, inviter, approval, expires, added, version)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		s.ID, s.Name, s.Address, s.SSH, s.State, s.Secret, s.Chest, s.Inviter, s.Approval, s.Expires, s.Added, s.Version)
	return err
}

func getTx(q store.Queryer, idOrName string) (Server, error) {
	found, err := store.All[Server](q, selectServer+`WHERE (id = $1 OR name = $1) AND state <> $2`, idOrName, StateRemoved)
	if err != nil {
		return Server{}, err
	}
	if len(found) != 1 {
		return Server{}, fault.New(fault.NotFound, "cannot find server %.60q", idOrName).WithHint("handrail servers")
	}
	return found[0], nil
}

// Start puts this server into the list, or says there that it is reached
// elsewhere than before, and that it takes sessions. One that was removed, or
// that nobody agreed to, does not start.
func (p *Peers) Start(ctx context.Context) error {
	me := p.d.Self
	for _, address := range []string{me.Address, me.SSH} {
		if err := CheckAddress(address); err != nil {
			return err
		}
	}
	_, err := p.d.Store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		rows, err := store.All[Server](tx, selectServer+`WHERE id = $1`, me.ID)
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 {
			return p.firstTx(tx)
		}
		row := rows[0]
		if !row.Serves() {
			return nil, fault.New(fault.Denied, "cannot start: this server is not in the list of the installation's servers (%s)", row.State).
				WithHint("handrail server invite, on another server")
		}
		var entries []ledger.Entry
		if row.Address != me.Address || row.SSH != me.SSH {
			row.Address, row.SSH = me.Address, me.SSH
			if row, err = row.save(tx); err != nil {
				return nil, err
			}
			entries = append(entries, row.entry(Set, ledger.System, payload{Address: row.Address, SSH: row.SSH}))
		}
		if row.State == StateDraining {
			row.State, row.Reason, row.Within = StateActive, "", 0
			if row, err = row.save(tx); err != nil {
				return nil, err
			}
			entries = append(entries, row.entry(Began, ledger.System, payload{}))
		}
		return entries, nil
	})
	if err != nil {
		return err
	}
	p.started.Store(true)
	return p.look(ctx)
}

// firstTx lists the server that was there before there was a list. Any later
// one comes by an invitation.
func (p *Peers) firstTx(tx *store.Tx) ([]ledger.Entry, error) {
	there, err := store.One[int64](tx, `SELECT COUNT(*) FROM servers`)
	if err != nil {
		return nil, err
	}
	if there > 0 {
		return nil, fault.New(fault.Denied, "cannot start: the database has other servers, and this one was not invited").
			WithHint("handrail server invite, on another server; then here: handrail server join")
	}
	me := p.d.Self
	row := Server{ID: me.ID, Name: me.Name, Address: me.Address, SSH: me.SSH, State: StateActive, Added: tx.Now().UnixMicro(), Version: 1}
	return []ledger.Entry{row.entry(Added, ledger.System, payload{Address: me.Address, SSH: me.SSH})}, row.insert(tx)
}

// CheckAddress refuses what is no HOST:PORT.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" || len(address) > wire.MaxAddress {
		return fault.New(fault.Invalid, "cannot use the address %.80q: it is not HOST:PORT", address)
	}
	return nil
}

// List is every server that is not removed, as it is known now.
func (p *Peers) List() []Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Server(nil), p.list...)
}

// Find returns a server of the list that serves.
func (p *Peers) Find(id string) (Server, bool) {
	for _, s := range p.List() {
		if s.ID == id && s.Serves() {
			return s, true
		}
	}
	return Server{}, false
}

// ListTx is what nodes are told: who serves, and the list's version.
func ListTx(q store.Queryer) (wire.Servers, error) {
	rows, err := store.All[Server](q, selectServer+`ORDER BY id`)
	out := wire.Servers{V: 1}
	for _, s := range rows {
		out.Version += s.Version
		if s.Serves() {
			out.Servers = append(out.Servers, wire.ServerAt{ID: s.ID, Address: s.Address, Draining: s.State == StateDraining})
		}
	}
	return out, err
}

// CheckID refuses what is no server's id.
func (s Server) CheckID() error {
	if !wire.ValidID('v', s.ID) {
		return fault.New(fault.Invalid, "cannot be server %.40q: that is no server's id", s.ID)
	}
	return nil
}
