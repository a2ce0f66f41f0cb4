package voucher_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/feature/voucher"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/test/house"
)

// nodes remembers the orders that went out.
type nodes struct{ orders []wire.OrderPayload }

func (n *nodes) Order(_ context.Context, pass doorway.Pass, _ string) error {
	for _, e := range pass.Receipt().Entries() {
		if p, err := wire.ParseOrderPayload(e.Payload); err == nil {
			n.orders = append(n.orders, p)
		}
	}
	return nil
}

func (n *nodes) Addresses(string) []string { return []string{"192.0.2.7"} }

// none has no sessions on nodes.
type none struct{}

func (none) Start(context.Context, doorway.Pass, string, bool) (session.Stream, wire.SessionAnswer, error) {
	return nil, wire.SessionAnswer{}, io.EOF
}
func (none) Resume(context.Context, doorway.Pass, string) error { return io.EOF }
func (none) Brake(context.Context, wire.Brake) ([]wire.BrakeAnswer, error) {
	return nil, nil
}

// world is an installation whose one host is played by the test.
type world struct {
	*house.House
	t        *testing.T
	access   *access.Access
	sessions *session.Sessions
	rec      *recording.Recordings
	vouchers *voucher.Vouchers
	nodes    *nodes
	host     target.Host
	key      ed25519.PrivateKey // the host's journal key
	number   int64
	before   []byte
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{House: house.Build(t, house.Plan{Migrations: slices.Concat(approval.Schema(), access.Schema(), session.Schema(), voucher.Schema())}), t: t, nodes: &nodes{}}
	t.Cleanup(w.Close)
	w.host = w.Host("web-1", "production")
	approvals := approval.New(approval.Deps{Store: w.Store, People: w.People, Kinds: access.Kinds(w.Hosts)})
	door := doorway.New(doorway.Deps{Store: w.Store, People: w.People, Hosts: w.Hosts, Policy: w.Force, Grants: access.Standing{}})
	w.access = access.New(access.Deps{Store: w.Store, Door: door, Approvals: approvals, Policy: w.Force, Hosts: w.Hosts, People: w.People})
	w.rec = must(recording.New(recording.Deps{Dir: filepath.Join(w.Dir, "recordings"), Store: w.Store, Subjects: w.Ring.Subjects(), Replay: w.Ring.Replay()}))
	w.sessions = session.New(session.Deps{Store: w.Store, Door: door, Hosts: w.Hosts, People: w.People, Grants: access.Standing{}, Rules: w.Force,
		Nodes: none{}, Recordings: w.rec})
	w.vouchers = voucher.New(voucher.Deps{Store: w.Store, Ring: w.Ring, Door: door, People: w.People, Hosts: w.Hosts, Policy: w.Force, Access: w.access,
		Sessions: w.sessions, Nodes: w.nodes, Dir: filepath.Join(w.Dir, "journals"), Log: slog.New(slog.DiscardHandler),
		Epochs: func(context.Context) (fleet.Epochs, error) { return fleet.Epochs{}, nil }})
	_, w.key = key()
	w.keyed()
	return w
}

func key() (ssh.PublicKey, ed25519.PrivateKey) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return must(ssh.NewPublicKey(priv.Public())), priv
}

func (w *world) keyed() {
	w.t.Helper()
	host, _ := key()
	raw := must(json.Marshal(wire.EntranceKeys{V: 1, Port: 7322, HostKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(host))), Journal: w.key.Public().(ed25519.PublicKey)}))
	if string(w.vouchers.Keys(w.t.Context(), w.host.ID, raw)) != "ok" {
		w.t.Fatal("the keys were not taken")
	}
}

func (w *world) person(name string, groups ...string) identity.Principal {
	w.t.Helper()
	var p identity.Person
	w.Record(func(tx *store.Tx) (e []ledger.Entry, err error) {
		p, e, err = w.People.AddTx(tx, identity.Principal{ID: ledger.System}, name, groups)
		return e, err
	})
	return identity.Principal{ID: p.ID, Name: p.Name, Kind: identity.KindPerson, Groups: p.Groups, Epoch: p.Epoch}
}

func (w *world) entries(action ledger.Action) []ledger.Recorded {
	w.t.Helper()
	return must(w.Store.Entries(w.t.Context(), store.EntryQuery{Action: string(action), Limit: 1000}))
}

// fetch gets a voucher on a new key.
func (w *world) fetch(by identity.Principal) (*ssh.Certificate, error) {
	pub, _ := key()
	given, err := w.vouchers.Fetch(w.t.Context(), by, string(ssh.MarshalAuthorizedKey(pub)), nil)
	return given.Certificate, err
}

