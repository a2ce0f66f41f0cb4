package app

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/drain"
	"handrail.dev/handrail/internal/feature/erasure"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/feature/rotation"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/sshgate"
	"handrail.dev/handrail/internal/feature/support"
	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/feature/witness"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/oidc"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/surface/rpc"
	"handrail.dev/handrail/internal/surface/web"

	"golang.org/x/crypto/ssh"
)

// ServerConfig is what one server needs to know.
type ServerConfig struct {
	Data     string // its folder holds server/ and run/server/
	Shown    string // the same folder as people know it
	Database string // "": SQLite in the data folder
	URL      string // "": from the listener
	Owner    int    // account that owns the installation
	Demo     bool
	Version  string

	sections sections // of the configuration file

	Route string // where other servers reach the bus; "": beside the page, any free port

	Given *tls.Certificate // for browsers; nil: our own authority's

	Listener, SSHListener net.Listener
	Log                   *slog.Logger
}

// Server is everything a server is made of, in the order in which it is made.
type Server struct {
	c  ServerConfig
	p  place
	up []func() // what Stop calls, last first

	machine machine // this one, for the page

	ring       *keyring.Ring
	bootstrap  *identity.Flag
	store      *store.Store
	people     *identity.People
	provider   *oidc.Provider // nil: none is configured
	directory  *directory.Directory
	hosts      *target.Hosts
	force      *policy.Force
	access     *access.Access
	approvals  *approval.Approvals
	door       *doorway.Door
	fleet      *fleet.Fleet
	recordings *recording.Recordings
	sessions   *session.Sessions
	inspect    *inspect.Inspections
	drains     *drain.Drains
	agentless  *agentless.Reach
	roster     *roster.Roster
	locks      atomic.Pointer[roster.Roster] // the same, once it is there: the spool may ask before
	vouchers   atomic.Pointer[voucher.Vouchers]
	notices    *notice.Hub
	peers      *peer.Peers
	cut        cutOff
	id, route  string // of this server, and of its bus; empty over SQLite, where it is the only one
	peerConns  *queue // on which other servers speak the API
	gate       *sshgate.Gate
	erasures   *erasure.Erasures
	retained   atomic.Pointer[retainLook]
	rotations  *rotation.Rotations
	circle     *witness.Circle
	witness    *witness.Witness
	webhooks   *webhook.Hooks
	handler    http.Handler
	peerAPI    http.Handler // the API without the way to other servers
}

// NewServer makes a server. Nothing of it answers before Run.
func NewServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{c: c, p: place(c.Data), peerConns: newQueue(c.Listener.Addr())}
	s.notices = notice.New(s.sources()...)
	for _, step := range []func(context.Context) error{
		s.openStore, s.openPeople, s.openDoor, s.openWitness, s.openErasures, s.openWebhooks, s.openRotations, s.openFleet, s.openDrains, s.openSessions, s.openInspections, s.openVouchers, s.openPeers, s.openDirectory, s.openSurfaces,
	} {
		if err := step(ctx); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) onClose(f func()) { s.up = append(s.up, f) }

// close undoes what NewServer did, last first.
func (s *Server) close() {
	for i := len(s.up) - 1; i >= 0; i-- {
		s.up[i]()
	}
	s.up = nil
}

func (s *Server) openStore(ctx context.Context) (err error) {
	if s.ring, err = keyring.Open(s.p.keys()); err != nil {
		return err
	}
	if err = s.beOne(); err != nil {
		return err
	}
	s.bootstrap = &identity.Flag{}
	dsn := s.c.Database
	if dsn == "" {
		dsn = "sqlite:" + s.p.server()
	}
	bundle, _ := s.ring.Bundle()
	s.store, err = store.Open(ctx, store.Config{
		DSN: dsn, Origin: s.ring.Origin(), Signer: s.ring.Log(), Verifier: s.ring.LogVerifier(),
		Seals: s.ring.Subjects(), Bootstrap: s.bootstrap.Active, Spool: s.p.server(), Epoch: bundle.Epoch,
		Unspool: s.unspool,
		Bundle:  s.signedBundle, Keys: rotation.LearnAtStart(s.ring), Migrations: migrations(), Observations: observations(),
	})
	if err != nil {
		return err
	}
	s.onClose(func() { s.store.Close() })
	if s.shared() {
		return s.ring.Subjects().UseShelf(peer.Shelf(s.store))
	}
	return nil
}

// unspool applies a brake that was used while the database was away. Until
// the roster is there it stays in the spool.
func (s *Server) unspool(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) {
	r := s.locks.Load()
	if r == nil {
		return nil, fault.New(fault.Unavailable, "cannot apply a spooled brake yet: the server is starting")
	}
	if entries, ok, err := s.access.Unspool(tx, e); ok {
		return entries, err
	}
	return r.Unspool(tx, e)
}

