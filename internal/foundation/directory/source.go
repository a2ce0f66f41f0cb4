package directory

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/fault"
)

// How long, and how much.
const (
	dialFor    = 10 * time.Second
	silence    = 40 * time.Second // a connection that says nothing for so long is dead
	askAlive   = 10 * time.Second // so a living one always says something
	readWithin = 5 * time.Minute  // everything, once
	readBudget = 2 << 30          // bytes, for everything once
	pageSize   = 500
	settle     = 40 * time.Millisecond // changes that come together are one
	settleMost = 400 * time.Millisecond
	renewAfter = 15 * time.Minute // a connection that pushes changes begins anew
	bufferred  = 64
)

// link is one connection to the directory.
type link struct {
	c    config
	conn *ldap.Conn
	raw  *framed
}

// dial connects, with TLS where the settings say so.
func (c config) dial(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	raw, err := (&net.Dialer{KeepAlive: silence / 2}).DialContext(ctx, "tcp", c.host)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the directory at %s", c.host)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	if c.StartTLS {
		err = startTLS(raw)
	}
	secure := net.Conn(raw)
	if err == nil && (c.tls || c.StartTLS) {
		t := tls.Client(raw, &tls.Config{ServerName: c.serverName, RootCAs: c.pool, MinVersion: tls.VersionTLS12})
		secure, err = t, t.HandshakeContext(ctx)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot connect to the directory at %s", c.host)
	}
	f := &framed{Conn: secure, idle: silence, budget: readBudget}
	l := &link{c: c, raw: f, conn: ldap.NewConn(f, c.tls || c.StartTLS)}
	l.conn.Start()
	return l, nil
}

// startTLSRequest is the whole message: number 1, extended request 1.3.6.1.4.1.1466.20037.
var startTLSRequest = append([]byte{0x30, 0x1d, 0x02, 0x01, 0x01, 0x77, 0x18, 0x80, 0x16}, "1.3.6.1.4.1.1466.20037"...)

// startTLS asks for TLS. The answer is read to its last byte and no further:
// what somebody slips in behind it is handshake, not LDAP.
func startTLS(raw net.Conn) error {
	f := &framed{Conn: raw, idle: dialFor, budget: 64 << 10}
	if _, err := f.Write(startTLSRequest); err != nil {
		return err
	}
	answer, err := f.next()
	if err != nil {
		return err
	}
	// message 30 …, number 02 01 01, extended response 78 …, result 0a 01 00
	i := bytes.IndexByte(answer, 0x78)
	if i < 0 || i+5 > len(answer) || !bytes.Equal(answer[i+2:i+5], []byte{0x0a, 0x01, 0x00}) {
		return errors.New("it does not begin TLS")
	}
	return raw.SetDeadline(time.Time{})
}

// open connects and binds as the account that reads.
func (c config) open(ctx context.Context) (*link, error) {
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if c.BindDN != "" {
		if err := l.bind(ctx, c.BindDN, c.Password); err != nil {
			l.close()
			return nil, fault.Wrap(fault.Unavailable, err, "cannot log in to the directory as %.200q", c.BindDN).
				WithHint("look at bind-dn and bind-password-file: handrail config explain")
		}
	}
	return l, nil
}

// bind never binds without a password: that would succeed, as nobody.
func (l *link) bind(ctx context.Context, dn, password string) error {
	if dn == "" || password == "" {
		return errors.New("an empty password is no password")
	}
	defer context.AfterFunc(ctx, l.close)()
	_, err := l.conn.SimpleBind(&ldap.SimpleBindRequest{Username: dn, Password: password})
	return err
}

// close may be called from anywhere and more than once. The network goes
// first, so that nothing waits for a server that does not answer.
func (l *link) close() {
	_ = l.raw.Conn.Close() // what was not read is not wanted
	_ = l.conn.Close()
}

