// Package voucher gives people what lets them in while no server answers, and
// takes in what hosts recorded meanwhile.
//
//	well:  Fetch ─▶ a certificate for a day, an entry, a row
//	gone:  the host's entrance judges it alone, and keeps a journal
//	back:  Take ─▶ every block checked ─▶ recording, session, owed review
//
// What must stay true: nobody gets a voucher on a key that its person has not
// stood for (key.go), nor for a host on which policy would
// not let them break the glass now, nor who owes a review; what was used is
// void at once, on every host's next lease; a journal that is missing, cut or
// forged is an entry; a host forgets a journal only once it is in the ledger.
package voucher

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/policy"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// The ledger actions of vouchers.
const (
	Issued    ledger.Action = "voucher.issued"
	Used      ledger.Action = "voucher.used"
	Keyed     ledger.Action = "entrance.keyed"
	Offline   ledger.Action = "breakglass.offline"
	Missing   ledger.Action = "journal.missing"
	Refused   ledger.Action = "journal.refused"
	Ordered   ledger.Action = "drill.ordered"
	Rehearsed ledger.Action = "drill.ended"
	Named     ledger.Action = "voucher.keyed"
	Revoked   ledger.Action = "voucher.revoked"
)

// Actions lists the ledger actions of vouchers.
func Actions() []ledger.Action {
	return []ledger.Action{Issued, Used, Keyed, Offline, Missing, Refused, Ordered, Rehearsed, Named, Revoked}
}

