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
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/visit"
)

const usage = `handrail-node: reach this host through handrail

  handrail-node join --token-file F     join an installation (token from F, else from stdin)
  handrail-node run                     serve, after a join; as root, else as a trial in a user namespace
  handrail-node upgrade                 run what is installed now in its place; sessions go on

Options: --data DIR (default /var/lib/handrail for root), --hostname NAME (join), --server HOST:PORT (join, repeatable),
  --entrance ADDR:PORT (run; where people with vouchers come in while no server answers; default :7322, or none)
`

func main() {
	role.Main()   // never returns in a process that is to become a role
	keeper.Main() // nor in a session's
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

// options are the flags of join and run.
type options struct {
	data, hostname, tokenFile, entrance string
	unlink                              string // visit: what brought this program
	undo                                bool   // stay: take away what stayed
	servers                             []string
}

func parse(name string, args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.data, "data", "", "")
	fs.StringVar(&o.hostname, "hostname", "", "")
	fs.StringVar(&o.entrance, "entrance", "", "")
	fs.StringVar(&o.tokenFile, "token-file", "", "")
	if name == "visit" || name == "stay" {
		fs.StringVar(&o.unlink, "unlink", "", "")
		fs.BoolVar(&o.undo, "undo", false, "")
	}
	fs.Func("server", "", func(s string) error { o.servers = append(o.servers, s); return nil })
	if err := fs.Parse(args); err != nil {
		return o, fault.Wrap(fault.Invalid, err, "cannot read the command line").WithHint("handrail-node help")
	}
	if fs.NArg() > 0 {
		return o, fault.New(fault.Invalid, "cannot use %q here", fs.Arg(0)).WithHint("handrail-node help")
	}
	var err error
	if o.data == "" {
		o.data, err = role.DefaultDir()
	} else {
		o.data, err = filepath.Abs(o.data)
	}
	return o, err
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	log := role.Logger(os.Stderr, slog.LevelInfo)
	if role.IsHalf(args[0]) {
		return role.RunHalf(ctx, args[0], args[1:], version(), log)
	}
	o, err := parse(args[0], args[1:])
	if err != nil {
		return err
	}
	switch args[0] {
	case "visit":
		return visit.Run(ctx, o.unlink, version(), os.Stdin, os.Stdout, log)
	case "stay":
		return visit.Stay(ctx, visit.StayOptions{Unlink: o.unlink, Data: o.data, Run: []string{"run"}, Undo: o.undo}, os.Stdin, os.Stdout)
	case "help", "-h", "--help":
		_, err := fmt.Print(usage)
		return err
	case "version":
		_, err := fmt.Println(version())
		return err
	case "join":
		return join(ctx, o)
	case "upgrade":
		version, err := role.AskUpgrade(ctx, o.data)
		if err == nil {
			fmt.Fprintf(os.Stderr, "the node runs %s; its sessions go on\n", version)
		}
		return err
	case "run":
		at, err := role.EntranceAt(o.entrance)
		if err != nil {
			return err
		}
		return role.RunNode(ctx, o.data, role.Node{Entrance: at, Version: version()}, role.InstalledNode, os.Stderr)
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
	at, err := role.Prepare(o.data, false)
	if err != nil {
		return err
	}
	joined, err := at.Join(ctx, token, link.JoinOptions{Hostname: o.hostname, Addresses: o.servers})
	if err != nil {
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

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
