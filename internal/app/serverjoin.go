package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/host/link"
	"handrail.dev/handrail/internal/host/role"
)

// joinAgain is how often a joining server asks whether somebody has agreed.
const joinAgain = 2 * time.Second

// ServerJoin is what `handrail server join` was asked for.
type ServerJoin struct {
	Data         string
	Address, SSH string // where it will be reached
	For          time.Duration
	Say          io.Writer
}

func serverJoinCommand() *cobra.Command {
	var j ServerJoin
	var file, listen, ssh, url string
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Join this machine to an installation as another server",
		Long: "Takes the token of `handrail server invite` by prompt, stdin or file, never as an argument.\n" +
			"A key is made here. Somebody compares it, agrees, and the installation's keys come sealed to it.\n" +
			"The root key never travels. Then run `handrail server --database URL` with the same database.",
		Example: `  handrail server join --listen 10.0.0.2:7080 --ssh-listen 10.0.0.2:7022   # paste the token
  handrail server join --token-file invite --url https://b.example.org:7080`,
		Args: cobra.NoArgs, PreRunE: configure,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if j.Data, err = dataFolder(j.Data); err != nil {
				return err
			}
			if j.Address, j.SSH, err = advertised(listen, ssh, url); err != nil {
				return err
			}
			token, err := readToken(cmd, file)
			if err != nil {
				return err
			}
			j.Say = cmd.ErrOrStderr()
			name, err := j.Run(cmd.Context(), token)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "joined as server %s\n", name)
			fmt.Fprintf(cmd.ErrOrStderr(), "start it: handrail server --data %s --database URL, with the same --listen, --ssh-listen and --url\n", j.Data)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&j.Data, "data", "", "folder for all data")
	f.StringVar(&listen, "listen", "", "address of page, API and nodes, as `handrail server` will have it")
	f.StringVar(&ssh, "ssh-listen", "", "address of the SSH gateway, as `handrail server` will have it")
	f.StringVar(&url, "url", "", "address that people use for the page, if not the one listened on")
	f.StringVar(&file, "token-file", "", "file that holds the token")
	f.DurationVar(&j.For, "wait", time.Hour, "how long to wait for somebody to agree")
	return cmd
}

// advertised is where nodes, servers and people reach a server that listens so.
func advertised(listen, ssh, url string) (address, gateway string, err error) {
	address, gateway = listen, ssh
	if _, rest, ok := strings.Cut(url, "://"); ok {
		address = strings.TrimSuffix(rest, "/")
	}
	for _, a := range []string{address, gateway} {
		host, port, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || port == "0" || ip != nil && ip.IsUnspecified() {
			return "", "", fault.New(fault.Invalid, "cannot join as a server that is reached at %q: nodes and other servers need an address", a).
				WithHint("handrail server join --listen HOST:PORT --ssh-listen HOST:PORT")
		}
	}
	return address, gateway, nil
}

// Run asks, waits for somebody to agree, and puts the keys in place.
func (j ServerJoin) Run(ctx context.Context, token string) (name string, err error) {
	at, err := role.Prepare(j.Data, true)
	if err != nil {
		return "", err
	}
	lock, err := at.Lock()
	if err != nil {
		return "", err
	}
	defer lock.Close()
	p := place(j.Data)
	if _, err := os.Lstat(p.keysMade()); !errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.Conflict, "cannot join: %s belongs to an installation already", j.Data).WithHint("name an empty folder: --data DIR")
	}
	chest, err := keyring.MakeChest(p.at("root", "joining"))
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, j.For)
	defer cancel()
	var said bool
	for {
		var reply struct {
			Server, Name, Approval, Fingerprint string
			Keys                                []byte
		}
		t, err := link.Ask(ctx, token, "/handrail.v1.Servers/Join", map[string]any{
			"token": token, "key": chest.Public(), "address": j.Address, "sshAddress": j.SSH}, &reply)
		if err != nil {
			return "", err
		}
		if len(reply.Keys) > 0 {
			return reply.Name, j.keep(at, chest, t.RootHash, reply.Server, reply.Keys)
		}
		if !said {
			said = true
			fmt.Fprintf(j.Say, "key      %s\nwaits for somebody who compares it and agrees: handrail approve %s\n", keyring.Fingerprint(chest.Public()), reply.Approval)
		}
		select {
		case <-ctx.Done():
			return "", fault.New(fault.NeedsApproval, "cannot join yet: nobody has agreed to %s", reply.Approval).
				WithHint("run this again; the key stays the same")
		case <-time.After(joinAgain):
		}
	}
}

// keep puts ring and id in place. keys-made comes last: if we crash before it,
// the same token brings the same keys again.
func (j ServerJoin) keep(at role.Place, chest *keyring.Chest, rootHash, server string, sealed []byte) error {
	p := place(j.Data)
	if err := (peer.Server{ID: server}).CheckID(); err != nil {
		return err
	}
	if _, err := keyring.Open(p.keys()); err != nil {
		if err := chest.Unpack(p.keys(), rootHash, server, sealed); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(p.server(), serverFile), []byte(server+"\n"), 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep what the join brought in %s", j.Data)
	}
	if at.Root {
		for _, name := range []string{"keys", serverFile} {
			if err := giveTo(p.server(), name, at.Server); err != nil {
				return err
			}
		}
	}
	if err := p.noteKeysMade(); err != nil {
		return err
	}
	return chest.Remove()
}
