package sim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/roster"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// server is one life of the server, from a start to a crash.
type server struct {
	w         *world
	dir       string
	ring      *keyring.Ring
	store     *store.Store
	people    *identity.People
	hosts     *target.Hosts
	policy    *policy.Force
	approvals *approval.Approvals
	door      *doorway.Door
	access    *access.Access
	sessions  *session.Sessions
	roster    *roster.Roster
	books     *recording.Recordings

	over  context.Context // ends with the crash
	kill  context.CancelFunc
	ended sync.WaitGroup
	once  sync.Once
	image string // what was on disk when it crashed

	dying atomic.Bool
	armed atomic.Pointer[fuse]
}

// fuse is a crash that is to come: the nth time at a named point.
type fuse struct {
	at   string
	left atomic.Int64
}

// dead says whether nobody hears of it any more, from the moment on in which a
// crash looks at the disk.
func (s *server) dead() bool { return s.dying.Load() || s.over.Err() != nil }

// point is a named point. If the fuse is for it, the server crashes here, in the
// middle of what it does.
func (s *server) point(name string) {
	f := s.armed.Load()
	if f != nil && f.at == name && f.left.Add(-1) == 0 {
		s.crash(name)
	}
}

// crash takes what is on disk at this very moment. What this server does from
// now on nobody hears, and nobody finds on disk.
func (s *server) crash(where string) {
	s.once.Do(func() {
		s.dying.Store(true)
		s.image = snapshot(s.dir)
		if dice := s.w.dice("tear", s.w.lives); dice.IntN(2) == 0 {
			tear(s.image, dice.Uint64())
		}
		s.w.crashes[where]++
		s.kill()
	})
}

// snapshot copies a folder as it is in one moment: it copies until two copies in
// a row are the same.
func snapshot(dir string) string {
	read := func() map[string][]byte {
		all := map[string][]byte{}
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, "-shm") {
				all[strings.TrimPrefix(path, dir)], _ = os.ReadFile(path)
			}
			return nil
		})
		return all
	}
	last := read()
	for again := read(); !same(last, again); again = read() {
		last = again
	}
	to, err := os.MkdirTemp(filepath.Dir(dir), "life")
	if err != nil {
		panic(err)
	}
	for name, b := range last {
		if err := os.MkdirAll(filepath.Dir(to+name), 0o700); err != nil {
			panic(err)
		}
		if err := os.WriteFile(to+name, b, 0o600); err != nil {
			panic(err)
		}
	}
	return to
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

// tear adds the beginning of a write that did not end, to each file that is only
// ever added to.
func tear(dir string, how uint64) {
	for _, name := range []string{"state.db-wal"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			continue
		}
		torn := make([]byte, 24+how%4096) // a frame's head, and less than its page
		for i := range torn {
			torn[i] = byte(how >> (i % 8))
		}
		binary.BigEndian.PutUint32(torn, 1)
		_, _ = f.Write(torn)
		f.Close()
	}
}

// signer is the log key, with a named point.
type signer struct {
	note.Signer
	s *server
}

func (g signer) Sign(msg []byte) ([]byte, error) {
	g.s.point("signing")
	return g.Signer.Sign(msg)
}

// seals are the keys of subjects, with a named point. They are also the disk
// that is slow, or away: each entry waits in the writer, before its commit.
type seals struct {
	*keyring.Subjects
	s *server
}

func (k seals) Seal(subject string, plain, ad []byte) ([]byte, error) {
	if slow := time.Duration(k.s.w.slow.Load()); slow > 0 {
		<-time.After(slow)
	}
	if k.s.w.away.Load() {
		return nil, fault.New(fault.Unavailable, "cannot write: the database is away")
	}
	k.s.point("sealing")
	return k.Subjects.Seal(subject, plain, ad)
}