// observations is every feature's tables of what machines report.
func observations() []store.ObservationMigration {
	return slices.Concat(fleet.Observations(), peer.Observations(), witness.Observations(), webhook.Observations())
}

// migrations is every feature's tables, in the order of the manual.
func migrations() (all []store.Migration) {
	for _, schema := range [][]store.Migration{
		identity.Schema(), directory.Schema(), target.Schema(), policy.Schema(), approval.Schema(), access.Schema(), session.Schema(), roster.Schema(), peer.Schema(),
		witness.Schema(), erasure.Schema(), recording.Schema(), inspect.Schema(), drain.Schema(), voucher.Schema(), rotation.Schema(), webhook.Schema(),
	} {
		all = append(all, schema...)
	}
	return all
}

// Actions is every ledger action that this server can record.
func Actions() (all []ledger.Action) {
	for _, actions := range [][]ledger.Action{
		identity.Actions(), directory.Actions(), target.Actions(), policy.Actions(), approval.Actions(), doorway.Actions(), fleet.Actions(),
		access.Actions(), session.Actions(), recording.Actions(), roster.Actions(), rpc.Actions(), store.Actions(), peer.Actions(),
		witness.Actions(), erasure.Actions(), agentless.Actions(), inspect.Actions(), drain.Actions(), voucher.Actions(), rotation.Actions(), webhook.Actions(), support.Actions(),
	} {
		all = append(all, actions...)
	}
	return all
}

func (s *Server) openPeople(ctx context.Context) error {
	url := s.url()
	s.people = identity.New(identity.Deps{
		Store: s.store, Ring: s.ring, Bootstrap: s.bootstrap, RPID: passkeyName(url), Origins: []string{url}, ProviderApproves: s.providerApproves(),
	})
	s.openProvider()
	if err := s.people.Start(ctx); err != nil {
		return err
	}
	s.hosts = target.NewHosts(s.store)
	s.force = policy.NewForce(s.store)
	return s.force.Seed(ctx)
}

func (s *Server) openDoor(context.Context) error {
	kinds := slices.Concat(access.Kinds(s.hosts), roster.Kinds(s.people, s.hosts, s.force), peer.Kinds(), witness.Kinds(), rotation.Kinds(), roster.DirectoryKinds(s.people),
		erasure.Kinds(func() *erasure.Erasures { return s.erasures }), webhook.Kinds(func() *webhook.Hooks { return s.webhooks }), inspect.Kinds(func() *inspect.Inspections { return s.inspect }))
	s.approvals = approval.New(approval.Deps{Store: s.store, People: s.people, Kinds: kinds})
	s.door = doorway.New(doorway.Deps{Store: s.store, People: s.people, Hosts: s.hosts, Policy: s.force, Grants: access.Standing{}})
	s.access = access.New(access.Deps{
		Store: s.store, Door: s.door, Approvals: s.approvals, Policy: s.force, Hosts: s.hosts, People: s.people,
		MoreApprovers: s.moreApprovers,
	})
	return nil
}

func (s *Server) openFleet(ctx context.Context) (err error) {
	cluster, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	s.fleet, err = fleet.New(ctx, fleet.Deps{
		Store: s.store, Ring: s.ring, Epochs: s.epochs, Log: s.c.Log,
		Known:  s.known,
		Became: s.hostBecame, Cosigned: s.cosigned, Up: s.voucherAnswers(), Revoked: s.revokedVouchers,
		Ordered: func(ctx context.Context, host, id string) (bool, error) {
			i, err := s.sessions.Get(ctx, id)
			if fault.KindOf(err) == fault.NotFound {
				return false, nil
			}
			return i.Host == host, err
		},
		Changed: func(host string) { s.notices.Publish(notice.Event{Topic: notice.Hosts, ID: host}) },
		Cluster: cluster, Answer: s.answerPeer, Braked: s.brakedElsewhere, PeerAPI: s.peerConns.put,
	})
	return err
}

// hostBecame keeps what a host's node says that it is, so that policy decides
// by it. A production host whose node runs without root is kept out.
func (s *Server) hostBecame(ctx context.Context, id string, hello wire.Hello) (changed bool, err error) {
	host, err := s.hosts.Get(ctx, id)
	if err == nil && host.Mode == target.ModeAgentless {
		return false, s.visitorCame(host, hello)
	}
	if err != nil || host.Mode == hello.Mode && host.Trial == hello.Trial {
		return false, err
	}
	_, err = s.store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		host, err := s.hosts.GetTx(tx, id)
		if err != nil {
			return nil, err
		}
		host.Mode, host.Trial = hello.Mode, hello.Trial
		entry, err := s.hosts.SetTx(tx, host)
		return []ledger.Entry{entry}, err
	})
	return err == nil, err
}

