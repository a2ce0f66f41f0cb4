package app

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
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
		Load: s.load,
	})
	if !s.shared() {
		return nil
	}
	return s.peers.Start(ctx)
}

// load is what this server says of itself.
func (s *Server) load() peer.Presence {
	return peer.Presence{Size: s.store.Size(), Sessions: int64(s.sessions.CountLive())}
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

// runPeers runs what several servers need.
func (s *Server) runPeers(ctx context.Context) error {
	if !s.shared() {
		return nil
	}
	return s.peers.Run(ctx)
}

// followServers is what an entry of any server changes in this one's memory.
func (s *Server) followServers(e ledger.Recorded) {
	if !s.shared() {
		return
	}
	switch noun, _, _ := strings.Cut(string(e.Parsed.Action), "."); {
	case noun == "server":
		s.peers.Look()
	case e.Parsed.Action == ledger.ActionErased:
		if err := s.ring.Subjects().Forget(e.Parsed.Object); err != nil {
			s.c.Log.Error("what another server erased could not be erased here", "subject", e.Parsed.Object, "error", err)
		}
	}
}
