package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/sandbox"
	"handrail.dev/handrail/internal/host/warden"
)

// UpConfig is what `handrail up` was asked for. The zero value is everything
// embedded on this machine.
type UpConfig struct {
	Data      string // "": the default
	Listen    string // "": loopback, the first free port from 7080
	SSHListen string // "": loopback, the first free port from 7022
	Database  string // "": SQLite in the data folder
	URL       string // "": from Listen
	Route     string // for the other servers' messages; "": beside the page
	Entrance  string // "": loopback; where people with vouchers come in while no server answers
	Cert, Key string // "": the installation's own authority; else PEM files for browsers
	Demo      bool   // mark every page as a demo
	// ServerOnly starts no node of this machine.
	ServerOnly bool
	Quiet      bool // print nothing but errors
	Version    string
	sections   sections // of the configuration file
	Out        io.Writer
	// Also runs once all is up, for example the demo's story.
	Also func(ctx context.Context, running Running) error
}

// Running is what a started installation offers on this machine.
type Running struct {
	Data, URL, SSH, Link, Mode string
	Binary                     string
}

const (
	defaultPage = 7080
	defaultSSH  = 7022
	// tryPorts is how many ports after the default are tried.
	tryPorts = 20
	// upTime bounds the wait for the server's first breath.
	upTime = 30 * time.Second
)

// Up starts server, warden and link on this machine and watches them until
// ctx ends.
func Up(ctx context.Context, c UpConfig) error {
	dir, err := dataFolder(c.Data)
	if err != nil {
		return err
	}
	at, err := role.Prepare(dir, true)
	if err != nil {
		return err
	}
	lock, err := at.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	page, ssh, err := openPorts(c)
	if err != nil {
		return err
	}
	defer page.Close()
	defer ssh.Close()
	s := &supervisor{at: at, c: c, page: page, ssh: ssh, looked: make(chan struct{})}
	say, hear, err := machineWord()
	if err != nil {
		return err
	}
	defer hear.Close()
	s.machine = hear
	looking, stop := context.WithCancel(ctx)
	go s.look(looking, say)
	defer func() { stop(); <-s.looked }() // it removes what it made
	if err := makeKeys(at); err != nil {
		return err
	}
	if err := lock.Say(role.Running{PID: os.Getpid(), Listen: page.Addr().String(), SSH: ssh.Addr().String(), Version: c.Version}); err != nil {
		return err
	}
	return s.run(ctx)
}

// look tries what this machine gives to sessions, and tells the server.
func (s *supervisor) look(ctx context.Context, server *os.File) {
	defer close(s.looked)
	if !s.c.ServerOnly {
		s.report = sandbox.Probe(ctx, []string{s.at.Dir})
	}
	s.untold = machine{Mode: s.mode(), Missing: s.report.Missing}.say(server)
}

// openPorts opens both ports before anything is written. A port that was
// asked for and is taken is an error; a default that is taken moves on.
func openPorts(c UpConfig) (page, ssh *net.TCPListener, err error) {
	if page, err = openPort("page", "--listen", c.Listen, defaultPage); err != nil {
		return nil, nil, err
	}
	if ssh, err = openPort("ssh", "--ssh-listen", c.SSHListen, defaultSSH); err != nil {
		page.Close()
		return nil, nil, err
	}
	return page, ssh, nil
}

// unanswered is how long bytes on their way to a caller may stay without an
// answer. The kernel alone would try for a quarter of an hour (tcp_retries2), and
// who vanished without a word would hold their session as long.
const unanswered = 2 * time.Minute

