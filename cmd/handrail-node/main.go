// Command handrail-node is the node alone: what a host needs to be reached
// through handrail. It only composes internal/host: `join` once, then `run`,
// which starts and watches the two halves, warden (root, no network) and link
// (network, no privilege).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/warden"
)

const usage = `handrail-node: reach this host through handrail

  handrail-node join --token-file F     join an installation (token from F, else from stdin)
  handrail-node run                     serve, after a join; as root, else as a trial in a user namespace

Options: --data DIR (default /var/lib/handrail for root), --hostname NAME (join), --server HOST:PORT (join, repeatable)
`

// linkAccount is the uid and gid of the link where this program is root: just
// below the range of session uids, with no line in passwd needed.
const linkAccount = 1_879_040_001

func main() {
	keeper.Main() // never returns in a session's processes
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		f := fault.From(err)
		fmt.Fprintln(os.Stderr, "handrail-node:", f.Text)
		if f.Hint != "" {
			fmt.Fprintln(os.Stderr, "  next:", f.Hint)
		}
		stop()
		os.Exit(f.Kind.ExitCode())
	}
}

// options are the flags of all subcommands.
type options struct {
	data, hostname, tokenFile, socket string
	servers                           []string
	linkUID                           int
	trial                             bool
}

func parse(name string, args []string) (options, error) {
	o := options{data: defaultData()}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.data, "data", o.data, "")
	fs.StringVar(&o.hostname, "hostname", "", "")
	fs.StringVar(&o.tokenFile, "token-file", "", "")
	fs.StringVar(&o.socket, "socket", "", "")
	fs.IntVar(&o.linkUID, "link-uid", os.Geteuid(), "")
	fs.BoolVar(&o.trial, "trial", false, "")
	fs.Func("server", "", func(s string) error { o.servers = append(o.servers, s); return nil })
	if err := fs.Parse(args); err != nil {
		return o, fault.Wrap(fault.Invalid, err, "cannot read the command line").WithHint("handrail-node help")
	}
	if fs.NArg() > 0 {
		return o, fault.New(fault.Invalid, "cannot use %q here", fs.Arg(0)).WithHint("handrail-node help")
	}
	var err error
	o.data, err = filepath.Abs(o.data)
	return o, err
}

func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/handrail"
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "share", "handrail")
	}
	return "handrail-data"
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	o, err := parse(args[0], args[1:])
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch args[0] {
	case "help", "-h", "--help":
		_, err := fmt.Print(usage)
		return err
	case "version":
		_, err := fmt.Println(version())
		return err
	case "join":
		return join(ctx, o)
	case "run":
		return watch(ctx, o, log)
	case "warden":
		return warden.Run(ctx, warden.Config{Dir: o.data, Socket: o.socket, LinkUID: o.linkUID, LinkGID: o.linkUID,
			Hide: []string{filepath.Dir(o.data)}, Trial: o.trial, Confine: true, Version: version(), Log: log})
	case "link":
		return link.Run(ctx, link.Config{Dir: o.data, Socket: o.socket, Version: version(), Log: log})
	}
	return fault.New(fault.Invalid, "cannot do %q", args[0]).WithHint("handrail-node help")
}

// join reads the token from a file or from stdin, never from argv, which
// others on the host can list.
func join(ctx context.Context, o options) error {
	token, err := readToken(o.tokenFile)
	if err != nil {
		return err
	}
	if err := prepare(o.data); err != nil {
		return err
	}
	opts := link.JoinOptions{Hostname: o.hostname, Addresses: o.servers, UID: linkUID(), GID: linkUID()}
	joined, err := link.Join(ctx, token, filepath.Join(o.data, "link"), opts)
	if err != nil {
		return err
	}
	pin := warden.Pin{Node: joined.Node, RootHash: joined.RootHash, Bundle: joined.Bundle}
	if err := warden.SetPin(filepath.Join(o.data, "warden"), pin); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "joined as %s (%s); next: handrail-node run\n", joined.Name, joined.Node)
	return nil
}

func readToken(path string) (string, error) {
	in := io.Reader(os.Stdin)
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fault.Wrap(fault.Invalid, err, "cannot read the token")
		}
		defer f.Close()
		in = f
	} else if st, err := os.Stdin.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprint(os.Stderr, "join token: ")
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		if err == nil || errors.Is(err, io.EOF) {
			return "", fault.New(fault.Invalid, "cannot join: no token was given").WithHint("handrail host invite (on the server) prints one")
		}
		return "", fault.Wrap(fault.Invalid, err, "cannot read the token")
	}
	return line, nil
}

// linkUID is the account of the link.
func linkUID() int {
	if os.Geteuid() == 0 {
		return linkAccount
	}
	return os.Geteuid()
}

// prepare makes the folders: each half has its own, which the other may not enter.
func prepare(data string) error {
	for _, d := range []struct {
		dir  string
		mode os.FileMode
		uid  int
	}{
		{data, 0o711, os.Geteuid()},
		{filepath.Join(data, "warden"), 0o700, os.Geteuid()},
		{filepath.Join(data, "link"), 0o700, linkUID()},
		{filepath.Join(data, "run"), 0o711, os.Geteuid()},
		{filepath.Join(data, "run", "warden"), 0o711, os.Geteuid()},
	} {
		err := os.MkdirAll(d.dir, d.mode)
		if err == nil {
			err = os.Chmod(d.dir, d.mode)
		}
		if err == nil && os.Geteuid() == 0 {
			err = os.Lchown(d.dir, d.uid, d.uid)
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot prepare %s", d.dir).WithHint("handrail-node join --data DIR with a folder of your own")
		}
	}
	return nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
