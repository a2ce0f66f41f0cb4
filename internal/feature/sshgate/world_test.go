package sshgate_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/sshgate"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

const origin = "test.handrail.internal/log"

// grants is a table of grants that a test fills.
type grants struct {
	mu    sync.Mutex
	force map[string]doorway.GrantInForce
}

func (g *grants) Forwarding(q store.Queryer, person, host, destination string, now time.Time) (doorway.GrantInForce, bool, error) {
	f, ok, err := g.Active(q, person, host, now)
	return f, ok && wire.ForwardAllowed(f.Forwards, destination), err
}

func (g *grants) Active(_ store.Queryer, person, host string, _ time.Time) (doorway.GrantInForce, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	got, ok := g.force[person+host]
	return got, ok, nil
}

// world is an installation with a gateway on loopback, one host whose node is
// a stand-in, and everything else real.
type world struct {
	*house.House
	t          testing.TB
	grants     *grants
	host       target.Host
	node       *node
	recordings *recording.Recordings
	sessions   *session.Sessions
	addr       *net.TCPAddr
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newWorld(t testing.TB) *world { return newWorldWith(t, recording.Bounds{}, session.Bounds{}) }

func newWorldWith(t testing.TB, rb recording.Bounds, sb session.Bounds) *world {
	t.Helper()
	return newWorldBehind(t, rb, sb, sshgate.Bounds{})
}

func newWorldBehind(t testing.TB, rb recording.Bounds, sb session.Bounds, gb sshgate.Bounds) *world {
	t.Helper()
	w := &world{House: house.Build(t, house.Plan{Migrations: session.Schema()}), t: t, grants: &grants{force: map[string]doorway.GrantInForce{}}, node: newNode(t)}
	ctx, cancel := context.WithCancel(context.Background())
	w.host = w.Host("web-1", "production")
	door := doorway.New(doorway.Deps{Store: w.Store, People: w.People, Hosts: w.Hosts, Policy: w.Force, Grants: w.grants})
	w.recordings = must(recording.New(recording.Deps{Dir: filepath.Join(w.Dir, "recordings"), Store: w.Store, Subjects: w.Ring.Subjects(), Replay: w.Ring.Replay(), Bounds: rb}))
	w.sessions = session.New(session.Deps{Store: w.Store, Door: door, Hosts: w.Hosts, People: w.People, Grants: w.grants, Rules: w.Force, Nodes: w.node,
		Recordings: w.recordings, Bounds: sb})
	gate := sshgate.New(sshgate.Deps{Sessions: w.sessions, People: w.People, CodeURL: "http://localhost:4747/code", Bounds: gb,
		HostKeys: []ssh.Signer{must(w.Ring.SSHHostSigner([]string{"127.0.0.1"})), w.Ring.SSHHostKey()}})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	w.addr = ln.Addr().(*net.TCPAddr)
	var running sync.WaitGroup
	running.Add(2)
	go func() { defer running.Done(); _ = w.recordings.Run(ctx) }()
	go func() { defer running.Done(); _ = gate.Serve(ctx, ln) }()
	t.Cleanup(func() {
		w.sessions.Shutdown(ctx)
		cancel()
		running.Wait()
		w.Close()
	})
	return w
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// client is a person with an ssh configuration of their own.
type client struct {
	w      *world
	id     string
	config string
	signer ssh.Signer
}

// person adds somebody who has logged in with a device key.
func (w *world) person(name string, groups ...string) *client {
	w.t.Helper()
	var who identity.Person
	var secret string
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		p, entries, err := w.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups)
		if err != nil {
			return nil, err
		}
		s, e, err := w.People.LoginTokenTx(tx, p.ID, ledger.System, time.Hour)
		who, secret = p, s
		return append(entries, e), err
	})
	dir := w.t.TempDir()
	_, private := must2(ed25519.GenerateKey(rand.Reader))
	signer := must(ssh.NewSignerFromKey(private))
	_, _, cert, err := w.People.Redeem(context.Background(), secret, signer.PublicKey().Marshal(), "laptop", identity.ViaDevice, "127.0.0.1")
	fatal(w.t, err)
	key := filepath.Join(dir, "key")
	fatal(w.t, os.WriteFile(key, pem.EncodeToMemory(must(ssh.MarshalPrivateKey(private, ""))), 0o600))
	fatal(w.t, os.WriteFile(key+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600))
	bundle, _ := w.Ring.Bundle()
	known := filepath.Join(dir, "known")
	fatal(w.t, os.WriteFile(known, []byte("@cert-authority * "+strings.TrimSpace(bundle.SSHHostCA[0])+"\n"), 0o600))
	config := filepath.Join(dir, "config")
	fatal(w.t, os.WriteFile(config, fmt.Appendf(nil, "Host *\n  HostName 127.0.0.1\n  Port %d\n  IdentityFile %s\n  CertificateFile %s-cert.pub\n"+
		"  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n", w.addr.Port, key, key, known), 0o600))
	certified := must(ssh.NewCertSigner(cert, signer))
	return &client{w: w, id: who.ID, config: config, signer: certified}
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

// grant puts a grant in force.
func (c *client) grant(g doorway.GrantInForce) {
	c.w.grants.mu.Lock()
	defer c.w.grants.mu.Unlock()
	if g.Expires == 0 {
		g.Expires = time.Now().Add(time.Hour).UnixMicro()
	}
	if g.Account == "" {
		g.Account = "root"
	}
	c.w.grants.force[c.id+c.w.host.ID] = g
}

// result is how a stock client ended.
type result struct {
	out, err string
	status   int
}

// run runs a stock client with the person's configuration.
func (c *client) run(stdin string, name string, args ...string) result {
	c.w.t.Helper()
	cmd := c.command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (c *client) command(name string, args ...string) *exec.Cmd {
	switch name {
	case "ssh", "scp", "sftp":
		args = append([]string{"-F", c.config}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.w.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+c.config, "RSYNC_RSH=ssh -F "+c.config, "HOME="+c.w.Dir,
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	cmd.Dir = c.w.Dir
	return cmd
}

// dial connects with the Go client.
func (c *client) dial(user string) *ssh.Client {
	c.w.t.Helper()
	conn, err := ssh.Dial("tcp", "127.0.0.1:"+strconv.Itoa(c.w.addr.Port), &ssh.ClientConfig{User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(c.signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute})
	fatal(c.w.t, err)
	c.w.t.Cleanup(func() { conn.Close() })
	return conn
}

// entries are those of an action, newest first.
func (w *world) entries(action ledger.Action) []ledger.Recorded {
	w.t.Helper()
	return must(w.Store.Entries(context.Background(), store.EntryQuery{Action: string(action), Limit: 1000}))
}

// eventually waits for what another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