// listen opens a port whose connections the kernel gives up once a caller has
// been silent for too long (TCP_USER_TIMEOUT, RFC 5482): accepted connections
// inherit it, in the role too that is handed the port.
func listen(address string) (*net.TCPListener, error) {
	var failed error
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
		})
		return errors.Join(err, failed)
	}}
	l, err := c.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func openPort(what, flag, asked string, first int) (*net.TCPListener, error) {
	if asked != "" {
		l, err := listen(asked)
		if err != nil {
			return nil, fault.Wrap(fault.Conflict, err, "cannot open the %s port %s", what, asked).
				WithHint("choose another: %s 127.0.0.1:0 takes a free one", flag)
		}
		return l, nil
	}
	var last error
	for port := first; port < first+tryPorts; port++ {
		l, err := listen(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fault.Wrap(fault.Conflict, last, "cannot open a %s port from %d to %d", what, first, first+tryPorts-1).
		WithHint("%s 127.0.0.1:0 takes a free one", flag)
}

// makeKeys makes the ring before the server has ever run. Only here is the root
// key touched: afterwards no role can enter its folder.
//
// Once the server has run, its folder is the server's: whatever root did in
// there by name (finish a ring that says it is half made, give files away)
// would be done to whatever the server had put in that place. So a file that
// only the owner can write says that the ring is made. If we crash before it is
// written, the server has not run yet and all is done again.
func makeKeys(at role.Place) error {
	p := place(at.Dir)
	if _, err := os.Lstat(p.keysMade()); err == nil {
		if _, err := os.Lstat(p.keys()); err != nil {
			return fault.Wrap(fault.Conflict, err, "cannot start: the keys of this installation are gone").
				WithHint("restore %s from a backup, or begin anew in another folder: handrail up --data DIR", p.keys())
		}
		return nil
	}
	host, err := ownName()
	if err != nil {
		return err
	}
	if err := keyring.Init(p.keys(), p.rootKey(), "handrail/"+host); err != nil {
		return err
	}
	if at.Root {
		if err := giveTo(p.server(), "keys", at.Server); err != nil {
			return err
		}
	}
	return p.noteKeysMade()
}

// giveTo gives a folder below dir, and what is in it, to an account. No link
// leads it out of dir, whoever turns one while it walks.
func giveTo(dir, name string, uid int) error {
	in, err := os.OpenRoot(dir)
	if err == nil {
		defer in.Close()
		err = fs.WalkDir(in.FS(), name, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return in.Lchown(path, uid, uid)
		})
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot give %s to account %d", filepath.Join(dir, name), uid)
	}
	return nil
}

// supervisor starts the roles in order and stops them in the reverse.
type supervisor struct {
	at        role.Place
	c         UpConfig
	page, ssh *net.TCPListener
	machine   *os.File // where the server hears of it

	looked chan struct{} // closed when these are known
	report sandbox.Report
	untold error

	madeAccount bool // the account for write sessions was made just now
}

func (s *supervisor) run(ctx context.Context) error {
	serverRole, err := s.serverRole()
	if err != nil {
		return err
	}
	errs := s.at.Said(role.Stderr())
	log := role.Logger(errs, slog.LevelWarn)
	node := role.NewWatch(s.at, os.Stdout, errs, log)
	server := role.NewWatch(s.at, os.Stdout, errs, log)
	// The server ends its sessions through the node, so the node goes last.
	defer func() {
		node.Mute()
		server.Stop()
		node.Stop()
	}()
	unpacked := make(chan role.Node, 1) // while the server starts
	go func() {
		<-s.looked // two at a time are enough for a small machine
		unpacked <- nodeOf(s.entrance(), s.c.Version)
	}()
	err = server.Start(ctx, serverRole)
	<-s.looked
	if err = errors.Join(s.untold, err); err != nil {
		return err
	}
	if !s.c.ServerOnly {
		if err := s.joinSelf(ctx); err != nil {
			return err
		}
		if s.madeAccount, err = node.StartNode(ctx, s.report, <-unpacked); err != nil {
			return err
		}
		stop, err := node.ServeUpgrades(ctx, newerNode)
		if err != nil {
			return err
		}
		defer stop()
	}
	running, err := s.greet(ctx)
	if err != nil {
		return err
	}
	role.SayServing(log)
	if s.c.Also != nil {
		if err := s.c.Also(ctx, running); err != nil && ctx.Err() == nil {
			return err
		}
	}
	<-ctx.Done()
	if !s.c.Quiet {
		fmt.Fprintln(s.c.Out, "\nhandrail stops: sessions end, the ledger is closed.")
	}
	return nil
}

// serverAlone is the mode of a machine that has no sessions, so that what its
// kernel gives them says nothing about the installation.
const serverAlone = "server-only"

func (s *supervisor) mode() string {
	if s.c.ServerOnly {
		return serverAlone
	}
	return s.at.Mode(s.report)
}

func (s *supervisor) serverRole() (role.Role, error) {
	args := []string{
		"server-role", "--data", s.at.Seen(s.at.Server), "--shown-data", s.at.Dir, "--owner", strconv.Itoa(os.Geteuid()),
		"--url", s.c.URL, "--route-listen", s.c.Route,
	}
	if s.c.Demo {
		args = append(args, "--demo")
	}
	tables, err := s.c.sections.hand()
	if err != nil {
		return role.Role{}, fault.Wrap(fault.Internal, err, "cannot hand the configuration to the server")
	}
	r := role.Role{Name: "server", Args: args, Account: s.at.Server, Env: []string{databaseEnv + "=" + s.c.Database, sectionsEnv + "=" + tables}}
	for _, l := range []*net.TCPListener{s.page, s.ssh} {
		f, err := l.File()
		if err != nil {
			return r, fault.Wrap(fault.Internal, err, "cannot hand a port to the server")
		}
		r.Files = append(r.Files, f)
	}
	r.Files = append(r.Files, s.machine)
	return r, s.addCertificate(&r)
}

// addCertificate hands the given certificate on as open files.
func (s *supervisor) addCertificate(r *role.Role) error {
	if s.c.Cert == "" && s.c.Key == "" {
		return nil
	}
	for _, name := range []string{s.c.Cert, s.c.Key} {
		f, err := os.Open(name)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read the certificate").WithHint("give both: --cert FILE --key FILE")
		}
		r.Files = append(r.Files, f)
	}
	r.Args = append(r.Args, "--given-cert")
	return nil
}

