// Package identity knows who somebody is: people and robots, their groups,
// logins, device keys, passkeys, SSH certificates, and the locks on them.
//
// What must stay true:
//   - of every secret handed out (login token, bearer, nonce) only a hash is
//     kept, and the secrets are 256 random bits, so that a plain hash is enough.
//   - a login token works once. Its second use is an entry and a clear refusal.
//   - a lock wins: it raises the person's epoch, and whatever was issued under
//     an older one (login, token, certificate) is refused from that commit on.
//   - what may approve is a credential that is old enough, of a person, not of
//     a robot.
//   - names and addresses are in rows, where they can be erased, and in sealed
//     payloads; never in a leaf.
package identity

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-webauthn/webauthn/webauthn"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

// Deps is what People needs.
type Deps struct {
	Store     *store.Store
	Ring      *keyring.Ring
	Bootstrap *Flag    // the same that store.Config.Bootstrap reads
	RPID      string   // passkeys: "localhost" or the host name of the page
	Origins   []string // passkeys: "http://localhost:4747"
	// ProviderApproves says that a login at the provider may make credentials
	// that approve. If not, whoever holds the provider can read as anybody, and
	// is nobody's second person.
	ProviderApproves bool
}

// People is the local directory and everything that proves who somebody is.
type People struct {
	store    *store.Store
	ring     *keyring.Ring
	flag     *Flag
	passkeys *webauthn.WebAuthn // nil: this installation has no name that passkeys work with
	cache    cache
	failed   atomic.Int64 // logins
	failures failures
	codes    codes
	keeper   Keeper // nil: there is no directory

	providerApproves bool

	mu       sync.RWMutex
	standing standing
	braked   map[string]bool // locked in the world before the database says so
}

// New returns People. Call Start before anything else, and Run for as long as
// it serves.
func New(d Deps) *People {
	if d.Bootstrap == nil {
		d.Bootstrap = &Flag{}
	}
	return &People{
		store: d.Store, ring: d.Ring, flag: d.Bootstrap,
		passkeys: newPasskeys(d.RPID, d.Origins), braked: map[string]bool{}, providerApproves: d.ProviderApproves,
	}
}

// Run ends bootstrap in time, records counted failures once a minute, and
// forgets what another server locked or ended. It returns when ctx ends.
func (p *People) Run(ctx context.Context) error {
	var following sync.WaitGroup
	following.Go(func() {
		for ctx.Err() == nil {
			_ = p.follow(ctx) // the database went away: until it is back nothing is kept for long
			p.cache.clear()
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	defer following.Wait()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// What was counted since the last minute must not be lost.
			last, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer stop()
			p.recordFailures(last)
			return nil
		case <-tick.C:
			p.recordFailures(ctx)
			p.endInTime(ctx)
		}
	}
}

// follow empties the cache whenever any server changed what it holds.
func (p *People) follow(ctx context.Context) error {
	tree, _, err := p.store.Head(ctx)
	if err != nil {
		return err
	}
	return p.store.Follow(ctx, tree.N-1, func(r store.Recorded) error {
		switch r.Parsed.Action {
		case PersonLocked, PersonUnlocked, PersonNamed, PersonRegrouped, LoginEnded, CredentialLost:
			p.cache.clear()
			p.standing.leave(r.Parsed.Subjects...)
			if r.Parsed.Action == PersonUnlocked {
				p.Release(r.Parsed.Object)
			}
		case PeopleRegrouped:
			p.cache.clear()
			p.standing.forget()
		case BootstrapEnded, BootstrapLimited:
			_ = p.Reload(ctx) // Run's tick tries again
		}
		return nil
	})
}

// Person is somebody who may log in, or a robot. It is the row.
type Person struct {
	ID           string `db:"id"`
	Name         string `db:"name"`
	Kind         string `db:"kind"`  // person or robot
	Owner        string `db:"owner"` // of a robot: who answers for it
	Groups       Groups `db:"member_of"`
	Named        bool   `db:"named"` // false: the first person has not chosen a name yet
	Created      int64  `db:"created"`
	Enrolled     int64  `db:"enrolled"`  // first login; 0: never
	LockedAt     int64  `db:"locked_at"` // 0: not locked
	LockedReason string `db:"locked_reason"`
	Epoch        int64  `db:"epoch"` // raised by each lock and unlock
	Version      int64  `db:"version"`
}

// Locked says whether the person is locked.
func (p Person) Locked() bool { return p.LockedAt != 0 }

// Principal is the person as one who acts, before any credential is known.
func (p Person) Principal() Principal {
	return Principal{ID: p.ID, Name: p.Name, Kind: p.Kind, Owner: p.Owner, Groups: p.Groups, Locked: p.Locked(), Epoch: p.Epoch}
}

const selectPerson = `SELECT id, name, kind, owner, member_of, named, created, enrolled, locked_at, locked_reason, epoch, version FROM people `

// GetTx finds a person by id, name, or unique beginning of an id.
func (p *People) GetTx(q store.Queryer, idOrName string) (Person, error) {
	word := strings.ToLower(strings.TrimSpace(idOrName))
	if word == "" || len(word) > 64 {
		return Person{}, noPerson(idOrName)
	}
	found, err := store.All[Person](q, selectPerson+`WHERE id = $1 OR name = $2`, word, word)
	if err != nil {
		return Person{}, err
	}
	if len(found) == 0 && strings.HasPrefix(word, "p-") && len(word) > 3 && !strings.ContainsAny(word, "%_") {
		if found, err = store.All[Person](q, selectPerson+`WHERE id LIKE $1 LIMIT 2`, word+"%"); err != nil {
			return Person{}, err
		}
	}
	switch len(found) {
	case 0:
		return Person{}, noPerson(idOrName)
	case 1:
		return found[0], nil
	}
	return Person{}, fault.New(fault.Invalid, "cannot choose a person: %q fits more than one", idOrName).WithHint("handrail people")
}

func noPerson(word string) error {
	return fault.New(fault.NotFound, "cannot find person %.60q", word).WithHint("handrail people")
}

// byID reads exactly that row.
func byID(q store.Queryer, id string) (Person, error) {
	found, err := store.All[Person](q, selectPerson+`WHERE id = $1`, id)
	if err != nil {
		return Person{}, err
	}
	if len(found) == 0 {
		return Person{}, noPerson(id)
	}
	return found[0], nil
}

// Get is GetTx in a view of its own.
func (p *People) Get(ctx context.Context, idOrName string) (Person, error) {
	var person Person
	err := p.store.View(ctx, func(v *store.View) (err error) {
		person, err = p.GetTx(v, idOrName)
		return err
	})
	return person, err
}

// List returns everybody, by name.
func (p *People) List(ctx context.Context) ([]Person, error) {
	var people []Person
	err := p.store.View(ctx, func(v *store.View) (err error) {
		people, err = p.ListTx(v)
		return err
	})
	return people, err
}

// ListTx is List inside a transaction or view.
func (p *People) ListTx(q store.Queryer) ([]Person, error) {
	return store.All[Person](q, selectPerson+`ORDER BY name`)
}

// record runs fn under an id that nobody else can have chosen.
func (p *People) record(ctx context.Context, fn func(*store.Tx) ([]ledger.Entry, error)) error {
	_, err := p.store.Record(ctx, "identity-"+rand.Text(), fn)
	return err
}