// journal is what the host recorded of a session, cut into its blocks.
func (w *world) journal(session string, cert *ssh.Certificate, change func(*wire.JournalHead), said ...string) [][]byte {
	w.t.Helper()
	_, once := key()
	w.number++
	h := wire.JournalHead{V: 1, Session: session, Node: w.host.ID, Number: w.number, Before: w.before, Certificate: cert.Marshal(),
		SessionID: []byte("x"), Source: "192.0.2.9:4", Kind: wire.SessionShell, PTY: true, Account: "root", Wall: time.Now().UnixMicro(), LostMS: 130_000,
		Key: once.Public().(ed25519.PublicKey)}
	if change != nil {
		change(&h)
	}
	blocks := [][]byte{must(wire.SignJournalHead(h, w.key))}
	w.before = wire.HashBlock(blocks[0][4:])
	prev := w.before
	for i, s := range append(said, "") {
		p := wire.JournalPiece{N: int64(i + 1), Prev: prev, Events: []wire.JournalEvent{{At: int64(i), Type: wire.FrameStdout, Data: []byte(s)}}}
		if s == "" {
			p.Events, p.End = nil, &wire.JournalEnd{At: 9, Status: 3}
		}
		b := must(wire.SignJournalPiece(p, once))
		blocks, prev = append(blocks, b), wire.HashBlock(b[4:])
	}
	return blocks
}

// send brings a journal up as the link does, and returns the last answer.
func (w *world) send(session string, file []byte, live bool, step int) wire.JournalAnswer {
	w.t.Helper()
	ask := func(p wire.JournalPart) (a wire.JournalAnswer) {
		p.V, p.Session, p.Size, p.Live = 1, session, int64(len(file)), live
		fatal(w.t, json.Unmarshal(w.vouchers.Take(w.t.Context(), w.host.ID, must(json.Marshal(p))), &a))
		return a
	}
	a := ask(wire.JournalPart{})
	for range 10_000 {
		if a.Error != "" || len(a.Receipt) > 0 || a.Have >= int64(len(file)) {
			return a
		}
		a = ask(wire.JournalPart{Offset: a.Have, Data: file[a.Have:min(a.Have+int64(step), int64(len(file)))]})
	}
	w.t.Fatal("it does not end")
	return a
}

func TestWhatAHostRecordedComesBackWholeAndOwesAReview(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "operator")
	cert, err := w.fetch(ada)
	fatal(t, err)
	blocks := w.journal("s-00000001", cert, nil, "hello ", "from the dark")
	file := slices.Concat(blocks...)
	// First while it still runs, in small stretches, cut anywhere.
	if a := w.send("s-00000001", file[:len(blocks[0])+len(blocks[1])/2], true, 57); len(a.Receipt) > 0 || a.Error != "" {
		t.Fatalf("%+v", a)
	}
	if n := len(w.entries(voucher.Used)); n != 1 {
		t.Fatalf("%d entries say that a voucher was used", n)
	}
	a := w.send("s-00000001", file, false, 1000)
	receipt, err := wire.OpenReceipt(a.Receipt, w.Ring.Order().Public().(ed25519.PublicKey))
	if err != nil || receipt.Size != int64(len(file)) || receipt.Session != "s-00000001" {
		t.Fatalf("%+v %v", a, err)
	}
	info := must(w.sessions.Get(t.Context(), "s-00000001"))
	if info.State != session.StateEnded || info.PersonName != "ada" || info.Client != "voucher" || info.ExitStatus != 3 || !info.BreakGlass {
		t.Errorf("%+v", info)
	}
	offline := w.entries(voucher.Offline)
	if len(offline) != 1 || offline[0].Parsed.Outcome != ledger.OK || !strings.Contains(string(offline[0].Payload), `"whole":true`) {
		t.Errorf("%+v", offline)
	}
	grants := must(w.access.List(identity.WithPrincipal(t.Context(), ada), access.Filter{Open: true, Mine: true}))
	if len(grants) != 1 || grants[0].State != access.InReview || grants[0].ID != info.Grant || !grants[0].Root {
		t.Errorf("%+v", grants)
	}
	if revoked := must(w.vouchers.Revoked(t.Context())); !slices.Equal(revoked, []uint64{cert.Serial}) {
		t.Errorf("void are %v", revoked)
	}
	if words := must(w.vouchers.Lately(t.Context())); len(words) != 1 || !strings.Contains(words[0], "ada was on web-1 as root") {
		t.Errorf("what everybody is told: %q", words)
	}
	if _, err := w.fetch(ada); fault.KindOf(err) != fault.Denied {
		t.Errorf("who owes a review gets another voucher: %v", err)
	}
	// The link asks again: the receipt was lost, nothing is recorded twice.
	if again := w.send("s-00000001", file, false, 1000); len(again.Receipt) == 0 || len(w.entries(voucher.Offline)) != 1 || len(w.entries(access.ActionDeclared)) != 1 {
		t.Errorf("%+v", again)
	}
}

