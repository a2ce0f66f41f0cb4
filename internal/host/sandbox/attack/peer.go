package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/host/sandbox"
)

// peer is another person's live write session.
type peer struct {
	PID     int
	Address uintptr
	Secret  int    // its descriptor of an unlinked file
	TTY     string // its terminal, as it names it
	Named   string // its abstract stream socket
	Home    string
}

// plantedName is the file that the peer leaves in its home.
const plantedName = ".profile"

// writeSpec is a write session of the attacker's account, as a node gives one
// of an account that is kept for write sessions.
func (s *setting) writeSpec(command ...string) sandbox.Spec {
	return sandbox.Spec{
		Level: sandbox.Write, Mode: s.mode, UID: attackerUID, GID: attackerUID, User: "attacker", Home: s.Peer.Home, Alone: true,
		Self: true, Command: append([]string{Arg0}, command...), Env: []string{sceneVariable + "=" + s.json()},
	}
}

// makePeer opens the write session that is attacked.
func (s *setting) makePeer(ctx context.Context, without []string) error {
	s.Peer.Home, s.Peer.Named = s.Dir+"/home", "@handrail-attack-peer-"+fmt.Sprint(os.Getpid())
	if err := errors.Join(os.MkdirAll(s.Peer.Home, 0o755), s.own(s.Peer.Home)); err != nil {
		return err
	}
	spec := s.writeSpec("peer")
	spec.PTY = true
	c, err := sandbox.StartWithout(ctx, spec, sandbox.Options{}, without...)
	if err != nil {
		return err
	}
	s.later(func() {
		_ = unix.Kill(c.PID, unix.SIGKILL)
		_, _ = c.Wait()
		c.PTY.Close()
	})
	s.Peer.PID = c.PID
	_, err = fmt.Fscan(c.PTY, &s.Peer.Address, &s.Peer.Secret, &s.Peer.TTY)
	return err
}

// bePeer is what runs in the attacked session: a victim that also has a
// terminal, a socket and a home.
func bePeer(s scene) {
	tty, err := os.Readlink("/proc/self/fd/0")
	if err != nil {
		os.Exit(2)
	}
	if _, err := net.Listen("unix", s.Peer.Named); err != nil {
		os.Exit(2)
	}
	if err := os.WriteFile(os.Getenv("HOME")+"/"+plantedName, []byte(secretText), 0o644); err != nil {
		os.Exit(2)
	}
	holdSecret(tty)
}

// betweenSessions runs the probes of one write session against another, and
// adds their answers.
func (s *setting) betweenSessions(ctx context.Context, plain, inside map[string]answer, without []string) error {
	if err := s.makePeer(ctx, without); err != nil {
		return err
	}
	if plain != nil {
		answers, err := s.plain(ctx, "session")
		if err != nil {
			return err
		}
		maps.Copy(plain, answers)
	}
	answers, _, err := s.inside(ctx, s.writeSpec("session"), without)
	maps.Copy(inside, answers)
	return err
}