func (l *link) people(controls ...ldap.Control) *ldap.SearchRequest {
	return ldap.NewSearchRequest(l.c.people, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
		l.c.PeopleFilter, l.c.personAttributes(), controls)
}

func (l *link) groups(controls ...ldap.Control) *ldap.SearchRequest {
	return ldap.NewSearchRequest(l.c.groups, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
		l.c.GroupsFilter, l.c.groupAttributes(), controls)
}

// readAll reads everything in pages.
func (l *link) readAll(ctx context.Context) (*world, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	defer context.AfterFunc(ctx, l.close)()
	w := newWorld(l.c)
	w.read = time.Now()
	// Groups first: whoever joins between the two has no group yet, and nobody
	// seems to be in a group who is not there.
	if err := l.pages(ctx, l.groups, w.newOnly(w.putGroup)); err != nil {
		return nil, err
	}
	if err := l.pages(ctx, l.people, w.newOnly(w.putPerson)); err != nil {
		return nil, err
	}
	return w, ctx.Err()
}

// newOnly refuses an id that came already in the same reading.
func (w *world) newOnly(put func(*ldap.Entry) error) func(*ldap.Entry) error {
	return func(e *ldap.Entry) error {
		id, err := w.c.identify(e)
		if err != nil {
			return err
		}
		if w.people[id] != nil || w.groups[id] != nil {
			return unreadable("two entries below %.200q have one %s", place(e.DN), w.c.ID)
		}
		return put(e)
	}
}

// pages reads one search to its end. The end is known by the control that
// comes with the last page: the library reports a connection that broke, or a
// search that was given up, as an end like any other.
func (l *link) pages(ctx context.Context, request func(...ldap.Control) *ldap.SearchRequest, put func(*ldap.Entry) error) error {
	cookie := []byte(nil)
	for page := 0; ; page++ {
		paging := ldap.NewControlPaging(pageSize)
		paging.SetCookie(cookie)
		next, err := l.page(ctx, request(paging), put)
		if err != nil {
			return err
		}
		if len(next) == 0 {
			return nil
		}
		if bytes.Equal(next, cookie) && page > maxPeopleEver/pageSize {
			return unreadable("its pages do not end")
		}
		cookie = next
	}
}

func (l *link) page(ctx context.Context, request *ldap.SearchRequest, put func(*ldap.Entry) error) (cookie []byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := l.conn.SearchAsync(ctx, request, bufferred)
	ended, count := false, 0
	for r.Next() {
		if r.Referral() != "" {
			return nil, unreadable("a part of it is elsewhere (a referral to %.100q)", r.Referral())
		}
		if e := r.Entry(); e != nil {
			if count++; count > pageSize {
				return nil, unreadable("a page of %d has more entries", pageSize)
			}
			if err := put(e); err != nil {
				return nil, err
			}
			continue
		}
		for _, c := range r.Controls() {
			if p, ok := c.(*ldap.ControlPaging); ok {
				ended, cookie = true, p.Cookie
			}
		}
	}
	switch {
	case r.Err() != nil:
		return nil, fault.Wrap(fault.Unavailable, r.Err(), "cannot read the directory")
	case ctx.Err() != nil:
		return nil, fault.Wrap(fault.Unavailable, ctx.Err(), "cannot read the directory")
	case !ended:
		return nil, unreadable("a page broke off before its end, or the server does not say where it ends")
	case len(cookie) > maxCookie:
		return nil, unreadable("the cookie of a page has %d bytes", len(cookie))
	}
	return cookie, nil
}

const maxCookie = 64 << 10

// fromPeople and fromGroups are the two searches that are followed at once.
const (
	fromPeople = iota
	fromGroups
	searches
)

// said is what one of the followed searches said.
type said struct {
	from     int
	entry    *ldap.Entry
	referral string
	controls []ldap.Control
	err      error // the search is over, and should not be
}

