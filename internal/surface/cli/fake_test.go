package cli_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// fake is an installation in memory: every service of the API over real TLS,
// with a trust bundle signed by a root key of its own.
type fake struct {
	url, address string
	rootHash     string
	root, log    note.Signer
	order        ed25519.PrivateKey
	bundle       ledger.Bundle
	server       *httptest.Server

	mu          sync.Mutex
	certificate tls.Certificate
	lasting     time.Duration // of a login
	signed      []byte
	tokens      map[string]string // login token → person
	logins      map[string]string // bearer → person
	devices     map[string]string // public key → person
	people      []*v1.Person
	hosts       []*v1.Host
	grants      []*v1.Grant
	approvals   []*v1.Approval
	sessions    []*v1.Session
	tickets     map[string]string // ticket → session id
	opened      map[string]*v1.OpenSessionRequest
	attached    map[*websocket.Conn]bool
	leaves      [][]byte
	touched     bool // the ledger was tampered with
	lies        bool // shows another request than the one whose hash it wants signed
	asked       map[string]*v1.Grant
	bootstrap   bool
	nonce       []byte
	retention   *v1.ShowRetentionResponse
	mute        chan struct{} // until it is closed no handshake is answered; nil: all are
	changed     chan struct{} // closed and replaced at each change
}

const origin = "handrail.test/ledger"

func startFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{
		tokens: map[string]string{}, logins: map[string]string{}, devices: map[string]string{},
		tickets: map[string]string{}, opened: map[string]*v1.OpenSessionRequest{}, attached: map[*websocket.Conn]bool{}, bootstrap: true, lasting: 8 * time.Hour, changed: make(chan struct{}),
	}
	rootSigner, rootKey := newKey(t, "handrail.test/root")
	logSigner, logKey := newKey(t, origin)
	_, order, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	authority, authorityKey := newCA(t)
	hostCA, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	hostLine, err := ssh.NewPublicKey(hostCA)
	must(t, err)
	f.root, f.log, f.order = rootSigner, logSigner, order
	f.rootHash = ledger.RootHash(rootKey)
	f.bundle = ledger.Bundle{
		RootKey: rootKey, Version: 1, Origin: origin, LogKey: logKey, OrderKey: order.Public().(ed25519.PublicKey),
		CA: [][]byte{authority.Raw}, SSHHostCA: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(hostLine)))},
	}
	f.sign(t)
	f.seed()
	f.server = httptest.NewUnstartedServer(f.handler())
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.certificate = newCertificate(t, authority, authorityKey)
	f.server.TLS = &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		f.mu.Lock()
		mute := f.mute
		f.mu.Unlock()
		if mute != nil {
			<-mute
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return &f.certificate, nil
	}}
	f.server.StartTLS()
	f.url, f.address = f.server.URL, strings.TrimPrefix(f.server.URL, "https://")
	t.Cleanup(func() {
		if f.mute != nil {
			close(f.mute)
		}
		f.server.CloseClientConnections()
		f.server.Close()
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB, name string) (note.Signer, string) {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, name)
	must(t, err)
	signer, err := note.NewSigner(secret)
	must(t, err)
	return signer, public
}

func newCA(t testing.TB) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert, key
}