// epochs is what a lease fences orders with.
func (s *Server) epochs(ctx context.Context) (e fleet.Epochs, err error) {
	err = s.store.View(ctx, func(v *store.View) error {
		if e.Lock, err = s.people.LockEpochTx(v); err != nil {
			return err
		}
		if e.Person, err = s.people.EpochsTx(v); err != nil {
			return err
		}
		row, err := s.force.RowTx(v, 0)
		e.Policy = row.Version
		return err
	})
	return e, err
}

func (s *Server) openSessions(ctx context.Context) (err error) {
	archive, err := s.archive()
	if err != nil {
		return err
	}
	s.recordings, err = recording.New(recording.Deps{
		Dir: filepath.Join(s.p.server(), "recordings"), Store: s.store, Subjects: s.ring.Subjects(), Replay: s.ring.Replay(), Log: s.c.Log,
		Elsewhere: func(ctx context.Context) (map[string]bool, error) { return s.sessions.RecordedElsewhere(ctx) },
		Archive:   archive,
	})
	if err != nil {
		return err
	}
	s.agentless = s.newAgentless()
	s.sessions = session.New(session.Deps{
		Store: s.store, Door: s.door, Hosts: s.hosts, People: s.people, Grants: access.Standing{}, Rules: s.force,
		Nodes: nodes{s.fleet, s.agentless}, Recordings: s.recordings, LockEpoch: s.people.LockEpochTx, Log: s.c.Log, Home: s.id,
		Online: s.reachable, Lost: s.sweepLost, Admits: s.drains.Admits,
		Changed: func(i session.Info) { s.notices.Publish(notice.Event{Topic: notice.Sessions, ID: i.ID}) },
	})
	s.access.UseSessions(ends{s.sessions, s.fleet})
	s.roster = roster.New(roster.Deps{
		Store: s.store, Ring: s.ring, Door: s.door, People: s.people, Hosts: s.hosts, Policy: s.force, Approvals: s.approvals,
		Brake: s.brakePerson, EndGrants: s.access.LockedTx, Here: s.here,
	})
	s.locks.Store(s.roster)
	return s.sessions.Start(ctx)
}

func (s *Server) openSurfaces(context.Context) (err error) {
	s.peerAPI = rpc.Handler(&rpc.Deps{
		Store: s.store, Ring: s.ring, People: s.people, Hosts: s.hosts, Force: s.force, Approvals: s.approvals, Door: s.door,
		Fleet: s.fleet, Access: s.access, Roster: s.roster, Sessions: s.sessions, Inspect: s.inspect, Drains: s.drains, Agentless: s.agentless, Recordings: s.recordings, Notices: s.notices, Peers: s.peers,
		Provider: s.provider, Workloads: s.openWorkloads(), Directory: s.directory, Erasures: s.erasures, Rotations: s.rotations, Witnesses: s.circle, WitnessKey: s.witness.Key().String(), BeforeExport: s.beforeExport,
		Vouchers: s.vouchers.Load, Webhooks: s.webhooks, Retention: s.retention, Info: s.info, Now: time.Now, Log: s.c.Log,
	})
	api := s.whileCut(s.toHomes(s.peerAPI))
	pages := web.New(web.Deps{Transport: rpc.InProcess(api), BaseURL: "http://handrail.internal", Demo: s.c.Demo, Log: s.c.Log})
	outside := rpc.FromNetwork(rpc.WithRobotKey(api, time.Now))
	s.handler = s.onlyOurNames(s.asWitness(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isAPI(r.URL.Path) {
			outside.ServeHTTP(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})))
	bare := s.ring.SSHHostKey()
	certified, err := s.ring.SSHHostSigner(namesOf(s.url()))
	if err != nil {
		return err
	}
	s.gate = sshgate.New(sshgate.Deps{
		People: s.people, Sessions: s.sessions, HostKeys: []ssh.Signer{certified, bare}, CodeURL: s.url() + "/code", Log: s.c.Log,
	})
	return nil
}

// isAPI says whether a path is of the API, not of a page.
func isAPI(path string) bool {
	return strings.HasPrefix(path, "/handrail.v1.") || strings.HasPrefix(path, "/v1/")
}

// brakePerson ends at once what a person has running.
func (s *Server) brakePerson(ctx context.Context, person, reason string) int {
	who, err := s.people.Get(ctx, person)
	if err != nil {
		s.c.Log.Error("the epoch of a locked person could not be read", "error", err) // the brake acts all the same
	}
	epoch := who.Epoch
	if !who.Locked() {
		epoch++ // the lock that is about to be recorded raises it; orders from before are void now
	}
	return s.sessions.EndByPerson(ctx, person, epoch, reason)
}

