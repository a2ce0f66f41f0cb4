package app

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// Several servers over one PostgreSQL act as one. This file makes this server
// one of them. Over SQLite there is one server, and nothing here runs.

// shared says whether other servers may use the same database.
func (s *Server) shared() bool { return isShared(s.c.Database) }

func isShared(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// serverFile holds the id of this server: its own folder's, not the database's,
// since that is what is shared.
const serverFile = "server.id"

// beOne gives this server its id, before the first certificate is made and
// before anything is sealed.
func (s *Server) beOne() error {
	if !s.shared() {
		return nil
	}
	path := filepath.Join(s.p.server(), serverFile)
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		s.ring.Subjects().Share() // others may have made data keys that are not here yet
	case errors.Is(err, fs.ErrNotExist): // the first server, for the first time
		text = []byte(store.NewID('v') + "\n")
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot tell which server this is")
	}
	s.id = strings.TrimSpace(string(text))
	return s.ring.ActAs(s.id)
}

// openPeers lists this server and finds the others.
func (s *Server) openPeers(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = "server"
	}
	s.peers = peer.New(peer.Deps{
		Store: s.store, Ring: s.ring, Door: s.door, People: s.people, Policy: s.force, Approvals: s.approvals, Log: s.c.Log,
		Self: peer.Self{ID: s.id, Name: strings.ToLower(host), Address: s.address(), SSH: s.sshAddress(), Version: s.c.Version},
		Load: s.load, Changed: s.peersChanged, Gone: s.serverGone, Cut: s.cutFromDatabase,
	})
	if !s.shared() {
		return nil
	}
	return s.peers.Start(ctx)
}

// load is what this server says of itself.
func (s *Server) load() peer.Presence {
	return peer.Presence{Size: s.store.Size(), Sessions: int64(s.sessions.CountLive()), Nodes: int64(s.fleet.Connected()), Route: s.route}
}

// cluster is this server's part of the servers' bus. Each says where its bus
// is before it reads where the others' are, so that of two that start at once
// one calls the other.
func (s *Server) cluster(ctx context.Context) (*fleet.Cluster, error) {
	if !s.shared() {
		return nil, nil
	}
	host, port, err := s.routePort()
	if err != nil {
		return nil, err
	}
	cert, err := s.ring.ServerCertificates(namesOf(s.url()))
	if err != nil {
		return nil, err
	}
	at := host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		at, _, _ = net.SplitHostPort(s.address())
	}
	s.route = net.JoinHostPort(at, strconv.Itoa(port))
	others, err := peer.Meet(ctx, s.store, s.id, s.route)
	if err != nil {
		return nil, err
	}
	return &fleet.Cluster{ID: s.id, Host: host, Port: port, Routes: others, Cert: cert, Outside: s.c.sections.NATS.outside()}, nil
}

// routePort is where the bus listens for other servers: as configured, else
// beside the page at any free port, which the others find in the database.
func (s *Server) routePort() (host string, port int, err error) {
	asked := s.c.Route
	if asked == "" {
		ip := net.IPv4zero
		if tcp, ok := s.c.Listener.Addr().(*net.TCPAddr); ok {
			ip = tcp.IP
		}
		asked = net.JoinHostPort(ip.String(), "0")
	}
	l, err := net.Listen("tcp", asked)
	if err != nil {
		return "", 0, fault.Wrap(fault.Conflict, err, "cannot open the port %s for other servers", asked).WithHint("choose another: --route-listen HOST:PORT")
	}
	defer l.Close() // the bus opens it itself, a moment later
	host, _, err = net.SplitHostPort(asked)
	return host, l.Addr().(*net.TCPAddr).Port, err
}

// peersChanged hears of another list of servers.
func (s *Server) peersChanged(list []peer.Server) {
	var peers []fleet.Peer
	if !slices.ContainsFunc(list, func(p peer.Server) bool { return p.Self }) {
		s.c.Log.Error("this server was removed from the list: it serves nobody any more")
		s.fleet.Drain(true)
		s.sessions.Drain(true, 0, "the server was removed")
	}
	for _, p := range list {
		if p.Serves() {
			peers = append(peers, fleet.Peer{ID: p.ID, Address: p.Address, Alive: p.Alive})
		}
		if p.Self {
			s.fleet.Drain(p.State == peer.StateDraining)
			s.sessions.Drain(p.State == peer.StateDraining, time.Duration(p.Within)*time.Second, p.Reason)
		}
	}
	s.fleet.UsePeers(peers)
	if len(peers) > 1 { // a server alone may be reached by addresses that it does not know
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var told wire.Servers
		err := s.store.View(ctx, func(v *store.View) (err error) {
			told, err = peer.ListTx(v)
			return err
		})
		if err != nil {
			s.c.Log.Warn("the nodes cannot be told of the servers", "error", err)
			return
		}
		s.fleet.UseServers(told)
	}
	s.notices.Publish(notice.Event{Topic: notice.Installation})
}

// askEnd is what a server asks the home of sessions whose grant ended.
const askEnd = "end-grant"

