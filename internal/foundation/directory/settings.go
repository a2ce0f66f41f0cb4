package directory

import (
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/when"
)

// Settings is the [directory] of handrail.toml. Which groups of the directory
// count, and as what, is said here and nowhere else: a group that is not named
// gives nothing, whatever it is called over there.
type Settings struct {
	URL          string              `toml:"url" about:"ldaps://HOST or ldap://HOST of the company's directory; empty: there is none"`
	StartTLS     bool                `toml:"starttls" about:"begin TLS on an ldap:// connection"`
	CAFile       string              `toml:"ca-file" about:"file of the authority that signed its certificate (PEM; default: the system's)"`
	BindDN       string              `toml:"bind-dn" about:"the account that reads the directory"`
	PasswordFile string              `toml:"bind-password-file" about:"file that holds that account's password"`
	People       string              `toml:"people" about:"DN below which the people are"`
	PeopleFilter string              `toml:"people-filter" about:"LDAP filter of the people (default (objectClass=person))"`
	Groups       string              `toml:"groups" about:"DN below which the groups are"`
	GroupsFilter string              `toml:"groups-filter" about:"LDAP filter of the groups (default: groupOfNames, groupOfUniqueNames, group, posixGroup)"`
	ID           string              `toml:"id" about:"attribute that never changes: entryUUID (default) or objectGUID"`
	Name         string              `toml:"name" about:"attribute of the login name (default uid, with objectGUID sAMAccountName)"`
	GroupName    string              `toml:"group-name" about:"attribute of a group's name (default cn)"`
	Member       string              `toml:"member" about:"attribute of a group's members (default member; uniqueMember and memberUid work too)"`
	Manager      string              `toml:"manager" about:"attribute that holds the DN of somebody's manager (default manager)"`
	Map          map[string][]string `toml:"map" about:"which groups of the directory make which group here: operator = [\"ops\", \"cn=sre,ou=groups,dc=example,dc=com\"]"`
	AskFirst     []string            `toml:"ask-first" about:"groups here that nobody enters by the directory until a person agrees (default admin)"`
	StaleAfter   string              `toml:"stale-after" about:"age of the copy from which a grant needs one approver more (default 1h)"`
	Every        string              `toml:"every" about:"how often to read everything where the directory cannot push changes (default 1m)"`
	MaxPeople    int                 `toml:"max-people" about:"more people than this are a mistake, not a company (default 50000)"`
	Login        bool                `toml:"login" about:"let people log in with the password that the directory knows"`

	// What the files held, read by whoever may read them; never in a file itself.
	CA       []byte `toml:"-"`
	Password string `toml:"-" json:",omitempty"`
}

// The bounds of settings, and of what a directory can make us keep.
const (
	maxMapped      = 64
	maxNames       = 256 // directory groups named in Map
	maxPeopleEver  = 500000
	maxGroups      = 50000
	maxMembers     = 4 << 20 // of all groups
	shortestEvery  = 2 * time.Second
	shortestStale  = time.Minute
	longestSetting = 4096
)

const (
	defaultPeopleFilter = "(objectClass=person)"
	defaultGroupsFilter = "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=group)(objectClass=posixGroup))"
)

// config is settings that were checked, with every default filled in.
type config struct {
	Settings
	host       string // host:port
	serverName string
	tls        bool // from the first byte
	pool       *x509.CertPool
	people     string // as given; parsed by now
	groups     string
	stale      time.Duration
	every      time.Duration
	guid       bool // ID is a GUID in Microsoft's byte order
	byName     bool // members are login names, not DNs
}

// On says whether there is a directory at all.
func (s Settings) On() bool { return s.URL != "" }

// Check says what is wrong with the settings, before anything is connected.
func (s Settings) Check() error {
	if !s.On() {
		return bad("url", "it is missing")
	}
	_, err := s.check()
	return err
}

// CheckText is Check before the files that the settings name were read.
func (s Settings) CheckText() error {
	if s.PasswordFile != "" {
		s.Password = "of the file"
	}
	return s.Check()
}

func bad(key, format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use [directory] "+key+": "+format, args...).WithHint("handrail config explain")
}