// here says whether an address is this machine's own, so that whoever comes
// from it is on it. The demo's hosts are, and only play that they are not.
func (s *Server) here(source string) bool {
	from, err := netip.ParseAddr(source)
	if err != nil || s.c.Demo {
		return false
	}
	own, err := net.InterfaceAddrs()
	return from.IsLoopback() || err != nil || slices.ContainsFunc(own, func(a net.Addr) bool {
		ip, ok := a.(*net.IPNet)
		return ok && ip.IP.Equal(from.AsSlice())
	})
}

// url is the page's address as people type it.
func (s *Server) url() string {
	if s.c.URL != "" {
		return s.c.URL
	}
	return pageURL(s.c.Listener.Addr())
}

func (s *Server) info() rpc.Info {
	shown := s.c.Shown
	if shown == "" {
		shown = s.c.Data
	}
	return rpc.Info{
		Name: s.ring.Origin(), Version: s.c.Version, DataDir: shown, URL: s.url(), Address: s.address(),
		SSHAddress: s.c.SSHListener.Addr().String(), Mode: s.machine.Mode, Missing: s.machine.Missing, Trial: s.machine.Mode != wire.ModeRoot && s.machine.Mode != serverAlone, Demo: s.c.Demo,
	}
}

// address is what commands and nodes dial.
func (s *Server) address() string {
	if _, rest, ok := strings.Cut(s.c.URL, "://"); ok {
		return rest
	}
	tcp, ok := s.c.Listener.Addr().(*net.TCPAddr)
	if ok && tcp.IP.IsUnspecified() {
		_, rest, _ := strings.Cut(s.url(), "://")
		return rest
	}
	return s.c.Listener.Addr().String()
}

// Run serves until ctx ends, then ends sessions, closes the ledger and stops.
func (s *Server) Run(ctx context.Context, ready func()) error {
	defer s.close()
	front, err := s.newFront()
	if err != nil {
		return err
	}
	door := s.local()
	control, err := door.listen(s.p.control())
	if err != nil {
		return err
	}
	// Sessions end before what they stand on does.
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	above, stopAbove := context.WithCancel(ctx)
	defer stopAbove()
	failed := make(chan error, 16)
	var group sync.WaitGroup
	run := func(ctx context.Context, what string, f func(context.Context) error) {
		group.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				s.c.Log.Error("a part of the server ended", "part", what, "error", err)
				failed <- err
			}
		})
	}
	run(below, "people", s.people.Run)
	run(below, "doorway", s.door.Run)
	run(below, "fleet", s.fleet.Run)
	run(below, "recordings", s.recordings.Run)
	run(below, "archive of recordings", s.recordings.Keep)
	run(below, "witnesses", s.circle.Run)
	run(below, "erasures", s.erasures.Run)
	run(below, "core dumps", s.inspect.Run)
	run(below, "keys", s.rotations.Run)
	run(below, "webhooks", func(ctx context.Context) error { return s.peers.Lead(ctx, s.webhooks.Run) })
	run(below, "hosts without a node", s.agentless.Run)
	run(below, "grants", s.access.Run)
	run(below, "roster", s.roster.Run)
	run(below, "directory", s.directory.Run)
	run(below, "leader", s.once(s.lead))
	run(below, "followers", s.follow)
	run(below, "retention", s.once(s.retain))
	run(below, "servers", s.runPeers)
	run(below, "metrics", s.serveMetrics)
	run(above, "servers' calls", s.servePeers)
	run(below, "watchers", s.sessions.RecheckLoop)
	run(above, "control socket", func(ctx context.Context) error { return door.serve(ctx, control) })
	run(above, "ssh gateway", func(ctx context.Context) error { return s.gate.Serve(ctx, s.c.SSHListener) })
	run(above, "port", func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { s.c.Listener.Close() })
		return front.serve(below, s.c.Listener)
	})
	for _, l := range []net.Listener{front.http, front.web} {
		run(above, "page", func(ctx context.Context) error { return s.serveHTTP(ctx, l) })
	}
	ready()
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopAbove()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	s.sessions.Shutdown(ending)
	stopBelow()
	group.Wait()
	return err
}

// RunServer makes a server, waits for what the supervisor says of this machine
// there, and runs it.
func RunServer(ctx context.Context, c ServerConfig, word *os.File, ready func()) error {
	defer word.Close()
	s, err := NewServer(ctx, c)
	if err != nil {
		return err
	}
	if s.machine, err = hearMachine(word); err != nil {
		s.close()
		return err
	}
	return s.Run(ctx, ready)
}
