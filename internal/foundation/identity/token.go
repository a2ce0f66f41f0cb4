package identity

import (
	"context"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
)

const (
	tokenDefault = 24 * time.Hour
	tokenLongest = 7 * 24 * time.Hour

	// replaysTold bounds the entries that one known token can cause.
	replaysTold = 5
)

type tokenRow struct {
	ID      string `db:"id"`
	Hash    string `db:"hash"`
	Person  string `db:"person"`
	MadeBy  string `db:"made_by"`
	Created int64  `db:"created"`
	Expires int64  `db:"expires"`
	Used    int64  `db:"used"`
	Replays int64  `db:"replays"`
	Epoch   int64  `db:"epoch"`
}

// LoginTokenTx makes a secret with which the person logs in, once. Only its
// hash is kept. ttl is a day if it is not given, and at most a week.
func (p *People) LoginTokenTx(tx *store.Tx, person, by string, ttl time.Duration) (string, ledger.Entry, error) {
	if ttl <= 0 {
		ttl = tokenDefault
	}
	if ttl > tokenLongest {
		return "", ledger.Entry{}, fault.New(fault.Invalid, "cannot make a login token for %v: at most %v", ttl, tokenLongest)
	}
	who, err := p.GetTx(tx, person)
	if err != nil {
		return "", ledger.Entry{}, err
	}
	if err := p.admit(who); err != nil {
		return "", ledger.Entry{}, err
	}
	secret := newSecret(tx.Random(secretBytes))
	id, expires := store.NewID('t'), micros(tx.Now().Add(ttl))
	if _, err := tx.Exec(`INSERT INTO login_tokens (id, hash, person, made_by, created, expires, used, replays, epoch)
VALUES ($1, $2, $3, $4, $5, $6, 0, 0, $7)`,
		id, hashOf(kindToken, secret), who.ID, by, micros(tx.Now()), expires, who.Epoch); err != nil {
		return "", ledger.Entry{}, err
	}
	return secret, ledger.Entry{
		Action: TokenMade, Subjects: subjects(by, who.ID), Object: id, Version: 1, SealTo: who.ID,
		Payload: TokenPayload{V: 1, Person: who.ID, By: by, Expires: expires},
	}, nil
}

// opening is what opens one login.
type opening struct {
	who    Person
	key    ssh.PublicKey // device key, may be nil
	name   string        // of the device
	via    string
	born   string // token, device, passkey
	source string
	proof  string    // what must not open a second login
	until  time.Time // no login outlasts it; zero: nothing ends before the login
}

