package directory

import (
	"context"
	"crypto/rand"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/store"
)

// Logging in with the password that the directory knows. Nothing of it is kept.
// Whoever does not exist, is locked, or has another password is told the same,
// after the same questions to the directory.

const (
	loginsAtOnce = 16
	loginWithin  = 15 * time.Second
	maxPassword  = 512
	// Wrong passwords in a minute: from one network for one name, from one network,
	// and for one name from anywhere. The directory has limits of its own.
	triesOfBoth   = 10
	triesOfSource = 30
	triesOfName   = 60
	triesKept     = 8192
)

// OffersLogin says whether people log in with their password.
func (d *Directory) OffersLogin() bool { return d != nil && d.c.Login }

func wrong() error {
	return fault.New(fault.Unauthenticated, "cannot log in: that name and password do not belong together here").
		WithRule("password").WithHint("try again, or ask for a login link: handrail login-link NAME")
}

// Login checks a password and returns the lasting id of whose it is.
func (d *Directory) Login(ctx context.Context, name, password, source string) (uuid string, err error) {
	if !d.OffersLogin() {
		return "", fault.New(fault.Unavailable, "cannot log in with a password: this installation does not offer it").
			WithHint("handrail login, with a token of handrail login-link; an admin sets login = true in [directory] of handrail.toml")
	}
	name = strings.ToLower(strings.TrimSpace(name))
	// RFC 4513 5.1.2: without a password the bind would succeed, as nobody.
	if name == "" || len(name) > maxName || password == "" || len(password) > maxPassword || strings.ContainsRune(password, 0) {
		return "", wrong()
	}
	give, err := d.tries.take(name, source, time.Now())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, loginWithin)
	defer cancel()
	select {
	case d.logins <- struct{}{}:
		defer func() { <-d.logins }()
	case <-ctx.Done():
		return "", fault.New(fault.Exhausted, "cannot log in: too many try at once").WithHint("try again")
	}
	uuid, err = d.login(ctx, name, password)
	if err == nil {
		give()
	}
	return uuid, err
}

func (d *Directory) login(ctx context.Context, name, password string) (string, error) {
	uuid, err := d.known(ctx, name)
	if err != nil {
		return "", err
	}
	// Nobody of that name is asked about all the same: who is there cannot be
	// told by how long it takes.
	dn := "uid=" + ldap.EscapeDN("nobody-"+rand.Text()) + "," + d.c.people
	if dns := d.dns.Load(); uuid != "" && dns != nil && (*dns)[uuid] != "" {
		dn = (*dns)[uuid]
	} else {
		uuid = ""
	}
	l, err := d.c.dial(ctx)
	if err != nil {
		return "", err
	}
	defer l.close()
	if err := l.bind(ctx, dn, password); err != nil {
		if refused(err) {
			return "", wrong()
		}
		return "", fault.Wrap(fault.Unavailable, err, "cannot ask the directory about a password")
	}
	if uuid == "" {
		return "", wrong()
	}
	return uuid, d.stillThem(ctx, l, dn, uuid)
}

// refused says whether the directory answered, and no.
func refused(err error) bool {
	for _, code := range []uint16{ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInappropriateAuthentication,
		ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultConstraintViolation, ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultInsufficientAccessRights} {
		if ldap.IsErrorWithCode(err, code) {
			return true
		}
	}
	return false
}

// stillThem checks that the name whose password it was is still of the entry
// that we mean, and that the account is not switched off.
func (d *Directory) stillThem(ctx context.Context, l *link, dn, uuid string) error {
	defer context.AfterFunc(ctx, l.close)()
	if d.c.BindDN != "" {
		if err := l.bind(ctx, d.c.BindDN, d.c.Password); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot ask the directory who that is")
		}
	}
	got, err := l.conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 2, 0, false,
		d.c.PeopleFilter, d.c.personAttributes(), nil))
	if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return fault.Wrap(fault.Unavailable, err, "cannot ask the directory who that is")
	}
	if err != nil || len(got.Entries) != 1 {
		return wrong()
	}
	if id, err := d.c.identify(got.Entries[0]); err != nil || id != uuid || off(got.Entries[0]) != "" {
		return wrong()
	}
	return nil
}

// known is the id of somebody who may log in under that name; "" is nobody.
func (d *Directory) known(ctx context.Context, name string) (uuid string, err error) {
	err = d.Store.View(ctx, func(v *store.View) error {
		found, err := store.All[string](v, `SELECT d.uuid FROM directory_people d JOIN people p ON p.id = d.person
WHERE p.name = $1 AND d.away = 0 AND p.locked_at = 0`, name)
		if len(found) == 1 {
			uuid = found[0]
		}
		return err
	})
	return uuid, err
}

// tries counts passwords that are being tried or were wrong, by the minute.
type tries struct {
	mu     sync.Mutex
	minute int64
	counts map[string]int
}

// take lets one try begin. What it returns gives it back: a right password
// counts for nothing.
func (t *tries) take(name, source string, now time.Time) (give func(), err error) {
	net := network(source)
	keys := []string{"both " + net + " " + name, "from " + net, "name " + name}
	limits := []int{triesOfBoth, triesOfSource, triesOfName}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := now.Unix() / 60; m != t.minute || t.counts == nil {
		t.minute, t.counts = m, map[string]int{}
	}
	for i, k := range keys {
		if t.counts[k] >= limits[i] || t.counts[k] == 0 && len(t.counts) >= triesKept {
			return nil, fault.New(fault.Exhausted, "cannot try another password: there were too many in the last minute").WithHint("wait a minute")
		}
	}
	for _, k := range keys {
		t.counts[k]++
	}
	minute := t.minute
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.minute != minute {
			return
		}
		for _, k := range keys {
			t.counts[k]--
		}
	}, nil
}

// network is what one stranger has of addresses: one of IPv4, 2^64 of IPv6.
func network(source string) string {
	addr, err := netip.ParseAddr(source)
	if err != nil || addr.Unmap().Is4() {
		return source
	}
	prefix, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return source
	}
	return prefix.String()
}
