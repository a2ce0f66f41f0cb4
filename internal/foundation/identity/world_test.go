package identity_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const origin = "test.handrail.internal/log"

// world is a new installation: real keys, a real database, nobody in it.
type world struct {
	t      testing.TB
	ring   *keyring.Ring
	store  *store.Store
	people *identity.People
	flag   *identity.Flag
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	if err := keyring.Init(filepath.Join(dir, "keys"), filepath.Join(dir, "root"), origin); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	flag := &identity.Flag{}
	s, err := store.Open(t.Context(), store.Config{
		DSN: "sqlite:" + filepath.Join(dir, "db"), Origin: origin, Signer: ring.Log(), Verifier: ring.LogVerifier(), Seals: ring.Subjects(),
		Bootstrap: flag.Active, Migrations: identity.Schema(), Spool: filepath.Join(dir, "spool"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	people := identity.New(identity.Deps{Store: s, Ring: ring, Bootstrap: flag, RPID: "localhost", Origins: []string{"http://localhost:4747"}})
	if err := people.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ring: ring, store: s, people: people, flag: flag}
}

func (w *world) ctx() context.Context { return context.Background() }

// record runs a change that must succeed.
func (w *world) record(fn func(*store.Tx) ([]ledger.Entry, error)) {
	w.t.Helper()
	if err := w.try(fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) try(fn func(*store.Tx) ([]ledger.Entry, error)) error {
	_, err := w.store.Record(w.ctx(), "test-"+rand.Text(), fn)
	return err
}

// view reads with a view that must succeed.
func (w *world) view(fn func(*store.View) error) {
	w.t.Helper()
	if err := w.store.View(w.ctx(), fn); err != nil {
		w.t.Fatal(err)
	}
}

// add adds a person and returns them with a login token.
func (w *world) add(name string, groups ...string) (identity.Person, string) {
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
	return who, secret
}

func (w *world) token(person string) string {
	w.t.Helper()
	var secret string
	w.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		s, e, err := w.people.LoginTokenTx(tx, person, ledger.System, time.Hour)
		secret = s
		return []ledger.Entry{e}, err
	})
	return secret
}

// device is a person's laptop.
type device struct {
	signer ssh.Signer
	login  identity.Login
	cert   *ssh.Certificate
}

func newKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func (d device) key() []byte { return d.signer.PublicKey().Marshal() }

func (d device) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	sig, err := d.signer.Sign(rand.Reader, message)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.Marshal(sig)
}

// login logs a person in on a new device.
func (w *world) login(secret string) device {
	w.t.Helper()
	d := device{signer: newKey(w.t)}
	var err error
	if d.login, _, d.cert, err = w.people.Redeem(w.ctx(), secret, d.key(), "laptop", identity.ViaDevice, "192.0.2.1:50000"); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// first is the opener of the bootstrap link, in a browser.
func (w *world) first() (identity.Principal, identity.Login) {
	w.t.Helper()
	secret, err := w.people.EnsureBootstrapLink(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	login, _, _, err := w.people.Redeem(w.ctx(), secret, nil, "", identity.ViaBrowser, "127.0.0.1:1")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.who(login), login
}

func (w *world) who(l identity.Login) identity.Principal {
	w.t.Helper()
	p, err := w.people.Authenticate(w.ctx(), l.Bearer)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// entries are the ledger's entries of that action, oldest first.
func (w *world) entries(action ledger.Action) []store.Recorded {
	w.t.Helper()
	got, err := w.store.Entries(w.ctx(), store.EntryQuery{After: -1, Limit: 1000, Action: string(action)})
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func want(t testing.TB, err error, kind fault.Kind, part string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v (%v), want %v with %q", err, fault.KindOf(err), kind, part)
	}
}

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	return ctx, stop
}