// follow reads everything and then what changes, as the server pushes it. tell
// gets each world that is whole; it must not keep it. follow returns nil when
// it is time to begin anew, an error when the directory broke off.
func (l *link) follow(ctx context.Context, tell func(*world) error, on signals) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, l.close)()
	heard := make(chan said, bufferred)
	for from, request := range [searches]*ldap.SearchRequest{l.people(), l.groups()} {
		// No cookie: a connection begins with everything, so that what is held is
		// always what was read in one piece.
		r := l.conn.Syncrepl(ctx, request, bufferred, ldap.SyncRequestModeRefreshAndPersist, nil, false)
		go func() {
			for r.Next() {
				if !hear(ctx, heard, said{from: from, entry: r.Entry(), referral: r.Referral(), controls: r.Controls()}) {
					return
				}
			}
			err := r.Err()
			if err == nil {
				err = io.ErrUnexpectedEOF // a search that is followed has no end
			}
			hear(ctx, heard, said{from: from, err: err})
		}()
	}
	t := &tracker{w: newWorld(l.c)}
	return l.track(ctx, t, heard, tell, on)
}

// signals is what else happens while a directory is followed.
type signals struct {
	alive func() error    // it answers; nil: nobody wants to know
	again <-chan struct{} // tell once more what is known
	anew  <-chan struct{} // begin anew
}

func hear(ctx context.Context, to chan<- said, what said) bool {
	select {
	case to <- what:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *link) track(ctx context.Context, t *tracker, heard <-chan said, tell func(*world) error, on signals) error {
	begin := time.NewTimer(readWithin)
	defer begin.Stop()
	renew := time.NewTimer(renewAfter)
	defer renew.Stop()
	ask := time.NewTicker(askAlive)
	defer ask.Stop()
	answered := make(chan error, 1)
	answered <- nil
	var calm, most <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s := <-heard:
			if err := t.step(s); err != nil {
				return err
			}
			if t.whole() && t.dirty {
				calm = time.After(settle)
				if most == nil {
					most = time.After(settleMost)
				}
			}
			continue
		case <-calm:
		case <-most:
		case <-ask.C:
			select {
			case err := <-answered:
				if err != nil {
					return fault.Wrap(fault.Unavailable, err, "cannot read the directory: it stopped answering")
				}
				if t.whole() && on.alive != nil {
					if err := on.alive(); err != nil {
						return err
					}
				}
				go func() { answered <- l.alive() }()
			default: // the one before has not answered; silence ends the connection
			}
			continue
		case <-begin.C:
			if !t.whole() {
				return unreadable("it was not read within %s", readWithin)
			}
			continue
		case <-on.again:
			if !t.whole() {
				continue
			}
		case <-on.anew:
			return nil
		case <-renew.C:
			return nil
		}
		calm, most, t.dirty, t.w.read = nil, nil, false, time.Now()
		if err := tell(t.w); err != nil {
			return err
		}
	}
}

// alive asks something small. Its answer also shows that what was pushed before
// it has arrived.
func (l *link) alive() error {
	_, err := l.conn.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false,
		"(objectClass=*)", []string{"1.1"}, nil))
	return err
}

// tracker applies what the followed searches say to a world, one thing at a
// time. It is pure: what it holds depends on nothing but what was said.
type tracker struct {
	w     *world
	done  [searches]bool // everything came once
	dirty bool
	first map[string]bool // ids of the first reading
}

func (t *tracker) whole() bool { return t.done[fromPeople] && t.done[fromGroups] }

