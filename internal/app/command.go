package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/role"
)

// Commands are the commands that run a role on this machine.
func Commands(version string) []*cobra.Command {
	return []*cobra.Command{
		upCommand(version), demoCommand(version), nodeCommand(version), joinCommand(), storeCommand(), backupCommand(version), restoreCommand(), doctorCommand(), supportCommand(version), configCommand(),
		serverCommand(version), witnessCommand(), serverRoleCommand(version), halfCommand("warden", "root", version), halfCommand("link", "network", version),
		visitCommand(version), stayCommand(), carryCommand(),
	}
}

// logger is that of a role, whose stderr its supervisor reads, or of a command
// that starts none.
func logger() *slog.Logger { return role.Logger(os.Stderr, slog.LevelWarn) }

// logFlags are how whatever runs here logs; configure sees to it.
func logFlags(cmd *cobra.Command) {
	cmd.Flags().String("log-format", "", "how roles log on stderr: text (default) or json")
	cmd.Flags().String("log-level", "", "from which level on: debug, info, warn (default) or error")
}

func upCommand(version string) *cobra.Command {
	c := UpConfig{Version: version}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start everything on this machine, no configuration",
		Long:  "Starts server, warden and link of this machine and watches them. Ctrl-C stops all of it.",
		Example: `  handrail up                                          # everything on this machine
  handrail up --data ./data --listen 127.0.0.1:8080    # data and page where you say`,
		Args: cobra.NoArgs, PreRunE: c.configureUp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return Up(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&c.Data, "data", "", "folder for all data (default /var/lib/handrail as root, else below your home)")
	cmd.Flags().StringVar(&c.Listen, "listen", "", "address of page, API and nodes (default 127.0.0.1:7080 or the next free port)")
	cmd.Flags().StringVar(&c.SSHListen, "ssh-listen", "", "address of the SSH gateway (default 127.0.0.1:7022 or the next free port)")
	entranceFlag(cmd, &c.Entrance, "loopback"+role.DefaultEntrance)
	publicFlags(cmd, &c)
	return cmd
}

// publicFlags are what an installation off loopback may need.
func publicFlags(cmd *cobra.Command, c *UpConfig) {
	f := cmd.Flags()
	f.StringVar(&c.Database, "database", "", "PostgreSQL URL (default: SQLite in the data folder)")
	f.StringVar(&c.Route, "route-listen", "", "address for the other servers' messages, with PostgreSQL (default: beside the page, any free port)")
	f.StringVar(&c.URL, "url", "", "address that people use for the page, if not the one listened on")
	f.StringVar(&c.Cert, "cert", "", "certificate file for browsers (PEM; default: the installation's own authority)")
	f.StringVar(&c.Key, "key", "", "key file of --cert (PEM)")
	logFlags(cmd)
}

func demoCommand(version string) *cobra.Command {
	c := UpConfig{Version: version}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show all of it: three lab hosts, four people, a short story",
		Long:  "Runs a real installation in a folder of its own, with hosts made of namespaces. Ctrl-C ends it and removes the folder.",
		Example: `  sudo handrail demo                   # in a folder that is removed at the end
  sudo handrail demo --data ./demo     # keep the folder`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return Demo(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&c.Data, "data", "", "folder for the demo's data (default: a new one, removed at the end)")
	cmd.Flags().StringVar(&c.Listen, "listen", "", "address of the page (default 127.0.0.1:7080 or the next free port)")
	cmd.Flags().StringVar(&c.SSHListen, "ssh-listen", "", "address of the SSH gateway (default 127.0.0.1:7022 or the next free port)")
	return cmd
}

// serverCommand is the server without a node of this machine.
func serverCommand(version string) *cobra.Command {
	c := UpConfig{Version: version, ServerOnly: true}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the server alone, for more machines",
		Long:  "Starts the server without a node on this machine. Hosts come by `handrail host invite`.",
		Example: `  handrail server --listen 0.0.0.0:7080 --ssh-listen 0.0.0.0:7022 --url https://handrail.example.org:7080
  handrail server --database postgres://handrail@db/handrail   # PostgreSQL instead of SQLite`,
		Args: cobra.NoArgs, PreRunE: c.configureUp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return Up(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Data, "data", "", "folder for all data")
	f.StringVar(&c.Listen, "listen", "", "address of page, API and nodes")
	f.StringVar(&c.SSHListen, "ssh-listen", "", "address of the SSH gateway")
	publicFlags(cmd, &c)
	cmd.AddCommand(serverJoinCommand())
	return cmd
}

// serverRoleCommand is the process that the supervisor starts.
func serverRoleCommand(version string) *cobra.Command {
	c := ServerConfig{Version: version}
	var fd, sshFD, machineFD int
	var given bool
	cmd := &cobra.Command{
		Use: "server-role", Hidden: true, Args: cobra.NoArgs,
		Short: "Be the server that the supervisor started",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Log, c.Database = logger(), os.Getenv(databaseEnv)
			var err error
			if c.sections, err = takeSections(os.Getenv(sectionsEnv)); err != nil {
				return err
			}
			if c.Listener, err = givenPort(fd); err != nil {
				return err
			}
			if c.SSHListener, err = givenPort(sshFD); err != nil {
				return err
			}
			if given {
				if c.Given, err = givenCertificate(machineFD+1, machineFD+2); err != nil {
					return err
				}
			}
			return RunServer(cmd.Context(), c, os.NewFile(uintptr(machineFD), "machine"), role.SayReady)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Data, "data", "", "folder of the data, as this process sees it")
	f.StringVar(&c.Shown, "shown-data", "", "the same as people know it")
	f.StringVar(&c.URL, "url", "", "address that people use for the page")
	f.StringVar(&c.Route, "route-listen", "", "address for the other servers' messages")
	f.IntVar(&c.Owner, "owner", os.Geteuid(), "account that owns the installation")
	f.BoolVar(&c.Demo, "demo", false, "mark every page as a demo")
	f.IntVar(&fd, "listen-fd", 3, "open file of the page's port")
	f.IntVar(&sshFD, "ssh-listen-fd", 4, "open file of the gateway's port")
	f.IntVar(&machineFD, "machine-fd", 5, "where the supervisor says what this machine gives")
	f.BoolVar(&given, "given-cert", false, "certificate and key follow as open files")
	return cmd
}

