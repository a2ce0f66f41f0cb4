// Package visit is a node for the length of a visit: the server carries it to
// a host that has none, over SSH, and it goes when the connection does.
//
//	sshd ── stdin, stdout ── visit: streams ─┬─ link ── warden ── keeper per session
//	                                       └─ (each connection of the link is a stream)
//
// It is the same node with the same checks: it joins with a token that names
// the root key, verifies each order against the ledger, and confines sessions
// as any other. What it lacks is what a node remembers: it has not seen the
// ledger before, so it cannot notice that a server shows it another one than
// yesterday. Link and warden are one process here, since the far end of the
// connection brought the program.
//
// It leaves nothing: its program lies in memory where the kernel lets it, its
// folder is private and removed.
package visit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/mux"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/warden"
)

// Hello is the line that says that the server may speak the tunnel's protocol.
const Hello = "handrail-visit ready"

const maxToken = 4096

// Run is the node between in and out until either ends. The token is the first
// line of in; everything else of both is the tunnel. unlink is the folder that
// brought the program, removed at once; it may be empty.
func Run(ctx context.Context, unlink, version string, in io.ReadCloser, out io.WriteCloser, log *slog.Logger) error {
	if unlink != "" {
		if err := settle(unlink); err != nil {
			return err
		}
	}
	token, err := firstLine(in)
	if err != nil {
		return err
	}
	// The server's end closes without a word, as sshd may end us: what was made
	// here must still be removed.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGHUP)
	defer stop()
	dir, release, err := private()
	if err != nil {
		return err
	}
	defer release()
	if _, err := fmt.Fprintln(out, Hello); err != nil {
		return err
	}
	tunnel := mux.Client(stdio{in, out})
	defer tunnel.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-tunnel.Done()
		cancel()
	}()
	return serve(ctx, dir, token, version, func(context.Context, string, string) (net.Conn, error) { return tunnel.Open() }, log)
}

// serve joins, then runs both halves of the node.
func serve(ctx context.Context, dir, token, version string, dial func(context.Context, string, string) (net.Conn, error), log *slog.Logger) error {
	links, wardens := filepath.Join(dir, "link"), filepath.Join(dir, "warden")
	joined, err := link.Join(ctx, token, links, link.JoinOptions{Dial: dial, UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		return err
	}
	if err := warden.SetPin(wardens, warden.Pin{Node: joined.Node, RootHash: joined.RootHash, Bundle: joined.Bundle}); err != nil {
		return err
	}
	report := sandbox.Probe(ctx, []string{dir})
	socket := filepath.Join(dir, "warden.sock")
	ready := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return warden.Run(ctx, warden.Config{Dir: wardens, Socket: socket, LinkUID: os.Geteuid(), LinkGID: os.Getegid(), Hide: []string{dir},
			Visit: true, Trial: report.Mode != sandbox.RootMode, Version: version, Log: log, Ready: func() { close(ready) }})
	})
	g.Go(func() error {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
		return link.Run(ctx, link.Config{Dir: links, Socket: socket, Version: version, Log: log, Dial: dial})
	})
	return g.Wait()
}

// stdio is the two ends of a pipe as one.
type stdio struct {
	io.ReadCloser
	w io.WriteCloser
}

func (s stdio) Write(p []byte) (int, error) { return s.w.Write(p) }

func (s stdio) Close() error { return errors.Join(s.ReadCloser.Close(), s.w.Close()) }

// firstLine takes byte by byte: what follows is the tunnel's.
func firstLine(in io.Reader) (string, error) {
	r := bufio.NewReaderSize(io.LimitReader(oneByOne{in}, maxToken), 16)
	line, err := r.ReadString('\n')
	if line = strings.TrimSpace(line); err != nil || line == "" {
		return "", fault.New(fault.Invalid, "cannot visit: no token came")
	}
	return line, nil
}

type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

const folderPrefix = "handrail-visit-"

// private makes a folder that nobody else can enter, in memory where there is
// one, and removes those of visits that were killed.
func private() (dir string, release func(), err error) {
	for _, base := range []string{"/run", "/dev/shm", os.TempDir(), "/var/tmp"} {
		clearUp(base)
		if dir, err = os.MkdirTemp(base, folderPrefix); err != nil {
			continue
		}
		held, lerr := hold(dir)
		if lerr != nil {
			os.RemoveAll(dir)
			err = lerr
			continue
		}
		return dir, func() { os.RemoveAll(dir); held.Close() }, nil
	}
	return "", nil, fault.Wrap(fault.Unavailable, err, "cannot visit: no folder can be made here").WithHint("a writable /run, /dev/shm or /tmp")
}

// hold locks a folder for as long as its visit lives.
func hold(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// clearUp removes our own folders that no visit holds.
func clearUp(base string) {
	found, _ := filepath.Glob(filepath.Join(base, folderPrefix+"*")) // a fixed pattern is never bad
	for _, dir := range found {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() ||
			time.Since(time.Unix(st.Mtim.Unix())) < time.Minute { // a visit that has just begun may not hold its folder yet
			continue
		}
		if held, err := hold(dir); err == nil {
			os.RemoveAll(dir)
			held.Close()
		}
	}
}

var settled atomic.Bool

// settle removes the folder that brought the program, after moving the program
// into memory. Where the kernel runs none from there, the folder goes as it is:
// a running program needs its name no more.
func settle(folder string) error {
	if base := filepath.Base(folder); !strings.HasPrefix(base, "handrail-") || !filepath.IsAbs(folder) {
		return fault.New(fault.Invalid, "cannot remove %q: that is not what brought this program", folder)
	}
	if settled.Swap(true) {
		return nil
	}
	fd, err := intoMemory()
	if rerr := os.RemoveAll(folder); rerr != nil {
		return fault.Wrap(fault.Unavailable, rerr, "cannot remove what brought this program")
	}
	if err != nil {
		return nil // it runs from the removed file
	}
	args := make([]string, 0, len(os.Args))
	for i := 0; i < len(os.Args); i++ {
		if os.Args[i] == "--unlink" {
			i++ // done
			continue
		}
		args = append(args, os.Args[i])
	}
	_ = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), args, os.Environ())
	_ = unix.Close(fd) // refused: it runs from the removed file
	return nil
}

// intoMemory copies this program into a sealed file that has no name.
func intoMemory() (int, error) {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("handrail-node", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	to := os.NewFile(uintptr(fd), "handrail-node")
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return -1, err
	}
	kept, err := unix.FcntlInt(to.Fd(), unix.F_DUPFD_CLOEXEC, 0) // to's own is closed with it
	to.Close()
	if err != nil {
		return -1, err
	}
	_, _ = unix.FcntlInt(uintptr(kept), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return kept, nil
}