// Schema is the tables of vouchers.
func Schema() []store.Migration {
	return []store.Migration{
		{Name: "voucher-1-vouchers", SQL: `CREATE TABLE vouchers (
	serial BIGINT PRIMARY KEY,
	person TEXT NOT NULL,
	person_name TEXT NOT NULL,
	key_kind TEXT NOT NULL,
	hosts BIGINT NOT NULL,
	issued BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	void BIGINT NOT NULL
)`},
		{Name: "voucher-2-entrances", SQL: `CREATE TABLE entrances (
	host TEXT PRIMARY KEY,
	address TEXT NOT NULL,
	port BIGINT NOT NULL,
	host_key TEXT NOT NULL,
	journal_key TEXT NOT NULL,
	number BIGINT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "voucher-3-journals", SQL: `CREATE TABLE journals (
	session TEXT PRIMARY KEY,
	host TEXT NOT NULL,
	number BIGINT NOT NULL,
	size BIGINT NOT NULL,
	done BIGINT NOT NULL
)`},
		{Name: "voucher-4-drills", SQL: `CREATE TABLE drills (
	id TEXT PRIMARY KEY,
	host TEXT NOT NULL,
	host_name TEXT NOT NULL,
	person TEXT NOT NULL,
	person_name TEXT NOT NULL,
	at BIGINT NOT NULL,
	took BIGINT NOT NULL,
	outcome TEXT NOT NULL,
	failure TEXT NOT NULL,
	version BIGINT NOT NULL
)`},
		{Name: "voucher-5-heads", SQL: `ALTER TABLE entrances ADD COLUMN head TEXT NOT NULL DEFAULT ''`},
		{Name: "voucher-6-groups", SQL: `ALTER TABLE vouchers ADD COLUMN member_of TEXT NOT NULL DEFAULT ''`},
		{Name: "voucher-7-used", SQL: `ALTER TABLE journals ADD COLUMN used BIGINT NOT NULL DEFAULT 0`},
		{Name: "voucher-8-words", SQL: `ALTER TABLE journals ADD COLUMN words TEXT NOT NULL DEFAULT ''`},
		{Name: "voucher-9-print", SQL: `ALTER TABLE vouchers ADD COLUMN print TEXT NOT NULL DEFAULT ''`},
		keysSchema,
	}
}

// Nodes carries drills out; app gives the fleet.
type Nodes interface {
	// Order sends an order that answers and ends.
	Order(ctx context.Context, pass doorway.Pass, host string) error
	// Addresses are those that a host reports.
	Addresses(host string) []string
}

// Deps is what Vouchers needs.
type Deps struct {
	Store    *store.Store
	Ring     *keyring.Ring
	Door     *doorway.Door
	People   *identity.People
	Hosts    *target.Hosts
	Policy   *policy.Force
	Access   *access.Access
	Sessions *session.Sessions
	Nodes    Nodes
	Epochs   func(ctx context.Context) (fleet.Epochs, error)
	Dir      string // where journals arrive
	Log      *slog.Logger
}

// Vouchers is the feature.
type Vouchers struct {
	d Deps

	mu      sync.Mutex
	arrival map[string]*sync.Mutex // by session: one stretch at a time

	leases sync.Mutex
	void   []uint64
	asked  time.Time // when void was read
}

// New returns Vouchers.
func New(d Deps) *Vouchers { return &Vouchers{d: d, arrival: map[string]*sync.Mutex{}} }

const (
	life   = wire.MaxVoucherLife
	stay   = 60 // minutes of one session
	maxKey = 4 << 10
	// maxOfPerson bounds how many of one person are good at once: what a lease
	// can say is void is bounded, and nobody may crowd their own out of it.
	maxOfPerson = 64
)

// Place is a host that a voucher opens, and how to get there.
type Place struct {
	wire.VoucherHost
	Name      string
	Addresses []string
	Port      int
	HostKey   string
}

// Given is a voucher that was made.
type Given struct {
	Certificate *ssh.Certificate
	Key         string
	Expires     time.Time
	Places      []Place
	LeftOut     []string
}

// issued is the payload of voucher.issued.
type issued struct {
	V       int                `json:"v"`
	Serial  uint64             `json:"serial"`
	Key     string             `json:"key"`
	Print   string             `json:"fingerprint"`
	Stands  string             `json:"stands"` // why this key: d-…, k-…, or bootstrap
	Expires int64              `json:"expires"`
	Hosts   []wire.VoucherHost `json:"hosts"`
}

// entranceRow is what is known of a host's entrance.
type entranceRow struct {
	Host       string `db:"host"`
	Address    string `db:"address"`
	Port       int64  `db:"port"`
	HostKey    string `db:"host_key"`
	JournalKey string `db:"journal_key"`
	Number     int64  `db:"number"`
	Head       string `db:"head"` // hash of the head of that journal, hex
	Version    int64  `db:"version"`
}

// Fetch makes a voucher for the caller's key: for the hosts named, or for all
// on which policy lets them break the glass.
func (x *Vouchers) Fetch(ctx context.Context, by identity.Principal, keyLine string, words []string) (Given, error) {
	key, err := parseKey(keyLine)
	if err != nil {
		return Given{}, err
	}
	if !x.d.Ring.GivesVouchers() {
		return Given{}, fault.New(fault.Unavailable, "cannot give a voucher: this installation has no authority for them yet").
			WithHint("handrail voucher trust (on the server's machine, with the root key)")
	}
	hosts, left, err := x.allowed(ctx, by, words)
	if err != nil {
		return Given{}, err
	}
	var out Given
	var terms wire.VoucherTerms
	var serial uint64
	_, err = x.d.Door.Do(ctx, doorway.Act{
		Action: "grants.breakglass", By: by, Hosts: hosts, Facts: x.owes(by),
		Open: func(tx *store.Tx, _ policy.Decision) ([]ledger.Entry, error) {
			person, err := x.d.People.GetTx(tx, by.ID)
			if err != nil {
				return nil, err
			}
			how, err := x.standsTx(tx, person, ssh.FingerprintSHA256(key))
			if err != nil {
				return nil, err
			}
			made, err := store.One[int64](tx, `SELECT COUNT(*) FROM vouchers WHERE person = $1 AND expires > $2`, person.ID, tx.Now().UnixMicro())
			if err != nil {
				return nil, err
			}
			if made >= maxOfPerson {
				return nil, fault.New(fault.Exhausted, "cannot give a voucher: %d of yours were made within a day", made).WithHint("handrail voucher list")
			}
			serial = uint64(tx.Now().UnixMicro())
			terms = wire.VoucherTerms{V: 1, Person: person.ID, PersonName: person.Name, Epoch: person.Epoch, Key: kindOf(key), Minutes: stay}
			out.Places, out.LeftOut = nil, slices.Clone(left)
			if err := x.places(ctx, tx, by, hosts, &terms, &out); err != nil {
				return nil, err
			}
			out.Key, out.Expires = terms.Key, tx.Now().Add(life)
			if _, err := tx.Exec(`INSERT INTO vouchers (serial, person, person_name, key_kind, hosts, issued, expires, void, member_of, print) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9)`,
				int64(serial), person.ID, person.Name, terms.Key, int64(len(terms.Hosts)), tx.Now().UnixMicro(), out.Expires.UnixMicro(), groupsOf(person), ssh.FingerprintSHA256(key)); err != nil {
				return nil, err
			}
			return []ledger.Entry{{Action: Issued, Subjects: []string{person.ID}, Payload: issued{
				V: 1, Serial: serial, Key: terms.Key, Print: ssh.FingerprintSHA256(key), Stands: how, Expires: out.Expires.UnixMicro(), Hosts: terms.Hosts,
			}}}, nil
		},
	}, nil)
	if err != nil {
		return Given{}, err
	}
	out.Certificate, err = x.d.Ring.SignVoucher(key, serial, terms, life)
	return out, err
}

func parseKey(line string) (ssh.PublicKey, error) {
	if len(line) > maxKey {
		return nil, fault.New(fault.Invalid, "cannot read the key: %d bytes", len(line))
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the key").WithHint("ssh-keygen -t ed25519-sk -O verify-required")
	}
	switch key.Type() {
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256:
		return key, nil
	}
	return nil, fault.New(fault.Invalid, "cannot use a key of type %s for a voucher", key.Type()).WithHint("ssh-keygen -t ed25519-sk -O verify-required")
}

func kindOf(key ssh.PublicKey) string {
	if strings.HasPrefix(key.Type(), "sk-") {
		return wire.KeyHardware
	}
	return wire.KeyFile
}

// owes tells policy whether a review is owed, overdue or not: a voucher is used
// where nobody can look it up.
func (x *Vouchers) owes(by identity.Principal) func(store.Queryer, *policy.Context) error {
	return func(q store.Queryer, c *policy.Context) (err error) {
		c.OwesReview, err = access.OwesReview(q, by.ID)
		return err
	}
}

// allowed are the hosts that the caller may have a voucher for. One that was
// named and is not among them is a refusal by the doorway, with its rule.
func (x *Vouchers) allowed(ctx context.Context, by identity.Principal, words []string) (hosts []target.Host, left []string, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		if len(words) > 0 {
			hosts, err = x.d.Hosts.ResolveTx(v, words)
		} else {
			hosts, err = x.d.Hosts.ListTx(v, "")
		}
		return err
	})
	if err != nil || len(words) > 0 {
		return hosts, nil, err
	}
	kept := hosts[:0]
	for _, h := range hosts {
		d, err := x.d.Door.Explain(ctx, doorway.Act{Action: "grants.breakglass", By: by, Hosts: []target.Host{h}})
		if err != nil {
			return nil, nil, err
		}
		if d.Allowed {
			kept = append(kept, h)
			continue
		}
		left = append(left, h.Name+": policy does not let you break the glass there")
	}
	if len(kept) == 0 {
		return nil, nil, fault.New(fault.Denied, "cannot give a voucher: policy lets you break the glass on no host").WithHint("handrail policy test grants.breakglass HOST")
	}
	if len(kept) > wire.MaxVoucherHosts {
		return nil, nil, fault.New(fault.Invalid, "cannot give a voucher for %d hosts: at most %d", len(kept), wire.MaxVoucherHosts).
			WithHint("handrail voucher fetch 'env:production service:pay'")
	}
	return kept, left, nil
}

// places fills in, for each host, the account and the way there. Root is given
// where policy gives it, else the account that it names.
func (x *Vouchers) places(ctx context.Context, tx *store.Tx, by identity.Principal, hosts []target.Host, terms *wire.VoucherTerms, out *Given) error {
	engine, err := x.d.Policy.EngineTx(tx)
	if err != nil {
		return err
	}
	who, err := x.principal(tx, by)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		rows, err := store.All[entranceRow](tx, `SELECT host, address, port, host_key, journal_key, number, head, version FROM entrances WHERE host = $1`, h.ID)
		if err != nil {
			return err
		}
		if len(rows) == 0 || rows[0].Port == 0 {
			out.LeftOut = append(out.LeftOut, h.Name+": its node has no entrance")
			continue
		}
		account := engine.WriteAccount(h)
		q := policy.Query{Principal: who, Action: "grants.breakglass", Host: &h, Context: policy.Context{Root: true, Sudo: true}}
		if engine.Decide(q).Allowed {
			account = "root"
		}
		vh := wire.VoucherHost{ID: h.ID, Account: account}
		terms.Hosts = append(terms.Hosts, vh)
		addresses := x.d.Nodes.Addresses(h.ID)
		if rows[0].Address != "" {
			addresses = []string{rows[0].Address}
		}
		out.Places = append(out.Places, Place{VoucherHost: vh, Name: h.Name, Addresses: addresses, Port: int(rows[0].Port), HostKey: rows[0].HostKey})
	}
	if len(terms.Hosts) == 0 {
		return fault.New(fault.Unavailable, "cannot give a voucher: no host that you may reach has an entrance (%s)", strings.Join(out.LeftOut, "; ")).
			WithHint("handrail node --entrance :7322 (on the host)")
	}
	return nil
}

// principal is the caller with the groups that count now.
func (x *Vouchers) principal(q store.Queryer, by identity.Principal) (identity.Principal, error) {
	person, err := x.d.People.GetTx(q, by.ID)
	by.Groups = person.Groups
	return by, err
}

// Out is a voucher that is neither expired nor void.
type Out struct {
	Serial     int64  `db:"serial"`
	Person     string `db:"person"`
	PersonName string `db:"person_name"`
	Key        string `db:"key_kind"`
	Hosts      int64  `db:"hosts"`
	Issued     int64  `db:"issued"`
	Expires    int64  `db:"expires"`
}

// List is what is out, newest first.
func (x *Vouchers) List(ctx context.Context, by identity.Principal, mine bool) (out []Out, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		out, err = store.All[Out](v, `SELECT serial, person, person_name, key_kind, hosts, issued, expires FROM vouchers
			WHERE expires > $1 AND void = 0 AND (person = $2 OR $3) ORDER BY serial DESC LIMIT 500`, time.Now().UnixMicro(), by.ID, !mine)
		return err
	})
	return out, err
}

// maxRevoked bounds what a lease carries. What is void and has not expired is
// little: each was used while no server answered.
const maxRevoked = 4096

// revokedFor is how long what leases say may be old: every host asks every few
// seconds, and the answer is the same for all.
const revokedFor = time.Second

// Revoked are the serials that are void before their time, for leases: those
// that were used, those of people who are in other groups than when they were
// made, or gone, and those on the key of a device that was revoked. A lock is in
// the leases anyway.
func (x *Vouchers) Revoked(ctx context.Context) ([]uint64, error) {
	x.leases.Lock()
	defer x.leases.Unlock()
	if time.Since(x.asked) < revokedFor {
		return x.void, nil
	}
	var void []uint64
	err := x.d.Store.View(ctx, func(v *store.View) error {
		out, err := store.All[outRow](v, `SELECT serial, person, void, member_of, print FROM vouchers WHERE expires > $1 ORDER BY serial DESC LIMIT $2`, time.Now().UnixMicro(), maxOut)
		if err != nil {
			return err
		}
		now, lostKeys := map[string]string{}, map[string]bool{}
		for _, o := range out {
			if _, known := now[o.Person]; !known {
				person, err := x.d.People.GetTx(v, o.Person)
				if err != nil && fault.KindOf(err) != fault.NotFound {
					return err
				}
				now[o.Person] = groupsOf(person)
			}
			lost, known := lostKeys[o.Print]
			if !known {
				if lost, err = x.d.People.RevokedKey(v, o.Print); err != nil {
					return err
				}
				lostKeys[o.Print] = lost
			}
			if (o.Void != 0 || lost || o.MemberOf != now[o.Person]) && len(void) < maxRevoked {
				void = append(void, uint64(o.Serial))
			}
		}
		return nil
	})
	if err == nil {
		x.void, x.asked = void, time.Now()
	}
	return void, err
}

// outRow is a voucher that has not expired.
type outRow struct {
	Serial   int64  `db:"serial"`
	Person   string `db:"person"`
	Void     int64  `db:"void"`
	MemberOf string `db:"member_of"`
	Print    string `db:"print"` // of the key; "" for one from before it was kept
}

const maxOut = 20_000

// groupsOf is somebody's groups as one text. Nobody is in no group.
func groupsOf(p identity.Person) string {
	groups := slices.Clone(p.Groups)
	slices.Sort(groups)
	return strings.Join(groups, " ")
}

// Lately is what the page says of vouchers that were used within a day, in
// words; drills are left out.
func (x *Vouchers) Lately(ctx context.Context) (words []string, err error) {
	err = x.d.Store.View(ctx, func(v *store.View) error {
		words, err = store.All[string](v, `SELECT words FROM journals WHERE used > $1 AND words <> '' ORDER BY used DESC LIMIT 20`, time.Now().Add(-life).UnixMicro())
		return err
	})
	return words, err
}
