package identity

import (
	"context"
	"crypto/sha256"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	personLogin = 8 * time.Hour
	robotLogin  = time.Hour
)

// What a login was opened with. Only a token was somebody else's decision, so
// only a login born of one may enrol further credentials after bootstrap. A
// login born at the provider may where the installation trusts it that far.
const (
	bornToken    = "token"
	bornDevice   = "device"
	bornPasskey  = "passkey"
	bornProvider = "provider"
	bornRobot    = "robot"
)

// Login is an identity of eight hours; a robot's lasts one.
type Login struct {
	ID, Person, Device, Via, Born string
	Bearer                        string // only when it was just made
	Expires                       time.Time
}

// open opens a login, enrolling the device if there is a key, and takes note
// of a person's first login.
func (p *People) open(tx *store.Tx, o opening) (Login, Person, []ledger.Entry, error) {
	var entries []ledger.Entry
	used, err := store.One[int64](tx, `SELECT COUNT(*) FROM logins WHERE proof = $1`, o.proof)
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	if used != 0 {
		return Login{}, Person{}, nil, fault.New(fault.Unauthenticated, "cannot log in: this proof was used already").WithHint("begin again")
	}
	var device string
	if o.key != nil {
		d, entry, err := p.enrolDevice(tx, o.who, o.key, o.name, o.born)
		if err != nil {
			return Login{}, Person{}, nil, err
		}
		device, entries = d, append(entries, entry...)
	}
	who, first, err := p.firstLogin(tx, o.who)
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	entries = append(entries, first...)
	lasts := personLogin
	if who.Kind == KindRobot {
		lasts = robotLogin
		if left := o.until.Sub(tx.Now()); !o.until.IsZero() && left < lasts {
			lasts = left
		}
	}
	login := Login{
		ID: store.NewID('l'), Person: who.ID, Device: device, Via: o.via, Born: o.born,
		Bearer: bearerPrefix + newSecret(tx.Random(secretBytes)), Expires: tx.Now().Add(lasts).Truncate(time.Microsecond),
	}
	if _, err := tx.Exec(`INSERT INTO logins (id, hash, proof, person, device, via, born, source, created, expires, ended, epoch)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, $11)`,
		login.ID, hashOf(kindBearer, login.Bearer), o.proof, who.ID, device, o.via, o.born, bare(o.source), micros(tx.Now()), micros(login.Expires), who.Epoch); err != nil {
		return Login{}, Person{}, nil, err
	}
	entries = append(entries, ledger.Entry{
		Action: LoginOpened, Subjects: []string{who.ID}, Object: login.ID, Version: 1,
		Payload: LoginPayload{V: 1, Person: who.ID, Device: device, Via: o.via, Born: o.born, Source: bare(o.source), Expires: micros(login.Expires)},
	})
	return login, who, entries, nil
}

// firstLogin marks a person enrolled; the second one starts the clock that
// ends bootstrap.
func (p *People) firstLogin(tx *store.Tx, who Person) (Person, []ledger.Entry, error) {
	if who.Enrolled != 0 {
		return who, nil, nil
	}
	who.Enrolled = micros(tx.Now())
	who, err := who.save(tx)
	if err != nil {
		return Person{}, nil, err
	}
	entries := []ledger.Entry{who.entry(PersonEnrolled, who.ID, PersonPayload{Name: who.Name})}
	limited, err := limitBootstrap(tx, who)
	return who, append(entries, limited...), err
}

// bearerRow is a login with its person and device as they are now.
type bearerRow struct {
	ID       string `db:"id"`
	Hash     string `db:"hash"`
	Person   string `db:"person"`
	Device   string `db:"device"`
	Via      string `db:"via"`
	Born     string `db:"born"`
	Source   string `db:"source"`
	Expires  int64  `db:"expires"`
	Ended    int64  `db:"ended"`
	Epoch    int64  `db:"epoch"`
	Revoked  int64  `db:"revoked"` // of its device
	Name     string `db:"name"`
	Kind     string `db:"kind"`
	Owner    string `db:"owner"`
	Groups   Groups `db:"member_of"`
	LockedAt int64  `db:"locked_at"`
	Reason   string `db:"locked_reason"`
	Now      int64  `db:"person_epoch"`
}

const selectLogin = `SELECT l.id, l.hash, l.person, l.device, l.via, l.born, l.source, l.expires, l.ended, l.epoch, COALESCE(d.revoked, 0) AS revoked,
p.name, p.kind, p.owner, p.member_of, p.locked_at, p.locked_reason, p.epoch AS person_epoch
FROM logins l JOIN people p ON p.id = l.person LEFT JOIN devices d ON d.id = l.device `

func (r bearerRow) person() Person {
	return Person{ID: r.Person, Name: r.Name, Kind: r.Kind, Owner: r.Owner, Groups: r.Groups, LockedAt: r.LockedAt, LockedReason: r.Reason, Epoch: r.Now}
}

// live says why the login is worth nothing any more.
func (p *People) live(r bearerRow, now time.Time) error {
	if err := p.admit(r.person()); err != nil {
		return err
	}
	if r.Ended != 0 || r.Epoch != r.Now || r.Revoked != 0 {
		return fault.New(fault.Unauthenticated, "cannot go on: this login was ended").WithHint("handrail login")
	}
	if micros(now) >= r.Expires {
		return fault.New(fault.Unauthenticated, "cannot go on: this login expired at %s UTC", fromMicros(r.Expires).Format("15:04 on 2006-01-02")).
			WithHint("handrail login")
	}
	return nil
}

