package app

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/feature/agentless"
	"handrail.dev/handrail/internal/feature/notice"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/visit"
)

// newAgentless wires the way to hosts that have no node.
func (s *Server) newAgentless() *agentless.Reach {
	return agentless.New(agentless.Deps{
		Store: s.store, Ring: s.ring, Log: s.c.Log,
		Visits:  s.visits(),
		Changed: func(host string) { s.notices.Publish(notice.Event{Topic: notice.Hosts, ID: host}) },
	})
}

// mismatchOf is the page that a host with another key than the pinned one
// causes, if the entry is of one: somebody may stand between.
func mismatchOf(e store.Recorded) (notice.Event, bool) {
	if e.Parsed.Action != agentless.HostMismatched {
		return notice.Event{}, false
	}
	return notice.Event{Topic: notice.Hosts, ID: strings.TrimPrefix(e.Parsed.Target, "host/"), Group: "admin", Urgency: notice.Paged,
		Text: "a host shows another key than the pinned one: somebody may stand between, or it was set up anew"}, true
}

// reachable says, early, whether a session on a host can begin at all. Whether
// a host without a node answers is known when it is dialled.
func (s *Server) reachable(id string) bool {
	if s.fleet.Node(id).State == fleet.Online {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h, err := s.hosts.Get(ctx, id)
	return err == nil && h.Agentless()
}

// sweepLost seeks what a session left running that a crash of this server lost.
func (s *Server) sweepLost(i session.Info) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h, err := s.hosts.Get(ctx, i.Host)
	if err == nil && h.Agentless() && i.Kind != wire.SessionSFTP {
		s.agentless.SweepLost(h, i.ID, i.Person, i.Level)
	}
}

// visitCommand is what the server carries to a host without a node. It speaks
// the node's wire on its standard input and output.
func visitCommand(version string) *cobra.Command {
	var unlink string
	c := &cobra.Command{
		Use: "visit", Hidden: true, Args: cobra.NoArgs,
		Short: "Be a node for the length of a session",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return visit.Run(cmd.Context(), unlink, version, os.Stdin, os.Stdout, logger())
		},
	}
	c.Flags().StringVar(&unlink, "unlink", "", "the folder that brought this program")
	return c
}

// stayCommand is what the server carries to a host that is adopted.
func stayCommand() *cobra.Command {
	o := visit.StayOptions{Run: []string{"node"}}
	c := &cobra.Command{
		Use: "stay", Hidden: true, Args: cobra.NoArgs,
		Short: "Make this machine's node a resident one",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Data, err = dataFolder(""); err != nil {
				return err
			}
			return visit.Stay(cmd.Context(), o, os.Stdin, os.Stdout)
		},
	}
	c.Flags().StringVar(&o.Unlink, "unlink", "", "the folder that brought this program")
	c.Flags().BoolVar(&o.Undo, "undo", false, "take away what stayed")
	return c
}

// visits wires what carries a node to a host.
func (s *Server) visits() agentless.VisitDeps {
	return agentless.VisitDeps{
		Program: nodeProgram,
		Call: func(ctx context.Context, by, host string) (string, error) {
			secret, err := s.roster.Call(ctx, by, host, false)
			if err != nil {
				return "", err
			}
			return s.tokenOf(secret), nil
		},
		Token: s.tokenOf, Back: s.withoutNode,
		Port: s.ownPort, Online: s.nodeOnline,
	}
}

// nodeProgram is the node's program for a kind of machine: beside this one, or
// this one itself.
func nodeProgram(arch string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot find the node's program")
	}
	names := []string{"handrail-node-linux-" + arch}
	if arch == runtime.GOARCH {
		names = append(names, "handrail-node", filepath.Base(self))
	}
	for _, name := range names {
		path := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fault.New(fault.NotFound, "cannot find handrail-node-linux-%s beside %s", arch, self)
}

// ownPort is the port that nodes dial, from within.
func (s *Server) ownPort(ctx context.Context) (net.Conn, error) {
	address := s.c.Listener.Addr().String()
	if tcp, ok := s.c.Listener.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		address = net.JoinHostPort("localhost", strconv.Itoa(tcp.Port))
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// nodeOnline waits for a node that was sent out.
func (s *Server) nodeOnline(ctx context.Context, host string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.fleet.Node(host).State != fleet.Online {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "it did not come to the server")
		}
	}
	return nil
}

// known says whether a host's node may connect. A host that is reached over SSH
// has one only while the server's own visit is there.
func (s *Server) known(ctx context.Context, id string) error {
	h, err := s.hosts.Get(ctx, id)
	if err == nil && h.ID != id {
		err = fault.New(fault.NotFound, "cannot find host %s", id)
	}
	if err == nil && h.Mode == target.ModeAgentless && !s.agentless.Visiting(id) {
		err = fault.New(fault.Denied, "cannot admit a node of %s: it has none", h.Name)
	}
	return err
}

// visit starts what the pass orders through a node that comes for it.
func (n nodes) visit(ctx context.Context, pass doorway.Pass, h target.Host, bulk bool) (session.Stream, wire.SessionAnswer, error) {
	act := pass.Act()
	leave, err := n.r.Visit(ctx, h, ordered(pass), act.By.ID)
	if err != nil {
		return nil, wire.Refusal(err), err
	}
	if why := visitor(h, n.f.Node(h.ID).Trial); why != nil { // it may have come when the host was another
		leave()
		return nil, wire.Refusal(why), why
	}
	s, answer, err := n.start(ctx, pass, h.ID, bulk)
	if err != nil {
		leave()
		return nil, answer, err
	}
	return visited{s, leave}, answer, nil
}

// visited is a session or a look of a node that goes with the last of them.
type visited struct {
	session.Stream
	leave func()
}

func (v visited) Close() error {
	defer v.leave()
	return v.Stream.Close()
}

// visitor says why a node may not be that of a visit. The host's row stays as
// it is: the node goes.
func visitor(h target.Host, trial bool) *fault.Error {
	if trial && h.Environment == "production" {
		return fault.New(fault.Denied, "cannot admit a node of %s, which is production: it runs without root, which is for trial only", h.Name).
			WithHint("let its account use sudo without a password, or: handrail host adopt %s", h.Name)
	}
	return nil
}

// visitorCame lets the node of a visit in, or turns it away.
func (s *Server) visitorCame(h target.Host, hello wire.Hello) error {
	if why := visitor(h, hello.Trial); why != nil {
		s.agentless.TurnAway(h.ID, why)
		return why
	}
	return nil
}

func (s *Server) tokenOf(secret string) string {
	return ledger.Token{Address: s.address(), RootHash: s.ring.RootHash(), Secret: secret}.String()
}

// withoutNode makes a host whose node did not come one without a node again.
func (s *Server) withoutNode(ctx context.Context, id string) error {
	h, err := s.hosts.Get(ctx, id)
	if err != nil || h.Mode != "" || h.SSHAddress == "" {
		return err
	}
	_, err = s.store.Record(ctx, store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		h, err := s.hosts.GetTx(tx, id)
		if err != nil {
			return nil, err
		}
		h.Mode = target.ModeAgentless
		entry, err := s.hosts.SetTx(tx, h)
		return []ledger.Entry{entry}, err
	})
	return err
}