// joinSelf makes this machine the first host, once. It goes the way every
// host goes: a token, a key made here, a pin.
func (s *supervisor) joinSelf(ctx context.Context) error {
	if s.at.Joined() {
		return nil
	}
	host, err := ownName()
	if err != nil {
		return err
	}
	answer, err := askLocal(ctx, s.at.Dir, "join", localQuestion{Hostname: host, Mode: s.mode(), Trial: s.mode() != wire.ModeRoot})
	if err != nil {
		return err
	}
	_, err = s.at.Join(ctx, answer.Token, link.JoinOptions{Hostname: host})
	return err
}

// greet prints what a person needs to begin.
func (s *supervisor) greet(ctx context.Context) (Running, error) {
	answer, err := askLocal(ctx, s.at.Dir, "login", localQuestion{})
	// After bootstrap there is no link: the server's own account is no way in.
	if err != nil && fault.KindOf(err) != fault.Conflict && fault.KindOf(err) != fault.Denied {
		return Running{}, err
	}
	_, sshPort, _ := net.SplitHostPort(s.ssh.Addr().String())
	r := Running{
		Data: s.at.Dir, URL: pageURL(s.page.Addr()), SSH: s.ssh.Addr().String(), Link: answer.Link, Mode: s.mode(),
	}
	if s.c.Quiet {
		return r, nil
	}
	host, _ := os.Hostname()
	if s.c.ServerOnly {
		fmt.Fprintln(s.c.Out, "handrail runs the server alone: sessions run on the hosts that join it.")
	} else {
		fmt.Fprintln(s.c.Out, s.at.ModeLine(s.report))
	}
	fmt.Fprintf(s.c.Out, "\n  data    %s\n", r.Data)
	if answer.Damage != "" {
		fmt.Fprintf(s.c.Out, "\n  DAMAGED %s\n          nothing is recorded, so nothing starts; reading and brakes work.\n          What was touched: handrail ledger verify --local --data %s\n\n", answer.Damage, r.Data)
	}
	if r.Link != "" {
		fmt.Fprintf(s.c.Out, "  page    %s\n          opens once, within 15 minutes\n", r.Link)
	} else {
		fmt.Fprintf(s.c.Out, "  page    %s\n          log in with your passkey, or: handrail login-link NAME\n", r.URL)
	}
	if s.c.ServerOnly {
		host = "HOST"
	}
	fmt.Fprintf(s.c.Out, "  ssh     ssh -p %s %s@localhost\n", sshPort, host)
	fmt.Fprintf(s.c.Out, "  shell   handrail login --local --data %s && handrail ssh %s\n", r.Data, host)
	fmt.Fprintf(s.c.Out, "  another host   handrail host invite\n\n")
	remove := "rm -rf " + r.Data
	if s.madeAccount {
		fmt.Fprintf(s.c.Out, "made the account %s for write sessions; policy can name another\n", warden.WriteAccount)
		remove += " && userdel -r " + warden.WriteAccount
	}
	fmt.Fprintf(s.c.Out, "Ctrl-C stops it. To remove everything: %s\n", remove)
	return r, nil
}

func pageURL(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "http://" + a.String()
	}
	if tcp.IP.IsLoopback() {
		return fmt.Sprintf("http://localhost:%d", tcp.Port)
	}
	if tcp.IP.IsUnspecified() {
		host, err := os.Hostname()
		if err == nil {
			return "https://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
		}
	}
	return "https://" + a.String()
}

// LocalToken asks the server of a data folder on this machine for a login
// token of the first person; it is `handrail login --local`.
func LocalToken(ctx context.Context, dir string) (string, error) {
	dir, err := dataFolder(dir)
	if err != nil {
		return "", err
	}
	answer, err := askLocal(ctx, dir, "login", localQuestion{})
	if err == nil && answer.Damage != "" {
		err = fault.New(fault.Conflict, "cannot log in: the ledger accepts no new entry: %s", answer.Damage).
			WithHint("handrail ledger verify --local --data %s", dir)
	}
	return answer.Token, err
}

// LocalVerify has the server of a data folder on this machine verify its
// ledger; it is `handrail ledger verify --local`.
func LocalVerify(ctx context.Context, dir string) (*handrailv1.VerifyResponse, error) {
	dir, err := dataFolder(dir)
	if err != nil {
		return nil, err
	}
	answer, err := askLocal(ctx, dir, "verify", localQuestion{})
	if err != nil {
		return nil, err
	}
	report := &handrailv1.VerifyResponse{}
	if err := protojson.Unmarshal(answer.Report, report); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the server's answer")
	}
	return report, nil
}
