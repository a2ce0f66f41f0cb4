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
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
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
	t          testing.TB
	dir        string
	ring       *keyring.Ring
	store      *store.Store
	people     *identity.People
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
	dir := t.TempDir()
	fatal(t, keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), origin))
	w := &world{t: t, dir: dir, ring: must(keyring.Open(filepath.Join(dir, "keys"))), grants: &grants{force: map[string]doorway.GrantInForce{}}, node: newNode(t)}
	flag := &identity.Flag{}
	migrations := append(identity.Schema(), target.Schema()...)
	migrations = append(append(migrations, policy.Schema()...), session.Schema()...)
	ctx, cancel := context.WithCancel(context.Background())
	w.store = must(store.Open(ctx, store.Config{DSN: "sqlite:" + filepath.Join(dir, "db"), Origin: origin, Signer: w.ring.Log(), Verifier: w.ring.LogVerifier(),
		Seals: w.ring.Subjects(), Bootstrap: flag.Active, Migrations: migrations, Spool: filepath.Join(dir, "spool")}))
	w.people = identity.New(identity.Deps{Store: w.store, Ring: w.ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost:4747"}})
	fatal(t, w.people.Start(ctx))
	hosts, force := target.NewHosts(w.store), policy.NewForce(w.store)
	fatal(t, force.Seed(ctx))
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		e, err := hosts.AddTx(tx, target.Host{Name: "web-1", Environment: "production"})
		return []ledger.Entry{e}, err
	})
	w.host = must(hosts.Get(ctx, "web-1"))
	door := doorway.New(doorway.Deps{Store: w.store, People: w.people, Hosts: hosts, Policy: force, Grants: w.grants})
	w.recordings = must(recording.New(recording.Deps{Dir: filepath.Join(dir, "recordings"), Store: w.store, Subjects: w.ring.Subjects(), Replay: w.ring.Replay(), Bounds: rb}))
	w.sessions = session.New(session.Deps{Store: w.store, Door: door, Hosts: hosts, People: w.people, Grants: w.grants, Rules: force, Nodes: w.node,
		Recordings: w.recordings, Bounds: sb})
	gate := sshgate.New(sshgate.Deps{Sessions: w.sessions, People: w.people, CodeURL: "http://localhost:4747/code", Bounds: gb,
		HostKeys: []ssh.Signer{must(w.ring.SSHHostSigner([]string{"127.0.0.1"})), w.ring.SSHHostKey()}})
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
		_ = w.store.Close()
	})
	return w
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) record(fn func(tx *store.Tx) ([]ledger.Entry, error)) {
	w.t.Helper()
	_, err := w.store.Record(context.Background(), "test-"+rand.Text(), fn)
	fatal(w.t, err)
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
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		p, entries, err := w.people.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups)
		if err != nil {
			return nil, err
		}
		s, e, err := w.people.LoginTokenTx(tx, p.ID, ledger.System, time.Hour)
		who, secret = p, s
		return append(entries, e), err
	})
	dir := w.t.TempDir()
	_, private := must2(ed25519.GenerateKey(rand.Reader))
	signer := must(ssh.NewSignerFromKey(private))
	_, _, cert, err := w.people.Redeem(context.Background(), secret, signer.PublicKey().Marshal(), "laptop", identity.ViaDevice, "127.0.0.1")
	fatal(w.t, err)
	key := filepath.Join(dir, "key")
	fatal(w.t, os.WriteFile(key, pem.EncodeToMemory(must(ssh.MarshalPrivateKey(private, ""))), 0o600))
	fatal(w.t, os.WriteFile(key+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600))
	bundle, _ := w.ring.Bundle()
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
	cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+c.config, "RSYNC_RSH=ssh -F "+c.config, "HOME="+c.w.dir,
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	cmd.Dir = c.w.dir
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
	return must(w.store.Entries(context.Background(), store.EntryQuery{Action: string(action), Limit: 1000}))
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