func newCertificate(t testing.TB, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test server"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server.handrail.internal"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (f *fake) sign(t testing.TB) {
	t.Helper()
	signed, err := ledger.SignBundle(f.bundle, f.root)
	must(t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signed = signed
}

// recertify gives the server a certificate of a new CA; only a known one stands
// in the next trust bundle.
func (f *fake) recertify(t testing.TB, known bool) {
	t.Helper()
	authority, key := newCA(t)
	f.mu.Lock()
	f.certificate = newCertificate(t, authority, key)
	f.mu.Unlock()
	f.server.CloseClientConnections()
	if known {
		f.bundle.Version++
		f.bundle.CA = [][]byte{authority.Raw}
		f.sign(t)
	}
}

// token makes a login token for a person.
func (f *fake) token(person string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tokenLocked(person)
}

func (f *fake) tokenLocked(person string) string {
	secret := make([]byte, 18)
	_, _ = rand.Read(secret)
	word := ledger.Token{Address: f.address, RootHash: f.rootHash, Secret: base64.RawURLEncoding.EncodeToString(secret)}.String()
	f.tokens[word] = person
	return word
}

func (f *fake) seed() {
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }
	f.people = []*v1.Person{
		{Id: "p-00000ada", Name: "ada", Groups: []string{"admins"}, Created: ago(time.Hour)},
		{Id: "p-00000bob", Name: "bob", Groups: []string{"developers", "oncall"}, Created: ago(time.Hour)},
	}
	f.hosts = []*v1.Host{
		{Id: "h-0000web1", Name: "web-1", Environment: "production", Scope: "pci", Services: []string{"pay"}, State: "online", Seen: ago(2 * time.Second), Floor: "full",
			Facts: []*v1.Fact{{Name: "kernel", Value: "6.1.0", Source: "uname", At: ago(time.Minute)}, {Name: "load1", Value: "0.42"}, {Name: "uptime_seconds", Value: "93784"}, {Name: "memory_total_bytes", Value: "8589934592"}}},
		{Id: "h-0000web2", Name: "web-2", Environment: "staging", Scope: "none", State: "offline", Seen: ago(3 * time.Hour), Floor: "full"},
		{Id: "h-00000db1", Name: "db-1", Environment: "production", Scope: "none", State: "online", Seen: ago(time.Second), Floor: "reduced", FloorMissing: []string{"no Landlock"}},
	}
	f.sessions = []*v1.Session{
		{Id: "s-00000001", Person: "p-00000bob", PersonName: "bob", Host: "h-0000web1", HostName: "web-1", Environment: "production", Level: "read", Kind: "shell", State: "live",
			Started: ago(4 * time.Minute), Client: "cli", Recorded: true, RecordingBytes: 2048, Floor: "full"},
		{Id: "s-00000002", Person: "p-00000eve", PersonName: "eve", Host: "h-0000web1", HostName: "web-1", Environment: "production", Level: "write", Kind: "shell", State: "live", Started: ago(5 * time.Minute)},
		{Id: "s-00000000", Person: "p-00000ada", PersonName: "ada", Host: "h-00000db1", HostName: "db-1", Environment: "production", Level: "write", Kind: "exec", State: "ended",
			EndedWhy: "exit", Started: ago(time.Hour), Ended: ago(59 * time.Minute), Command: "systemctl restart pay", ExitStatus: 3, Recorded: true},
	}
	for i := 0; i < 5; i++ {
		f.append("login.opened", "p-00000ada")
	}
}

// append adds a leaf to the fake's ledger.
func (f *fake) append(action ledger.Action, subject string) {
	leaf := ledger.Leaf{V: 1, Time: time.Now().UnixMicro(), Action: action, Subjects: []string{subject}, Outcome: ledger.OK, Commit: ledger.Commit(make([]byte, 32), []byte("{}"))}
	f.leaves = append(f.leaves, leaf.Marshal())
}

func (f *fake) handler() http.Handler {
	mux := http.NewServeMux()
	auth := connect.WithInterceptors(fakeAuth{f})
	mux.Handle(handrailv1connect.NewLoginsHandler(&fakeLogins{fake: f}, auth))
	mux.Handle(handrailv1connect.NewEventsHandler(&fakeEvents{fake: f}, auth))
	mux.Handle(handrailv1connect.NewHostsHandler(&fakeHosts{fake: f}, auth))
	mux.Handle(handrailv1connect.NewPeopleHandler(&fakePeople{fake: f}, auth))
	mux.Handle(handrailv1connect.NewGrantsHandler(&fakeGrants{fake: f}, auth))
	mux.Handle(handrailv1connect.NewApprovalsHandler(&fakeApprovals{fake: f}, auth))
	mux.Handle(handrailv1connect.NewSessionsHandler(&fakeSessions{fake: f}, auth))
	mux.Handle(handrailv1connect.NewLedgerHandler(&fakeLedger{fake: f}, auth))
	mux.Handle(handrailv1connect.NewRetentionHandler(&fakeRetention{fake: f}, auth))
	mux.Handle(handrailv1connect.NewPoliciesHandler(&fakePolicies{fake: f}, auth))
	mux.HandleFunc("/v1/sessions/{id}/attach", f.attach)
	return mux
}

// changedLocked wakes whoever watches.
func (f *fake) changedLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// waitChange returns when something changed after ch was read.
func (f *fake) wait(ctx context.Context) (<-chan struct{}, func() bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := f.changed
	return ch, func() bool {
		select {
		case <-ch:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

type personKey struct{}

// me is the person who calls.
func me(ctx context.Context) string {
	name, _ := ctx.Value(personKey{}).(string)
	return name
}

// fakeAuth lets those in who have a login.
type fakeAuth struct{ f *fake }

func (a fakeAuth) who(ctx context.Context, h http.Header, procedure string) (context.Context, error) {
	word := strings.TrimPrefix(h.Get("Authorization"), "Bearer ")
	a.f.mu.Lock()
	name := a.f.logins[word]
	a.f.mu.Unlock()
	if name == "" {
		for _, open := range []string{"Trust", "Redeem", "RenewBegin", "Renew", "Join"} {
			if strings.HasSuffix(procedure, "/"+open) {
				return ctx, nil
			}
		}
		return nil, wireFault(fault.New(fault.Unauthenticated, "cannot go on: this login has ended"))
	}
	return context.WithValue(ctx, personKey{}, name), nil
}

func (a fakeAuth) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := a.who(ctx, r.Header(), r.Spec().Procedure)
		if err != nil {
			return nil, err
		}
		return next(ctx, r)
	}
}

func (a fakeAuth) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (a fakeAuth) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, err := a.who(ctx, conn.RequestHeader(), conn.Spec().Procedure)
		if err != nil {
			return err
		}
		return next(ctx, conn)
	}
}

func wireFault(f *fault.Error) error {
	return handrailv1connect.NewError(f.Kind.ConnectCode(), &v1.Fault{Kind: f.Kind.String(), Text: f.Text, Hint: f.Hint, Rule: f.Rule, Entry: f.Entry})
}

func notFound(what, name string) error {
	return wireFault(fault.New(fault.NotFound, "cannot find %s %q", what, name).WithHint("handrail %ss", what))
}

func deniedHere(what string) error {
	return wireFault(fault.New(fault.Denied, "cannot %s: policy refuses it", what).WithRule("test-rule").WithEntry(12).WithHint("handrail policy explain"))
}

func newID(kind string, n int) string { return fmt.Sprintf("%s-%08d", kind, n) }