// Redeem exchanges a login token for a login; with a device key (SSH wire
// format) it enrols the device and certifies its key. via is ViaBrowser or
// ViaDevice, source the address of the client.
func (p *People) Redeem(ctx context.Context, secret string, deviceKey []byte, deviceName, via, source string) (Login, Person, *ssh.Certificate, error) {
	key, err := parseDeviceKey(deviceKey)
	if err != nil {
		return Login{}, Person{}, nil, err
	}
	if via != ViaBrowser && via != ViaDevice {
		return Login{}, Person{}, nil, fault.New(fault.Invalid, "cannot log in by way of %q", via)
	}
	if !validSecret(secret) {
		p.FailedLogin(source, "malformed token")
		return Login{}, Person{}, nil, badToken()
	}
	if err := p.knownToken(ctx, secret); err != nil {
		p.FailedLogin(source, "token refused")
		return Login{}, Person{}, nil, err
	}
	var login Login
	var who Person
	var refused error
	err = p.record(ctx, func(tx *store.Tx) (entries []ledger.Entry, err error) {
		refused = nil
		row, err := spendToken(tx, secret)
		if err != nil {
			return nil, err
		}
		if row.Used != 0 {
			refused = replayed(row)
			return replay(tx, row, source)
		}
		if who, err = byID(tx, row.Person); err != nil {
			return nil, err
		}
		if err := p.admit(who); err != nil {
			return nil, err
		}
		if row.Epoch != who.Epoch {
			return nil, badToken()
		}
		if err := p.bootstrapToken(tx, row); err != nil {
			return nil, err
		}
		entries = append(entries, ledger.Entry{
			Action: TokenRedeemed, Subjects: []string{who.ID}, Object: row.ID, Version: 2, SealTo: who.ID,
			Payload: TokenPayload{V: 1, Person: who.ID, Source: bare(source)},
		})
		var more []ledger.Entry
		login, who, more, err = p.open(tx, opening{who: who, key: key, name: deviceName, via: via, born: bornToken, source: source, proof: row.Hash})
		return append(entries, more...), err
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Denied {
			p.FailedLogin(source, "token refused")
		}
		return Login{}, Person{}, nil, err
	}
	if err := p.Reload(ctx); err != nil { // the second person may have started the clock
		return Login{}, Person{}, nil, err
	}
	cert, err := p.certify(key, login)
	return login, who, cert, err
}

// knownToken refuses guesses without taking the writer, which is for those who
// hold something.
func (p *People) knownToken(ctx context.Context, secret string) error {
	return p.store.View(ctx, func(v *store.View) error {
		n, err := store.One[int64](v, `SELECT COUNT(*) FROM login_tokens WHERE hash = $1`, hashOf(kindToken, secret))
		if err == nil && n == 0 {
			err = badToken()
		}
		return err
	})
}

// bootstrapToken refuses the link of the first person, which nobody else
// agreed to, once bootstrap has ended.
func (p *People) bootstrapToken(tx *store.Tx, row tokenRow) error {
	if row.MadeBy != ledger.System {
		return nil
	}
	boot, err := readBootstrap(tx)
	if err != nil {
		return err
	}
	if boot.First == row.Person && !boot.state(tx.Now()).Active {
		return badToken()
	}
	return nil
}

func badToken() *fault.Error {
	return fault.New(fault.Unauthenticated, "cannot log in: this login link or token is wrong or has expired").
		WithHint("ask for a new one: handrail login-link NAME; on the server's own machine, during bootstrap: handrail up, or handrail login --local")
}

// spendToken marks the token used; a used one is returned as it was.
func spendToken(tx *store.Tx, secret string) (tokenRow, error) {
	hash := hashOf(kindToken, secret)
	rows, err := store.All[tokenRow](tx, `SELECT id, hash, person, made_by, created, expires, used, replays, epoch FROM login_tokens WHERE hash = $1`, hash)
	if err != nil {
		return tokenRow{}, err
	}
	if len(rows) == 0 || !sameHash(rows[0].Hash, hash) {
		return tokenRow{}, badToken()
	}
	row := rows[0]
	if row.Used != 0 {
		return row, nil
	}
	if micros(tx.Now()) >= row.Expires {
		return tokenRow{}, badToken()
	}
	n, err := tx.Exec(`UPDATE login_tokens SET used = $1 WHERE id = $2 AND used = 0`, micros(tx.Now()), row.ID)
	if err != nil {
		return tokenRow{}, err
	}
	if n != 1 { // somebody else was first
		row.Used = micros(tx.Now())
	}
	return row, nil
}

func replayed(row tokenRow) error {
	return fault.New(fault.Unauthenticated, "cannot log in: this login link was used already, at %s UTC", fromMicros(row.Used).Format("15:04:05 on 2006-01-02")).
		WithHint("if that was not you, have the person locked (handrail lock) and ask for a new link")
}

// replay records that a token was tried again: somebody else has seen it.
func replay(tx *store.Tx, row tokenRow, source string) ([]ledger.Entry, error) {
	if row.Replays >= replaysTold {
		return nil, replayed(row)
	}
	if _, err := tx.Exec(`UPDATE login_tokens SET replays = $1 WHERE id = $2`, row.Replays+1, row.ID); err != nil {
		return nil, err
	}
	return []ledger.Entry{{
		Action: TokenReplayed, Outcome: ledger.Denied, Subjects: []string{ledger.System, row.Person}, Object: row.ID, Version: 3 + row.Replays,
		SealTo: row.Person, Payload: TokenPayload{V: 1, Person: row.Person, Source: bare(source)},
	}}, nil
}

// bare is an address without its port, bounded.
func bare(source string) string {
	host := strings.Trim(stripPort(source), "[]")
	if len(host) > 64 {
		host = host[:64]
	}
	return host
}
