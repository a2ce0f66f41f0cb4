package role

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/inspect"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/warden"
)

// Names of the node's roles, which are also the commands that run them.
const (
	wardenName = "warden"
	linkName   = "link"
)

// Joined says whether this machine's node has joined an installation.
func (p Place) Joined() bool { return link.IsJoined(p.At(linkName)) }

// Join makes this machine a host of an installation: the key is made here, the
// token names the server and its root key, nothing is trusted on first use.
func (p Place) Join(ctx context.Context, token string, o link.JoinOptions) (link.Joined, error) {
	if p.Joined() {
		return link.Joined{}, fault.New(fault.Conflict, "cannot join: %s is joined already", p.Dir).
			WithHint("to join another installation, remove %s first", p.Dir)
	}
	if p.Root {
		o.UID, o.GID = p.Link, p.Link
	}
	if o.Witnesses != nil { // before anything trusts this server
		if err := warden.SetWitnesses(p.At(wardenName), o.Witnesses); err != nil {
			return link.Joined{}, err
		}
	}
	joined, err := link.Join(ctx, token, p.At(linkName), o)
	if err != nil {
		return joined, err
	}
	return joined, warden.SetPin(p.At(wardenName), warden.Pin{Node: joined.Node, RootHash: joined.RootHash, Bundle: joined.Bundle})
}

// Node is how a node is run.
type Node struct {
	// Entrance is where people with vouchers come in while no server answers;
	// "" is nowhere.
	Entrance string
	Version  string
	// Program is a file with the node's roles and nothing else; "" is this very
	// program, which may hold much that a node never needs.
	Program string
	// Release gives Program back, once nothing is started from it any more; nil:
	// there is nothing to give.
	Release func()
}

// RunNode runs the node of a machine that has joined until ctx ends, or a newer
// one where the owner asks for it.
func RunNode(ctx context.Context, dir string, n Node, newer Newer, out io.Writer) error {
	if !link.IsJoined(Place{Dir: dir}.At(linkName)) {
		return fault.New(fault.NotFound, "cannot run a node: this machine has not joined").
			WithHint("handrail host invite (on the server), then here: %s join --data %s", programName(), dir)
	}
	p, err := Prepare(dir, false)
	if err != nil {
		return err
	}
	lock, err := p.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lock.Say(Running{PID: os.Getpid(), Version: n.Version}); err != nil {
		return err
	}
	report := sandbox.Probe(ctx, []string{dir})
	errs := p.Said(Stderr())
	log := Logger(errs, slog.LevelWarn)
	w := NewWatch(p, out, errs, log)
	defer w.Stop()
	if _, err := w.StartNode(ctx, report, n); err != nil {
		return err
	}
	stop, err := w.ServeUpgrades(ctx, newer)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Fprintln(out, p.ModeLine(report))
	SayServing(log)
	<-ctx.Done()
	return nil
}

// programName is what this program is called: handrail or handrail-node.
func programName() string {
	name := os.Args[0]
	return name[strings.LastIndexByte(name, '/')+1:]
}

// StartNode starts the warden, then the link. It says whether it made the
// account for write sessions.
func (w *Watch) StartNode(ctx context.Context, report sandbox.Report, n Node) (madeAccount bool, err error) {
	p, mode := w.place, w.place.Mode(report)
	if mode == wire.ModeRoot {
		if madeAccount, err = warden.ProvideWriteAccount(ctx); err != nil {
			w.log.Warn("write sessions may lack their account", "error", err)
		}
	}
	mine, theirs, err := warden.UpgradeSocket()
	if err != nil {
		return madeAccount, fault.Wrap(fault.Internal, err, "cannot start the warden")
	}
	w.node = &running{Node: n, mode: mode, upgrades: mine}
	err = w.Start(ctx, Role{Name: wardenName, Program: n.Program, Account: os.Geteuid(), Args: w.wardenArgs(n), Files: []*os.File{theirs}})
	if err == nil {
		err = w.Start(ctx, Role{Name: linkName, Program: n.Program, Account: p.Link, Args: w.linkArgs(n)})
	}
	return madeAccount, err
}

// wardenArgs are the warden's, as the supervisor gives them.
func (w *Watch) wardenArgs(n Node) []string {
	p := w.place
	args := []string{
		wardenName, "--version", n.Version, "--data", p.At(wardenName), "--socket", p.At("run", wardenName, "warden.sock"), "--link-uid", strconv.Itoa(p.Link),
		"--hide", p.Dir, "--trial=" + strconv.FormatBool(w.node.mode != wire.ModeRoot), "--upgrades-fd", "3",
	}
	kin := w.node.kin
	if own, err := inspect.FileAt(Program); err == nil {
		kin = append(kin, own)
	}
	for _, f := range kin {
		args = append(args, "--kin", f.String())
	}
	return args
}