func (s Settings) check() (config, error) {
	c := config{Settings: s}
	for key, value := range map[string]string{"url": s.URL, "bind-dn": s.BindDN, "people": s.People, "groups": s.Groups,
		"people-filter": s.PeopleFilter, "groups-filter": s.GroupsFilter, "id": s.ID, "name": s.Name, "group-name": s.GroupName,
		"member": s.Member, "manager": s.Manager} {
		if len(value) > longestSetting {
			return c, bad(key, "it is longer than %d bytes", longestSetting)
		}
	}
	for _, step := range []func() error{c.checkURL, c.checkBind, c.checkPlaces, c.checkAttributes, c.checkMap, c.checkTimes} {
		if err := step(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// checkURL wants TLS wherever somebody could listen: whoever reads the wire
// reads the password of the account, and whoever writes it decides who is admin.
func (c *config) checkURL() error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return bad("url", "%.100q is not ldaps://HOST[:PORT] or ldap://HOST[:PORT]", c.URL)
	}
	port := u.Port()
	switch u.Scheme {
	case "ldaps":
		c.tls = true
		if port == "" {
			port = "636"
		}
	case "ldap":
		if port == "" {
			port = "389"
		}
	default:
		return bad("url", "%.20q is neither ldaps nor ldap", u.Scheme)
	}
	c.serverName, c.host = u.Hostname(), net.JoinHostPort(u.Hostname(), port)
	if c.tls && c.StartTLS {
		return bad("starttls", "an ldaps:// connection is TLS already")
	}
	ip, err := netip.ParseAddr(c.serverName)
	here := c.serverName == "localhost" || err == nil && ip.IsLoopback()
	if !c.tls && !c.StartTLS && !here {
		return bad("url", "%s would be read without TLS; use ldaps:// or starttls = true", c.serverName)
	}
	if len(c.CA) > 0 {
		c.pool = x509.NewCertPool()
		if !c.pool.AppendCertsFromPEM(c.CA) {
			return bad("ca-file", "%s holds no certificate (PEM)", c.CAFile)
		}
	}
	return nil
}

func (c *config) checkBind() error {
	if c.BindDN == "" {
		if c.Password != "" || c.PasswordFile != "" {
			return bad("bind-dn", "there is a password but no account")
		}
		return nil
	}
	if _, err := parseDN(c.BindDN); err != nil {
		return bad("bind-dn", "%v", err)
	}
	// RFC 4513 5.1.2: a bind with a name and no password succeeds everywhere, as
	// nobody. What nobody may see would look like a smaller company.
	if c.Password == "" {
		return bad("bind-password-file", "it is missing or empty, and a bind without a password is anonymous")
	}
	return nil
}

func (c *config) checkPlaces() error {
	c.people, c.groups = c.People, c.Groups
	for key, dn := range map[string]string{"people": c.people, "groups": c.groups} {
		if dn == "" {
			return bad(key, "it is missing")
		}
		if _, err := parseDN(dn); err != nil {
			return bad(key, "%v", err)
		}
	}
	for key, filter := range map[string]*string{"people-filter": &c.PeopleFilter, "groups-filter": &c.GroupsFilter} {
		if *filter == "" {
			*filter = map[string]string{"people-filter": defaultPeopleFilter, "groups-filter": defaultGroupsFilter}[key]
		}
		if _, err := ldap.CompileFilter(*filter); err != nil {
			return bad(key, "%.200q is no filter: %v", *filter, err)
		}
	}
	return nil
}

func (c *config) checkAttributes() error {
	if c.ID == "" {
		c.ID = "entryUUID"
	}
	c.guid = strings.EqualFold(c.ID, "objectGUID")
	if !c.guid && !strings.EqualFold(c.ID, "entryUUID") {
		return bad("id", "%.40q can change: use entryUUID or objectGUID", c.ID)
	}
	name := "uid"
	if c.guid {
		name = "sAMAccountName"
	}
	for _, a := range []struct {
		key   string
		value *string
		other string
	}{{"name", &c.Name, name}, {"group-name", &c.GroupName, "cn"}, {"member", &c.Member, "member"}, {"manager", &c.Manager, "manager"}} {
		if *a.value == "" {
			*a.value = a.other
		}
		if !attributeName(*a.value) {
			return bad(a.key, "%.40q is no attribute", *a.value)
		}
	}
	c.byName = strings.EqualFold(c.Member, "memberUid")
	if c.MaxPeople == 0 {
		c.MaxPeople = 50000
	}
	if c.MaxPeople < 1 || c.MaxPeople > maxPeopleEver {
		return bad("max-people", "%d is not from 1 to %d", c.MaxPeople, maxPeopleEver)
	}
	return nil
}

// attributeName says whether it is an attribute's name and nothing that would
// ask for more: no option, no OID list, no wildcard.
func attributeName(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r != '-' && (r < '0' || r > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (c *config) checkMap() error {
	if len(c.Map) > maxMapped {
		return bad("map", "it names %d groups, at most %d", len(c.Map), maxMapped)
	}
	total := 0
	for here, there := range c.Map {
		if _, err := identity.CheckGroups([]string{here}); err != nil {
			return bad("map", "%v", err)
		}
		for _, name := range there {
			if strings.TrimSpace(name) == "" {
				return bad("map."+here, "a name is empty")
			}
			if total++; total > maxNames || len(name) > longestSetting {
				return bad("map", "it names more than %d groups of the directory", maxNames)
			}
		}
	}
	if c.AskFirst == nil {
		c.AskFirst = []string{identity.AdminGroup}
	}
	for _, g := range c.AskFirst {
		if _, there := c.Map[g]; !there && !(len(c.AskFirst) == 1 && g == identity.AdminGroup) {
			return bad("ask-first", "%.40q is in no [directory.map]", g)
		}
	}
	return nil
}

func (c *config) checkTimes() (err error) {
	c.stale, c.every = time.Hour, time.Minute
	for _, t := range []struct {
		key, text string
		into      *time.Duration
		least     time.Duration
	}{{"stale-after", c.StaleAfter, &c.stale, shortestStale}, {"every", c.Every, &c.every, shortestEvery}} {
		if t.text == "" {
			continue
		}
		if *t.into, err = when.Duration(t.text); err != nil {
			return bad(t.key, "%v", err)
		}
		if *t.into < t.least {
			return bad(t.key, "%s is less than %s", t.text, when.Words(t.least))
		}
	}
	return nil
}

// asksFirst says whether nobody enters that group by the directory alone.
func (c config) asksFirst(group string) bool { return slices.Contains(c.AskFirst, group) }

// Keys are the names of the settings, in order; About says what each is.
func Keys() []string {
	t := reflect.TypeFor[Settings]()
	var keys []string
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("toml"); key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

// About says what a setting is.
func About(key string) string {
	t := reflect.TypeFor[Settings]()
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("toml") == key {
			return f.Tag.Get("about")
		}
	}
	return ""
}
