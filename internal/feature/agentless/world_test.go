package agentless_test

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
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/agentless"
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
	"handrail.dev/handrail/test/sshd"
)

// reach gives sessions the hosts without a node, which here are all.
type reach struct{ *agentless.Reach }

func (r reach) Start(ctx context.Context, pass doorway.Pass, host string, _ bool) (session.Stream, wire.SessionAnswer, error) {
	s, a, err := r.Reach.Start(ctx, pass, host)
	if err != nil {
		return nil, a, err
	}
	return s, a, nil
}

func (r reach) Brake(ctx context.Context, b wire.Brake) ([]wire.BrakeAnswer, error) {
	return r.Reach.Brake(ctx, b), nil
}

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

// world is an installation with a gateway and hosts that are reached over SSH.
type world struct {
	*house.House
	t          testing.TB
	grants     *grants
	reach      *agentless.Reach
	recordings *recording.Recordings
	sessions   *session.Sessions
	gate       *net.TCPAddr
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB, b agentless.Bounds, sb session.Bounds) *world {
	t.Helper()
	w := &world{t: t, House: house.Build(t, house.Plan{Migrations: session.Schema()}), grants: &grants{force: map[string]doorway.GrantInForce{}}}
	ctx, cancel := context.WithCancel(context.Background())
	door := doorway.New(doorway.Deps{Store: w.Store, People: w.People, Hosts: w.Hosts, Policy: w.Force, Grants: w.grants})
	w.recordings = must(recording.New(recording.Deps{Dir: filepath.Join(w.Dir, "recordings"), Store: w.Store, Subjects: w.Ring.Subjects(), Replay: w.Ring.Replay()}))
	w.reach = agentless.New(agentless.Deps{Store: w.Store, Ring: w.Ring, Bounds: b})
	w.sessions = session.New(session.Deps{Store: w.Store, Door: door, Hosts: w.Hosts, People: w.People, Grants: w.grants, Rules: w.Force, Nodes: reach{w.reach},
		Recordings: w.recordings, Bounds: sb})
	gate := sshgate.New(sshgate.Deps{Sessions: w.sessions, People: w.People, CodeURL: "http://localhost:4747/code",
		HostKeys: []ssh.Signer{must(w.Ring.SSHHostSigner([]string{"127.0.0.1"})), w.Ring.SSHHostKey()}})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	w.gate = ln.Addr().(*net.TCPAddr)
	var running sync.WaitGroup
	running.Go(func() { _ = w.recordings.Run(ctx) })
	running.Go(func() { _ = gate.Serve(ctx, ln) })
	running.Go(func() { _ = w.reach.Run(ctx) })
	t.Cleanup(func() {
		w.sessions.Shutdown(ctx)
		cancel()
		running.Wait()
		w.Close()
	})
	return w
}

// add adds a host without a node.
func (w *world) add(h target.Host) target.Host {
	w.t.Helper()
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		var e ledger.Entry
		var err error
		h, e, err = w.Hosts.AddSSHTx(tx, "system", h)
		return []ledger.Entry{e}, err
	})
	return h
}

// debian adds a host that is Debian's sshd with two accounts which trust us.
func (w *world) debian(environment string, lines ...string) (*sshd.Server, target.Host) {
	w.t.Helper()
	sshd.Need(w.t)
	server := sshd.Start(w.t, lines...)
	h := w.add(target.Host{Name: "db-7", Environment: environment, SSHAddress: server.Address, SSHKey: server.Key,
		SSHUser: sshd.Account(w.t, "hr-r"), SSHWrite: sshd.Account(w.t, "hr-w")})
	for account, level := range map[string]string{h.SSHUser: wire.LevelRead, h.SSHWrite: wire.LevelWrite} {
		sshd.Authorize(w.t, account, `cert-authority,restrict,pty,principals="`+h.Principal(level)+`" `+w.Ring.SSHUserAuthority())
	}
	return server, h
}

// client is a person with an ssh configuration of their own.
type client struct {
	w      *world
	by     identity.Principal
	config string
	signer ssh.Signer
}

func (w *world) person(name string, groups ...string) *client {
	w.t.Helper()
	var secret string
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		p, entries, err := w.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups)
		if err != nil {
			return nil, err
		}
		s, e, err := w.People.LoginTokenTx(tx, p.ID, ledger.System, time.Hour)
		secret = s
		return append(entries, e), err
	})
	dir := w.t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	fatal(w.t, err)
	signer := must(ssh.NewSignerFromKey(private))
	login, _, cert, err := w.People.Redeem(context.Background(), secret, signer.PublicKey().Marshal(), "laptop", identity.ViaDevice, "127.0.0.1")
	fatal(w.t, err)
	key := filepath.Join(dir, "key")
	fatal(w.t, os.WriteFile(key, pem.EncodeToMemory(must(ssh.MarshalPrivateKey(private, ""))), 0o600))
	fatal(w.t, os.WriteFile(key+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600))
	bundle, _ := w.Ring.Bundle()
	known := filepath.Join(dir, "known")
	fatal(w.t, os.WriteFile(known, []byte("@cert-authority * "+strings.TrimSpace(bundle.SSHHostCA[0])+"\n"), 0o600))
	config := filepath.Join(dir, "config")
	fatal(w.t, os.WriteFile(config, fmt.Appendf(nil, "Host *\n  HostName 127.0.0.1\n  Port %d\n  IdentityFile %s\n  CertificateFile %s-cert.pub\n"+
		"  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n", w.gate.Port, key, key, known), 0o600))
	return &client{w: w, by: must(w.People.Authenticate(context.Background(), login.Bearer)), config: config, signer: must(ssh.NewCertSigner(cert, signer))}
}

func (c *client) grant(host string, g doorway.GrantInForce) {
	c.w.grants.mu.Lock()
	defer c.w.grants.mu.Unlock()
	if g.Expires == 0 {
		g.Expires = time.Now().Add(time.Hour).UnixMicro()
	}
	g.ID = "g-00000001"
	c.w.grants.force[c.by.ID+host] = g
}

type result struct {
	out, err string
	status   int
}

// run runs a stock client through the gateway.
func (c *client) run(stdin, name string, args ...string) result {
	c.w.t.Helper()
	switch name {
	case "ssh", "scp", "sftp":
		args = append([]string{"-F", c.config}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+c.config, "RSYNC_RSH=ssh -F "+c.config, "HOME="+c.w.Dir)
	cmd.Dir, cmd.Stdin = c.w.Dir, strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (w *world) entries(action ledger.Action) []ledger.Recorded {
	w.t.Helper()
	return must(w.Store.Entries(context.Background(), store.EntryQuery{Action: string(action), Limit: 1000}))
}

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

// owner is a person who reads what comes.
type owner struct {
	mu     sync.Mutex
	events []session.Event
}

func (o *owner) Deliver(e session.Event) error {
	e.Data = bytes.Clone(e.Data)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
	return nil
}

func (o *owner) Abort() {}

func (o *owner) text() (s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.events {
		s += string(e.Data) + e.Text
	}
	return s
}

// open opens a session with an owner.
func (c *client) open(req session.OpenRequest) (*session.Live, *owner) {
	c.w.t.Helper()
	l, err := c.w.sessions.Open(context.Background(), c.by, req)
	fatal(c.w.t, err)
	o := &owner{}
	fatal(c.w.t, l.Own(o))
	return l, o
}