// ended is the body of askEnd, and of its answer.
type ended struct {
	Grant string `json:"grant,omitempty"`
	Why   string `json:"why,omitempty"`
	Count int    `json:"count,omitempty"`
}

// endElsewhere ends the sessions of a grant at their homes, at once. A home that
// does not answer follows the ledger, where the end is recorded.
func endElsewhere(ctx context.Context, e ends, grant, why string) (count int) {
	homes := e.s.HomesOfGrant(grant)
	if len(homes) == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	body, _ := json.Marshal(ended{Grant: grant, Why: why}) // plain strings always marshal
	for _, home := range homes {
		raw, err := e.f.Ask(ctx, home, askEnd, body)
		var answer ended
		if err == nil && json.Unmarshal(raw, &answer) == nil {
			count += answer.Count
		}
	}
	return count
}

// askTime bounds what a command waits for other servers.
const askTime = 3 * time.Second

// answerPeer does what another server asks over the bus. What comes here only
// takes power away; everything else is a call for a person, by servePeers.
func (s *Server) answerPeer(_ context.Context, from, what string, body []byte) ([]byte, error) {
	var e ended
	if what != askEnd || json.Unmarshal(body, &e) != nil {
		return nil, fault.New(fault.NotFound, "cannot answer server %s: %q is unknown here", from, what)
	}
	return json.Marshal(ended{Count: s.sessions.EndByGrant(e.Grant, e.Why, endedBy(e.Grant, e.Why))})
}

// serverGone closes what a server that stood still for long has left open. All
// others may do it: the first closes, the rest find it closed.
func (s *Server) serverGone(ctx context.Context, p peer.Server) {
	if err := s.sessions.CloseGone(ctx, p.ID); err != nil {
		s.c.Log.Error("what a server that is gone has left open could not be closed", "server", p.Name, "error", err)
	}
}

// brakedFor is how long a person whom another server locked stays out by its
// word alone; by then the ledger says so, or the lock was refused.
const brakedFor = 30 * time.Second

// brakedElsewhere does here what another server's brake means for memory.
func (s *Server) brakedElsewhere(b wire.Brake) {
	if b.Kind != wire.BrakeLockPerson {
		return
	}
	s.people.Brake(b.Person)
	time.AfterFunc(brakedFor, func() { s.people.Release(b.Person) })
	s.sessions.LockedElsewhere(b.Person, b.Reason)
}

// servePeers answers the API calls that other servers make for people.
func (s *Server) servePeers(ctx context.Context) error {
	if !s.shared() {
		return nil
	}
	return s.serveOn(ctx, s.peerConns, s.peerAPI)
}

// sshAddress is where people reach the gateway.
func (s *Server) sshAddress() string {
	tcp, ok := s.c.SSHListener.Addr().(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return s.c.SSHListener.Addr().String()
	}
	host, _, err := net.SplitHostPort(s.address())
	if err != nil {
		return s.c.SSHListener.Addr().String()
	}
	_, port, _ := net.SplitHostPort(s.c.SSHListener.Addr().String())
	return net.JoinHostPort(host, port)
}

func orRevoked(why string) string {
	if why == "" {
		return access.Revoked
	}
	return why
}

// runPeers runs what several servers need.
func (s *Server) runPeers(ctx context.Context) error {
	if !s.shared() {
		return nil
	}
	return s.peers.Run(ctx)
}

// once runs f on one server of the installation at a time: on the one that
// leads. Wiring says run(below, "x", s.once(s.x.Run)). f's context ends when
// another server may lead; f begins again when this one does. What must not be
// recorded twice even by a machine that stood still meanwhile asks
// s.peers.LeadsTx in its transaction.
func (s *Server) once(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return s.peers.Lead(ctx, f) }
}

// lead tells who looks along and acts only on the leader that this is it now.
func (s *Server) lead(ctx context.Context) error {
	s.directory.TakeOver()
	<-ctx.Done()
	return nil
}

// followServers is what an entry of any server changes in this one's memory.
func (s *Server) followServers(ctx context.Context, e ledger.Recorded) {
	if !s.shared() {
		return
	}
	s.sessions.Follow(ctx, e)
	switch noun, _, _ := strings.Cut(string(e.Parsed.Action), "."); {
	case noun == "server":
		s.peers.Look()
	case noun == "node":
		s.fleet.LookSoon()
	case e.Parsed.Action == access.ActionEnded:
		var p struct {
			Grant access.Grant `json:"grant"`
		}
		if json.Unmarshal(e.Payload, &p) == nil {
			s.sessions.EndByGrant(e.Parsed.Object, orRevoked(p.Grant.EndedWhy), endedBy(e.Parsed.Object, orRevoked(p.Grant.EndedWhy)))
		}
	case e.Parsed.Action == identity.PersonLocked:
		s.sessions.LockedElsewhere(e.Parsed.Object, "")
	case e.Parsed.Action == ledger.ActionErased:
		if err := s.ring.Subjects().Forget(e.Parsed.Object); err != nil {
			s.c.Log.Error("what another server erased could not be erased here", "subject", e.Parsed.Object, "error", err)
		}
	}
}