func TestWhatIsMissingOrForgedIsAnEntry(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "operator")
	cert, err := w.fetch(ada)
	fatal(t, err)
	id := func(n int) string { return fmt.Sprintf("s-000000%02d", n) }
	t.Run("a keeper that was killed", func(t *testing.T) {
		blocks := w.journal(id(1), cert, nil, "one", "two")
		file := slices.Concat(blocks[:2]...)
		file = append(file, blocks[2][:20]...) // torn
		if a := w.send(id(1), file, false, 1000); len(a.Receipt) == 0 {
			t.Fatalf("%+v", a)
		}
		e := w.entries(voucher.Offline)
		if len(e) != 1 || e[0].Parsed.Outcome != ledger.Lost || !strings.Contains(string(e[0].Payload), "killed") {
			t.Errorf("%+v", e)
		}
	})
	t.Run("a byte that was changed", func(t *testing.T) {
		file := slices.Concat(w.journal(id(2), cert, nil, "one", "two")...)
		file[len(file)-90] ^= 1
		w.send(id(2), file, false, 1000)
		e := w.entries(voucher.Offline)
		if len(e) != 2 || e[0].Parsed.Outcome != ledger.Lost && e[1].Parsed.Outcome != ledger.Lost {
			t.Errorf("%+v", e)
		}
	})
	t.Run("a journal that never came", func(t *testing.T) {
		w.journal(id(3), cert, nil, "destroyed")
		w.send(id(4), slices.Concat(w.journal(id(4), cert, nil, "x")...), false, 1000)
		if e := w.entries(voucher.Missing); len(e) != 1 || e[0].Parsed.Outcome != ledger.Lost || !strings.Contains(string(e[0].Payload), `"from":3`) {
			t.Errorf("%+v", e)
		}
	})
	t.Run("another story with the same number", func(t *testing.T) {
		w.number--
		w.send(id(5), slices.Concat(w.journal(id(5), cert, nil, "x")...), false, 1000)
		if e := w.entries(voucher.Refused); len(e) != 1 || !strings.Contains(string(e[0].Payload), "two stories") {
			t.Errorf("%+v", e)
		}
	})
	refused := func(name string, n int, want string, make func() [][]byte) {
		t.Run(name, func(t *testing.T) {
			before := len(w.entries(voucher.Used))
			number, head := w.number, w.before
			a := w.send(id(n), slices.Concat(make()...), false, 1000)
			w.number, w.before = number, head
			if len(a.Receipt) > 0 || !strings.Contains(a.Error, want) || len(w.entries(voucher.Used)) != before {
				t.Errorf("%+v", a)
			}
		})
	}
	_, forged := key()
	refused("signed by another key", 6, "not signed", func() [][]byte {
		mine := w.key
		defer func() { w.key = mine }()
		w.key = forged
		return w.journal(id(6), cert, nil, "x")
	})
	refused("of another host", 7, "on h-", func() [][]byte {
		return w.journal(id(7), cert, func(h *wire.JournalHead) { h.Node = "h-another0" }, "x")
	})
	refused("with a voucher that nobody made", 8, "no authority", func() [][]byte {
		fake := *cert
		fatal(t, fake.SignCert(rand.Reader, must(ssh.NewSignerFromKey(forged))))
		return w.journal(id(8), &fake, nil, "x")
	})
	refused("with a voucher whose words were changed", 9, "cannot accept voucher", func() [][]byte {
		fake := *cert
		fake.Permissions.CriticalOptions = map[string]string{"force-command": wire.VoucherCommand, wire.VoucherOption: strings.Replace(cert.CriticalOptions[wire.VoucherOption], "ada", "ben", 1)}
		return w.journal(id(9), &fake, nil, "x")
	})
	refused("that names a session of somebody else", 10, "was another", func() [][]byte {
		fatal(t, w.sessions.Import(t.Context(), session.Info{ID: id(10), Person: ada.ID, Host: w.host.ID, Kind: wire.SessionShell, Client: "ssh", Started: 1},
			session.Foreign{PTY: true, Events: func(func(recording.Event) bool) {}, Ended: func() session.ForeignEnd { return session.ForeignEnd{} },
				Close: func(*store.Tx) ([]ledger.Entry, error) { return nil, nil }}))
		return w.journal(id(10), cert, nil, "x")
	})
}

