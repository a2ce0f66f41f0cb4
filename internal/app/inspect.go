package app

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/feature/drain"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

func (s *Server) openInspections(ctx context.Context) error {
	blobs, shared, err := s.coreBlobs()
	if err != nil {
		return err
	}
	room := s.coreRoom
	if shared {
		room = nil
	}
	s.inspect = inspect.New(inspect.Deps{
		Store: s.store, Door: s.door, Hosts: s.hosts, People: s.people, Rules: s.force, Nodes: looks{nodes{s.fleet, s.agentless}},
		LockEpoch: s.people.LockEpochTx, Log: s.c.Log,
		Approvals: s.approvals, Seals: s.ring.Subjects(), Blobs: blobs, Shared: shared, Home: s.id, Drained: drained, Room: room,
	})
	return s.inspect.Start(ctx)
}

// openDrains is before sessions, which ask it.
func (s *Server) openDrains(context.Context) error {
	s.drains = drain.New(drain.Deps{Store: s.store, Door: s.door, Hosts: s.hosts, People: s.people,
		Changed: func(host string) { s.notices.Publish(notice.Event{Topic: notice.Hosts, ID: host}) }})
	return nil
}

// drained refuses to dump memory where others may be at work.
func drained(q store.Queryer, by identity.Principal, host target.Host, now time.Time) error {
	if err := drain.NeedTx(q, "dump memory on", host, now); err != nil {
		return err
	}
	n, err := session.OthersTx(q, host.ID, by.ID)
	if err == nil && n > 0 {
		err = fault.New(fault.Conflict, "cannot dump memory on %s: %d sessions of others are open there", host.Name, n).WithHint("handrail sessions --live")
	}
	return err
}

// coreBlobs is where core dumps lie: the bucket of recordings where there is
// one, else a folder of this server.
func (s *Server) coreBlobs() (blob.Store, bool, error) {
	if r := s.c.sections.Recordings; r != nil && r.Bucket != "" {
		b, err := r.Open()
		return b, true, err
	}
	dir := s.coreDir()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, fault.Wrap(fault.Unavailable, err, "cannot make the folder of core dumps")
	}
	b, err := blob.OpenFiles(dir)
	return b, false, err
}

func (s *Server) coreDir() string { return filepath.Join(s.p.server(), "cores") }

// coreKeepFree is what core dumps leave to recordings and the ledger, without
// which nothing may begin.
const coreKeepFree = 2 << 30

func (s *Server) coreRoom(most int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.coreDir(), &st); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot see how much room core dumps have")
	}
	if free := int64(st.Bavail) * st.Bsize; free < most+coreKeepFree {
		return fault.New(fault.Exhausted, "cannot keep a dump of up to %d MiB: %d MiB are free, of which %d stay for recordings", most>>20, free>>20, int64(coreKeepFree)>>20).
			WithHint("ask again with a smaller --most, or make room on the server")
	}
	return nil
}
