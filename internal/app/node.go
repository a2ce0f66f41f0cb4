package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/warden"
)

// NodeConfig is what `handrail node` and `join` were asked for.
type NodeConfig struct {
	Data, Hostname, Version string
	Out                     io.Writer
	Log                     *slog.Logger
}

func (c NodeConfig) shown() string {
	dir, err := dataFolder(c.Data)
	if err != nil {
		return c.Data
	}
	return dir
}

// JoinHost joins this machine: the key is made here, the token names the
// server and its root key, nothing is trusted on first use.
func JoinHost(ctx context.Context, c NodeConfig, token string) (link.Joined, error) {
	dir, err := dataFolder(c.Data)
	if err != nil {
		return link.Joined{}, err
	}
	p := place(dir)
	root := isRoot()
	own, err := p.prepare(root)
	if err != nil {
		return link.Joined{}, err
	}
	if link.IsJoined(p.link()) {
		return link.Joined{}, fault.New(fault.Conflict, "cannot join: %s is joined already", dir).
			WithHint("to join another installation, remove %s first", dir)
	}
	options := link.JoinOptions{Hostname: c.Hostname}
	if root {
		options.UID, options.GID = own.Link, own.Link
	}
	joined, err := link.Join(ctx, token, p.link(), options)
	if err != nil {
		return joined, err
	}
	return joined, warden.SetPin(p.warden(), warden.Pin{Node: joined.Node, RootHash: joined.RootHash, Bundle: joined.Bundle})
}

// Node runs warden and link of a joined machine until ctx ends.
func Node(ctx context.Context, c NodeConfig) error {
	dir, err := dataFolder(c.Data)
	if err != nil {
		return err
	}
	p := place(dir)
	root := isRoot()
	own, err := p.prepare(root)
	if err != nil {
		return err
	}
	lock, err := p.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if !link.IsJoined(p.link()) {
		return fault.New(fault.Invalid, "cannot run a node: this machine has not joined").WithHint("handrail join --data %s", dir)
	}
	s := &supervisor{p: p, own: own, root: root, c: UpConfig{Log: c.Log, Out: c.Out}, report: sandbox.Probe(ctx, []string{dir})}
	stop, err := s.startNode(ctx)
	defer stop()
	if err != nil {
		return err
	}
	fmt.Fprintln(c.Out, modeLine(s.mode(), s.report))
	<-ctx.Done()
	return nil
}

// startNode starts warden and link; stop ends them in reverse.
func (s *supervisor) startNode(ctx context.Context) (stop func(), err error) {
	if s.mode() == wire.ModeRoot {
		made, err := warden.ProvideWriteAccount(ctx)
		if err != nil {
			s.c.Log.Warn("write sessions may lack their account", "error", err)
		}
		s.madeAccount = made
	}
	_ = os.Remove(s.p.wardenSock()) // one of an earlier run must not be taken for ready
	wardenRole := newRole("warden", s.wardenArgs()...)
	stopWarden := s.start(ctx, wardenRole)
	if err := waitSocket(ctx, s.p.wardenSock()); err != nil {
		return stopWarden, err
	}
	linkRole := s.plainRole("link", s.own.Link, "link",
		"--data", s.at(s.own.Link, "link"), "--socket", s.at(s.own.Link, "run", "warden", "warden.sock"))
	stopLink := s.start(ctx, linkRole)
	stop = func() { stopLink(); stopWarden() }
	s.quiet = linkRole.mute
	if err := linkRole.waitReady(ctx, upTime); err != nil {
		return stop, fault.Wrap(fault.Unavailable, err, "cannot start")
	}
	return stop, nil
}

func (s *supervisor) mode() string {
	// What the sandbox is, not who started it: root of a container may get no
	// more than everybody does.
	switch {
	case s.report.Floor == sandbox.Brokered:
		return wire.ModeNoShells
	case s.root && s.report.Mode == sandbox.RootMode:
		return wire.ModeRoot
	}
	return wire.ModeUserNamespace
}

// waitSocket waits until the warden listens: a probe of the kernel comes first.
func waitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "cannot start: the warden did not come up in %v", upTime).WithHint("handrail doctor")
		case <-tick.C:
		}
	}
}