// databaseEnv carries the database's URL to the server's process: it may hold
// a password, which an argument would show to everybody on the machine.
const databaseEnv = "HANDRAIL_DATABASE"

// givenPort takes over a port that the supervisor opened.
func givenPort(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "port")
	if f == nil {
		return nil, fault.New(fault.Invalid, "cannot take over port descriptor %d", fd).WithHint("handrail up, or handrail server")
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot take over port descriptor %d", fd).WithHint("handrail up, or handrail server")
	}
	return l, nil
}

// maxPEM bounds a certificate or key file.
const maxPEM = 1 << 20

// givenCertificate reads the certificate that the supervisor opened: the
// server's account may not be able to. The files are read from their start,
// since an earlier server may have read them before.
func givenCertificate(certFD, keyFD int) (*tls.Certificate, error) {
	var pem [2][]byte
	for i, fd := range []int{certFD, keyFD} {
		f := os.NewFile(uintptr(fd), "certificate")
		defer f.Close()
		data, err := io.ReadAll(io.NewSectionReader(f, 0, maxPEM))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the certificate")
		}
		pem[i] = data
	}
	cert, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot use the certificate").WithHint("--cert and --key are PEM files that belong together")
	}
	return &cert, nil
}

// halfCommand is one of the node's two roles; its flags are between it and
// whoever starts it.
func halfCommand(name, what, version string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true,
		Short: "Run the node's " + what + " half alone",
		RunE: func(cmd *cobra.Command, args []string) error {
			return role.RunHalf(cmd.Context(), name, args, version, logger())
		},
	}
}

func joinCommand() *cobra.Command {
	var data, file, witnesses string
	var o link.JoinOptions
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Join this machine to an installation as a host",
		Long:  "Takes the token of `handrail host invite` by prompt, stdin or file, never as an argument.\nThe key is made here. Then run `handrail node`.",
		Example: `  handrail join                       # paste the token
  handrail join --token-file invite   # read it from a file
  handrail join --witnesses policy    # take orders only that these outsiders saw (C2SP tlog-policy)`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			token, err := readToken(cmd, file)
			if err != nil {
				return err
			}
			if witnesses != "" {
				if o.Witnesses, err = os.ReadFile(witnesses); err != nil {
					return fault.Wrap(fault.Invalid, err, "cannot read the witnesses").WithHint("on the server: handrail ledger witness policy > witnesses")
				}
			}
			at, err := role.Prepare(dir, false)
			if err != nil {
				return err
			}
			joined, err := at.Join(cmd.Context(), token, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "joined as %s (%s)\n", joined.Name, joined.Node)
			fmt.Fprintf(cmd.ErrOrStderr(), "start it: handrail node --data %s\n", dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder for the node's data")
	cmd.Flags().StringVar(&o.Hostname, "name", "", "this host's name (default: its hostname)")
	cmd.Flags().StringVar(&file, "token-file", "", "file that holds the token")
	cmd.Flags().StringVar(&witnesses, "witnesses", "", "file (C2SP tlog-policy) of the witnesses that must have cosigned each order for this host")
	return cmd
}

// maxToken bounds what is read as a token.
const maxToken = 4096

func readToken(cmd *cobra.Command, file string) (string, error) {
	in := cmd.InOrStdin()
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fault.Wrap(fault.Invalid, err, "cannot read the token")
		}
		defer f.Close()
		in = f
	} else {
		fmt.Fprint(cmd.ErrOrStderr(), "token: ")
	}
	raw, err := io.ReadAll(io.LimitReader(onlyLine{in}, maxToken))
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fault.Wrap(fault.Invalid, err, "cannot read the token")
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fault.New(fault.Invalid, "cannot join without a token").WithHint("handrail host invite  on the server prints one")
	}
	return token, nil
}

// onlyLine reads up to the first newline.
type onlyLine struct{ r io.Reader }

func (l onlyLine) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := l.r.Read(p[:1])
	if n == 1 && p[0] == '\n' {
		return 0, io.EOF
	}
	return n, err
}

func nodeCommand(version string) *cobra.Command {
	var data, entrance string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run this machine's node, after join",
		Example: `  handrail node                              # after join
  handrail node --data /var/lib/handrail     # from another folder`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataFolder(data)
			if err != nil {
				return err
			}
			at, err := role.EntranceAt(entrance)
			if err != nil {
				return err
			}
			return role.RunNode(cmd.Context(), dir, nodeOf(at, version), newerNode, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "folder of the node's data")
	entranceFlag(cmd, &entrance, role.DefaultEntrance)
	logFlags(cmd)
	cmd.AddCommand(nodeUpgradeCommand())
	return cmd
}