func TestWhoMayNotBreakTheGlassGetsNoVoucher(t *testing.T) {
	w := newWorld(t)
	for name, who := range map[string]identity.Principal{
		"a robot":                 {ID: "p-robot001", Name: "robot", Kind: "robot"},
		"somebody who is unknown": {ID: "p-nobody01", Name: "nobody", Kind: identity.KindPerson},
	} {
		if _, err := w.fetch(who); err == nil {
			t.Errorf("%s got one", name)
		}
	}
	ada := w.person("ada", "operator")
	for name, line := range map[string]string{"no key": "x", "an RSA key": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== x", "a long one": strings.Repeat("x", 9000)} {
		if _, err := w.vouchers.Fetch(t.Context(), ada, line, nil); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.entries(voucher.Issued)); n != 0 {
		t.Errorf("%d were issued", n)
	}
}

func TestADrillIsAnOrderAndItsTimeIsKept(t *testing.T) {
	w := newWorld(t)
	ada, ben := w.person("ada", "operator"), w.person("ben", "operator")
	d, _, err := w.vouchers.Rehearse(t.Context(), ada, "web-1", 0)
	fatal(t, err)
	if len(w.nodes.orders) != 1 || w.nodes.orders[0].Kind != wire.KindDrill || w.nodes.orders[0].Session.Person != ada.ID {
		t.Fatalf("%+v", w.nodes.orders)
	}
	if _, err := w.vouchers.End(t.Context(), ben, d.ID, time.Second, ""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("somebody else ends it: %v", err)
	}
	_, err = w.vouchers.End(t.Context(), ada, d.ID, 1300*time.Millisecond, "")
	fatal(t, err)
	list := must(w.vouchers.Drills(t.Context()))
	if len(list) != 1 || list[0].Took != 1_300_000 || list[0].Outcome != "ok" || len(w.entries(voucher.Rehearsed)) != 1 {
		t.Errorf("%+v", list)
	}
	if _, _, err := w.vouchers.Rehearse(t.Context(), ada, "web-1", time.Hour); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a drill of an hour: %v", err)
	}
}

func TestWhoLeavesAGroupHasAVoucherThatIsVoid(t *testing.T) {
	w := newWorld(t)
	ada, ben := w.person("ada", "operator"), w.person("ben", "operator")
	hers, err := w.fetch(ada)
	fatal(t, err)
	_, err = w.fetch(ben)
	fatal(t, err)
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := w.People.SetGroupsTx(tx, identity.Principal{ID: ledger.System}, ada.ID, []string{"developer"})
		return entries, err
	})
	var void []uint64
	for end := time.Now().Add(time.Minute); len(void) == 0 && time.Now().Before(end); {
		void = must(w.vouchers.Revoked(t.Context()))
		<-time.After(10 * time.Millisecond)
	}
	if !slices.Equal(void, []uint64{hers.Serial}) {
		t.Errorf("void are %v, want %d", void, hers.Serial)
	}
}

// A stolen laptop has both: the voucher, and the key that it is made for.
func TestAVoucherOnTheKeyOfARevokedDeviceIsVoid(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "operator")
	var secret string
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		made, e, err := w.People.LoginTokenTx(tx, ada.ID, ledger.System, time.Hour)
		secret = made
		return []ledger.Entry{e}, err
	})
	pub, _ := key()
	login, _, _, err := w.People.Redeem(t.Context(), secret, pub.Marshal(), "laptop", identity.ViaDevice, "192.0.2.9")
	fatal(t, err)
	stolen, err := w.vouchers.Fetch(t.Context(), ada, string(ssh.MarshalAuthorizedKey(pub)), nil)
	fatal(t, err)
	_, err = w.fetch(ada) // on another key
	fatal(t, err)
	w.Record(func(tx *store.Tx) ([]ledger.Entry, error) {
		return w.People.RevokeCredentialTx(tx, ada.ID, login.Device, "stolen")
	})
	if void := must(w.vouchers.Revoked(t.Context())); !slices.Equal(void, []uint64{stolen.Certificate.Serial}) {
		t.Errorf("void are %v, want %d", void, stolen.Certificate.Serial)
	}
}

func TestNobodyHasMoreVouchersThanLeasesCanTakeBack(t *testing.T) {
	w := newWorld(t)
	ada := w.person("ada", "operator")
	for n := range 200 {
		_, err := w.fetch(ada)
		if fault.KindOf(err) == fault.Exhausted {
			if n < 24 {
				t.Errorf("only %d in a day", n)
			}
			return
		}
		fatal(t, err)
	}
	t.Error("200 vouchers of one person are good at once")
}