func (w *Watch) linkArgs(n Node) []string {
	p := w.place
	return []string{
		linkName, "--version", n.Version, "--data", p.Seen(p.Link, linkName), "--socket", p.Seen(p.Link, "run", wardenName, "warden.sock"), "--entrance", n.Entrance,
	}
}

// IsHalf says whether that command is one of the node's roles.
func IsHalf(name string) bool { return name == wardenName || name == linkName }

// RunHalf is one of the node's roles, with the arguments that StartNode gives.
func RunHalf(ctx context.Context, name string, args []string, version string, log *slog.Logger) error {
	var dir, socket, entrance string
	w := warden.Config{Log: log, Confine: true, Ready: SayReady}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&w.Version, "version", version, "what the node says that it is")
	fs.StringVar(&dir, "data", "", "the role's folder")
	fs.StringVar(&socket, "socket", "", "the warden's unix socket")
	if name == linkName {
		fs.StringVar(&entrance, "entrance", "", "where people with vouchers come in")
	}
	var supervisor int
	form := fs.Bool("handover-form", false, "say what this program can take over, and end")
	if name == wardenName {
		fs.IntVar(&w.Upgrades, "upgrades-fd", 0, "socket of the supervisor")
		fs.IntVar(&w.Resume, "resume-fd", 0, "what the program before this one left")
		fs.IntVar(&supervisor, "supervisor", 0, "process of the supervisor")
		fs.IntVar(&w.LinkUID, "link-uid", os.Geteuid(), "account of the link")
		fs.BoolVar(&w.Trial, "trial", false, "this node cannot be production")
		fs.Func("kin", "file of a program that is handrail, too", func(s string) error {
			f, err := inspect.ParseFile(s)
			w.Kin = append(w.Kin, f)
			return err
		})
		fs.Func("hide", "folder that no session may see", func(s string) error { w.Hide = append(w.Hide, s); return nil })
	}
	err := fs.Parse(args)
	if err == nil && fs.NArg() > 0 {
		err = fault.New(fault.Invalid, "%q does not belong here", fs.Arg(0))
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot run the %s", name).WithHint("the node starts it, with what it needs")
	}
	if *form {
		return sayForm(version)
	}
	if w.Resume != 0 {
		if err := endWith(supervisor); err != nil {
			return err
		}
	}
	if name == wardenName {
		w.Dir, w.Socket, w.LinkGID = dir, socket, w.LinkUID
		return warden.Run(ctx, w)
	}
	return link.Run(ctx, link.Config{Dir: dir, Socket: socket, Version: w.Version, Log: log, Ready: SayReady, Entrance: entrance})
}

// DefaultEntrance is where people with vouchers come in unless somebody says
// otherwise. It is open only while no server answers.
const DefaultEntrance = ":7322"

// NoEntrance as the place of an entrance means that there is none.
const NoEntrance = "none"

// EntranceAt reads what somebody asked for: a place, none, or nothing.
func EntranceAt(asked string) (string, error) {
	switch asked {
	case "":
		return DefaultEntrance, nil
	case NoEntrance:
		return "", nil
	}
	if _, port, err := net.SplitHostPort(asked); err != nil || port == "" {
		return "", fault.New(fault.Invalid, "cannot open an entrance at %q: it is not ADDRESS:PORT, nor %s", asked, NoEntrance)
	}
	return asked, nil
}

// Mode is what this machine's node can be: what the sandbox is, not who
// started it, since root of a container may get no more than everybody does.
func (p Place) Mode(report sandbox.Report) string {
	switch {
	case report.Floor == sandbox.Brokered:
		return wire.ModeNoShells
	case p.Root && report.Mode == sandbox.RootMode:
		return wire.ModeRoot
	}
	return wire.ModeUserNamespace
}

// ModeLine says so to people.
func (p Place) ModeLine(report sandbox.Report) string {
	missing := ""
	if len(report.Missing) > 0 {
		missing = "\n  lacking: " + strings.Join(report.Missing, "\n           ")
	}
	switch p.Mode(report) {
	case wire.ModeRoot:
		return fmt.Sprintf("handrail runs as root: each session has an account of its own (floor %s).%s", report.Floor, missing)
	case wire.ModeUserNamespace:
		return fmt.Sprintf("handrail runs in a user namespace: this installation is a trial and cannot be production (floor %s).%s", report.Floor, missing)
	}
	return "handrail runs without shells: this host cannot confine them. Everything else works." + missing
}