// step takes one thing in. What it does not understand is an error: the world
// would be another than the directory's.
func (t *tracker) step(s said) error {
	if ldap.IsErrorWithCode(s.err, ldap.LDAPResultUnavailableCriticalExtension) && !t.done[s.from] {
		return errNoPush
	}
	if s.err != nil {
		return fault.Wrap(fault.Unavailable, s.err, "cannot read the directory: it broke off")
	}
	if s.referral != "" {
		return unreadable("a part of it is elsewhere (a referral to %.100q)", s.referral)
	}
	known := false
	for _, c := range s.controls {
		switch c := c.(type) {
		case *ldap.ControlSyncState:
			if s.entry == nil {
				return unreadable("it says that something changed, and not what")
			}
			known = true
			if err := t.state(s.from, s.entry, c); err != nil {
				return err
			}
		case *ldap.ControlSyncInfo:
			known = true
			if err := t.info(s.from, c); err != nil {
				return err
			}
		case *ldap.ControlSyncDone:
			return unreadable("it ended what it was to follow")
		}
	}
	if s.entry != nil && !known {
		return unreadable("an entry came that says not whether it is new")
	}
	return nil
}

func (t *tracker) state(from int, e *ldap.Entry, c *ldap.ControlSyncState) error {
	id, err := uuidText(c.EntryUUID[:], false)
	if err != nil {
		return unreadable("%v", err)
	}
	switch c.State {
	case ldap.SyncStateDelete:
		if !t.done[from] {
			return unreadable("it takes away what it never gave")
		}
		t.w.remove(id)
		t.dirty = true
		return nil
	case ldap.SyncStateAdd, ldap.SyncStateModify:
	default:
		return unreadable("it speaks of an earlier reading, which was not asked for")
	}
	if own, err := t.w.c.identify(e); err != nil || own != id {
		if err == nil {
			err = unreadable("an entry below %.200q has two ids", place(e.DN))
		}
		return err
	}
	if !t.done[from] {
		if t.first == nil {
			t.first = map[string]bool{}
		}
		if t.first[id] {
			return unreadable("two entries below %.200q have one id", place(e.DN))
		}
		t.first[id] = true
	}
	if err := t.moved(id, e.DN); err != nil {
		return err
	}
	t.dirty = true
	if from == fromPeople {
		return t.w.putPerson(e)
	}
	return t.w.putGroup(e)
}

// errNoPush says that the server does not push changes (RFC 4533).
var errNoPush = errors.New("the directory does not push changes")

// errAnew says that following cannot go on from here, and reading can.
var errAnew = errors.New("a branch of the directory was moved; everything is read again")

// moved notices a branch that was renamed: what is below it has other names
// now, and nobody says so one by one.
func (t *tracker) moved(id, dn string) error {
	old := ""
	if h := t.w.people[id]; h != nil {
		old = h.dn
	} else if b := t.w.groups[id]; b != nil {
		old = b.dn
	}
	if old == "" || strings.EqualFold(old, dn) {
		return nil
	}
	below := "," + strings.ToLower(old)
	for _, h := range t.w.people {
		if strings.HasSuffix(strings.ToLower(h.dn), below) {
			return errAnew
		}
	}
	for _, b := range t.w.groups {
		if strings.HasSuffix(strings.ToLower(b.dn), below) {
			return errAnew
		}
	}
	return nil
}

func (t *tracker) info(from int, c *ldap.ControlSyncInfo) error {
	done := false
	switch {
	case c.NewCookie != nil:
	case c.RefreshDelete != nil:
		done = c.RefreshDelete.RefreshDone
	case c.RefreshPresent != nil:
		done = c.RefreshPresent.RefreshDone
	case c.SyncIdSet != nil:
		if !c.SyncIdSet.RefreshDeletes || !t.done[from] {
			return unreadable("it speaks of an earlier reading, which was not asked for")
		}
		for _, u := range c.SyncIdSet.SyncUUIDs {
			id, err := uuidText(slices.Clone(u[:]), false)
			if err != nil {
				return unreadable("%v", err)
			}
			t.w.remove(id)
		}
		t.dirty = true
	}
	if done && !t.done[from] {
		t.done[from], t.dirty = true, true
		if t.whole() {
			t.first = nil
		}
	}
	return nil
}