// Authenticate returns who holds the bearer token.
func (p *People) Authenticate(ctx context.Context, bearer string) (Principal, error) {
	if !validBearer(bearer) {
		return Principal{}, notLoggedIn()
	}
	now := time.Now()
	hash := hashOf(kindBearer, bearer)
	if who, ok := p.cache.get(hash, now); ok {
		return who, nil
	}
	before := p.cache.generation()
	var rows []bearerRow
	err := p.store.View(ctx, func(v *store.View) (err error) {
		rows, err = store.All[bearerRow](v, selectLogin+`WHERE l.hash = $1`, hash)
		return err
	})
	if err != nil {
		return Principal{}, err
	}
	if len(rows) == 0 || !sameHash(rows[0].Hash, hash) {
		return Principal{}, notLoggedIn()
	}
	if err := p.live(rows[0], now); err != nil {
		return Principal{}, err
	}
	who := rows[0].principal()
	p.cache.put(hash, who, rows[0].Expires, now, before)
	p.standing.note(hash, who, rows[0].Expires)
	return who, nil
}

func (r bearerRow) principal() Principal {
	who := r.person().Principal()
	who.Login, who.Device, who.Via, who.Source = r.ID, r.Device, r.Via, r.Source
	return who
}

func notLoggedIn() error {
	return fault.New(fault.Unauthenticated, "cannot tell who you are: no login, or one that does not exist").WithHint("handrail login")
}

// LoginOf returns the login that a principal came by, without its bearer.
func (p *People) LoginOf(ctx context.Context, by Principal) (Login, error) {
	var login Login
	err := p.store.View(ctx, func(v *store.View) (err error) {
		login, err = loginByID(v, by.Login)
		return err
	})
	return login, err
}

// Still says why the login that a principal came by is worth nothing any more,
// for whatever outlasts the call that it was made in. nil: it still counts.
func (p *People) Still(ctx context.Context, by Principal) error {
	var rows []bearerRow
	err := p.store.View(ctx, func(v *store.View) (err error) {
		rows, err = store.All[bearerRow](v, selectLogin+`WHERE l.id = $1 AND l.person = $2`, by.Login, by.ID)
		return err
	})
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return notLoggedIn()
	}
	return p.live(rows[0], time.Now())
}

func loginByID(q store.Queryer, id string) (Login, error) {
	rows, err := store.All[bearerRow](q, selectLogin+`WHERE l.id = $1`, id)
	if err != nil {
		return Login{}, err
	}
	if len(rows) == 0 {
		return Login{}, notLoggedIn()
	}
	r := rows[0]
	return Login{ID: r.ID, Person: r.Person, Device: r.Device, Via: r.Via, Born: r.Born, Expires: fromMicros(r.Expires)}, nil
}

// Logout ends the login that a principal came by, and with it the SSH
// certificate of that device.
func (p *People) Logout(ctx context.Context, by Principal) error {
	if by.Login == "" {
		return fault.New(fault.Invalid, "cannot log out: you did not come by a login")
	}
	err := p.record(ctx, func(tx *store.Tx) ([]ledger.Entry, error) {
		n, err := tx.Exec(`UPDATE logins SET ended = $1 WHERE id = $2 AND person = $3 AND ended = 0`, micros(tx.Now()), by.Login, by.ID)
		if err != nil {
			return nil, err
		}
		if n != 1 {
			return nil, notLoggedIn()
		}
		return []ledger.Entry{{
			Action: LoginEnded, Subjects: []string{by.ID}, Object: by.Login, Version: 2,
			Payload: LoginPayload{V: 1, Person: by.ID, Device: by.Device, Via: by.Via, Source: bare(by.Source)},
		}}, nil
	})
	p.cache.disturb()
	return err
}

// certify makes the SSH certificate that goes with a login.
func (p *People) certify(key ssh.PublicKey, login Login) (*ssh.Certificate, error) {
	if key == nil {
		return nil, nil
	}
	return p.ring.SignSSHUser(key, login.Person, login.Device, time.Until(login.Expires))
}

func stripPort(source string) string {
	if host, _, err := net.SplitHostPort(source); err == nil {
		return host
	}
	return source
}

// cache remembers who a bearer is for some seconds. It is a convenience, never
// an authority: the doorway reads the person again where it decides.
//
// A change in this process disturbs it twice: at once, and by a quiet time in
// which nothing is kept, so that a reader who saw the row before the change
// was committed cannot bring the old answer back. Changes by other servers
// arrive through the ledger; until then an entry lives at most cacheFor.
type cache struct {
	mu    sync.RWMutex
	kept  map[[sha256.Size]byte]cached
	quiet time.Time
	gen   uint64
}

type cached struct {
	who     Principal
	expires int64
	at      time.Time
}

const (
	cacheFor   = 10 * time.Second
	cacheQuiet = 5 * time.Second
	cacheSize  = 8 << 10
)

func cacheKey(hash string) [sha256.Size]byte { return sha256.Sum256([]byte(hash)) }

func (c *cache) get(hash string, now time.Time) (Principal, bool) {
	c.mu.RLock()
	e, ok := c.kept[cacheKey(hash)]
	c.mu.RUnlock()
	if !ok || now.Sub(e.at) >= cacheFor || micros(now) >= e.expires {
		return Principal{}, false
	}
	return e.who, true
}

func (c *cache) generation() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.gen
}

func (c *cache) put(hash string, who Principal, expires int64, now time.Time, before uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != before || now.Before(c.quiet) {
		return
	}
	if c.kept == nil || len(c.kept) >= cacheSize {
		c.kept = map[[sha256.Size]byte]cached{}
	}
	c.kept[cacheKey(hash)] = cached{who: who, expires: expires, at: now}
}

// disturb forgets everything and keeps nothing for a while.
func (c *cache) disturb() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept, c.quiet = nil, time.Now().Add(cacheQuiet)
	c.gen++
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = nil
	c.gen++
}