// open starts a server on what is in dir.
func (w *world) open(dir string) *server {
	s := &server{w: w, dir: dir}
	s.over, s.kill = context.WithCancel(context.Background())
	var err error
	s.ring, err = keyring.Open(w.keys)
	w.must(err)
	flag := &identity.Flag{}
	var migrations []store.Migration
	for _, schema := range [][]store.Migration{identity.Schema(), target.Schema(), policy.Schema(), approval.Schema(), access.Schema(), session.Schema(), roster.Schema()} {
		migrations = append(migrations, schema...)
	}
	s.store, err = store.Open(s.over, store.Config{
		DSN: "sqlite:" + dir, Origin: s.ring.Origin(), Signer: signer{s.ring.Log(), s}, Verifier: s.ring.LogVerifier(),
		Seals: seals{s.ring.Subjects(), s}, Bootstrap: flag.Active, Migrations: migrations, Spool: dir, Unspool: s.unspool,
	})
	w.must(err)
	s.people = identity.New(identity.Deps{Store: s.store, Ring: s.ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost:7080"}})
	w.must(s.people.Start(s.over))
	s.hosts, s.policy = target.NewHosts(s.store), policy.NewForce(s.store)
	w.must(s.policy.Seed(s.over))
	s.approvals = approval.New(approval.Deps{Store: s.store, People: s.people, Kinds: append(access.Kinds(s.hosts), roster.Kinds(s.people, s.hosts, s.policy)...)})
	s.door = doorway.New(doorway.Deps{Store: s.store, People: s.people, Hosts: s.hosts, Policy: s.policy, Grants: access.Standing{}})
	s.access = access.New(access.Deps{Store: s.store, Door: s.door, Approvals: s.approvals, Policy: s.policy, Hosts: s.hosts, People: s.people})
	s.books, err = recording.New(recording.Deps{Dir: filepath.Join(dir, "recordings"), Store: s.store, Subjects: s.ring.Subjects(), Replay: s.ring.Replay()})
	w.must(err)
	s.sessions = session.New(session.Deps{Store: s.store, Door: s.door, Hosts: s.hosts, People: s.people, Grants: access.Standing{}, Rules: s.policy,
		Nodes: nodes{w, s}, Recordings: s.books, LockEpoch: s.people.LockEpochTx})
	s.access.UseSessions(s)
	s.roster = roster.New(roster.Deps{Store: s.store, Ring: s.ring, Door: s.door, People: s.people, Hosts: s.hosts, Policy: s.policy, Approvals: s.approvals,
		Brake: s.brakePerson, EndGrants: s.access.LockedTx})
	w.must(s.sessions.Start(s.over))
	for _, run := range []func(context.Context) error{s.people.Run, s.door.Run, s.access.Run, s.roster.Run} {
		s.ended.Go(func() { _ = run(s.over) })
	}
	return s
}

func (s *server) unspool(tx *store.Tx, e ledger.Entry) ([]ledger.Entry, error) {
	if s.roster == nil {
		return nil, fault.New(fault.Unavailable, "cannot apply a spooled brake yet")
	}
	if entries, ok, err := s.access.Unspool(tx, e); ok {
		return entries, err
	}
	return s.roster.Unspool(tx, e)
}

// EndByGrant ends what runs under a grant; the server's wiring does the same.
func (s *server) EndByGrant(_ context.Context, grant, why string) int {
	return s.sessions.EndByGrant(grant, why, why)
}

func (s *server) brakePerson(ctx context.Context, person, reason string) int {
	who, err := s.people.Get(ctx, person)
	epoch := who.Epoch
	if err != nil || !who.Locked() {
		epoch++
	}
	return s.sessions.EndByPerson(ctx, person, epoch, reason)
}

// bury lets what is left of a server end.
func (s *server) bury() {
	s.crash("evening")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.sessions.Shutdown(ctx)
	s.ended.Wait()
	_ = s.store.Close()
	_ = os.RemoveAll(s.dir)
}

// envelope is the order of a pass for a node, as fleet makes it.
func (s *server) envelope(ctx context.Context, pass doorway.Pass, n *node) ([]byte, error) {
	receipt := pass.Receipt()
	for i, e := range receipt.Entries() {
		p, err := wire.ParseOrderPayload(e.Payload)
		if err != nil || p.Node != n.host.ID {
			continue
		}
		proof, err := receipt.Proof(ctx, i)
		if err != nil {
			return nil, err
		}
		order, err := wire.BuildOrder(proof, s.ring.Order())
		if err != nil {
			return nil, err
		}
		env := wire.Envelope{Order: order}
		tree, err := ledger.OpenCheckpoint(proof.Checkpoint, s.ring.Origin(), s.ring.LogVerifier())
		if err != nil {
			return nil, err
		}
		if n.warden().Fresh() == 0 {
			n.renew(s)
		}
		if known := n.warden().Seen(); known != 0 && known != tree.N {
			if env.Consistency, err = s.store.Consistency(ctx, min(known, tree.N), max(known, tree.N)); err != nil {
				return nil, err
			}
			env.From = known
		}
		return env.Marshal(), nil
	}
	return nil, fault.New(fault.Internal, "cannot send an order that nobody recorded")
}

// lease answers a node, as fleet does.
func (s *server) lease(ask wire.LeaseAsk) ([]byte, error) {
	a := wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: time.Now().UnixMicro()}
	tree, signed, err := s.store.Head(s.over)
	if err != nil {
		return nil, err
	}
	a.Checkpoint = signed
	if ask.Size > tree.N {
		s.w.fail("a node saw %d entries, the server has %d", ask.Size, tree.N)
	} else if ask.Size > 0 && ask.Size < tree.N {
		hashes, err := s.store.Consistency(s.over, ask.Size, tree.N)
		if err != nil {
			return nil, err
		}
		a.Consistency = wire.HashList(hashes)
	}
	err = s.store.View(s.over, func(v *store.View) (err error) {
		if a.LockEpoch, err = s.people.LockEpochTx(v); err != nil {
			return err
		}
		if a.PersonEpochs, err = s.people.EpochsTx(v); err != nil {
			return err
		}
		row, err := s.policy.RowTx(v, 0)
		a.PolicyEpoch = row.Version
		return err
	})
	if err != nil {
		return nil, err
	}
	return wire.SignLease(a, s.ring.Order())
}
